"""What is handed to a sandbox: a program with its tests, and what it may use."""

from __future__ import annotations

from dataclasses import dataclass

from ilf.types import InputError


@dataclass(frozen=True)
class Limits:
    """What one program may use, how its results are compared, and how it is kept from the machine."""

    time_limit: float = 5.0  # seconds of processor time, rounded up to whole ones; wall time is twice as long
    memory_mb: int = 1024  # MiB of address space, besides what the packages take
    output_mb: int = 16  # MiB in any one file, standard output included
    disk_mb: int = 64  # MiB in all its files
    workers: int = 2  # programs at once
    compare: str = "exact"  # "exact", or "approx": numbers as pytest.approx, as in the paper's tests
    trust_eq: bool = False  # whether an object of the program says itself what it equals
    isolation: str = "best"  # "require" (an error where something is left open), "best" or "off"
    packages: tuple[str, ...] = ()  # what programs and tests may import besides the standard library


@dataclass(frozen=True)
class Job:
    """A program and the tests it must pass.

    Raises:
        InputError: There is no test.
    """

    program: str
    tests: tuple[str, ...]  # each an assert statement, or other statements that raise where the program is wrong
    setup: str = ""  # runs after the program, in its process
    time_limit: float | None = None  # seconds of processor time, in place of the sandbox's
    gold: str = ""  # where given, a program that exceeds the sandbox's limit may take five times as long as this one

    def __post_init__(self) -> None:
        if not self.tests:
            allowed = "must hold one test at least: every program would pass none"
            raise InputError("tests", self.tests, allowed, "Give an assert statement that calls the program.")
