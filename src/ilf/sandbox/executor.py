"""Executes programs outside our process: each a fork of a warm interpreter, with limits and a folder of its own.

Covered: processor and wall time, memory (not on macOS), bytes written to a file or to standard output, the whole
process group killed and its directory removed when the verdict is given.
Not covered yet: the network, reading files, processes that leave the group, and a program that forges its verdict,
since tests run in the program's own process. Run untrusted models in a container.

Programs see the standard library only, so that a verdict does not depend on what is installed beside us.
"""

from __future__ import annotations

import contextlib
import json
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ilf.types import Verdict

_CHILD = Path(__file__).with_name("child.py")
_WALL = 3.0  # wall limit as a multiple of the processor limit: a loaded machine must not fail an honest program
_GRACE = 5.0  # seconds that the interpreter has beyond the wall limit to answer
_DETAIL = 500  # characters of detail kept


@dataclass(frozen=True)
class Limits:
    """What one program may use, and how its results are compared."""

    time_limit: float = 10.0  # seconds of processor time, rounded up to whole ones; wall time is three times as long
    memory_mb: int = 1024  # MiB of address space
    output_kb: int = 1024  # KiB in any one file, standard output included
    workers: int = 2  # programs at once
    compare: str = "exact"  # "exact", or "approx": numbers as pytest.approx, as in the paper's tests


@dataclass(frozen=True)
class Job:
    """A program and the assert statements it must pass."""

    program: str
    tests: tuple[str, ...]
    setup: str = ""


class Sandbox:
    """Executes jobs, several at once. Safe to use from one thread at a time.

    Args:
        limits: What each program may use.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    def run(self, jobs: Sequence[Job]) -> list[Verdict]:
        """Return a verdict for each job, in order. Identical jobs are executed once."""
        distinct = list(dict.fromkeys(jobs))
        workers = min(self.limits.workers, len(distinct)) or 1
        idle: SimpleQueue[_Interpreter] = SimpleQueue()
        with contextlib.ExitStack() as stack, ThreadPoolExecutor(workers) as pool:
            for _ in range(workers):
                idle.put(stack.enter_context(_Interpreter()))

            def execute(job: Job) -> Verdict:
                interpreter = idle.get()
                try:
                    return self._execute(job, interpreter)
                finally:
                    idle.put(interpreter)

            verdicts = dict(zip(distinct, pool.map(execute, distinct), strict=True))
        return [verdicts[job] for job in jobs]

    def _execute(self, job: Job, interpreter: _Interpreter) -> Verdict:
        limits = self.limits
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="ilf-", ignore_cleanup_errors=True) as folder:
            message = {
                "program": job.program,
                "tests": job.tests,
                "setup": job.setup,
                "compare": limits.compare,
                "time_limit": limits.time_limit,
                "wall_limit": limits.time_limit * _WALL,
                "memory_bytes": limits.memory_mb << 20,
                "output_bytes": limits.output_kb << 10,
                "folder": folder,
            }
            answer = interpreter.ask(json.dumps(message), limits.time_limit * _WALL + _GRACE)
        seconds = round(time.monotonic() - started, 4)
        if answer is None:
            return Verdict(
                "crashed", "ended the interpreter that it was forked from", (False,) * len(job.tests), seconds
            )
        events = []
        for line in answer["text"].splitlines():
            with contextlib.suppress(ValueError):  # a line that the kill cut in two
                events.append(json.loads(line))
        return _verdict([e for e in events if isinstance(e, dict)], answer["status"], len(job.tests), seconds)


class _Interpreter:
    """A warm interpreter (child.py) that forks a process for each program; started anew where one ended it."""

    def __enter__(self) -> _Interpreter:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            start_new_session=True,
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, message: str, seconds: float) -> dict[str, Any] | None:
        """Return the interpreter's answer, None where it gives none within `seconds`."""
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None and answers is not None
        with contextlib.suppress(OSError, ValueError):
            requests.write(message.encode() + b"\n")
            requests.flush()
            if select.select([answers], [], [], seconds)[0]:
                answer: dict[str, Any] = json.loads(answers.readline())
                return answer
        self.__exit__()
        self.__enter__()
        return None


def _verdict(events: list[dict[str, object]], status: int | None, n_tests: int, seconds: float) -> Verdict:
    """Turn what the child reported, and how it ended, into a verdict."""
    known = [bool(event["test"]) for event in events if "test" in event]
    tests = tuple((known + [False] * n_tests)[:n_tests])
    bad = next((event for event in events if "verdict" in event), None)
    if bad is not None and ("test" not in bad or any("done" in e for e in events)):
        return Verdict(str(bad["verdict"]), str(bad["detail"])[:_DETAIL], tests, seconds)
    if status is None or status == -signal.SIGXCPU or (status == -signal.SIGKILL and not events):
        return Verdict("timed_out", f"no end after {seconds:.1f} s", tests, seconds)
    if status == -signal.SIGXFSZ:
        return Verdict("output", "wrote more than its limit", tests, seconds)
    if any("done" in event for event in events):
        return Verdict("passed" if all(tests) else "failed", "", tests, seconds)
    return Verdict("crashed", f"ended early with exit status {status}", tests, seconds)
