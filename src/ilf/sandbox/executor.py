"""Executes jobs in workers (worker/), several at once, and keeps the workers between batches."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ilf.sandbox.jobs import Job, Limits
from ilf.sandbox.packages import find
from ilf.sandbox.probe import Isolation, probe
from ilf.sandbox.worker.isolation import remove
from ilf.types import InputError, Verdict

_WALL = 2.0  # wall limit as a multiple of the processor limit: a loaded machine must not fail an honest program
_FIRST = 0.5  # seconds that a program has while others wait; one that needs more runs again, beside or after them
_GRACE = 5.0  # seconds that a worker has beyond the wall limit to answer
_ATTEMPTS = 3  # workers that a job may cost
_GOLD = 5.0  # a program may take this many times as long as its task's gold program
_FLAGS = ("-S", "-s", "-P", "-W", "ignore", "-X", "utf8")  # the standard library only
_START = "import json, sys; sys.path.insert(0, sys.argv[1]); import worker.main as w; w.main(json.loads(sys.argv[2]))"


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
        self._workers: list[_Worker] = []
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
        waiting, slow = deque(range(len(jobs))), deque[int]()  # places; those that need more than a first turn
        attempts, spent = [0] * len(jobs), [0.0] * len(jobs)
        busy: dict[_Worker, tuple[int, bool]] = {}  # place, whether it is a first turn
        try:
            while waiting or slow or busy:
                self._start(min(self.limits.workers, len(waiting) + len(slow) + len(busy)))
                for worker in self._workers:
                    if worker in busy or not (waiting or slow):
                        continue
                    # All but one worker may be on slow ones while there are others.
                    turns = sum(not first for _, first in busy.values())
                    first = bool(waiting) and not (slow and turns < self.limits.workers - 1)
                    i = waiting.popleft() if first else slow.popleft()
                    first = first and bool(waiting or slow or busy)
                    busy[worker] = i, first
                    worker.give(jobs[i], self._limit(jobs[i]), first)
                for worker, answer in self._answers(list(busy)):
                    i, first = busy.pop(worker)
                    if answer is None or answer["last"]:
                        worker.end()
                        self._workers.remove(worker)
                    if answer is None:
                        attempts[i] += 1
                        spent[i] += time.monotonic() - worker.started
                        hung = time.monotonic() > worker.deadline
                        # Not again and again for one that ends its worker late.
                        if not hung and attempts[i] < _ATTEMPTS and spent[i] < self._limit(jobs[i]) * _WALL:
                            slow.append(i)
                            continue
                        yield i, _lost(jobs[i], hung)
                        continue
                    if first and answer["verdict"] == "timed_out":
                        slow.append(i)
                        continue
                    yield i, Verdict(answer["verdict"], answer["detail"], tuple(answer["tests"]), answer["seconds"])
        finally:
            for worker in busy:  # an interrupt: what it would answer is about a job of this batch
                worker.end()
                self._workers.remove(worker)

    def _limit(self, job: Job) -> float:
        return job.time_limit or self.limits.time_limit

    def _start(self, n: int) -> None:
        for _ in range(_ATTEMPTS):
            started = [_Worker(self.limits) for _ in range(n - len(self._workers))]
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

    def _answers(self, workers: list[_Worker]) -> Iterator[tuple[_Worker, dict[str, Any] | None]]:
        """Wait for one answer or more; None stands for a worker that has ended or hangs."""
        poll = select.poll()
        by_descriptor = {worker.descriptor: worker for worker in workers}
        for descriptor in by_descriptor:
            poll.register(descriptor, select.POLLIN)
        soonest = min(worker.deadline for worker in workers)
        ready = {by_descriptor[d] for d, _ in poll.poll(max(0.0, soonest - time.monotonic()) * 1000 + 1)}
        for worker in workers:
            if worker in ready:
                yield worker, worker.answer()
            elif time.monotonic() > worker.deadline:
                yield worker, None


class _Worker:
    """A worker process, seen from here."""

    def __init__(self, limits: Limits) -> None:
        settings: dict[str, Any] = {
            "isolate": limits.isolation != "off",
            "memory": limits.memory_mb << 20,
            "output": limits.output_mb << 20,
            "disk": limits.disk_mb << 20,
            "approximately": limits.compare == "approx",
            "trust": limits.trust_eq,
            "packages": None,
            "environment": {},
        }
        packages = find(limits.packages)
        if packages.imported:
            settings["packages"] = {name: getattr(packages, name) for name in ("imported", "modules", "files")}
        # A fixed hash seed: the order of a set must not decide a verdict. Arenas: threads must not use up memory.
        self._process = subprocess.Popen(
            [sys.executable, *_FLAGS, "-c", _START, str(Path(__file__).parent), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "2", "PYTHONDONTWRITEBYTECODE": "1"},
            start_new_session=True,
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._in, self._out, self._errors = self._process.stdin, self._process.stdout, self._process.stderr
        self.descriptor = self._out.fileno()
        self.started = self.deadline = 0.0
        self.report: dict[str, Any] = {}

    def greet(self) -> str | None:
        """Wait until the worker says how it isolates; return why where it ends instead."""
        line = self._out.readline()
        if line:
            self.report = json.loads(line)
            if "package" in self.report:
                self.end()
                allowed = f"can't be imported here: {self.report['reason']}"
                raise InputError("executor.packages", self.report["package"], allowed, "Mend it, or leave it out.")
            return None
        reason = self._errors.read().decode(errors="replace")[-2000:]
        self.end()
        return reason

    def give(self, job: Job, limit: float, first: bool) -> None:
        """Have the worker judge a job; on its first turn only for a short time."""
        wall = _FIRST if first else limit * _WALL
        self.started = time.monotonic()
        self.deadline = self.started + wall * max(1, len(job.inputs)) + _GRACE
        message: dict[str, Any] = {"program": job.program, "time_limit": limit, "wall_limit": wall}
        if job.inputs:
            message |= {"inputs": job.inputs, "outputs": job.outputs, "compare_output": job.compare_output}
        else:
            message |= {"setup": job.setup, "tests": job.tests}
        with contextlib.suppress(OSError):  # it has ended: there will be no answer
            self._in.write(json.dumps(message).encode() + b"\n")
            self._in.flush()

    def answer(self) -> dict[str, Any] | None:
        """Return the verdict on the job, None if the worker has ended."""
        try:
            answer: dict[str, Any] = json.loads(self._out.readline())
        except ValueError:
            return None
        return answer

    def end(self) -> None:
        """Kill the worker, its zygote and its program."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._in, self._out, self._errors):
            with contextlib.suppress(OSError):
                pipe.close()
        if "root" not in self.report.get("entered", ["root"]):
            remove(self.report["folder"])


def _lost(job: Job, hung: bool) -> Verdict:
    """Return the verdict on a job that hung its worker, as endless tests do, or ended all that it was given to."""
    verdict, detail = (
        ("timed_out", "gave no verdict in time") if hung else ("crashed", "ended each worker that it ran in")
    )
    return Verdict(verdict, detail, (False,) * len(job.tests or job.inputs))


def _end(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().end()
