"""Line 2 of the algorithm: collect feedback, check it by executing programs, and transform it by the settings."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ilf.components import key_of
from ilf.feedback.source import Failing, Source, Writing
from ilf.files import JsonLines, file_sha256, sha256
from ilf.llm_answers import LLMAnswers
from ilf.runner import Runner
from ilf.scoring import score
from ilf.store import Entry
from ilf.types import Feedback, InputError, Splits, Task, derive_seed

_ROWS = "feedback.jsonl"
_TASK = re.compile(r"^task (\d+)")  # how a source begins a line about a task without feedback


class Annotators:
    """The feedback sources of a run.

    Args:
        runner: Runs stages and stores their results.
        tasks: The tasks by split, after restriction and limits.
        known: Feedback from before the run, by the name of its source.
        other: The LLM, for sources that ask it.
    """

    def __init__(
        self, runner: Runner, tasks: Splits, known: Mapping[str, Sequence[Feedback]], other: LLMAnswers
    ) -> None:
        self.runner, self.settings, self.tasks = runner, runner.settings, tasks
        self.known, self.other = known, other
        self.shots: list[Feedback] = []  # feedback on tasks of the Prompt split, as worked examples

    def annotate(self, failing: Failing) -> list[Feedback]:
        """Return feedback on tasks of Refine and Train, without annotations whose programs fail the check."""
        source, runner = self.settings.feedback, self.runner
        found = self._ask(source, failing)
        people = {"human", *(one.name for one in source.writers if one.people)}

        def work(entry: Entry) -> dict[str, Any]:
            checked = [f for f in found if f.refinement is not None or f.source in people]
            texts = [(f, text) for f in checked for text in (f.program, f.refinement or f.program)]
            both = [(text, self.tasks.by_id[f.task_id]) for f, text in texts]
            verdicts = score(both, runner.sandbox, self.settings.executor.tests)
            bad = {}  # the reason by task id, a string because JSON object keys are strings
            for f, x0, x1 in zip(checked, verdicts[::2], verdicts[1::2], strict=True):
                if x0.passed:
                    bad[str(f.task_id)] = "the incorrect program passes its tests"
                elif f.refinement is not None and not x1.passed:
                    bad[str(f.task_id)] = f"the refinement does not pass: {x1.verdict}, {x1.detail}"
            return {"rejected": bad}

        tasks = [self.tasks.by_id[f.task_id] for f in found]
        programs = [(f.task_id, f.program, f.refinement, f.source) for f in found]
        key = {"feedback": programs, "scoring": runner.verdicts_of("annotate", tasks)}
        _, facts = runner.do("annotate", key, work)
        runner.rejected += [f"task {i} (annotation): {reason}" for i, reason in facts["rejected"].items()]
        found = self._limited([f for f in found if str(f.task_id) not in facts["rejected"]])
        for transform in source.transforms:
            found = transform(found, runner.seed)
        rows = JsonLines(runner.folder / f"feedback{runner.suffix}.jsonl")
        rows.path.unlink(missing_ok=True)
        rows.append(asdict(f) for f in found)
        # A later round's policy may solve some of these tasks; earlier feedback on them is still a valid example.
        seen = {one.task_id for one in self.shots}
        shots = [f for f in found if f.split == "prompt" and f.task_id not in seen]
        self.shots += [f for f in shots if f.refinement or self.tasks.by_id[f.task_id].code]
        return found

    def _limited(self, found: list[Feedback]) -> list[Feedback]:
        """Return feedback on at most `limit` Train tasks; smaller limits select subsets of larger ones."""
        train = sorted(f.task_id for f in found if f.split == "train")
        limit = self.settings.feedback.limit
        if limit is None or limit >= len(train):
            return found
        order = random.Random(derive_seed(self.runner.seed, "limit")).sample(train, len(train))
        left_out = set(order[limit:])
        return [f for f in found if f.task_id not in left_out]

    def at_test_time(
        self, source: Source, failing: Failing, tasks: Mapping[int, Task], of: Mapping[int, int], label: str
    ) -> list[Feedback]:
        """Return feedback on programs at test time, of tasks that are not trained on.

        Args:
            source: The feedback source.
            failing: The programs, by task.
            tasks: The tasks by id. Each program has a task of its own.
            of: For each of these tasks, its id in the data.
            label: Label of the file with an LLM's answers.
        """
        known = self.settings.data.specifications()
        specifications = {**known, **{i: known[task_id] for i, task_id in of.items() if task_id in known}}
        open_to = Splits(tuple(tasks.values()), (), (), self.tasks.prompt)
        rejected = self.runner.rejected
        before = len(rejected)
        with self.other.answers_in(f"llm_{label}"):
            found = self._ask(source, failing, open_to, specifications)
        for i, line in enumerate(rejected[before:], before):  # sources know the programs' own tasks only
            rejected[i] = _TASK.sub(lambda task: f"task {of.get(int(task[1]), task[1])} at test time", line)
        for transform in source.transforms:
            found = transform(found, self.runner.seed)
        return found

    def _ask(
        self,
        source: Source,
        failing: Failing,
        tasks: Splits | None = None,
        specifications: Mapping[int, Any] | None = None,
    ) -> list[Feedback]:
        """Return a source's feedback. It is reused from the store unless the source repeats it exactly at no cost."""
        runner, rejected = self.runner, list[str]()
        known = self.known.get(source.name, ())
        tests, tasks = self.settings.executor.tests, tasks or self.tasks
        run = Writing(
            tasks=tasks,
            seed=runner.seed,
            known=known,
            score=lambda programs: score(programs, runner.sandbox, tests),
            ask=lambda other, some: self._ask(other, some, tasks, specifications),
            rejected=rejected,
            annotator=self.settings.data.annotator,
            specifications=self.settings.data.specifications() if specifications is None else specifications,
            llm=self.other,
        )
        if source.repeatable:
            found = source.write(failing, run)
            runner.rejected += rejected
            return found

        def work(entry: Entry) -> dict[str, Any]:
            rows = JsonLines(entry.path / _ROWS)
            rows.path.unlink(missing_ok=True)
            rows.append(asdict(f) for f in self._checked(source, source.write(failing, run), failing))
            return {"rejected": rejected}

        programs = [(p.program, p.verdict.verdict, p.verdict.detail) for i in failing for p in failing[i]]
        read = [tasks.by_id[i] for i in {*failing, *(f.task_id for f in known)} if i in tasks.by_id]
        key = {
            "source": key_of(source, aside=("transform", "apply", "limit")),
            "failing": sha256(programs),
            "known": sha256([asdict(f) for f in known]),
            # Sources don't read the training form of gold programs, so a change in it must not ask them again.
            "tasks": sha256([asdict(replace(t, gold="")) for t in sorted(read, key=lambda task: task.task_id)]),
            "scoring": runner.verdicts_of("annotate", read),
            "seed": runner.seed,
        }
        if any(one.asks_llm for one in source.writers):
            asked = self.settings.llm
            key |= {"llm": self.other.key("feedback"), "prompt": asdict(asked.feedback), "shots": asked.shots}
        if source.path is not None and Path(source.path).is_file():
            key["path"] = file_sha256(Path(source.path))
        path, facts = runner.do("annotate", key, work)
        runner.rejected += facts["rejected"]
        return [Feedback(**row | {"categories": tuple(row["categories"])}) for row in JsonLines(path / _ROWS).read()]

    def _checked(self, source: Source, found: Sequence[Feedback], failing: Failing) -> Sequence[Feedback]:
        """Return the feedback of a user's source. Raises InputError if it is not valid feedback for this run."""
        open_to = {task.task_id for task in (*self.tasks.prompt, *self.tasks.refine, *self.tasks.train)} | {*failing}
        seen: set[int] = set()
        for f in found:
            if not isinstance(f, Feedback) or f.task_id not in open_to or f.task_id in seen or not f.source:
                allowed = (
                    f"must write ilf.types.Feedback with a source, one per task, on Prompt, Refine and Train, not {f!r}"
                )
                raise InputError("feedback", source.name, allowed[:400], "Fix its `write`.")
            seen.add(f.task_id)
        return found
