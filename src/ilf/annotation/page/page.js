// Handles the annotator's input: buttons, boxes and keys.

import { chosen, forget, keep, post, readDraft, refinement, setRefinement, setSkipped, skipped, state } from "./draft.js";
import { $, say, showProgram, showProgress, showResult, showTask, showTasks } from "./show.js";

const IDLE = 60_000; // milliseconds without activity after which time no longer counts as work
const SIGN_OF_LIFE = 20_000; // milliseconds between two heartbeats

let trail = []; // ids of the previous tasks, for Back
let busy = false;
let active = 0; // time of the last activity

// Runs one action at a time, and shows its error if it fails.
async function act(work) {
  if (busy) {
    say("One moment: the last request is still running.");
    return;
  }
  busy = true;
  try {
    await work();
  } catch (error) {
    say(error.message, "bad");
  } finally {
    busy = false;
  }
}

// Blocks input while an answer is being sent.
async function still(work) {
  const focused = document.activeElement;
  $("work").inert = true;
  try {
    await work();
  } finally {
    $("work").inert = false;
    if ($("work").contains(focused)) focused.focus();
  }
}

function write(change) {
  Object.assign(state.draft, change, { written: true });
  keep();
  showResult();
}

function writeRefinement(text) {
  setRefinement(text);
  write({});
}

// ---- from task to task ---------------------------------------------------------------------------------------------

async function open(task_id = null) {
  const { task, progress } = await post("open", { task_id, skipped: skipped() });
  Object.assign(state, { task, progress, draft: task && readDraft(task), result: null });
  say("");
  showProgress();
  $("work").hidden = !task;
  $("done").hidden = Boolean(task);
  for (const id of ["skip", "save"]) $(id).disabled = !task;
  history.replaceState(null, "", task ? `#${task.task_id}` : location.pathname + location.search);
  if (!task) {
    const held = progress.tasks.filter((one) => one.held_by.length && !one.answered_by).length;
    $("state").textContent = "";
    $("done-text").textContent = held
      ? `${held} more are open in another window. You can find them under Tasks.`
      : "All tasks are answered. To change an answer, use Back or Tasks.";
    return;
  }
  showTask();
  const others = progress.tasks.find((one) => one.task_id === task.task_id).held_by.filter((name) => name !== state.annotator);
  if (others.length) {
    say(`${others.join(" and ")} has this task open too. Nothing is lost: the file keeps every answer, and the last one counts.`);
  }
}

const goTo = (id) => act(async () => {
  const from = state.task && state.task.task_id;
  await open(id);
  if (from && from !== id) trail.push(from);
});

const skip = () => act(async () => {
  if (!state.task) return;
  const { task_id } = state.task;
  setSkipped(task_id, true);
  await open();
  trail.push(task_id);
  if (state.task && state.task.task_id === task_id) say("This is the only open task.");
});

const back = () => act(async () => {
  if (!trail.length) {
    say("There is no previous task.");
    return;
  }
  await open(trail.at(-1));
  trail.pop();
});

const save = () => act(async () => {
  if (!state.task) return;
  const { task: { task_id }, draft: { program, feedback, bugs, categories, seconds } } = state;
  if (!feedback.trim()) {
    $("feedback").focus();
    throw new Error("Write feedback first: the model is trained on it.");
  }
  await still(async () => {
    const answer = { task_id, program, feedback, refinement: refinement(), bugs, categories, seconds };
    forget((await post("answer", answer)).saved);
  });
  await open();
  trail.push(task_id);
  say(`Task ${task_id} is saved.`, "good");
});

const run = () => act(async () => {
  if (!state.task) return;
  const { task: { task_id }, draft, draft: { program } } = state;
  const text = refinement();
  $("run").disabled = true;
  $("run").textContent = "Running …";
  try {
    const found = await post("run", { task_id, program, refinement: text });
    const best = draft.best[program];
    if (found.passed && found.edits && !(best && best.edits <= found.edits)) {
      draft.best = { ...draft.best, [program]: { text, edits: found.edits } };
    }
    keep();
    state.result = { ...found, text, program };
    say("");
  } finally {
    $("run").disabled = false;
    $("run").textContent = "Run tests";
    showResult();
  }
});

function choose(i) {
  const program = state.task && state.task.programs[i];
  if (!program || program === chosen()) return;
  state.draft.program = program.text; // the edited refinement of the previous program is kept
  keep();
  showProgram();
}

// ---- buttons and boxes ---------------------------------------------------------------------------------------------

$("feedback").addEventListener("input", () => write({ feedback: $("feedback").value }));
$("bugs").addEventListener("input", () => write({ bugs: $("bugs").value ? Number($("bugs").value) : null }));
$("refinement").addEventListener("input", () => writeRefinement($("refinement").value));
$("categories").addEventListener("change", () => {
  write({ categories: [...$("categories").querySelectorAll(":checked")].map((input) => input.value) });
});
$("programs").addEventListener("change", (event) => choose(event.target.value));
$("answer").addEventListener("submit", (event) => event.preventDefault());
$("run").addEventListener("click", run);
$("save").addEventListener("click", save);
$("skip").addEventListener("click", skip);
$("back").addEventListener("click", back);
$("restore").addEventListener("click", () => {
  $("refinement").value = state.draft.program;
  writeRefinement(state.draft.program);
});
$("rules").addEventListener("click", (event) => {
  if (event.target.id !== "best") return;
  $("refinement").value = state.draft.best[state.draft.program].text;
  writeRefinement($("refinement").value);
  run();
});
$("tasks-button").addEventListener("click", showTasks);
$("tasks").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  $("tasks-dialog").close();
  goTo(Number(button.value));
});
$("keys-button").addEventListener("click", () => $("keys-dialog").showModal());
$("name-button").addEventListener("click", askName);
for (const button of document.querySelectorAll(".close")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}

// ---- keys ------------------------------------------------------------------------------------------------------------

const KEYS = {
  n: skip,
  b: back,
  f: () => $("feedback").focus(),
  r: () => $("refinement").focus(),
  t: showTasks,
  "?": () => $("keys-dialog").showModal(),
};
const COMMANDS = { Enter: run, s: save }; // with Ctrl or Cmd

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || event.isComposing || !state.progress) return;
  const { target, key } = event;
  const inBox = target.matches("textarea, input:not([type=radio], [type=checkbox])");
  let command;
  if ((event.ctrlKey || event.metaKey) && !event.altKey && !event.shiftKey) command = COMMANDS[key];
  else if (event.ctrlKey || event.metaKey || event.altKey) return;
  else if (inBox) command = key === "Escape" && (() => target.blur()); // Tab then moves on from here
  else command = /^[1-9]$/.test(key) ? () => choose(key - 1) : KEYS[key];
  if (!command) return;
  event.preventDefault();
  command();
});

$("refinement").addEventListener("keydown", (event) => {
  if (event.isComposing || event.shiftKey || event.ctrlKey || event.altKey || event.metaKey) return;
  const { value, selectionStart: start, selectionEnd: end } = event.target;
  const from = value.lastIndexOf("\n", start - 1) + 1;
  const line = value.slice(from, start);
  let text;
  if (event.key === "Enter") {
    text = `\n${line.match(/^[ \t]*/)[0]}${/:\s*$/.test(line) ? "    " : ""}`;
  } else if (event.key !== "Tab") {
    return;
  } else if (value.slice(start, end).includes("\n")) {
    event.target.setSelectionRange(from, end);
    text = value.slice(from, end).replace(/^(?=.)/gm, "    ");
  } else {
    text = "    ";
  }
  event.preventDefault();
  document.execCommand("insertText", false, text); // can be undone, unlike setting the value
});

// ---- time and heartbeats -------------------------------------------------------------------------------------------

for (const kind of ["keydown", "pointermove", "pointerdown", "wheel", "input"]) {
  document.addEventListener(kind, () => { active = Date.now(); }, { passive: true, capture: true });
}
setInterval(() => {
  if (!state.draft || document.hidden || Date.now() - active > IDLE) return;
  state.draft.seconds += 1;
  if (state.draft.seconds % 5 < 1) keep();
}, 1000);
setInterval(async () => {
  if (!state.progress || busy) return;
  const news = await post("progress", { task_id: state.task && state.task.task_id }).catch(() => null);
  if (!news || busy) return;
  if (news.run !== state.progress.run) {
    say("The server now has another run. Reload the page.", "bad");
    return;
  }
  state.progress = news;
  showProgress();
}, SIGN_OF_LIFE);
addEventListener("pagehide", () => {
  if (state.draft) keep();
  if (state.progress) post("leave", {}, { keepalive: true }).catch(() => null);
});
addEventListener("hashchange", () => {
  const id = Number(location.hash.slice(1));
  if (id && !(state.task && state.task.task_id === id)) goTo(id);
});

// ---- start -----------------------------------------------------------------------------------------------------------

function askName() {
  $("name").value = state.annotator;
  $("name-dialog").showModal();
}

$("name-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = $("name").value.trim();
  if (!name) return;
  $("name-dialog").close();
  history.replaceState(null, "", location.pathname + location.hash); // the address may name another annotator
  start(name);
});

// Nothing changes until the server has answered, so that a text that is being written is not lost.
const start = (annotator) => act(async () => {
  const progress = await post("progress", { annotator });
  Object.assign(state, { annotator, progress, task: null, draft: null });
  localStorage.setItem("ilf/annotator", annotator);
  $("name-button").textContent = annotator;
  const own = state.progress.tasks.filter((one) => one.answered_by === state.annotator);
  trail = own.sort((a, b) => (a.saved < b.saved ? -1 : 1)).map((one) => one.task_id);
  const wanted = Number(location.hash.slice(1));
  await open(state.progress.tasks.some((one) => one.task_id === wanted) ? wanted : null);
});

if (state.annotator) start(state.annotator);
else askName();
