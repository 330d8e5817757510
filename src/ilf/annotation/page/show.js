// Renders the state. The texts of tasks and programs become text nodes, never markup.

import { changed, chosen, refinement, skipped, state } from "./draft.js";

const CATEGORIES = [ // of mistakes, from the paper's Table 5
  "logic", "formatting", "missing step", "algebra", "recursion", "regex", "function semantics", "dynamic programming",
  "extra step",
];
const SPLITS = { prompt: "Worked examples", refine: "Refine", train: "Train" };
const MARKS = { good: ["✓", "passed"], bad: ["✗", "failed"], open: ["○", "not known yet"] };

export const $ = (id) => document.getElementById(id);

export function say(text, kind = "") {
  $("notice").textContent = text;
  $("notice").className = kind;
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const tokens = (parts) => parts.map(([kind, text]) => (kind ? element("span", { className: kind }, text) : text));
const code = (parts) => element("div", { className: "code" }, element("pre", {}, ...tokens(parts)));

function mark(kind, ...content) {
  const [sign, meaning] = MARKS[kind];
  const shown = element("span", { className: "mark", ariaHidden: "true" }, sign);
  return element("li", { className: kind }, shown, element("span", { className: "hidden" }, `${meaning}: `), ...content);
}

// The verdict covers the last tests of the task, as the tests that the prompt shows may be left out.
function outcomeOf(verdict, i) {
  const passed = verdict.tests[i - (state.task.tests.length - verdict.tests.length)];
  return passed === undefined ? "open" : passed ? "good" : "bad";
}

// ---- what is wrong -----------------------------------------------------------------------------------------------

export function showTask() {
  const { task, draft } = state;
  $("task-id").textContent = `Task ${task.task_id}`;
  $("split").textContent = SPLITS[task.split];
  $("text").textContent = task.text;
  $("setup").replaceChildren(...(task.setup.length ? [element("h3", {}, "Code before the tests"), code(task.setup)] : []));
  $("programs-label").textContent = task.programs.length > 1
    ? `${task.programs.length} failing programs, with the number of tests that they pass. Choose one` : "Failing program";
  $("programs").hidden = task.programs.length < 2;
  $("programs").replaceChildren(...task.programs.map((one, i) => {
    const passed = one.tests.filter(Boolean).length;
    const often = one.count > 1 ? ` · ${one.count}×` : one.count ? "" : " · answered before";
    const title = `Passes ${passed} of ${one.tests.length} tests; samples: ${one.count}${i < 9 ? ` (key ${i + 1})` : ""}`;
    const input = element("input", { type: "radio", name: "program", value: String(i) });
    return element("label", { title }, input, element("span", {}, `${i + 1}: ${passed}/${one.tests.length}${often}`));
  }));
  $("feedback").value = draft.feedback;
  $("bugs").value = draft.bugs ?? "";
  const known = [...CATEGORIES, ...draft.categories.filter((one) => !CATEGORIES.includes(one))];
  $("categories").replaceChildren(...known.map((name) => {
    const input = element("input", { type: "checkbox", value: name, checked: draft.categories.includes(name) });
    return element("label", {}, input, element("span", {}, name));
  }));
  showProgram();
  for (const part of $("work").children) part.scrollTop = 0;
  scrollTo(0, 0);
  $("task-title").focus(); // screen readers read it out, and keyboard shortcuts work
}

export function showProgram() {
  const { task, draft } = state;
  const program = chosen();
  draft.program = program.text;
  $("programs").querySelectorAll("input")[task.programs.indexOf(program)].checked = true;
  $("tests").replaceChildren(...task.tests.map((test, i) => mark(outcomeOf(program, i), code(test))));
  const lines = program.text.replace(/\n$/, "").split("\n").map((_, i) => i + 1).join("\n");
  const given = element("span", { className: "given", title: "Given by the task" }, ...tokens(program.given));
  $("program").replaceChildren(
    element("pre", { className: "numbers", ariaHidden: "true" }, lines),
    element("pre", {}, given, ...tokens(program.own)),
  );
  $("verdict").replaceChildren(element("b", {}, program.verdict), program.detail);
  $("refinement").value = refinement();
  showResult();
}

// ---- what is written ---------------------------------------------------------------------------------------------

export function showResult() {
  const { task, draft, result } = state;
  $("state").textContent = draft.written ? "not saved; stored in this browser"
    : task.answer ? `answered by ${task.answer.annotator || "somebody"}` : "not answered yet";
  $("restore").hidden = !changed();
  const shown = result && result.program === draft.program;
  const fresh = shown && result.text === refinement();
  $("outcomes").classList.toggle("stale", Boolean(shown && !fresh));
  $("outcomes").replaceChildren(
    ...(shown ? task.tests.map((_, i) => mark(outcomeOf(result, i), `test ${i + 1}`)) : []),
    ...(shown && !fresh ? [element("li", { className: "hint" }, "changed since")] : []),
  );
  $("detail").textContent = fresh && !result.passed ? `${result.verdict}: ${result.detail}` : "";
  $("rules").replaceChildren(...(changed() ? rules(fresh && result, draft.best[draft.program])
    : [mark("open", "No refinement yet: only the feedback would be saved.")]));
}

// The paper's rules. Only the first one decides whether a refinement can be saved.
function rules(result, best) {
  const characters = (count) => `${count} character${count === 1 ? "" : "s"}`;
  const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}%`;
  const found = [
    result ? mark(result.passed ? "good" : "bad", "passes all tests") : mark("open", "passes all tests: run the tests"),
    result
      ? mark(result.distance < 0.5 ? "good" : "bad", `edit distance below half: ${percent(result.distance)}, ${characters(result.edits)}`)
      : mark("open", "edit distance below half"),
  ];
  if (!best || best.text === refinement() || (result && result.passed && result.edits <= best.edits)) {
    return [...found, mark(best ? "good" : "open", best ? "smallest edit that passes so far" : "smallest edit")];
  }
  const back = element("button", { type: "button", id: "best", className: "quiet" }, "Go back to it");
  return [...found, mark(result ? "bad" : "open", `smallest edit: an edit of ${characters(best.edits)} passed. `, back)];
}

// ---- progress ------------------------------------------------------------------------------------------------------

export function showProgress() {
  const { tasks } = state.progress;
  const answered = tasks.filter((one) => one.answered_by).length;
  $("bar").max = tasks.length;
  $("bar").value = answered;
  $("count").textContent = `${answered} of ${tasks.length} answered`;
}

export function showTasks() {
  const { progress, task, annotator } = state;
  const parts = Object.keys(SPLITS).map((split) => [split, progress.tasks.filter((one) => one.split === split)]);
  $("splits").textContent = parts.filter(([, own]) => own.length).map(([split, own]) => (
    `${SPLITS[split]}: ${own.filter((one) => one.answered_by).length} of ${own.length} answered`
  )).join(" · ");
  const later = skipped();
  $("tasks").replaceChildren(...progress.tasks.map((one) => {
    const here = task && one.task_id === task.task_id;
    const others = one.held_by.filter((name) => name !== annotator || !here);
    const now = one.answered_by ? `answered by ${one.answered_by}`
      : others.length ? `opened by ${others.join(", ")}` : later.includes(one.task_id) ? "skipped" : "open";
    const button = element(
      "button",
      { type: "button", value: String(one.task_id), className: one.answered_by ? "answered" : "", title: `${one.text} (${now})` },
      ...[String(one.task_id), one.text, now].map((text) => element("span", {}, text)),
    );
    if (here) button.ariaCurrent = "true";
    return element("li", {}, button);
  }));
  $("tasks-dialog").showModal();
}
