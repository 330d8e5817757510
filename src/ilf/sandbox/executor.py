"""Executes jobs in workers (worker/), several at once, and keeps the workers between batches."""

from __future__ import annotations

import functools
import select
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ilf.sandbox.jobs import Job, Limits
from ilf.sandbox.packages import find
from ilf.sandbox.probe import Isolation, probe
from ilf.sandbox.processes import WALL, Turn, Worker
from ilf.types import InputError, Verdict

_ATTEMPTS = 3  # workers that a job may cost
_GOLD = 5.0  # a program may take this many times as long as its task's gold program


class Sandbox:
    """Executes jobs. Usable from one thread at a time; its workers end with it.

    Args:
        limits: What each program may use.

    Raises:
        InputError: If isolation is required and this machine leaves something open, or a package is not installed or
            can't be imported.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._workers: list[Worker] = []
        weakref.finalize(self, _end, self._workers)
        if find(limits.packages).imported:
            self._start(1)  # which imports them
        if limits.isolation == "require" and self.isolation.open:
            raise InputError(
                "executor.isolation",
                "require",
                f"this machine leaves something open: {self.isolation}",
                "Use best, which goes on and says what is open, or a machine whose kernel gives what is missing.",
            )

    def __reduce__(self) -> tuple[type[Sandbox], tuple[Limits]]:
        """Give another process a sandbox of its own."""
        return Sandbox, (self.limits,)

    @functools.cached_property
    def isolation(self) -> Isolation:
        """How programs are kept from this machine: tried, not assumed."""
        self._start(1)
        return probe(self.run, self._workers[0].report)

    def run(self, jobs: Sequence[Job]) -> list[Verdict]:
        """Return a verdict for each job, in order. Identical jobs are executed once."""
        verdicts = self._distinct(jobs)
        slow = [job for job in verdicts if job.gold and not job.time_limit and verdicts[job].verdict == "timed_out"]
        if slow:
            most = _GOLD * self.limits.time_limit
            golds = [replace(job, program=job.gold, gold="", time_limit=most) for job in slow]
            seconds = {job: v.seconds for job, v in self._distinct(golds).items()}
            limits = {job: _GOLD * seconds[gold] for job, gold in zip(slow, golds, strict=True)}
            longer = {job: replace(job, time_limit=n) for job, n in limits.items() if n > self.limits.time_limit}
            found = self._distinct(list(longer.values()))
            verdicts |= {job: found[long] for job, long in longer.items()}
        return [verdicts[job] for job in jobs]

    def close(self) -> None:
        """End the workers. A later `run` starts others."""
        _end(self._workers)

    def _distinct(self, jobs: Sequence[Job]) -> dict[Job, Verdict]:
        distinct = list(dict.fromkeys(jobs))
        verdicts = dict(self._execute(distinct))
        return {job: verdicts[i] for i, job in enumerate(distinct)}

    def _execute(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Verdict]]:
        """Yield each job's place and verdict as they come."""
        limits = [job.time_limit or self.limits.time_limit for job in jobs]
        turns = (Turn(i, job, limit) for i, (job, limit) in enumerate(zip(jobs, limits, strict=True)))
        waiting, slow = deque(turns), deque[Turn]()  # the latter need more than a first turn
        attempts, spent = [0] * len(jobs), [0.0] * len(jobs)
        try:
            while waiting or slow or self._busy:
                self._start(min(self.limits.workers, len(waiting) + len(slow) + len(self._busy)))
                self._hand_out(waiting, slow)
                for worker, answer in self._answers():
                    now = time.monotonic()
                    took, hung = now - worker.started, now > worker.deadline
                    turn = worker.done()
                    i = turn.place
                    if answer is None or answer["last"]:
                        worker.end()
                        self._workers.remove(worker)
                        waiting.extendleft(worker.turns)
                    if answer is None:
                        attempts[i] += 1
                        spent[i] += took
                        # Not again and again for one that ends its worker late.
                        if not hung and attempts[i] < _ATTEMPTS and spent[i] < turn.limit * WALL:
                            slow.append(turn._replace(first=False))
                            continue
                        yield i, _lost(turn.job, hung)
                        continue
                    if turn.first and answer["verdict"] == "timed_out":
                        slow.append(turn._replace(first=False))
                        continue
                    yield i, Verdict(answer["verdict"], answer["detail"], tuple(answer["tests"]), answer["seconds"])
        finally:
            for worker in self._busy:  # an interrupt: what it would answer is about a job of this batch
                worker.end()
                self._workers.remove(worker)

    @property
    def _busy(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.turns]

    def _hand_out(self, waiting: deque[Turn], slow: deque[Turn]) -> None:
        """Give each idle worker a job, and while many wait each one more that it goes on with at once."""
        for worker in self._workers:
            if worker.turns or not (waiting or slow):
                continue
            # All but one worker may be on slow ones while there are others.
            on_slow = sum(not other.turns[0].first for other in self._busy)
            first = bool(waiting) and not (slow and on_slow < self.limits.workers - 1)
            turn = waiting.popleft() if first else slow.popleft()
            worker.give(turn._replace(first=first and bool(waiting or slow or self._busy)))
        for worker in self._busy:
            many = len(waiting) > 2 * self.limits.workers
            if many and len(worker.turns) == 1 and worker.turns[0].first and waiting[0].is_short:
                worker.give(waiting.popleft())

    def _start(self, n: int) -> None:
        for _ in range(_ATTEMPTS):
            started = [Worker(self.limits) for _ in range(n - len(self._workers))]
            self._workers += started  # at once, so that an interrupt ends them too
            try:
                reasons = {worker: worker.greet() for worker in started}
            except InputError:
                self.close()
                raise
            self._workers[:] = [worker for worker in self._workers if reasons.get(worker) is None]
            if len(self._workers) >= n:
                return
        raise RuntimeError(
            f"a worker of the sandbox did not start: {next(filter(None, reasons.values()), 'it was killed')}"
        )

    def _answers(self) -> Iterator[tuple[Worker, dict[str, Any] | None]]:
        """Wait for one answer or more; None stands for a worker that has ended or hangs."""
        poll, workers = select.poll(), self._busy
        by_descriptor = {worker.descriptor: worker for worker in workers}
        for descriptor in by_descriptor:
            poll.register(descriptor, select.POLLIN)
        soonest = min(worker.deadline for worker in workers)
        here = {worker for worker in workers if worker.has_answered}
        patience = 0 if here else max(0.0, soonest - time.monotonic()) * 1000 + 1
        ready = here | {by_descriptor[descriptor] for descriptor, _ in poll.poll(patience)}
        for worker in workers:
            if worker in ready:
                yield worker, worker.answer()
            elif time.monotonic() > worker.deadline:
                yield worker, None


def _lost(job: Job, hung: bool) -> Verdict:
    """Return the verdict on a job that hung its worker, as endless tests do, or ended all that it was given to."""
    verdict, detail = (
        ("timed_out", "gave no verdict in time") if hung else ("crashed", "ended each worker that it ran in")
    )
    return Verdict(verdict, detail, (False,) * len(job.tests or job.inputs))


def _end(workers: list[Worker]) -> None:
    while workers:
        workers.pop().end()
