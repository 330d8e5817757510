"""Refinements by another language model, behind any OpenAI-compatible endpoint or from its stored answers.

It is shown the task and a wrong program, says what is wrong, and writes the program anew: its own feedback and its
own refinement, as the InstructGPT rows of the paper's Table 4.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ilf.models import endpoint
from ilf.settings import LLM
from ilf.store import JsonLines
from ilf.tasks.rows import read_json_lines
from ilf.types import Feedback, InputError, Program, Task, Verdict, derive_seed

log = logging.getLogger(__name__)

COLUMNS = {"task_id": int, "sample": int, "parent": str, "answer": str}
_SYSTEM = (
    "You review and correct Python functions. First say in plain words what is wrong with the program. Then write the "
    "whole corrected program in one ```python block."
)
_QUESTION = "Task:\n{text}\n\nIt must pass:\n{test}\n\nWrong program:\n```python\n{program}\n```"
_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def plan(
    feedback: Sequence[Feedback], tasks: Mapping[int, Task], examples: Sequence[Feedback], n: int, seed: int
) -> list[dict[str, Any]]:
    """Return what to ask: `n` times for each wrong program, each with a seed of its own.

    Args:
        feedback: The wrong programs x0; their words are not shown.
        tasks: By id.
        examples: Worked examples to show first: program, words and refinement; gold where there is none.
        n: Answers a program.
        seed: The run's seed.
    """
    shown = [{"role": "system", "content": _SYSTEM}]
    for f in examples:
        better = f.refinement or tasks[f.task_id].code
        shown.append({"role": "user", "content": _question(f, tasks[f.task_id])})
        shown.append({"role": "assistant", "content": f"{f.text}\n\n```python\n{better}\n```"})
    return [
        {
            "task_id": f.task_id,
            "split": f.split,
            "sample": i,
            "seed": derive_seed(seed, "llm", f.task_id, i),
            "parent": f.parent,
            "messages": [*shown, {"role": "user", "content": _question(f, tasks[f.task_id])}],
        }
        for f in feedback
        for i in range(n)
    ]


def _question(f: Feedback, task: Task) -> str:
    return _QUESTION.format(text=task.text, test=task.tests[0], program=f.program)


def key(settings: LLM, temperature: float) -> dict[str, Any]:
    """Return what decides the answers besides the questions."""
    if settings.path is not None:
        return {"answers": [row for _, row in read_json_lines(Path(settings.path), COLUMNS)]}
    return {
        "url": settings.url,
        "model": settings.model,
        "max_tokens": settings.max_tokens,
        "temperature": temperature,
    }


def answer(settings: LLM, temperature: float, queries: Sequence[dict[str, Any]], answers: JsonLines) -> None:
    """Append an answer to each query to `answers`, as it comes; those that lie there already are kept.

    Raises:
        InputError: The endpoint can't be reached, or a stored answer is about another program.
    """
    done = {(row["task_id"], row["sample"]) for row in answers.read()}
    left = [q for q in queries if (q["task_id"], q["sample"]) not in done]
    if settings.path is not None:
        answers.append(_stored(settings.path, left))
        return

    def ask(client: Any, query: dict[str, Any]) -> dict[str, Any]:
        reply = client.chat.completions.create(
            model=str(settings.model),
            messages=query["messages"],
            temperature=temperature,
            max_tokens=settings.max_tokens,
            seed=query["seed"] % 2**31,  # some servers take no more
        )
        text = (reply.choices[0].message.content if reply.choices else None) or ""
        return {name: query[name] for name in ("task_id", "sample", "parent")} | {
            "answer": text,
            "model": reply.model,
            "temperature": temperature,
            "messages": query["messages"],
        }

    advice = f"Check the address, the model's name and ${endpoint.KEY}; what was answered is kept."
    found = endpoint.answers("llm.url", str(settings.url), str(settings.model), left, ask, settings.parallel, advice)
    for number, (_, row) in enumerate(found, 1):
        answers.append([row])
        if number % 50 == 0 or number == len(left):
            log.info("llm: %d of %d answers", number, len(left))


def _stored(path: str, queries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    wanted = {(q["task_id"], q["sample"]): q for q in queries}
    found = []
    for where, row in read_json_lines(Path(path), COLUMNS):
        query = wanted.get((row["task_id"], row["sample"]))
        if query is None:
            continue
        if row["parent"] != query["parent"]:
            raise InputError(
                f"{where}: parent",
                row["parent"],
                f"must be the SHA-256 of task {row['task_id']}'s wrong program, {query['parent']}",
                "The answers are about other programs: use the seed, data and policy that they were made with.",
            )
        found.append(row)
    log.info("llm: %d stored answers to %d questions", len(found), len(wanted))
    return found


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
