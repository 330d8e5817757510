"""Worker processes, as the executor sees them: started, given jobs, asked for verdicts, ended."""

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

WALL = 2.0  # wall limit as a multiple of the processor limit: a loaded machine must not fail an honest program
_FIRST = 0.5  # seconds that a program has while others wait; one that needs more runs again, beside or after them
_GRACE = 5.0  # seconds that a worker has beyond the wall limit to answer
_FLAGS = ("-S", "-s", "-P", "-W", "ignore", "-X", "utf8")  # the standard library only
_START = "import json, sys; sys.path.insert(0, sys.argv[1]); import worker.main as w; w.main(json.loads(sys.argv[2]))"


class Turn(NamedTuple):
    """A worker's work on one job."""

    place: int  # of the job
    job: Job
    limit: float  # seconds of processor time
    first: bool = True  # whether it is for a short time only

    @property
    def wall(self) -> float:
        """Seconds that the program has, on each of its inputs."""
        return _FIRST if self.first else self.limit * WALL

    @property
    def is_short(self) -> bool:
        """Whether a pipe takes the job at once, whatever its reader does."""
        job = self.job
        return sum(map(len, (job.program, job.setup, *job.tests, *job.inputs, *job.outputs))) < 1300  # of 16 KiB


class Worker:
    """A worker process.

    Args:
        limits: See `Sandbox`.
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
        self._received = bytearray()  # of its answers
        self.turns = deque[Turn]()  # what it has to do
        self.started = self.deadline = 0.0  # of the first of these
        self.report: dict[str, Any] = {}

    def greet(self) -> str | None:
        """Wait until the worker says how it isolates; return why where it ends instead."""
        line = self._line()
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

    def give(self, turn: Turn) -> None:
        """Have the worker judge a job, after the one that it has."""
        self.turns.append(turn)
        if len(self.turns) == 1:
            self._begin()
        job = turn.job
        message: dict[str, Any] = {"program": job.program, "time_limit": turn.limit, "wall_limit": turn.wall}
        if job.inputs:
            message |= {"inputs": job.inputs, "outputs": job.outputs, "compare_output": job.compare_output}
        else:
            message |= {"setup": job.setup, "tests": job.tests}
        with contextlib.suppress(OSError):  # it has ended: there will be no answer
            self._in.write(json.dumps(message).encode() + b"\n")
            self._in.flush()

    def _begin(self) -> None:
        turn = self.turns[0]
        self.started = time.monotonic()
        self.deadline = self.started + turn.wall * max(1, len(turn.job.inputs)) + _GRACE

    def done(self) -> Turn:
        """Return the turn that is over; the next begins."""
        turn = self.turns.popleft()
        if self.turns:
            self._begin()
        return turn

    @property
    def has_answered(self) -> bool:
        """Whether an answer is here already, which its descriptor no longer shows."""
        return b"\n" in self._received

    def answer(self) -> dict[str, Any] | None:
        """Return the verdict on the job, None if the worker has ended."""
        try:
            answer: dict[str, Any] = json.loads(self._line())
        except ValueError:
            return None
        return answer

    def _line(self) -> bytes:
        """Return the next line that it has written, an empty one if it has ended."""
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
