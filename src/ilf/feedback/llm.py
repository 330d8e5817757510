"""Feedback and refinements by an LLM: builds its prompts and parses its answers.

For feedback=llm, the LLM replaces the annotator and describes what is wrong with a program. For refinements=llm, it
sees the same program and writes its own feedback and its own refinement, as in the InstructGPT rows of the paper's
Table 4. The prompts are in conf/llm/, and llm_client.py gets the answers.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ilf.feedback import scripted
from ilf.feedback.human import load_annotations
from ilf.feedback.llm_settings import LLM as LLMSettings
from ilf.feedback.llm_settings import Prompt
from ilf.feedback.source import Failing, Writing, worked_examples
from ilf.feedback.transforms import CODE
from ilf.feedback.unit_tests import Choosing
from ilf.files import whole
from ilf.paths import check_path
from ilf.sandbox.rewards import answered
from ilf.types import Feedback, InputError, Program, Splits, Task, Verdict, derive_seed

log = logging.getLogger(__name__)

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_RESULT_TOKENS = 128  # tokens that the memory plan reserves for the result of executing a program, or for feedback
_TASK = ("text", "program", "test", "tests")
# For each use and each part of a prompt: the allowed placeholders, and how many of the first ones are required.
_PLACEHOLDERS: dict[str, dict[str, tuple[tuple[str, ...], int]]] = {
    "feedback": {"system": ((), 0), "question": ((*_TASK, "verdict", "detail"), 2), "answer": (("feedback",), 1)},
    "refinement": {"system": ((), 0), "question": (_TASK, 2), "answer": (("feedback", "refinement"), 2)},
}


def uses(settings: Any) -> list[str]:
    """Return what a run asks the LLM for: "feedback", "refinement", both or nothing."""
    asked = {
        "feedback": any(one.asks_llm for one in settings.writers),
        "refinement": settings.refinements.asks_llm,
    }
    return [use for use, needed in asked.items() if needed]


def check_prompts(settings: LLMSettings) -> None:
    """Check the placeholders in the prompts.

    Raises:
        InputError: A placeholder is unknown, or a required placeholder is missing.
    """
    for use, parts in _PLACEHOLDERS.items():
        for part, (allowed, needed) in parts.items():
            found = _PLACEHOLDER.findall(getattr(getattr(settings, use), part))
            wrong = [f"{{{name}}}" for name in found if name not in allowed]
            missing = ", ".join(f"{{{name}}}" for name in allowed[:needed] if name not in found)
            if wrong or missing:
                reason = f"may contain only {', '.join(f'{{{name}}}' for name in allowed) or 'no word'} in braces"
                raise InputError(
                    f"llm.{use}.{part}",
                    wrong[0] if wrong else "",
                    reason if wrong else f"must contain {missing}",
                    f"Fix conf/llm/{settings.name}.yaml; conf/llm/reviewer.yaml explains the placeholders.",
                )


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Return a template with its placeholders replaced. Braces in the inserted values are left as they are."""
    return whole(_PLACEHOLDER.sub(lambda match: values[match[1]], template))


def _values(task: Task, program: str, verdict: Verdict) -> dict[str, str]:
    """Return the values of a question's placeholders."""
    own = {"text": task.text, "program": program, "test": task.in_words[0], "tests": "\n".join(task.in_words)}
    return own | {"verdict": verdict.verdict, "detail": verdict.detail}


def _shown(
    prompt: Prompt, tasks: Mapping[int, Task], examples: Iterable[tuple[Feedback, Verdict]]
) -> list[dict[str, str]]:
    """Return the system turn and the worked examples, which show the gold program if there is no refinement x1."""
    turns = [{"role": "system", "content": prompt.system}] if prompt.system else []
    for f, verdict in examples:
        task = tasks[f.task_id]
        answer = {"feedback": f.text, "refinement": f.refinement or task.code}
        turns.append({"role": "user", "content": _fill(prompt.question, _values(task, f.program, verdict))})
        turns.append({"role": "assistant", "content": _fill(prompt.answer, answer)})
    return turns


def plan_refinements(
    prompt: Prompt,
    feedback: Sequence[Feedback],
    tasks: Mapping[int, Task],
    examples: Sequence[Feedback],
    n: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return the queries for refinements: `n` for each incorrect program, each with its own seed.

    Args:
        prompt: The prompt for the LLM.
        feedback: The incorrect programs x0. Their feedback is not shown.
        tasks: The tasks by id.
        examples: Worked examples to show first: program, feedback, and refinement or, if there is none, gold program.
        n: The number of answers per program.
        seed: The run's seed.
    """
    shown = _shown(prompt, tasks, [(f, Verdict("")) for f in examples])
    asked = [(f, [*shown, _question(prompt, tasks[f.task_id], f.program, Verdict(""))]) for f in feedback]
    return [_query(f, i, derive_seed(seed, "llm", f.task_id, i), messages) for f, messages in asked for i in range(n)]


def plan_feedback(
    prompt: Prompt,
    programs: Sequence[Program],
    tasks: Mapping[int, Task],
    examples: Sequence[tuple[Feedback, Verdict]],
    seed: int,
) -> list[dict[str, Any]]:
    """Return the queries for feedback: one for each incorrect program.

    Args:
        prompt: The prompt for the LLM.
        programs: The incorrect programs x0, one per task.
        tasks: The tasks by id.
        examples: Worked examples to show first: an annotator's feedback on a program, and the program's verdict.
        seed: The run's seed.
    """
    shown = _shown(prompt, tasks, examples)
    return [
        _query(
            Feedback(p.task_id, p.split, p.program, "", "llm"),
            0,
            derive_seed(seed, "llm_feedback", p.task_id),
            [*shown, _question(prompt, tasks[p.task_id], p.program, p.verdict)],
        )
        for p in programs
    ]


def longest_questions(settings: Any, config: Any, tokenizer: Any, tasks: Splits) -> list[int]:
    """Return the lengths in tokens of the longest questions that a local LLM may get at once, the longest first.

    Args:
        settings: Checked settings of a run.
        config: The LLM's transformers configuration.
        tokenizer: The LLM's.
        tasks: By split, restricted and limited.

    Raises:
        InputError: A task's question and the longest answer exceed the LLM's number of positions.
    """
    from ilf.models.tokens import check_room, encode_chat  # --help imports this module, and needs no tokenizer

    asked: LLMSettings = settings.llm
    new = settings.sampler.max_new_tokens
    longest = sorted(tasks.by_id.values(), key=lambda task: -sum(map(len, (task.text, task.prompt, *task.in_words))))
    found = []
    for task, use in itertools.product(longest[: asked.parallel], uses(settings)):
        prompt: Prompt = getattr(asked, use)
        turns = _shown(prompt, {}, [])
        least, question = (
            len(encode_chat(tokenizer, [*turns, _question(prompt, task, program, Verdict(""))]))
            for program in ("", task.prompt)
        )
        check_room(
            config, least, asked.max_tokens, f"the question about task {task.task_id}", "llm.max_tokens", "llm.shots"
        )
        question += new + _RESULT_TOKENS
        answer = _RESULT_TOKENS + (new if use == "refinement" else 0)
        found.append(question + asked.shots * (question + answer))
    return sorted(found, reverse=True)


def _query(feedback: Feedback, sample: int, seed: int, messages: list[dict[str, str]]) -> dict[str, Any]:
    """Return a query about the program that `feedback` is on."""
    about = {"task_id": feedback.task_id, "split": feedback.split, "parent": feedback.parent}
    return about | {"sample": sample, "seed": seed, "messages": messages}


def _question(prompt: Prompt, task: Task, program: str, verdict: Verdict) -> dict[str, str]:
    return {"role": "user", "content": _fill(prompt.question, _values(task, program, verdict))}


def programs(queries: Sequence[dict[str, Any]], answers: Sequence[dict[str, Any]]) -> list[Program]:
    """Return the programs in the answers, not yet executed: the last block of Python, or else the whole answer.

    A query without a stored answer gives an empty program, which fails.
    """
    given = {(row["task_id"], row["sample"]): row["answer"] for row in answers}
    found = []
    for q in queries:
        text = given.get((q["task_id"], q["sample"]), "")
        code = answered(None, text).strip("\n")
        question = q["messages"][-1]["content"]
        found.append(Program(q["task_id"], q["split"], q["sample"], q["seed"], question, text, code, Verdict("")))
    return found


def summed(answers: Sequence[dict[str, Any]]) -> Counter[str]:
    """Return the number of answers, of empty answers, of those truncated at llm.max_tokens or with code, and of tokens.

    Tokens are counted only for answers whose server reports them.
    """
    found = Counter(answers=len(answers), empty=0, cut_off=0, with_code=0, prompt_tokens=0, completion_tokens=0)
    for row in answers:
        found["empty"] += not row["answer"].strip()
        found["cut_off"] += row.get("finish_reason") == "length"
        found["with_code"] += CODE.search(row["answer"]) is not None
        usage = row.get("usage")
        found.update({n: v for n, v in (usage if isinstance(usage, dict) else {}).items() if isinstance(v, int)})
    return found


@dataclass
class LLM(Choosing):
    """Feedback by an LLM on one of the policy's incorrect programs for each failing task. The answers are stored.

    The worked examples in its prompt are feedback by the data set's annotator on ids 1 to 10: from the file `path` or,
    on mini, by the script.
    """

    name = "llm"
    refines = False
    asks_llm = True
    repeatable = True  # except for the answers, which are stored

    def check(self, settings: Any) -> None:
        """Raise InputError if there are no worked examples."""
        super().check(settings)
        if self.path is not None:
            check_path("feedback.path", self.path, "file", "Give a .jsonl or .csv file of annotations.")
        elif len(settings.feedback.writers) == 1 and settings.llm.shots and settings.data.annotator != "scripted":
            allowed = "needs worked examples, which are an annotator's feedback on ids 1 to 10, and there are none"
            advice = "Give feedback.path=annotations.jsonl, or llm.shots=0."
            raise InputError("llm.shots", settings.llm.shots, allowed, advice)

    def known(self, splits: Mapping[int, str], absent: Container[int]) -> list[Feedback] | None:
        """Return the annotations of the Prompt split, for the worked examples."""
        if self.path is None:
            return None
        return [a for a in load_annotations(self.path, splits, absent) if a.split == "prompt"]

    def write(self, failing: Failing, run: Writing) -> list[Feedback]:
        """Return the feedback in the worked examples, followed by the LLM's feedback.

        A task whose answer is empty or missing is rejected.
        """
        examples = self._examples(failing, run)
        taken = {f.task_id for f, _ in examples}
        programs = self.chosen({i: found for i, found in failing.items() if i not in taken}, run.seed)
        queries = plan_feedback(run.llm.settings.feedback, programs, run.tasks.by_id, examples, run.seed)
        answers = run.llm.answers(queries)
        texts = {row["task_id"]: row["answer"] for row in answers}
        found = [f for f, _ in examples]
        counts = summed(answers)
        if counts["with_code"] and "no_code" not in self.transform:
            log.warning(
                "feedback: %d of the LLM's %d answers contain code, which the refiner can copy unless "
                "feedback.transform=[no_code] removes it",
                *(counts["with_code"], counts["answers"]),
            )
        for p in programs:
            if text := texts.get(p.task_id, "").strip():
                found.append(Feedback(p.task_id, p.split, p.program, text, self.name))
            else:
                reason = "is empty" if p.task_id in texts else "is not among the stored answers"
                run.rejected.append(f"task {p.task_id} (feedback): the LLM's answer {reason}")
        return found

    def _examples(self, failing: Failing, run: Writing) -> list[tuple[Feedback, Verdict]]:
        """Return worked examples by the data set's annotator on ids 1 to 10, with the verdicts on their programs.

        Every round uses the examples of the first round, in which the policy fails most.
        """
        if run.llm.examples is None:
            ids = {task.task_id for task in run.tasks.prompt}
            known = [a for a in run.known if a.task_id in ids]
            if not known and run.annotator == "scripted":
                few = {i: programs for i, programs in failing.items() if i in ids}
                known = scripted.annotate(few, run.tasks.by_id, run.specifications, run.seed)
            verdicts = run.score([(f.program, run.tasks.by_id[f.task_id]) for f in known])
            run.llm.examples = [(f, v) for f, v in zip(known, verdicts, strict=True) if not v.passed]
        return worked_examples("llm.shots", run.llm.settings.shots, run.llm.examples)
