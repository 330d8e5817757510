"""Feedback and refinements by another language model: what it is asked, and what its answers hold.

For feedback=llm it says what is wrong with a program, in the place of an annotator. For refinements=llm it is shown the
same and writes the program anew: its own feedback and its own refinement, as the InstructGPT rows of the paper's
Table 4. What it is told is in the files of conf/llm/; where its answers come from is in other_model.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ilf.files import whole
from ilf.settings import LLM, Prompt, Settings
from ilf.types import Feedback, InputError, Program, Task, Verdict, derive_seed

_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_TASK = ("text", "program", "test", "tests")
# For each use, what may stand in braces in each part of a prompt, and how many of these, the first ones, have to.
_PLACEHOLDERS: dict[str, dict[str, tuple[tuple[str, ...], int]]] = {
    "feedback": {"system": ((), 0), "question": ((*_TASK, "verdict", "detail"), 2), "answer": (("feedback",), 1)},
    "refinement": {"system": ((), 0), "question": (_TASK, 2), "answer": (("feedback", "refinement"), 2)},
}


def uses(settings: Settings) -> list[str]:
    """Return what a run asks another model for: "feedback", "refinement", both or nothing."""
    asked = {"feedback": settings.feedback.writers, "refinement": [settings.refinements.name]}
    return [use for use, by in asked.items() if "llm" in by]


def check_prompts(settings: LLM) -> None:
    """Check what stands in braces in the prompts.

    Raises:
        InputError: A placeholder is unknown, or one is missing without which the question or answer says nothing.
    """
    for use, parts in _PLACEHOLDERS.items():
        for part, (allowed, needed) in parts.items():
            found = _PLACEHOLDER.findall(getattr(getattr(settings, use), part))
            wrong = [f"{{{name}}}" for name in found if name not in allowed]
            missing = ", ".join(f"{{{name}}}" for name in allowed[:needed] if name not in found)
            if wrong or missing:
                reason = f"may hold only {', '.join(f'{{{name}}}' for name in allowed) or 'no word'} in braces"
                raise InputError(
                    f"llm.{use}.{part}",
                    wrong[0] if wrong else "",
                    reason if wrong else f"has to hold {missing}",
                    f"Mend conf/llm/{settings.name}.yaml; conf/llm/reviewer.yaml says what each stands for.",
                )


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Return a template with its placeholders replaced; braces in what is put in stay as they are."""
    return whole(_PLACEHOLDER.sub(lambda match: values[match[1]], template))


def _values(task: Task, program: str, verdict: Verdict) -> dict[str, str]:
    """Return what a question's placeholders stand for."""
    own = {"text": task.text, "program": program, "test": task.tests[0], "tests": "\n".join(task.tests)}
    return own | {"verdict": verdict.verdict, "detail": verdict.detail}


def _shown(
    prompt: Prompt, tasks: Mapping[int, Task], examples: Iterable[tuple[Feedback, Verdict]]
) -> list[dict[str, str]]:
    """Return the turns before the question: the system's, then worked examples, with gold where x1 is not there."""
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
    """Return what to ask: `n` times for each wrong program, each with a seed of its own.

    Args:
        prompt: What the model is told.
        feedback: The wrong programs x0; their words are not shown.
        tasks: By id.
        examples: Worked examples to show first: program, words and refinement; gold where there is none.
        n: Answers a program.
        seed: The run's seed.
    """
    shown = _shown(prompt, tasks, [(f, Verdict("")) for f in examples])
    return [
        {
            "task_id": f.task_id,
            "split": f.split,
            "sample": i,
            "seed": derive_seed(seed, "llm", f.task_id, i),
            "parent": f.parent,
            "messages": [*shown, _question(prompt, tasks[f.task_id], f.program, Verdict(""))],
        }
        for f in feedback
        for i in range(n)
    ]


def plan_feedback(
    prompt: Prompt,
    programs: Sequence[Program],
    tasks: Mapping[int, Task],
    examples: Sequence[tuple[Feedback, Verdict]],
    seed: int,
) -> list[dict[str, Any]]:
    """Return what to ask: once for each wrong program.

    Args:
        prompt: What the model is told.
        programs: The wrong programs x0, one a task.
        tasks: By id.
        examples: Worked examples to show first: an annotator's words on a program, and what executing it gave.
        seed: The run's seed.
    """
    shown = _shown(prompt, tasks, examples)
    return [
        {
            "task_id": p.task_id,
            "split": p.split,
            "sample": 0,
            "seed": derive_seed(seed, "llm_feedback", p.task_id),
            "parent": Feedback(p.task_id, p.split, p.program, "", "llm").parent,
            "messages": [*shown, _question(prompt, tasks[p.task_id], p.program, p.verdict)],
        }
        for p in programs
    ]


def _question(prompt: Prompt, task: Task, program: str, verdict: Verdict) -> dict[str, str]:
    return {"role": "user", "content": _fill(prompt.question, _values(task, program, verdict))}


def programs(queries: Sequence[dict[str, Any]], answers: Sequence[dict[str, Any]]) -> list[Program]:
    """Return the programs that the answers hold, not executed yet: the last code block, or the whole answer.

    A query without a stored answer has an empty program, which fails.
    """
    given = {(row["task_id"], row["sample"]): row["answer"] for row in answers}
    found = []
    for q in queries:
        text = given.get((q["task_id"], q["sample"]), "")
        blocks = _BLOCK.findall(text)
        code = (blocks[-1] if blocks else text).strip("\n")
        question = q["messages"][-1]["content"]
        found.append(Program(q["task_id"], q["split"], q["sample"], q["seed"], question, text, code, Verdict("")))
    return found


def summed(answers: Sequence[dict[str, Any]]) -> Counter[str]:
    """Return how many answers there are, how many are empty or cut off at llm.max_tokens, and the tokens they took.

    Tokens are of those answers whose server counts them.
    """
    found = Counter(answers=len(answers), empty=0, cut_off=0, prompt_tokens=0, completion_tokens=0)
    for row in answers:
        found["empty"] += not row["answer"].strip()
        found["cut_off"] += row.get("finish_reason") == "length"
        found.update(row.get("usage") or {})
    return found
