"""The input of a sandbox: jobs (a program with its tests) and limits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ilf.types import InputError

COMPARE_OUTPUT = ("tokens", "exact")
_CPU_LIMITS = (  # files with the microseconds of processor time that a container may use, and in how many microseconds
    ("/sys/fs/cgroup/cpu.max",),
    ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)


def is_time_limit(value: object) -> bool:
    """Return whether a value from a row is a valid time limit in seconds, or None for the sandbox's own limit."""
    return value is None or (isinstance(value, int | float) and 0 < value <= 3600)


def cores() -> int:
    """Return the number of processors that this process may use, by its affinity and by its container's limit."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in _CPU_LIMITS:
        try:
            quota, period = " ".join(Path(file).read_text() for file in files).split()
            limit = int(quota) / int(period)
        except (OSError, ValueError):  # another operating system or version of cgroups, or the value "max"
            continue
        if limit > 0:  # -1 is no limit
            found = min(found, max(1, int(limit)))
    return found


@dataclass(frozen=True)
class Limits:
    """The resources that one program may use, how its results are compared, and how it is isolated."""

    time_limit: float = 5.0  # seconds of processor time, rounded up to whole seconds; wall time is twice as long
    memory_mb: int = 1024  # MiB of address space, in addition to what the packages take
    output_mb: int = 16  # MiB in any one file, including standard output
    disk_mb: int = 64  # MiB in all files of the program together
    workers: int = 2  # number of programs that run at once
    compare: str = "exact"  # "exact", or "approx": compare numbers like pytest.approx, as in the paper's tests
    trust_eq: bool = False  # whether an object of the program may itself decide what it is equal to
    isolation: str = "best"  # "require" (raise an error if something is left open), "best" or "off"
    packages: tuple[str, ...] = ()  # packages that programs and tests may import besides the standard library


@dataclass(frozen=True)
class Job:
    """A program, and the tests that it must pass or the inputs for which it must write the expected outputs.

    With tests, the program is a module whose functions the tests call. With inputs, the program is a script that is run
    once for each input. It reads the input from standard input, must write the output at the same index to standard
    output, and must exit with status 0.

    Raises:
        InputError: There is neither a test nor an input, there are both, the numbers of inputs and outputs differ, or a
            field is given that only applies to the other kind of job.
    """

    program: str
    tests: tuple[str, ...] = ()  # each an assert statement, or other statements that raise if the program is incorrect
    setup: str = ""  # code that runs in the program's process, after the program and before the tests
    time_limit: float | None = None  # seconds of processor time per run; None: the sandbox's limit
    gold: str = ""  # if given, a program that exceeds the sandbox's limit may take five times as long as this program
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()  # the expected output for each input
    # "tokens": compare words that are separated by white space, and compare them as numbers if the sandbox compares
    # approximately. "exact": compare every character, except newlines at the end.
    compare_output: str = "tokens"

    def __post_init__(self) -> None:
        for name, value, allowed, advice in self._mistakes():
            raise InputError(name, value, allowed, advice)

    def _mistakes(self) -> Iterator[tuple[str, object, str, str]]:
        """Yield the key, the value, what is allowed and what to do for each mistake."""
        if not self.tests and not self.inputs and not self.outputs:
            allowed = "must have one test at least, or inputs and outputs in its place: an empty list would always pass"
            yield "tests", self.tests, allowed, "Give an assert statement that calls the program."
        if self.tests and (self.inputs or self.outputs):
            allowed = "cannot be given beside tests: a program either is called by tests or reads inputs"
            yield "inputs", self.inputs or self.outputs, allowed, "Give either tests, or inputs with outputs."
        if len(self.inputs) != len(self.outputs):
            allowed = f"must be as many as inputs, but there are {len(self.outputs)} for {len(self.inputs)}"
            yield "outputs", self.outputs, allowed, "Give one output for each input."
        if self.inputs and self.setup:
            yield "setup", self.setup, "is only for jobs with tests, not with inputs", "Add it to the program."
        if self.compare_output not in COMPARE_OUTPUT or (self.compare_output != COMPARE_OUTPUT[0] and self.tests):
            allowed = f"must be {' or '.join(COMPARE_OUTPUT)}, and is only for jobs with inputs and outputs"
            yield "compare_output", self.compare_output, allowed, "Leave it out to compare tokens."
