"""The judge: evaluates a program's tests outside the program's process.

Of MBPP's 2,922 asserts, 2,901 are `f(literals) == literal`. The judge sends the left sides of all of them to the
program at once, and compares the plain data that comes back. Any other test runs in the judge's process as it is
written, with a `Remote` for each name that the program defines.
"""

import contextlib
import math
import random
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

from . import library, pytest_like, serialization
from .channel import Channel, Ended
from .reading import MODULES, Block, Call, almost_equal, is_ours, prepare
from .remote import Remote, Unsupported
from .scope import BUILTINS, Builtins, module, packages_named, program, same
from .zygote import ENDED, START

MEMORY = 768 << 20  # maximum bytes of address space of the judge, even if a program's answers expand to more
_DETAIL = 500  # maximum characters of a detail

Outcome = tuple[str, str] | None  # of a test: None if it passes, else verdict and detail


class Judge:
    """Judges programs one at a time, each in a fork of the zygote.

    Args:
        control: The zygote's socket.
        approximately: Whether to compare numbers as the paper's tests do.
        trust: Whether objects of the program may themselves decide what they are equal to.
        folder: The programs' folder if only this judge limits its size, else None.
        disk: Maximum bytes in the folder.
    """

    def __init__(self, control: socket.socket, approximately: bool, trust: bool, folder: str | None, disk: int) -> None:
        self.control, self.approximately, self.trust = control, approximately, trust
        self.folder, self.disk = folder, disk
        self._forked: socket.socket | None = None  # the socket of the process that waits for the next program

    def judge(self, job: dict[str, Any]) -> dict[str, Any]:
        """Judge a job, and return verdict, detail, tests (an outcome for each), processor seconds and last.

        `last` is true if the worker cannot judge another job.

        Args:
            job: program, setup, tests, time_limit (processor seconds), wall_limit (seconds).

        Raises:
            EOFError: The zygote has died.
        """
        case = _Case(self, job)
        try:
            with _same_state():
                case.run()
        except Ended as end:
            case.end = str(end)
        except (Exception, Unsupported):  # no answer of a program may stop the judge
            case.end = "garbage"
        finally:
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        return case.close()

    def start(self, job: dict[str, Any], *streams: int) -> Channel:
        """Start a program's process, and return the channel to it.

        Args:
            job: See `judge`.
            *streams: Descriptors of a script's standard input and output.

        Raises:
            EOFError: The zygote or its newest process has died.
        """
        ours, self._forked = self._forked or self._fork(), None
        channel = Channel(ours, job["wall_limit"], self.folder, self.disk, self.trust)
        try:
            socket.send_fds(ours, [START.pack(max(1, math.ceil(job["time_limit"])))], streams)
        except OSError:
            raise EOFError from None
        return channel

    def stop(self, channel: Channel) -> tuple[int, float, bool]:
        """Stop the program's process; return its exit status, processor seconds, and whether its folder is empty again.

        Raises:
            EOFError: The zygote has died.
        """
        channel.close()
        try:
            self.control.sendall(b"e")
            status, seconds, clean = ENDED.unpack(serialization.exactly(self.control.fileno(), ENDED.size))
        except OSError:
            raise EOFError from None
        with contextlib.suppress(EOFError):  # only concerns the next program: this one has its verdict
            self._forked = self._fork() if clean else None  # the zygote exits if the folder is not empty
        return status, seconds, clean

    def _fork(self) -> socket.socket:
        """Ask the zygote to fork the next process, and return our end of its socket.

        The process is forked before there is a job for it, while the last verdict is delivered and a processor is idle.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self.control, [b"f"], [theirs.fileno()])
            except OSError:
                raise EOFError from None
        return ours


def answer(verdict: str, detail: str, tests: list[bool], seconds: float, last: bool) -> dict[str, Any]:
    """Return the worker's answer with the verdict on a job."""
    detail = detail.encode("utf-8", "backslashreplace").decode()  # a program may raise half of a surrogate pair
    return {"verdict": verdict, "detail": detail[:_DETAIL], "tests": tests, "seconds": round(seconds, 4), "last": last}


def early(end: str, job: dict[str, Any], status: int, seconds: float) -> tuple[str, str]:
    """Return verdict and detail for a program whose process stopped answering.

    Args:
        end: The reason; see `Ended`.
        job: See `Judge.judge`.
        status: The exit status of the process.
        seconds: The processor time in seconds that it used.
    """
    if end == "garbage":
        return "failed", "answered with what is not plain data"
    if end == "disk":
        return "disk", "filled its folder"
    if end == "time":
        return "timed_out", f"no end after {job['wall_limit']:g} s, {seconds:.1f} s of processor time"
    if status == -signal.SIGXCPU or seconds >= job["time_limit"]:
        return "timed_out", f"no end after {seconds:.1f} s of processor time"
    return "crashed", f"ended early with {f'signal {-status}' if status < 0 else f'exit status {status}'}"


@contextlib.contextmanager
def _same_state() -> Iterator[None]:
    """Give tests the same random numbers, decimal context and warning filters, whichever tests ran before."""
    random.seed(0)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)
    decimal = sys.modules.get("decimal")
    context = decimal.localcontext(decimal.Context()) if decimal else contextlib.nullcontext()
    with context, warnings.catch_warnings():
        yield


class _Case:
    """The evaluation of one program with its tests."""

    def __init__(self, judge: Judge, job: dict[str, Any]) -> None:
        self._judge, self._job = judge, job
        self._outcomes: list[Outcome] = []  # of each test so far
        self._before: Outcome = None  # of the program itself, before any test
        self._line = 0  # the line of a test at which it failed
        self.end = ""  # the reason why the program stopped answering
        self._channel = judge.start(job)

    def run(self) -> None:
        """Run the program and each test.

        Raises:
            Ended: The program's process gives no more answers.
        """
        job = self._job
        ways, names, called = prepare(tuple(job["tests"]), self._judge.approximately)
        # Not if objects may be asked what they are equal to: all calls would be made before the first question.
        at_once = not self._judge.trust and all(isinstance(way, Call) for way in ways)
        calls = [way.call for way in ways if isinstance(way, Call)] if at_once else []
        self._channel.patient = self._channel.over = at_once
        self._channel.send((job["program"], job["setup"], calls, not at_once))
        kind, content = self._channel.receive()
        if kind == "error":
            self._before = content.limit or "failed", content.line
            return
        scope = None
        for test, way in zip(job["tests"], ways, strict=True):
            if isinstance(way, Call):
                if not at_once:
                    self._channel.send(("evaluate", way.call))
                outcome = self._compared(*self._channel.receive(), way.value)
            elif isinstance(way, Exception):
                outcome = "unsupported_test", f"{type(way).__name__}: {way}"
            else:
                scope = self._scope(names, called) if scope is None else scope
                outcome = self._executed(way, scope)
            if self._channel.ended:  # even if the test has caught the exception
                raise self._channel.ended
            self._outcomes.append(outcome and (outcome[0], f"{self._place(test)}: {outcome[1]}".removesuffix(": ")))

    def _place(self, test: str) -> str:
        """Return a test, or the line at which it failed if the test has several lines."""
        lines = test.strip("\n").split("\n")
        return test if len(lines) == 1 else test.split("\n")[self._line - 1].strip() if self._line else lines[0]

    def close(self) -> dict[str, Any]:
        """Stop the program's process and return the answer with the verdict on it.

        Raises:
            EOFError: The zygote has died.
        """
        status, seconds, clean = self._judge.stop(self._channel)
        tests = [outcome is None for outcome in self._outcomes]
        tests += [False] * (len(self._job["tests"]) - len(tests))
        return answer(*self._verdict(status, seconds), tests, seconds, not clean)

    def _verdict(self, status: int, seconds: float) -> tuple[str, str]:
        if self._before:
            return self._before
        if not self.end:
            wrong = [outcome for outcome in self._outcomes if outcome]
            wrong.sort(key=lambda outcome: outcome[0] == "unsupported_test")
            return wrong[0] if wrong else ("passed", "")
        return early(self.end, self._job, status, seconds)

    def _compared(self, kind: str, content: Any, expected: Any) -> Outcome:
        if kind == "error":
            return content.limit or "failed", content.line
        try:
            equal = almost_equal(content, expected) if self._judge.approximately else content == expected
            if type(equal).__module__.partition(".")[0] in library.packages:
                equal = bool(equal)  # converts numpy's bool; raises ValueError for an array
        except ValueError as error:
            return "failed", f"ValueError: {error}"
        except Unsupported as error:
            return "unsupported_test", str(error)
        return None if equal is True else ("failed", f"the result is {_shown(content)}")

    def _executed(self, block: Block, scope: dict[str, Any]) -> Outcome:
        """Run a test in the judge's process."""
        Unsupported.last, self._line = None, 0
        outcome: Outcome = None
        try:
            exec(block.code, scope)
            pytest_like.run(scope, block.tests)
        except Ended:
            raise
        except BaseException as error:  # including SystemExit
            frames = traceback.walk_tb(error.__traceback__)
            self._line = max([0, *(line for frame, line in frames if frame.f_code.co_filename == "<test>")][-1:])
            outcome = ("unsupported_test", str(error)) if isinstance(error, Unsupported) else self._failed(error)
        if Unsupported.last is not None:  # even if the test has caught it
            return "unsupported_test", Unsupported.last
        return outcome

    def _failed(self, error: BaseException) -> Outcome:
        line = getattr(error, "line", None)
        if line:  # an exception of the program
            return error.limit or "failed", line  # type: ignore[attr-defined]
        text = error.args[0] if error.args and isinstance(error.args[0], str) else ""
        if isinstance(error, AssertionError) and f"{Remote}" not in text:
            return "failed", text
        said = f"{type(error).__name__}: {text}"
        # A library function may refuse the stand-in for an object although it would accept the object itself.
        lacks = f"{Remote}" in text or (isinstance(error, TypeError) and (self._channel.objects or "Remote" in text))
        return "unsupported_test" if lacks else "failed", said

    def _scope(self, names: list[str], called: set[str]) -> dict[str, Any]:
        """Return the names that tests see: our builtins and modules, and names of the program that the tests use."""
        answer = self._channel.ask("defined", tuple(names))
        if type(answer) is not tuple:
            raise Ended("garbage")
        found = {name: value for name, value in answer if name in names and not name.startswith("__")}
        own = [name for name in found if not is_ours(name)]
        scope: dict[str, Any] = {name: module(name) for name in names if name in MODULES}
        scope |= packages_named(names)
        # A program's function may have the name of a builtin or module. It is used if the tests call it by that name
        # (a module's), or if they use no other name of the program (a builtin's).
        taken = {
            name: value
            for name, value in found.items()
            if not is_ours(name) or (name in called if name in MODULES else not own)
        }
        for name in taken:
            scope.pop(name, None)
        # A name of a function or class keeps its value; other values may change with each call.
        changing = {name for name, value in taken.items() if not _stays(value)}
        scope |= {name: value for name, value in taken.items() if name not in changing}
        self._channel.defined, self._channel.objects = set(found), False
        program[:] = [self._channel.ask]
        read = Builtins(lambda name: self._channel.ask("name", name), changing)
        ours = {"__almost_equal__": almost_equal, "__same__": same, "__class_of__": BUILTINS["type"]}
        return scope | ours | {"__builtins__": read, "sys": module("sys")}


def _stays(value: Any) -> bool:
    return type(value) is Remote or isinstance(value, type)


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError, MemoryError):
        return "too long to show"
    except (Unsupported, Ended):
        return "not plain data"
    return text if len(text) <= 200 else f"{text[:100]} ... {text[-50:]}"
