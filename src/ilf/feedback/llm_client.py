"""Gets an LLM's answers from an OpenAI-compatible endpoint, a local model or a file of stored answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilf.feedback.llm_settings import LLM
from ilf.files import JsonLines, whole
from ilf.models import endpoint
from ilf.progress import EVERY, time_left
from ilf.tasks.rows import Columns, Row, check_rows, read_json_lines
from ilf.types import InputError

log = logging.getLogger(__name__)

COLUMNS = {"task_id": int, "sample": int, "parent": str, "answer": str}
USES = ("feedback", "refinement")
_USAGE = ("prompt_tokens", "completion_tokens")
FILE = Columns(
    COLUMNS,
    optional=("use", "finish_reason", "usage"),
    unread=("model", "temperature", "max_tokens", "shots", "seed", "messages"),
)


@dataclass(frozen=True)
class OtherModel:
    """The LLM that answers queries: an endpoint, a local model, or a file of stored answers."""

    settings: LLM
    temperature: float
    folder: Path | None = None  # folder of a local model
    device: Any = None  # torch device of a local model

    def key(self, use: str, weights: str | None) -> dict[str, Any]:
        """Return everything that determines the answers, except the queries.

        Args:
            use: "feedback" or "refinement".
            weights: The hash of the folder of a local model.
        """
        settings = self.settings
        if settings.path is not None:
            return {"answers": [row for _, row in _stored_rows(settings.path, use)]}
        own: dict[str, Any] = {"max_tokens": settings.max_tokens, "temperature": self.temperature}
        if self.folder is not None:
            from ilf.models.dtypes import sampling_dtype

            return own | {"weights": weights, "dtype": str(sampling_dtype("auto", self.device))}
        own["model"] = settings.model  # not the address, at which a cluster starts the same server on another node
        return own | ({"extra": settings.extra} if settings.extra else {})

    def answer(self, use: str, queries: Sequence[dict[str, Any]], answers: JsonLines) -> None:
        """Append each answer to `answers` as soon as it arrives. Answers that are already there are reused.

        Raises:
            InputError: The endpoint can't be reached, or a stored answer is about another program.
        """
        done = {(row["task_id"], row["sample"]) for row in answers.read()}
        left = [q for q in queries if (q["task_id"], q["sample"]) not in done]
        if self.settings.path is not None:
            answers.append(_stored(self.settings.path, use, left))
            return
        if left:
            log.info("llm: %d answers are stored, %d are left", len(done), len(left))
        last = start = time.monotonic()
        found = self._asked(left) if self.folder is None else self._generated(queries, left)
        for given, (query, reply) in enumerate(found, 1):
            answers.append([self._row(use, query, reply)])
            now = time.monotonic()
            if now > last + EVERY or given == len(left):
                last = now
                log.info("llm: %d of %d answers, %s", given, len(left), time_left(given, len(left), now - start))

    def _row(self, use: str, query: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any]:
        """Return the row to store for an answer, with its query, the model and the settings."""
        settings = {"temperature": self.temperature, "max_tokens": self.settings.max_tokens}
        asked = {name: query[name] for name in ("task_id", "sample", "parent")} | {"use": use}
        shown = sum(turn["role"] == "assistant" for turn in query["messages"])
        return asked | reply | settings | {"shots": shown, "seed": query["seed"], "messages": query["messages"]}

    def _asked(self, queries: Sequence[dict[str, Any]]) -> Iterable[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield each query with the endpoint's answer."""
        settings = self.settings

        def ask(client: Any, query: dict[str, Any]) -> dict[str, Any]:
            reply = client.chat.completions.create(
                model=str(settings.model),
                messages=query["messages"],
                temperature=self.temperature,
                max_tokens=settings.max_tokens,
                seed=query["seed"] % 2**31,  # some servers accept no larger seed
                extra_body=settings.extra,
            )
            if not getattr(reply, "choices", None):  # some gateways report errors with status 200
                raise endpoint.Incomplete(f"the reply has no `choices`: {str(reply)[:500]}")
            counts = ((name, getattr(reply.usage, name, None)) for name in _USAGE)
            return {
                "answer": whole(reply.choices[0].message.content or ""),
                "finish_reason": reply.choices[0].finish_reason,
                "usage": {name: count for name, count in counts if isinstance(count, int)} or None,
                "model": reply.model,
            }

        advice = f"Check the address, the model's name and ${endpoint.KEY}; the answers so far are saved."
        url, model = str(settings.url), str(settings.model)
        yield from endpoint.answers("llm.url", url, model, queries, ask, settings.parallel, advice)

    def _generated(
        self, queries: Sequence[dict[str, Any]], left: Sequence[dict[str, Any]]
    ) -> Iterable[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield each query that is left with a local model's answer.

        Questions of similar length share a batch, in which a finished answer is replaced by the next one. The batches
        with the longest come first, as they need the most memory. A batch with missing answers is resampled as a whole,
        because it decides the last bits of the logits.
        """
        from ilf.models import chat, decoding

        assert self.folder is not None
        missing = {(q["task_id"], q["sample"]) for q in left}
        at_once = self.settings.parallel
        size = decoding.REFILLS * at_once
        queries = sorted(queries, key=lambda query: -sum(len(turn["content"]) for turn in query["messages"]))
        batches = [queries[i : i + size] for i in range(0, len(queries), size)]
        batches = [batch for batch in batches if any((q["task_id"], q["sample"]) in missing for q in batch)]
        options = (at_once, self.temperature, self.settings.max_tokens, self.device)
        for q, reply in chat.answers(self.folder, batches, *options):
            if (q["task_id"], q["sample"]) in missing:
                yield q, reply | {"model": str(self.settings.model)}


def _stored_rows(path: str, use: str) -> list[Row]:
    """Return a file's answers for one use, each with its place. Answers that name no use are refinements."""
    found: dict[tuple[int, int], Row] = {}
    for where, row in read_json_lines(Path(path), FILE):
        own = row.get("use", "refinement")
        if own not in USES:
            raise InputError(f"{where}: use", own, f"must be one of {', '.join(USES)}, or omitted", "Fix the row.")
        if own != use:
            continue
        if (which := (row["task_id"], row["sample"])) in found:
            allowed = f"with sample {row['sample']} and use {use}, it is already answered by {found[which][0]}"
            raise InputError(f"{where}: task_id", row["task_id"], allowed, "Remove one of them.")
        found[which] = where, row
    return list(found.values())


def check_stored(path: str, wanted: Sequence[str]) -> None:
    """Check stored answers before anything is computed.

    Raises:
        InputError: A row is malformed, or the file has no answers for one of the wanted uses.
    """
    if wanted:
        check_rows("llm.path", path, read_json_lines(Path(path), FILE), FILE)
    for use in wanted:
        if not _stored_rows(path, use):
            allowed = f"must contain answers with the use {use!r}"
            raise InputError(
                "llm.path", path, allowed, "Give programs/llm_feedback.jsonl or programs/llm_answers.jsonl of a run."
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
                f"must be the SHA-256 of task {row['task_id']}'s incorrect program, {query['parent']}",
                "The answers are about other programs. Use the seed, data and policy with which they were generated.",
            )
        found.append(row)
    log.info("llm: found %d stored answers to %d questions", len(found), len(wanted))
    return found
