"""What is handed to a sandbox: a program with its tests, and what it may use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ilf.types import InputError

COMPARE_OUTPUT = ("tokens", "exact")


def is_time_limit(value: object) -> bool:
    """Return whether a value that is read from a row is a time limit in seconds, or None for the sandbox's."""
    return value is None or (isinstance(value, int | float) and 0 < value <= 3600)


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
    """A program, and the tests that it must pass, or the inputs that it must answer with outputs.

    With tests, the program is a module whose functions they call. With inputs, it is a script that is run anew for each
    of them, reads it on standard input, and must end with exit status 0 and have written the output of the same place
    on standard output.

    Raises:
        InputError: There is neither a test nor an input, or there are both, or inputs and outputs differ in number; or
            something is given that goes with the other kind.
    """

    program: str
    tests: tuple[str, ...] = ()  # each an assert statement, or other statements that raise where the program is wrong
    setup: str = ""  # runs after the program, in its process, before tests
    time_limit: float | None = None  # seconds of processor time, of each input's run, in place of the sandbox's
    gold: str = ""  # where given, a program that exceeds the sandbox's limit may take five times as long as this one
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()  # what is expected, one for each input
    # "tokens": words, which white space divides, and which compare as numbers where the sandbox compares
    # approximately; or "exact": every character, but for newlines at the end.
    compare_output: str = "tokens"

    def __post_init__(self) -> None:
        for name, value, allowed, advice in self._mistakes():
            raise InputError(name, value, allowed, advice)

    def _mistakes(self) -> Iterator[tuple[str, object, str, str]]:
        """Yield key, value, what is allowed, and what to do."""
        if not self.tests and not self.inputs and not self.outputs:
            allowed = "must hold one test at least, or inputs and outputs in its place: every program would pass none"
            yield "tests", self.tests, allowed, "Give an assert statement that calls the program."
        if self.tests and (self.inputs or self.outputs):
            allowed = "have no place beside tests: a program is called by tests, or reads inputs"
            yield "inputs", self.inputs or self.outputs, allowed, "Leave out the one or the other."
        if len(self.inputs) != len(self.outputs):
            allowed = f"must be as many as inputs, and are {len(self.outputs)} for {len(self.inputs)}"
            yield "outputs", self.outputs, allowed, "Give each input its output."
        if self.inputs and self.setup:
            yield "setup", self.setup, "is for tests, and these are inputs", "Make it a part of the program."
        if self.compare_output not in COMPARE_OUTPUT or (self.compare_output != COMPARE_OUTPUT[0] and self.tests):
            allowed = f"must be {' or '.join(COMPARE_OUTPUT)}, and is for inputs with outputs"
            yield "compare_output", self.compare_output, allowed, "Leave it out for tokens."
