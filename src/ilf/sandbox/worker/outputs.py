"""Judges programs that read and write: one run for each input, and what it wrote compared here.

A run has a process, a folder, standard input and standard output of its own. The judge makes the last two, as files
without a name, and reads what was written when the process has ended by itself, with exit status 0.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from .channel import Ended
from .judge import Judge, Outcome, answer, early
from .reading import almost_equal

_SHORT = 200  # characters of an output that is shown as a whole
_NUMBER = re.compile(rb"[+-]?(\d+|\d+\.\d*|\.\d+)([eE][+-]?\d+)?")


class _Run(NamedTuple):
    outcome: Outcome
    seconds: float  # of processor time
    clean: bool  # whether the next program finds an empty folder


def judge(judge: Judge, job: dict[str, Any]) -> dict[str, Any]:
    """Return what `Judge.judge` does, with the outcome of each input in place of tests, and seconds of the longest run.

    After a run that exceeds its time there is no other: a program that does not end would take the limit each time.

    Args:
        judge: Has the zygote, and how to compare.
        job: program, inputs and outputs (texts), compare_output ("tokens" or "exact"), time_limit (processor seconds)
            and wall_limit (seconds), both of each run.

    Raises:
        EOFError: If the zygote has died.
    """
    outcomes: list[Outcome] = []
    seconds, clean = 0.0, True
    for number, (given, expected) in enumerate(zip(job["inputs"], job["outputs"], strict=True), 1):
        if clean:
            run = _run(judge, job, given, expected)
            seconds, clean, outcome = max(seconds, run.seconds), run.clean, run.outcome
        else:  # the zygote has ended
            outcome = "disk", "an earlier run left files that could not be removed"
        outcomes.append(outcome and (outcome[0], f"input {number}: {outcome[1]}"))
        if outcome and outcome[0] == "timed_out":
            break
    wrong = [outcome for outcome in outcomes if outcome]
    wrong.sort(key=lambda outcome: outcome[0] != "timed_out")  # else the first
    tests = [outcome is None for outcome in outcomes] + [False] * (len(job["inputs"]) - len(outcomes))
    return answer(*(wrong[0] if wrong else ("passed", "")), tests, seconds, not clean)


def _run(judge: Judge, job: dict[str, Any], given: str, expected: str) -> _Run:
    """Run the program on one input."""
    outcome: Outcome = None
    end = ""
    with _file(_bytes(given)) as source, _file() as target:
        channel = judge.start(job, source, target)
        channel.patient = True  # there is no message but of an exception
        try:
            channel.send(job["program"])
            kind, error = channel.receive()
            if kind == "error":
                outcome = error.limit or "failed", error.line
            else:
                end = "garbage"
        except Ended as ended:
            end = str(ended)
        except Exception:  # whatever a program answers must not end its judge
            end = "garbage"
        status, seconds, clean = judge.stop(channel)
        if end == "closed" and status == 0:
            try:
                written = os.pread(target, os.fstat(target).st_size, 0)
                outcome = _compared(written, _bytes(expected), job["compare_output"] == "exact", judge.approximately)
            except MemoryError:
                outcome = "output", "wrote more than can be compared"
        elif end == "closed" and status > 0:
            outcome = "failed", f"exit status {status}"
        elif end:
            outcome = early(end, job, status, seconds)
    return _Run(outcome, seconds, clean)


def _compared(written: bytes, expected: bytes, exactly: bool, approximately: bool) -> Outcome:
    """Compare line by line, or by words, which ASCII's white space divides."""
    if exactly:
        found, wanted = (text.rstrip(b"\n").split(b"\n") for text in (written, expected))
    else:
        wanted = expected.split()
        found = written.split(None, len(wanted))  # what comes after is one more
    if found == wanted:
        return None
    same = _near if approximately and not exactly else bytes.__eq__
    place = next((i for i, pair in enumerate(zip(found, wanted, strict=False)) if not same(*pair)), None)
    if place is None and len(found) == len(wanted):
        return None
    shown = repr(_text(written[: _SHORT + 1]))
    if len(written) <= _SHORT and len(shown) <= _SHORT:
        return "failed", f"the output is {shown}"
    return "failed", _difference(found, wanted, place, "line" if exactly else "word")


def _difference(found: Sequence[bytes], wanted: Sequence[bytes], place: int | None, unit: str) -> str:
    """Say where a long output is another than the expected one."""
    if place is not None:
        return f"{unit} {place + 1} of the output is {_text(found[place][: _SHORT // 2])!r}"
    if len(found) < len(wanted):
        return f"the output ends after {unit} {len(found)}"
    return f"the output goes on after {unit} {len(wanted)}"


def _near(a: bytes, b: bytes) -> bool:
    """Return whether two words are equal, as numbers where both are some."""
    if a == b:
        return True
    if not (_NUMBER.fullmatch(a) and _NUMBER.fullmatch(b)):
        return False
    try:
        return almost_equal(*(float(word) if set(word) & set(b".eE") else int(word) for word in (a, b)))
    except ValueError:  # an integer of too many digits
        return False


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(written: bytes) -> str:
    return written.decode("utf-8", "replace")


@contextlib.contextmanager
def _file(content: bytes = b"") -> Iterator[int]:
    """Yield the descriptor of a file without a name, in memory where the system has such."""
    with open(os.memfd_create("ilf"), "r+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        yield file.fileno()
