"""A run's failing programs as work for annotators: who has which task, what is answered, what an answer must be."""

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
from ilf.tasks.prompts import normalise_newlines
from ilf.types import Program, Task, Verdict

_PATIENCE = 300.0  # seconds without a sign of life after which somebody's task is given to others


class Refused(ValueError):
    """What an annotator asks for can't be done; the message tells them why and what to do."""


@dataclass(frozen=True)
class Wrong:
    """A distinct failing program of a task."""

    program: str
    count: int  # how many samples gave it
    verdict: Verdict


@dataclass
class _Claim:
    task_id: int
    annotator: str
    seen: float  # time of the last sign of life


class Work:
    """The tasks to annotate. Usable from several threads at once.

    Args:
        failing: The programs of each task that has no correct one.
        tasks: By id.
        answers: What was answered, and where answers go.
        sandbox: Executes programs.
        tests: See `ilf.scoring.score`.
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
        self._claims: dict[str, _Claim] = {}  # by session: one window of one annotator
        self._lock, self._executing = threading.RLock(), threading.Lock()

    def answered(self) -> dict[int, dict[str, Any]]:
        """Return the newest answer of each task that has one."""
        with self._lock:
            return {row["task_id"]: row for row in self._answers.rows() if row["task_id"] in self.tasks}

    def held(self) -> dict[int, list[str]]:
        """Return who has which task open."""
        with self._lock:
            found: dict[int, list[str]] = {}
            for claim in self._alive().values():
                found.setdefault(claim.task_id, []).append(claim.annotator)
            return found

    def open(self, session: str, annotator: str, task_id: int) -> None:
        """Give a task to a session, which gives back the one it had."""
        self._known(task_id)
        with self._lock:
            self._claims[session] = _Claim(task_id, annotator, time.monotonic())

    def next(self, session: str, annotator: str, skipped: Sequence[int]) -> int | None:
        """Give a session the first task that nobody has answered or open, skipped ones last; None where none is left.

        Two sessions that ask at the same time get different tasks.
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
        """Give back what a session has open."""
        with self._lock:
            self._claims.pop(session, None)

    def wrong(self, task_id: int) -> list[Wrong]:
        """Return a task's failing programs, the easiest first, and the one that was answered on where it is another."""
        found = list(self._wrong[self._known(task_id)])
        answer = self.answered().get(task_id)
        if answer and answer["original_model_completion"] not in {one.program for one in found}:
            program = answer["original_model_completion"]
            found.append(Wrong(program, 0, self.execute(task_id, program)))
        return found

    def execute(self, task_id: int, program: str) -> Verdict:
        """Return the verdict on a program, executed in the sandbox."""
        task = self.tasks[self._known(task_id)]
        with self._executing:  # a sandbox is one thread's at a time
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
        """Append an answer to the file and return its row.

        Args:
            task_id: Of the task.
            program: x0, one of the task's failing programs.
            feedback: f.
            refinement: x1; the program itself where there is only feedback.
            bugs: How many mistakes the feedback addresses, where the annotator said so.
            categories: Of these mistakes.
            annotator: Who wrote it.
            seconds: At work on this task.

        Raises:
            Refused: The feedback is empty, the program is another task's, or the refinement does not pass the tests.
        """
        if program not in {one.program for one in self.wrong(task_id)}:
            raise Refused("This program is not one of the task's failing ones: the server has another run. Reload.")
        if not feedback.strip():
            raise Refused("Write feedback first: it is what the model learns from.")
        refinement = normalise_newlines(refinement)
        if refinement.rstrip() == normalise_newlines(program).rstrip():
            refinement = ""
        elif not (verdict := self.execute(task_id, refinement)).passed:
            reason = f"{verdict.verdict.replace('_', ' ')}: {verdict.detail}".removesuffix(": ")
            raise Refused(
                f"The refinement does not pass the tests ({reason}). Mend it, or restore the program to save feedback "
                "alone."
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
            raise Refused(f"Task {task_id} is not one of those to annotate.")
        return task_id

    def _alive(self) -> dict[str, _Claim]:
        then = time.monotonic() - _PATIENCE
        self._claims = {session: claim for session, claim in self._claims.items() if claim.seen > then}
        return self._claims


def _mixed(tasks: Sequence[Task]) -> list[int]:
    """Return the ids with all splits spread evenly: whoever stops half way has some of each to train with."""
    sizes, seen, place = Counter(task.split for task in tasks), Counter[str](), {}
    for task in tasks:
        place[task.task_id] = seen[task.split] / sizes[task.split]
        seen[task.split] += 1
    return sorted(place, key=lambda i: (place[i], i))


def _distinct(programs: Sequence[Program]) -> list[Wrong]:
    """Return the distinct programs, those that look easiest to mend first."""
    counts = Counter(p.program for p in programs)
    verdicts = {p.program: p.verdict for p in programs}
    found = [Wrong(text, count, verdicts[text]) for text, count in counts.items()]
    return sorted(found, key=lambda w: (-sum(w.verdict.tests), -w.count, len(w.program), w.program))
