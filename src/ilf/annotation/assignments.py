"""Assigns the tasks of a run's failing programs to annotators, and checks and saves their answers."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ilf.analysis.refinements import edit_distance
from ilf.annotation.answers import Answers
from ilf.executors import Judge
from ilf.files import sha256
from ilf.scoring import score
from ilf.tasks.data import job_of
from ilf.tasks.prompts import normalise_newlines
from ilf.types import Program, Task, Verdict

_PATIENCE = 300.0  # seconds without a heartbeat after which a task is given to other annotators


class Refused(ValueError):
    """A request of an annotator can't be fulfilled. The message tells them why and what to do."""


@dataclass(frozen=True)
class Wrong:
    """A distinct failing program of a task."""

    program: str
    count: int  # number of samples with this program
    verdict: Verdict


@dataclass
class _Claim:
    task_id: int
    annotator: str
    seen: float  # time of the last heartbeat


class Work:
    """The tasks to annotate. The class is thread-safe.

    Args:
        failing: The failing programs of each failing task, by task id.
        tasks: The tasks by id.
        answers: The earlier answers, to which new ones are appended.
        sandbox: The sandbox that executes programs.
        tests: The tests to use; see `ilf.scoring.score`.
    """

    def __init__(
        self,
        failing: Mapping[int, Sequence[Program]],
        tasks: Mapping[int, Task],
        answers: Answers,
        sandbox: Judge,
        tests: str,
    ) -> None:
        self.tasks = {i: tasks[i] for i in _mixed([tasks[i] for i in sorted(failing)])}
        self._wrong = {i: _distinct(failing[i]) for i in self.tasks}
        self.run = sha256({str(i): [w.program for w in self._wrong[i]] for i in self.tasks})[:12]
        self._answers, self._sandbox, self._tests = answers, sandbox, tests
        self._claims: dict[str, _Claim] = {}  # by session, which is one browser window of one annotator
        self._lock, self._executing = threading.RLock(), threading.Lock()

    def tests(self, task_id: int) -> Sequence[str]:
        """Return the tests that decide about the programs of a task, or its inputs and outputs as text."""
        task = self.tasks[task_id]
        return job_of("", task, self._tests).tests or task.in_words[task.shown if self._tests == "unseen" else 0 :]

    def answered(self) -> dict[int, dict[str, Any]]:
        """Return the newest answer to each answered task, by task id."""
        with self._lock:
            return {row["task_id"]: row for row in self._answers.rows() if row["task_id"] in self.tasks}

    def held(self) -> dict[int, list[str]]:
        """Return the annotators who have each task open, by task id."""
        with self._lock:
            found: dict[int, list[str]] = {}
            for claim in self._alive().values():
                found.setdefault(claim.task_id, []).append(claim.annotator)
            return found

    def open(self, session: str, annotator: str, task_id: int) -> None:
        """Assign a task to a session, which releases its previous task."""
        self._known(task_id)
        with self._lock:
            self._claims[session] = _Claim(task_id, annotator, time.monotonic())

    def next(self, session: str, annotator: str, skipped: Sequence[int]) -> int | None:
        """Assign the first task that is neither answered nor open elsewhere, or return None if none is left.

        Skipped tasks come last. Two sessions that ask at the same time get different tasks.
        """
        with self._lock:
            answered = self.answered()
            taken = {claim.task_id for one, claim in self._alive().items() if one != session}
            order = [i for i in self.tasks if i not in skipped] + [i for i in skipped if i in self.tasks]
            free = [i for i in order if i not in answered and i not in taken]
            self._claims.pop(session, None)
            if free:
                self._claims[session] = _Claim(free[0], annotator, time.monotonic())
            return free[0] if free else None

    def leave(self, session: str) -> None:
        """Release the task that a session has open."""
        with self._lock:
            self._claims.pop(session, None)

    def wrong(self, task_id: int) -> list[Wrong]:
        """Return a task's failing programs, easiest first, and then the answered program if it is not among them."""
        found = list(self._wrong[self._known(task_id)])
        answer = self.answered().get(task_id)
        if answer and answer["original_model_completion"] not in {one.program for one in found}:
            program = answer["original_model_completion"]
            found.append(Wrong(program, 0, self.execute(task_id, program)))
        return found

    def execute(self, task_id: int, program: str) -> Verdict:
        """Execute a program in the sandbox and return its verdict."""
        task = self.tasks[self._known(task_id)]
        with self._executing:  # only one thread may use a sandbox at a time
            return score([(normalise_newlines(program), task)], self._sandbox, self._tests)[0]

    def save(
        self,
        task_id: int,
        program: str,
        feedback: str,
        refinement: str,
        bugs: int | None,
        categories: Sequence[str],
        annotator: str,
        seconds: float,
    ) -> dict[str, Any]:
        """Append an answer to the file, and return its row.

        Args:
            task_id: The id of the task.
            program: x0, one of the task's failing programs.
            feedback: The feedback f.
            refinement: The refinement x1. It equals the program if the annotator wrote only feedback.
            bugs: The number of mistakes that the feedback addresses, if the annotator gave it.
            categories: The categories of these mistakes.
            annotator: The annotator's name.
            seconds: The time spent on this task.

        Raises:
            Refused: The feedback is empty, the program is not one of the task's, or the refinement fails the tests.
        """
        if program not in {one.program for one in self.wrong(task_id)}:
            raise Refused(
                "This program is not one of the task's failing ones: the server now has another run. Reload the page."
            )
        if not feedback.strip():
            raise Refused("Write feedback first: the model is trained on it.")
        refinement = normalise_newlines(refinement)
        if refinement.rstrip() == normalise_newlines(program).rstrip():
            refinement = ""
        elif not (verdict := self.execute(task_id, refinement)).passed:
            reason = f"{verdict.verdict.replace('_', ' ')}: {verdict.detail}".removesuffix(": ")
            raise Refused(
                f"The refinement does not pass the tests ({reason}). Fix it, or restore the program to save only the "
                "feedback."
            )
        row = {
            "task_id": task_id,
            "prompt": self.tasks[task_id].prompt,
            "Feedback": normalise_newlines(feedback).strip(),
            "original_model_completion": program,
            "unedited_annotator_completion": refinement,
            "refinement_edit_distance": round(edit_distance(program, refinement), 4) if refinement else None,
            "bugs": bugs,
            "categories": list(categories),
            "annotator": annotator,
            "seconds": round(seconds, 1),
            "saved": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        with self._lock:
            self._answers.append(row)
        return row

    def _known(self, task_id: int) -> int:
        if task_id not in self.tasks:
            raise Refused(f"Task {task_id} is not one of the tasks to annotate.")
        return task_id

    def _alive(self) -> dict[str, _Claim]:
        then = time.monotonic() - _PATIENCE
        self._claims = {session: claim for session, claim in self._claims.items() if claim.seen > then}
        return self._claims


def _mixed(tasks: Sequence[Task]) -> list[int]:
    """Return the ids with all splits interleaved evenly, so that a partial annotation covers every split."""
    sizes, seen, place = Counter(task.split for task in tasks), Counter[str](), {}
    for task in tasks:
        place[task.task_id] = seen[task.split] / sizes[task.split]
        seen[task.split] += 1
    return sorted(place, key=lambda i: (place[i], i))


def _distinct(programs: Sequence[Program]) -> list[Wrong]:
    """Return the distinct programs, ordered from the one that looks easiest to fix."""
    counts = Counter(p.program for p in programs)
    verdicts = {p.program: p.verdict for p in programs}
    found = [Wrong(text, count, verdicts[text]) for text, count in counts.items()]
    return sorted(found, key=lambda w: (-sum(w.verdict.tests), -w.count, len(w.program), w.program))
