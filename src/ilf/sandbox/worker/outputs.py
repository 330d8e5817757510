"""Judges programs that read and write: runs the program once for each input and compares its output.

Each run has its own process, folder, standard input and standard output. The judge creates the last two as files
without a name, and reads the output after the process has exited by itself with status 0.
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

_SHORT = 200  # maximum characters of an output that is shown completely
_NUMBER = re.compile(rb"[+-]?(\d+|\d+\.\d*|\.\d+)([eE][+-]?\d+)?")


class _Run(NamedTuple):
    outcome: Outcome
    seconds: float  # of processor time
    clean: bool  # whether the next program finds an empty folder


def judge(judge: Judge, job: dict[str, Any]) -> dict[str, Any]:
    """Return an answer like `Judge.judge`, where `tests` has one outcome per input and `seconds` is of the longest run.

    The first run that exceeds its time is the last: a program that does not end would take the full limit each time.

    Args:
        judge: The judge, which has the zygote and the settings for comparisons.
        job: program, inputs and outputs (strings), compare_output ("tokens" or "exact"), time_limit (processor seconds
            of each run) and wall_limit (seconds of each run).

    Raises:
        EOFError: If the zygote has died.
    """
    outcomes: list[Outcome] = []
    seconds, clean = 0.0, True
    for number, (given, expected) in enumerate(zip(job["inputs"], job["outputs"], strict=True), 1):
        if clean:
            run = _run(judge, job, given, expected)
            seconds, clean, outcome = max(seconds, run.seconds), run.clean, run.outcome
        else:  # the zygote has exited
            outcome = "disk", "an earlier run left files that could not be removed"
        outcomes.append(outcome and (outcome[0], f"input {number}: {outcome[1]}"))
        if outcome and outcome[0] == "timed_out":
            break
    wrong = [outcome for outcome in outcomes if outcome]
    wrong.sort(key=lambda outcome: outcome[0] != "timed_out")  # a time-out, or else the first
    tests = [outcome is None for outcome in outcomes] + [False] * (len(job["inputs"]) - len(outcomes))
    return answer(*(wrong[0] if wrong else ("passed", "")), tests, seconds, not clean)


def _run(judge: Judge, job: dict[str, Any], given: str, expected: str) -> _Run:
    """Run the program on one input."""
    outcome: Outcome = None
    end = ""
    with _file(_bytes(given)) as source, _file() as target:
        channel = judge.start(job, source, target)
        channel.patient = True  # the only message that a script can send is about an exception
        try:
            channel.send(job["program"])
            kind, error = channel.receive()
            if kind == "error":
                outcome = error.limit or "failed", error.line
            else:
                end = "garbage"
        except Ended as ended:
            end = str(ended)
        except Exception:  # no answer of a program may stop the judge
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
    """Compare an output line by line if `exactly`, else word by word; ASCII white space separates words."""
    if exactly:
        found, wanted = (text.rstrip(b"\n").split(b"\n") for text in (written, expected))
    else:
        wanted = expected.split()
        found = written.split(None, len(wanted))  # all that follows is one more item
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
    """Return a message that says where a long output differs from the expected one."""
    if place is not None:
        return f"{unit} {place + 1} of the output is {_text(found[place][: _SHORT // 2])!r}"
    if len(found) < len(wanted):
        return f"the output ends after {unit} {len(found)}"
    return f"the output goes on after {unit} {len(wanted)}"


def _near(a: bytes, b: bytes) -> bool:
    """Return whether two words are equal, or almost equal if both are numbers."""
    if a == b:
        return True
    if not (_NUMBER.fullmatch(a) and _NUMBER.fullmatch(b)):
        return False
    try:
        return almost_equal(*(float(word) if set(word) & set(b".eE") else int(word) for word in (a, b)))
    except ValueError:  # an integer with too many digits
        return False


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(written: bytes) -> str:
    return written.decode("utf-8", "replace")


@contextlib.contextmanager
def _file(content: bytes = b"") -> Iterator[int]:
    """Yield the descriptor of a file without a name, which is in memory if the system supports it."""
    with open(os.memfd_create("ilf"), "r+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        yield file.fileno()
