// The state of this window: the annotator, the task that is shown, and the draft that is not saved yet.

export const state = {
  annotator: new URLSearchParams(location.search).get("annotator") || localStorage.getItem("ilf/annotator") || "",
  // Of this window, so that two windows of one annotator get different tasks. Browsers copy stored sessions to new tabs.
  session: Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16)).join("-"),
  progress: null, // the run, and all of its tasks with their states
  task: null,
  draft: null,
  result: null, // of the last test run on the refinement
};

export async function post(path, body = {}, options = {}) {
  const { session, annotator } = state;
  let answer;
  try {
    answer = await fetch(`api/${path}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ session, annotator, ...body }),
      ...options,
    });
  } catch {
    throw new Error(
      "The server does not answer. Your text is saved in this browser. Start the server again with the same command, then retry.",
    );
  }
  const content = await answer.json().catch(() => ({ detail: `The server failed (${answer.status}).` }));
  if (answer.ok) return content;
  const { detail } = content;
  throw new Error(Array.isArray(detail) ? detail.map((one) => `${one.loc.at(-1)}: ${one.msg}`).join("; ") : detail);
}

// ---- stored in this browser until it is saved -----------------------------------------------------------------------

const key = (name) => ["ilf", state.progress.run, state.annotator, name].join("/");
const stored = (name) => JSON.parse(localStorage.getItem(key(name)) || "null");
const store = (name, value) => localStorage.setItem(key(name), JSON.stringify(value));

export const keep = () => store(state.task.task_id, state.draft);

// The ids of the skipped tasks, in the order in which they were skipped.
export const skipped = () => stored("skipped") || [];
export const setSkipped = (id, later) => store("skipped", [...skipped().filter((one) => one !== id), ...(later ? [id] : [])]);

export function forget(saved) {
  state.task.answer = saved;
  state.draft.written = false;
  localStorage.removeItem(key(saved.task_id));
  setSkipped(saved.task_id, false);
}

export function readDraft({ answer, programs, task_id }) {
  const fresh = {
    written: false, // whether the draft was edited since the last save
    program: answer ? answer.original_model_completion : programs[0].text,
    feedback: answer ? answer.Feedback : "",
    bugs: (answer && answer.bugs) ?? null,
    categories: (answer && answer.categories) || [],
    refinements: {}, // edited refinements by program
    best: {}, // smallest passing edit by program: {text, edits}; edits are counted, as adding text would lower a relative distance
    seconds: (answer && answer.annotator === state.annotator && answer.seconds) || 0,
  };
  if (answer && answer.unedited_annotator_completion) {
    fresh.refinements[fresh.program] = answer.unedited_annotator_completion;
  }
  const old = stored(task_id);
  if (!old) return fresh;
  return old.written ? { ...fresh, ...old } : { ...fresh, seconds: Math.max(old.seconds, fresh.seconds) };
}

// ---- the refinement of the chosen program ------------------------------------------------------------------

export const chosen = () => state.task.programs.find((one) => one.text === state.draft.program) || state.task.programs[0];
export const refinement = () => state.draft.refinements[state.draft.program] ?? state.draft.program;
export const changed = () => refinement().trimEnd() !== state.draft.program.replace(/\r\n?/g, "\n").trimEnd();

export function setRefinement(text) {
  const { draft } = state;
  draft.refinements = { ...draft.refinements, [draft.program]: text };
  if (text === draft.program) delete draft.refinements[draft.program];
}
