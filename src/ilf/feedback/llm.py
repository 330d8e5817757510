"""Feedback and refinements by another language model: behind any OpenAI-compatible endpoint, local, or stored answers.

For feedback=llm it says what is wrong with a program, in the place of an annotator. For refinements=llm it is shown the
same and writes the program anew: its own feedback and its own refinement, as the InstructGPT rows of the paper's
Table 4. What it is told is in the files of conf/llm/.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilf.models import endpoint
from ilf.settings import LLM, Prompt, Settings
from ilf.store import JsonLines
from ilf.tasks.rows import read_json_lines
from ilf.types import Feedback, InputError, Program, Task, Verdict, derive_seed

log = logging.getLogger(__name__)

COLUMNS = {"task_id": int, "sample": int, "parent": str, "answer": str}
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
    feedback = settings.feedback
    asked = {"feedback": (feedback.source, *feedback.sources), "refinement": (settings.refinements.name,)}
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
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template)


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


@dataclass(frozen=True)
class OtherModel:
    """Where answers come from: an endpoint, a local model, or a file of stored ones."""

    settings: LLM
    temperature: float
    folder: Path | None = None  # of a local model
    device: Any = None  # torch's, of a local model

    def key(self, use: str, weights: str | None) -> dict[str, Any]:
        """Return what decides the answers besides the questions.

        Args:
            use: "feedback" or "refinement".
            weights: The hash of a local model's folder.
        """
        settings = self.settings
        if settings.path is not None:
            return {"answers": [row for _, row in _stored_rows(settings.path, use)]}
        own: dict[str, Any] = {"max_tokens": settings.max_tokens, "temperature": self.temperature}
        if self.folder is not None:
            from ilf.models.load import sampling_dtype

            return own | {"weights": weights, "batch_size": settings.parallel, "dtype": str(sampling_dtype("auto"))}
        own |= {"url": settings.url, "model": settings.model}
        return own | ({"extra": settings.extra} if settings.extra else {})

    def answer(self, use: str, queries: Sequence[dict[str, Any]], answers: JsonLines) -> None:
        """Append an answer to each query to `answers`, as it comes; those that lie there already are kept.

        Raises:
            InputError: The endpoint can't be reached, or a stored answer is about another program.
        """
        done = {(row["task_id"], row["sample"]) for row in answers.read()}
        left = [q for q in queries if (q["task_id"], q["sample"]) not in done]
        if self.settings.path is not None:
            answers.append(_stored(self.settings.path, use, left))
            return
        given = 0
        for rows in self._asked(left) if self.folder is None else self._generated(queries, left):
            answers.append(self._row(use, query, reply) for query, reply in rows)
            given += len(rows)
            if given % 50 < len(rows) or given == len(left):
                log.info("llm: %d of %d answers", given, len(left))

    def _row(self, use: str, query: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any]:
        """Return what is kept of an answer: with what was asked, of which model and how."""
        settings = {"temperature": self.temperature, "max_tokens": self.settings.max_tokens}
        asked = {name: query[name] for name in ("task_id", "sample", "parent")} | {"use": use}
        shown = sum(turn["role"] == "assistant" for turn in query["messages"])
        return asked | reply | settings | {"shots": shown, "seed": query["seed"], "messages": query["messages"]}

    def _asked(self, queries: Sequence[dict[str, Any]]) -> Iterable[list[tuple[dict[str, Any], dict[str, Any]]]]:
        """Yield the endpoint's answers, one at a time."""
        settings = self.settings

        def ask(client: Any, query: dict[str, Any]) -> dict[str, Any]:
            reply = client.chat.completions.create(
                model=str(settings.model),
                messages=query["messages"],
                temperature=self.temperature,
                max_tokens=settings.max_tokens,
                seed=query["seed"] % 2**31,  # some servers take no more
                extra_body=settings.extra,
            )
            choice = reply.choices[0] if reply.choices else None
            usage = reply.usage and {n: getattr(reply.usage, n) for n in ("prompt_tokens", "completion_tokens")}
            return {
                "answer": (choice.message.content if choice else None) or "",
                "finish_reason": choice and choice.finish_reason,
                "usage": usage,
                "model": reply.model,
            }

        advice = f"Check the address, the model's name and ${endpoint.KEY}; what was answered is kept."
        url, model = str(settings.url), str(settings.model)
        for found in endpoint.answers("llm.url", url, model, queries, ask, settings.parallel, advice):
            yield [found]

    def _generated(
        self, queries: Sequence[dict[str, Any]], left: Sequence[dict[str, Any]]
    ) -> Iterable[list[tuple[dict[str, Any], dict[str, Any]]]]:
        """Yield a local model's answers, a batch at a time. One of which some are missing is drawn whole again."""
        from ilf.models import chat

        assert self.folder is not None
        missing = {(q["task_id"], q["sample"]) for q in left}
        size = self.settings.parallel
        batches = [queries[i : i + size] for i in range(0, len(queries), size)]
        batches = [batch for batch in batches if any((q["task_id"], q["sample"]) in missing for q in batch)]
        asked = [([q["messages"] for q in batch], batch[0]["seed"]) for batch in batches]
        replies = chat.answers(self.folder, asked, self.temperature, self.settings.max_tokens, self.device)
        for batch, answered in zip(batches, replies, strict=True):
            pairs = zip(batch, answered, strict=True)
            yield [
                (q, reply | {"model": str(self.settings.model)})
                for q, reply in pairs
                if (q["task_id"], q["sample"]) in missing
            ]


def _stored_rows(path: str, use: str) -> list[tuple[str, dict[str, Any]]]:
    """Return a file's answers of one use, each with its place; those that say none are refinements."""
    return [found for found in read_json_lines(Path(path), COLUMNS) if found[1].get("use", "refinement") == use]


def check_stored(path: str, wanted: Sequence[str]) -> None:
    """Check stored answers before anything is computed.

    Raises:
        InputError: A row is malformed, or there is none of what is wanted.
    """
    for use in wanted:
        if not _stored_rows(path, use):
            allowed = f"must hold answers of the use {use!r}"
            raise InputError(
                "llm.path", path, allowed, "Give programs/llm_feedback.jsonl or llm_answers.jsonl of a run."
            )


def _stored(path: str, use: str, queries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    wanted = {(q["task_id"], q["sample"]): q for q in queries}
    found = []
    for where, row in _stored_rows(path, use):
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
