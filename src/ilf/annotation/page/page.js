// The annotation page. Texts of tasks and programs become text nodes, never markup.

const CATEGORIES = [ // of mistakes: the paper's table 5
  "logic", "formatting", "missing step", "algebra", "recursion", "regex", "function semantics", "dynamic programming",
  "extra step",
];
const SPLITS = { prompt: "worked example", refine: "Refine", train: "Train" };
const IDLE = 60_000; // milliseconds without activity after which time does not count as work
const SIGN_OF_LIFE = 20_000; // milliseconds between two

const $ = (id) => document.getElementById(id);
const MARKS = { good: ["✓", "passed"], bad: ["✗", "failed"], open: ["○", "not known yet"] };

let annotator = new URLSearchParams(location.search).get("annotator") || localStorage.getItem("ilf/annotator") || "";
let session = sessionStorage.getItem("ilf/session"); // this window: two of one annotator get different tasks
let progress = null; // run, and all tasks with their state
let task = null; // the one that is shown
let draft = null; // what is written for it, and not saved yet
let result = null; // of the last run of the tests on the refinement
let trail = []; // ids before this one, for Back
let busy = false;
let active = 0; // time of the last activity

if (!session) {
  session = Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16)).join("-");
  sessionStorage.setItem("ilf/session", session);
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// ---- the server ------------------------------------------------------------------------------------------------

async function post(path, body = {}, options = {}) {
  let answer;
  try {
    answer = await fetch(`api/${path}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ session, annotator, ...body }),
      ...options,
    });
  } catch {
    throw new Error("The server does not answer. What you wrote is kept in this browser: start the server again with the same command, then repeat this.");
  }
  const content = await answer.json().catch(() => ({ detail: `The server failed (${answer.status}).` }));
  if (answer.ok) return content;
  const { detail } = content;
  throw new Error(Array.isArray(detail) ? detail.map((one) => `${one.loc.at(-1)}: ${one.msg}`).join("; ") : detail);
}

// Do what a button asks for, one thing at a time, and say what went wrong.
async function act(work) {
  if (busy) return;
  busy = true;
  try {
    await work();
  } catch (error) {
    say(error.message, "bad");
  } finally {
    busy = false;
  }
}

// Nothing can be typed while what was typed is on its way.
async function still(work) {
  const focused = document.activeElement;
  $("work").inert = true;
  try {
    await work();
  } finally {
    $("work").inert = false;
    if (task && $("work").contains(focused)) focused.focus();
  }
}

function say(text, kind = "") {
  $("notice").textContent = text;
  $("notice").className = kind;
}

// ---- what is written ---------------------------------------------------------------------------------------------

const key = (...parts) => ["ilf", progress.run, annotator, ...parts].join("/");
const stored = (name) => JSON.parse(localStorage.getItem(name) || "null");
const skipped = () => stored(key("skipped")) || [];

function keep() {
  localStorage.setItem(key(task.task_id), JSON.stringify(draft));
}

function readDraft() {
  const answer = task.answer;
  const own = answer && answer.annotator === annotator;
  const fresh = {
    written: false, // whether anything was, since the last save
    program: answer ? answer.original_model_completion : task.programs[0].text,
    feedback: answer ? answer.Feedback : "",
    bugs: (answer && answer.bugs) ?? null,
    categories: (answer && answer.categories) || [],
    refinements: {}, // by program, where it was edited
    best: {}, // by program, the smallest edit that passed: {text, edits}: a share would fall as text is added
    seconds: own ? answer.seconds || 0 : 0,
  };
  if (answer && answer.unedited_annotator_completion) fresh.refinements[fresh.program] = answer.unedited_annotator_completion;
  const old = stored(key(task.task_id));
  if (!old) return fresh;
  return old.written ? { ...fresh, ...old } : { ...fresh, seconds: Math.max(old.seconds, fresh.seconds) };
}

const chosen = () => task.programs.find((one) => one.text === draft.program) || task.programs[0];
const refinement = () => draft.refinements[draft.program] ?? draft.program;
const changed = () => refinement().trimEnd() !== draft.program.replace(/\r\n?/g, "\n").trimEnd();

function write(change) {
  Object.assign(draft, change, { written: true });
  keep();
  showState();
}

function writeRefinement(text) {
  const refinements = { ...draft.refinements, [draft.program]: text };
  if (text === draft.program) delete refinements[draft.program];
  write({ refinements });
  showResult();
}

// ---- going from task to task -----------------------------------------------------------------------------------------

async function open(task_id = null) {
  const answer = await post("open", { task_id, skipped: skipped() });
  task = answer.task;
  result = null;
  say("");
  showProgress(answer.progress);
  $("work").hidden = !task;
  $("done").hidden = Boolean(task);
  for (const id of ["skip", "save"]) $(id).disabled = !task;
  history.replaceState(null, "", task ? `#${task.task_id}` : location.pathname + location.search);
  if (!task) {
    draft = null;
    const held = progress.tasks.filter((one) => one.held_by.length && !one.answered_by).length;
    $("done-text").textContent = held
      ? `${held} more are open in somebody's window: you find them under Tasks.`
      : "All have an answer. Back and Tasks lead to them, to change what you wrote.";
    $("state").textContent = "";
    return;
  }
  draft = readDraft();
  showTask();
  const others = progress.tasks.find((one) => one.task_id === task.task_id).held_by.filter((name) => name !== annotator);
  if (others.length) say(`${others.join(" and ")} has this task open too. Nothing is lost: every answer stays in the file, and the last one counts.`);
}

function leaveFor(id) {
  act(async () => {
    const from = task && task.task_id;
    await open(id);
    if (from && from !== id) trail.push(from);
  });
}

const skip = () => act(async () => {
  if (!task) return;
  const id = task.task_id;
  localStorage.setItem(key("skipped"), JSON.stringify([...skipped().filter((one) => one !== id), id]));
  await open();
  trail.push(id);
  if (task && task.task_id === id) say("This is the only task that is open.");
});

const back = () => act(async () => {
  if (!trail.length) return say("There is no task before this one.");
  await open(trail.at(-1));
  trail.pop();
});

const save = () => act(async () => {
  if (!task) return;
  if (!draft.feedback.trim()) {
    $("feedback").focus();
    throw new Error("Write feedback first: it is what the model learns from.");
  }
  const { task_id } = task;
  await still(async () => {
    const { saved } = await post("answer", {
      task_id, program: draft.program, feedback: draft.feedback, refinement: refinement(), bugs: draft.bugs,
      categories: draft.categories, seconds: draft.seconds,
    });
    task.answer = saved;
    draft.written = false;
    localStorage.removeItem(key(task_id));
    localStorage.setItem(key("skipped"), JSON.stringify(skipped().filter((one) => one !== task_id)));
  });
  await open();
  trail.push(task_id);
  say(`Task ${task_id} is saved.`, "good");
});

const run = () => act(async () => {
  if (!task) return;
  const [text, program] = [refinement(), draft.program];
  $("run").disabled = true;
  $("run").textContent = "Running …";
  try {
    const found = await post("run", { task_id: task.task_id, program, refinement: text });
    const best = draft.best[program];
    const better = found.passed && found.edits && !(best && best.edits <= found.edits);
    if (better) draft.best = { ...draft.best, [program]: { text, edits: found.edits } };
    keep();
    result = { ...found, text, program };
    say("");
  } finally {
    $("run").disabled = false;
    $("run").textContent = "Run tests";
    showResult();
  }
});

// ---- what is shown -----------------------------------------------------------------------------------------------------

const tokens = (parts) => parts.map(([kind, text]) => (kind ? element("span", { className: kind }, text) : text));

function mark(kind, ...content) {
  const [sign, meaning] = MARKS[kind];
  const hidden = element("span", { className: "hidden" }, `${meaning}: `);
  const shown = element("span", { className: "mark" }, sign);
  shown.ariaHidden = "true";
  return element("li", { className: kind }, shown, hidden, ...content);
}

// The tests that were run are the last ones: those that the prompt shows may be left out.
const outcomeOf = (verdict, i) => {
  const own = verdict.tests[i - (task.tests.length - verdict.tests.length)];
  return own === undefined ? "open" : own ? "good" : "bad";
};

function showTask() {
  $("task-id").textContent = `Task ${task.task_id}`;
  $("split").textContent = SPLITS[task.split] || task.split;
  $("text").textContent = task.text;
  $("setup").replaceChildren();
  if (task.setup.length) {
    const code = element("div", { className: "code" }, element("pre", {}, ...tokens(task.setup)));
    $("setup").append(element("h3", {}, "Code before the tests"), code);
  }
  $("programs").replaceChildren(...task.programs.map((one, i) => {
    const input = element("input", { type: "radio", name: "program", value: String(i) });
    input.addEventListener("change", () => choose(i));
    const passed = one.tests.filter(Boolean).length;
    const often = one.count > 1 ? ` · ${one.count}×` : one.count ? "" : " · answered before";
    const label = element("span", {}, `${i + 1}: ${passed}/${one.tests.length}${often}`);
    const title = `Passes ${passed} of ${one.tests.length} tests; samples: ${one.count}${i < 9 ? ` (key ${i + 1})` : ""}`;
    return element("label", { title }, input, label);
  }));
  $("programs-label").textContent = task.programs.length > 1
    ? `${task.programs.length} failing programs, with the tests they pass: choose one` : "Failing program";
  $("programs").hidden = task.programs.length < 2;
  $("feedback").value = draft.feedback;
  $("bugs").value = draft.bugs ?? "";
  const known = [...CATEGORIES, ...draft.categories.filter((one) => !CATEGORIES.includes(one))];
  $("categories").replaceChildren(...known.map((name) => {
    const input = element("input", { type: "checkbox", checked: draft.categories.includes(name) });
    input.addEventListener("change", () => {
      const others = draft.categories.filter((one) => one !== name);
      write({ categories: input.checked ? [...others, name] : others });
    });
    return element("label", {}, input, element("span", {}, name));
  }));
  showProgram();
  for (const part of $("work").children) part.scrollTop = 0;
  scrollTo(0, 0);
}

function showProgram() {
  const program = chosen();
  draft.program = program.text;
  const at = task.programs.indexOf(program);
  $("programs").querySelectorAll("input")[at].checked = true;
  $("tests").replaceChildren(...task.tests.map((test, i) => (
    mark(outcomeOf(program, i), element("div", { className: "code" }, element("pre", {}, ...tokens(test))))
  )));
  const lines = program.text.replace(/\n$/, "").split("\n").map((_, i) => i + 1).join("\n");
  const numbers = element("pre", { className: "numbers" }, lines);
  numbers.ariaHidden = "true";
  const given = element("span", { className: "given", title: "Given by the task" }, ...tokens(program.given));
  $("program").replaceChildren(numbers, element("pre", {}, given, ...tokens(program.own)));
  $("verdict").replaceChildren(element("b", {}, program.verdict), program.detail);
  $("refinement").value = refinement();
  showResult();
  showState();
}

function choose(i) {
  if (!task || !task.programs[i] || task.programs[i] === chosen()) return;
  draft.program = task.programs[i].text; // what was edited of the other one is kept
  keep();
  showProgram();
}

function showResult() {
  const fresh = result && result.program === draft.program && result.text === refinement();
  const shown = result && result.program === draft.program;
  const outcomes = shown ? task.tests.map((_, i) => mark(outcomeOf(result, i), `test ${i + 1}`)) : [];
  $("outcomes").replaceChildren(...outcomes, ...(shown && !fresh ? [element("li", { className: "hint" }, "changed since")] : []));
  $("outcomes").classList.toggle("stale", Boolean(shown && !fresh));
  $("detail").textContent = fresh && !result.passed ? `${result.verdict}: ${result.detail}` : "";
  $("restore").hidden = !changed();
  if (!changed()) {
    $("rules").replaceChildren(mark("open", "No refinement yet: as it is, the feedback is saved alone."));
    return;
  }
  const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}%`;
  const edits = (count) => `${count} character${count === 1 ? "" : "s"}`;
  const best = draft.best[draft.program];
  const rules = [
    fresh ? mark(result.passed ? "good" : "bad", "passes all tests") : mark("open", "passes all tests: run them"),
    fresh
      ? mark(result.distance < 0.5 ? "good" : "bad", `edit distance below half: ${percent(result.distance)}, ${edits(result.edits)}`)
      : mark("open", "edit distance below half"),
  ];
  if (best && best.text !== refinement() && !(fresh && result.passed && result.edits <= best.edits)) {
    const return_ = element("button", { type: "button", className: "quiet" }, "Go back to it");
    return_.addEventListener("click", () => {
      setRefinement(best.text);
      run();
    });
    rules.push(mark(fresh ? "bad" : "open", `smallest edit: one of ${edits(best.edits)} passed. `, return_));
  } else {
    rules.push(mark(best ? "good" : "open", best ? "smallest edit that has passed so far" : "smallest edit"));
  }
  $("rules").replaceChildren(...rules);
}

function setRefinement(text) {
  $("refinement").value = text;
  writeRefinement(text);
}

function showState() {
  const saved = task.answer ? `answered by ${task.answer.annotator || "somebody"}` : "not answered yet";
  $("state").textContent = draft.written ? "not saved; kept in this browser" : saved;
}

function showProgress(news) {
  progress = news;
  const answered = progress.tasks.filter((one) => one.answered_by);
  $("bar").max = progress.tasks.length;
  $("bar").value = answered.length;
  $("count").textContent = `${answered.length} of ${progress.tasks.length} answered`;
  $("splits").textContent = Object.keys(SPLITS).flatMap((split) => {
    const own = progress.tasks.filter((one) => one.split === split);
    const done = own.filter((one) => one.answered_by).length;
    return own.length ? `${SPLITS[split]}: ${done} of ${own.length} answered` : [];
  }).join(" · ");
}

function showTasks() {
  const later = skipped();
  $("tasks").replaceChildren(...progress.tasks.map((one) => {
    const held = one.held_by.filter((name) => name !== annotator || !task || one.task_id !== task.task_id);
    const state = one.answered_by ? `answered by ${one.answered_by}`
      : held.length ? `in work by ${held.join(", ")}` : later.includes(one.task_id) ? "skipped" : "open";
    const button = element(
      "button", { type: "button", className: one.answered_by ? "answered" : "", title: `${one.text} (${state})` },
      element("span", {}, String(one.task_id)), element("span", {}, one.text), element("span", {}, state),
    );
    if (task && one.task_id === task.task_id) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => {
      $("tasks-dialog").close();
      leaveFor(one.task_id);
    });
    return element("li", {}, button);
  }));
  $("tasks-dialog").showModal();
}

// ---- boxes and keys -------------------------------------------------------------------------------------------------------

$("feedback").addEventListener("input", () => write({ feedback: $("feedback").value }));
$("bugs").addEventListener("input", () => write({ bugs: $("bugs").value ? Number($("bugs").value) : null }));
$("refinement").addEventListener("input", () => writeRefinement($("refinement").value));
$("answer").addEventListener("submit", (event) => event.preventDefault());
$("run").addEventListener("click", run);
$("save").addEventListener("click", save);
$("skip").addEventListener("click", skip);
$("back").addEventListener("click", back);
$("restore").addEventListener("click", () => setRefinement(draft.program));
$("tasks-button").addEventListener("click", showTasks);
$("keys-button").addEventListener("click", () => $("keys-dialog").showModal());
$("name-button").addEventListener("click", askName);
for (const button of document.querySelectorAll(".close")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}

$("refinement").addEventListener("keydown", (event) => {
  const box = event.target;
  const insert = (text) => document.execCommand("insertText", false, text); // can be undone, unlike a new value
  if (event.key === "Tab" && !event.shiftKey && !event.ctrlKey && !event.altKey && !event.metaKey) {
    event.preventDefault();
    insert("    ");
  } else if (event.key === "Enter" && !event.isComposing && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    const line = box.value.slice(0, box.selectionStart).split("\n").at(-1);
    insert(`\n${line.match(/^[ \t]*/)[0]}${/:\s*$/.test(line) ? "    " : ""}`);
  }
});

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  const { target } = event;
  const inBox = target.matches("textarea, input:not([type=radio], [type=checkbox])");
  if ((event.ctrlKey || event.metaKey) && !event.altKey && !event.shiftKey) {
    const command = { Enter: run, s: save }[event.key];
    if (!command) return;
    event.preventDefault();
    command();
  } else if (event.key === "Escape" && inBox && !event.isComposing) {
    target.blur(); // Tab then goes on from here
  } else if (!inBox && !event.ctrlKey && !event.metaKey && !event.altKey) {
    const commands = {
      n: skip, b: back, f: () => $("feedback").focus(), r: () => $("refinement").focus(),
      t: showTasks, "?": () => $("keys-dialog").showModal(),
    };
    const command = /^[1-9]$/.test(event.key) ? () => choose(event.key - 1) : commands[event.key];
    if (!command) return;
    event.preventDefault();
    command();
  }
});

for (const kind of ["keydown", "pointermove", "pointerdown", "wheel", "input"]) {
  document.addEventListener(kind, () => { active = Date.now(); }, { passive: true, capture: true });
}
setInterval(() => {
  if (!draft || document.hidden || Date.now() - active > IDLE) return;
  draft.seconds += 1;
  if (draft.seconds % 5 < 1) keep();
}, 1000);
setInterval(async () => {
  if (!annotator || !progress || busy) return;
  const news = await post("progress", { task_id: task && task.task_id }).catch(() => null);
  if (news && !busy) showProgress(news);
}, SIGN_OF_LIFE);
addEventListener("pagehide", () => {
  if (draft) keep();
  if (annotator) post("leave", {}, { keepalive: true }).catch(() => null);
});
addEventListener("hashchange", () => {
  const id = Number(location.hash.slice(1));
  if (id && !(task && task.task_id === id)) leaveFor(id);
});

// ---- the start -----------------------------------------------------------------------------------------------------------

function askName() {
  $("name").value = annotator;
  $("name-dialog").showModal();
}

$("name-form").addEventListener("submit", (event) => {
  event.preventDefault();
  annotator = $("name").value.trim();
  if (!annotator) return;
  $("name-dialog").close();
  start();
});

const start = () => act(async () => {
  localStorage.setItem("ilf/annotator", annotator);
  $("name-button").textContent = annotator;
  showProgress(await post("progress"));
  const own = progress.tasks.filter((one) => one.answered_by === annotator);
  trail = own.sort((a, b) => (a.saved < b.saved ? -1 : 1)).map((one) => one.task_id);
  await open(Number(location.hash.slice(1)) || null);
});

if (annotator) start();
else askName();
