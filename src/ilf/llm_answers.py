"""The answers of an LLM in a run, through the store: feedback, or refinements of its own."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ilf.code_digest import code_sha256
from ilf.feedback import llm, llm_client
from ilf.feedback.llm_client import OtherModel
from ilf.files import JsonLines
from ilf.models import chat, endpoint, load, onednn_linear, tokens
from ilf.runner import Runner
from ilf.sandbox.rewards import answered
from ilf.scoring import score
from ilf.store import Entry
from ilf.training.stage_jobs import DECODING
from ilf.training.trainer import training_device
from ilf.types import Feedback, Program, Task, Verdict


class LLMAnswers:
    """The LLM of a run. Its answers are stored, so that each question is asked only once.

    Args:
        runner: Runs stages and stores their results.
        folder: Folder of the model, if it is a local one.
    """

    def __init__(self, runner: Runner, folder: Path | None) -> None:
        self.runner, self.settings = runner, runner.settings.llm
        device = training_device(runner.settings.trainer)
        self.other = OtherModel(self.settings, runner.settings.sampler.temperature, folder, device)
        self.examples: list[tuple[Feedback, Verdict]] | None = None  # worked examples of feedback, from round to round
        self.counts: dict[str, Counter[str]] = {}  # counts of answers, by their purpose
        self._file = "llm_feedback"  # name of the file in programs/ with the answers about feedback

    @contextmanager
    def answers_in(self, name: str) -> Iterator[None]:
        """Write the answers that are requested inside the context to a file of their own."""
        self._file, before = name, self._file
        try:
            yield
        finally:
            self._file = before

    def answers(self, queries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the LLM's answers to queries for feedback."""

        def work(entry: Entry) -> dict[str, Any]:
            self.other.answer("feedback", queries, JsonLines(entry.path / "answers.jsonl"))
            return {}

        path, _ = self.runner.do("annotate", self._key("feedback", queries), work)
        return self._take("feedback", path, self._file)

    def refine(self, feedback: Sequence[Feedback], shots: Sequence[Feedback]) -> list[Program]:
        """Return the LLM's refinements of incorrect programs, with verdicts.

        Args:
            feedback: Feedback on the incorrect programs.
            shots: Worked examples for the beginning of the prompt.
        """
        settings, tasks = self.runner.settings, self.runner.tasks
        prompt, n = self.settings.refinement, self.settings.n or settings.sampler.n
        queries = llm.plan_refinements(prompt, feedback, tasks, shots, n, self.runner.seed)
        # The verdicts have a key of their own, so that another scoring does not ask the LLM again.
        scoring = self.runner.verdicts_of("refine", [tasks[f.task_id] for f in feedback])

        def work(entry: Entry) -> dict[str, Any]:
            answers = JsonLines(entry.path / "answers.jsonl")
            self.other.answer("refinement", queries, answers)
            programs = llm.programs(queries, answers.read())
            texts: list[tuple[str, Task]] = [(p.program, tasks[p.task_id]) for p in programs]
            verdicts = score(texts, self.runner.sandbox, settings.executor.tests)
            rows = JsonLines(entry.path / f"programs-{scoring}.jsonl")
            rows.path.unlink(missing_ok=True)
            rows.append(replace(p, verdict=v).row() for p, v in zip(programs, verdicts, strict=True))
            return {}

        path, _ = self.runner.do("refine", self._key("refinement", queries), work, f"done-{scoring}.json")
        self._take("refinement", path, "llm_answers")
        rows = self.runner.folder / "programs" / f"llm{self.runner.suffix}.jsonl"
        shutil.copyfile(path / f"programs-{scoring}.jsonl", rows)
        self.runner.tracker.artifact(rows)
        return [Program.from_row(row) for row in JsonLines(rows).read()]

    def _key(self, use: str, queries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return self.key(use) | {"queries": queries}

    def key(self, use: str) -> dict[str, Any]:
        """Return everything that the answers depend on, except the queries."""
        folder = self.other.folder
        local = [chat, load, onednn_linear, tokens, *DECODING] if folder else []
        code = code_sha256(llm, llm_client, endpoint, answered, *local)
        weights = self.runner.weights(folder) if folder else None
        return {"code": code, "llm": self.other.key(use, weights)}

    def _take(self, use: str, path: Path, name: str) -> list[dict[str, Any]]:
        """Copy a stage's answers to the run's folder, count them, and return them."""
        target = self.runner.folder / "programs" / f"{name}{self.runner.suffix}.jsonl"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path / "answers.jsonl", target)
        answers = JsonLines(target).read()
        self.counts.setdefault(use, Counter()).update(llm.summed(answers))
        return answers
