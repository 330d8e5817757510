"""Worker processes, as the executor sees them: it starts them, sends jobs, reads verdicts and kills them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

from ilf.sandbox.jobs import Job, Limits
from ilf.sandbox.packages import find
from ilf.sandbox.worker.isolation import remove
from ilf.types import InputError

WALL = 2.0  # wall limit as a multiple of the processor limit: an honest program must not fail on a loaded machine
_FIRST = 0.5  # seconds of a first turn while other jobs wait; a program that needs more is run again later
_GRACE = 5.0  # seconds beyond the wall limit within which a worker must answer
_FLAGS = ("-S", "-s", "-P", "-W", "ignore", "-X", "utf8")  # only the standard library can be imported
_START = "import json, sys; sys.path.insert(0, sys.argv[1]); import worker.main as w; w.main(json.loads(sys.argv[2]))"


class Turn(NamedTuple):
    """One execution of a job by a worker."""

    place: int  # index of the job
    job: Job
    limit: float  # seconds of processor time
    first: bool = True  # whether this is the short first turn

    @property
    def wall(self) -> float:
        """The wall time limit of the program in seconds, for each of its inputs."""
        return min(_FIRST, self.limit * WALL) if self.first else self.limit * WALL

    @property
    def is_short(self) -> bool:
        """Whether the job fits into a pipe's buffer, so that writing it never blocks."""
        job = self.job
        # The JSON of fewer than 1,300 characters fits into 16 KiB.
        return sum(map(len, (job.program, job.setup, *job.tests, *job.inputs, *job.outputs))) < 1300


class Worker:
    """A worker process that judges jobs one after the other.

    Args:
        limits: What each program may use.
    """

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
        # The hash seed is fixed because the order of a set must not decide a verdict. The number of malloc arenas is
        # limited because the arenas of threads would use up the address space.
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
        self._received = bytearray()  # the part of its answers that is not yet parsed
        self.turns = deque[Turn]()  # the turns that it has been given
        self.started = self.deadline = 0.0  # of the current turn, the first of these
        self.report: dict[str, Any] = {}

    def greet(self) -> str | None:
        """Wait for the worker's report on isolation; return None, or the reason if the worker exits instead."""
        line = self._line()
        if line:
            self.report = json.loads(line)
            if "package" in self.report:
                self.end()
                allowed = f"cannot be imported: {self.report['reason']}"
                raise InputError("executor.packages", self.report["package"], allowed, "Repair it, or leave it out.")
            return None
        reason = self._errors.read().decode(errors="replace")[-2000:]
        self.end()
        return reason

    def give(self, turn: Turn) -> None:
        """Send a job to the worker, which judges it after the job that it already has."""
        self.turns.append(turn)
        if len(self.turns) == 1:
            self._begin()
        job = turn.job
        message: dict[str, Any] = {"program": job.program, "time_limit": turn.limit, "wall_limit": turn.wall}
        if job.inputs:
            message |= {"inputs": job.inputs, "outputs": job.outputs, "compare_output": job.compare_output}
        else:
            message |= {"setup": job.setup, "tests": job.tests}
        with contextlib.suppress(OSError):  # it has exited, and `answer` will return None
            self._in.write(json.dumps(message).encode() + b"\n")
            self._in.flush()

    def _begin(self) -> None:
        turn = self.turns[0]
        self.started = time.monotonic()
        self.deadline = self.started + turn.wall * max(1, len(turn.job.inputs)) + _GRACE

    def done(self) -> Turn:
        """Return the turn that is finished, and start the clock of the next one."""
        turn = self.turns.popleft()
        if self.turns:
            self._begin()
        return turn

    @property
    def has_answered(self) -> bool:
        """Whether a complete answer is already buffered, so that polling the descriptor would miss it."""
        return b"\n" in self._received

    def answer(self) -> dict[str, Any] | None:
        """Return the verdict on the current job, or None if the worker has exited."""
        try:
            answer: dict[str, Any] = json.loads(self._line())
        except ValueError:
            return None
        return answer

    def _line(self) -> bytes:
        """Return the next line that the worker has written, or an empty line if it has exited."""
        while not self.has_answered:
            part = os.read(self.descriptor, 1 << 16)
            if not part:
                return b""
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        return bytes(line)

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
