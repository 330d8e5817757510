"""Executes jobs in worker processes (worker/), several at once, and reuses the workers between batches."""

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

_ATTEMPTS = 3  # number of workers that a job may bring down before it gets a verdict
_GOLD = 5.0  # a program may take this many times as long as the gold program of its task


class Sandbox:
    """Executes jobs in worker processes, which stop when the sandbox is deleted. Only one thread may use it at a time.

    Args:
        limits: What each program may use.

    Raises:
        InputError: Isolation is required and this machine leaves something open, or a package is not installed or
            cannot be imported.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._workers: list[Worker] = []
        weakref.finalize(self, _end, self._workers)
        if find(limits.packages).imported:
            self._start(1)  # the worker imports the packages, so errors appear here
        if limits.isolation == "require" and self.isolation.open:
            raise InputError(
                "executor.isolation",
                "require",
                f"this machine cannot isolate programs completely: {self.isolation}",
                "Use best, which continues and reports what is open, or a machine whose kernel has what is missing.",
            )

    def __reduce__(self) -> tuple[type[Sandbox], tuple[Limits]]:
        """Pickle the sandbox so that another process starts its own with the same limits."""
        return Sandbox, (self.limits,)

    @functools.cached_property
    def isolation(self) -> Isolation:
        """How programs are isolated from this machine, found by trying to break out."""
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
        """Stop the workers. A later `run` starts new ones."""
        _end(self._workers)

    def _distinct(self, jobs: Sequence[Job]) -> dict[Job, Verdict]:
        distinct = list(dict.fromkeys(jobs))
        verdicts = dict(self._execute(distinct))
        return {job: verdicts[i] for i, job in enumerate(distinct)}

    def _execute(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Verdict]]:
        """Yield the index and the verdict of each job as soon as there is a verdict."""
        limits = [job.time_limit or self.limits.time_limit for job in jobs]
        turns = (Turn(i, job, limit) for i, (job, limit) in enumerate(zip(jobs, limits, strict=True)))
        waiting, slow = deque(turns), deque[Turn]()  # slow jobs need more than the short first turn
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
                        # A job that hangs a worker, or kills workers only after its time is up, is not retried, but
                        # its first turn was shorter than its time.
                        early = attempts[i] < _ATTEMPTS and spent[i] < turn.limit * WALL
                        if (hung and turn.first) or (early and not hung):
                            slow.append(turn._replace(first=False))
                            continue
                        yield i, _lost(turn.job, hung)
                        continue
                    if turn.first and answer["verdict"] == "timed_out":
                        slow.append(turn._replace(first=False))
                        continue
                    yield i, Verdict(answer["verdict"], answer["detail"], tuple(answer["tests"]), answer["seconds"])
        finally:
            for worker in self._busy:  # after an interrupt: their answers would be about jobs of this batch
                worker.end()
                self._workers.remove(worker)

    @property
    def _busy(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.turns]

    def _hand_out(self, waiting: deque[Turn], slow: deque[Turn]) -> None:
        """Give each idle worker a job. While many jobs wait, also queue a second, short job for each worker."""
        for worker in self._workers:
            if worker.turns or not (waiting or slow):
                continue
            # While first turns wait, at most all workers but one may execute slow jobs.
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
            self._workers += started  # before they are ready, so that an interrupt stops them too
            try:
                reasons = {worker: worker.greet() for worker in started}
            except InputError:
                self.close()
                raise
            self._workers[:] = [worker for worker in self._workers if reasons.get(worker) is None]
            if len(self._workers) >= n:
                return
        raise RuntimeError(
            f"a worker process of the sandbox did not start: {next(filter(None, reasons.values()), 'it was killed')}"
        )

    def _answers(self) -> Iterator[tuple[Worker, dict[str, Any] | None]]:
        """Wait for at least one answer; yield None for a worker that has exited or hangs."""
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
    """Return the verdict on a job that hung its worker, as endless tests do, or that brought down all its workers."""
    verdict, detail = (
        ("timed_out", "gave no verdict in time") if hung else ("crashed", "ended each worker that it ran in")
    )
    return Verdict(verdict, detail, (False,) * len(job.tests or job.inputs))


def _end(workers: list[Worker]) -> None:
    while workers:
        workers.pop().end()
