"""The judge's side of the channel to a program: sends questions and receives answers until the time is up."""

import builtins
import marshal
import os
import select
import socket
import sys
import threading
import time
import types
from collections.abc import Collection, Sequence
from typing import Any

from . import library, serialization
from .paths import Path
from .reading import globals_of
from .remote import Remote, Unsupported, error_type, like, number_of, refuse

# With these attributes a program could give numpy an address in the judge's memory, or do the comparison itself.
_NUMPYS = ("__array", "__cuda_array", "__dlpack")
_LIMITS = {"memory", "processes", "output", "disk"}  # verdicts that an exception can cause
_PATIENCE = 0.05  # seconds until unread answers are read, and between size checks of a folder without its own limit


class Ended(BaseException):
    """The program's process gives no more answers. The reason is "time", "closed", "garbage" or "disk"."""


class ProgramError(Exception):
    """Stands for an exception of the program that would end a loop of the test or that cannot be made here."""


class Channel:
    """Exchanges messages with the program's process.

    Args:
        ours: A socket whose other end the process has.
        wall_limit: Seconds after which the channel waits for no more answers.
        folder: The program's folder if nothing else limits its size, else None.
        disk: Maximum bytes in the folder.
        trust: Whether objects of the program may themselves decide what they are equal to.
    """

    def __init__(self, ours: socket.socket, wall_limit: float, folder: str | None, disk: int, trust: bool) -> None:
        self._socket, self._deadline = ours, time.monotonic() + wall_limit
        self._folder, self._disk, self._trust = folder, disk, trust
        self._received = bytearray()
        self._shared = serialization.Shared(0)
        self._writer = serialization.Writer(self._refer, self._shared)
        self._reader = serialization.Reader(self._resolve, self._shared, _lost)
        self._lock = threading.RLock()  # a test may have threads
        self._error_types: dict[int, Any] = {}
        self.patient = False  # whether all questions were sent at once, so that no single answer is urgent
        self.ended: Ended | None = None
        self.over = False  # whether no more questions may be asked
        self.defined: Collection[str] = ()  # the names that tests use and the program defines
        self.objects = False  # whether a test has received an object that stands for one of the program

    def close(self) -> None:
        """Close the judge's end."""
        self._socket.close()

    def ask(self, kind: str, *arguments: Any) -> Any:
        """Ask the program to do something, and return the result or raise the exception that it sent.

        Raises:
            Unsupported: The answer would let the program decide that a test holds.
        """
        if kind == "attribute" and arguments[1].startswith(_NUMPYS):
            raise AttributeError(arguments[1])
        if kind == "equal":
            if not self._trust:
                raise Unsupported(f"compares an object that has its own __eq__: {_types(*arguments)}")
            kind = "eq"
        elif kind == "operator":
            kind, arguments = arguments[0], arguments[1:]
            if not self._trust:
                raise Unsupported(f"uses {kind} on an object of the program: {_types(*arguments)}")
        if self.over:
            raise Unsupported(f"asks the program for {kind} when all is done")
        try:
            with self._lock:
                self.send((kind, self._question(arguments)))
                answer, content = self.receive()
        except Ended as end:
            self.ended = end
            raise
        if answer == "value":
            return content
        raise content

    def _question(self, arguments: Sequence[Any]) -> bytes:
        """Return arguments as text, preceded by the changes that were made here to shared containers."""
        kept = self._shared.kept()
        try:
            changes = self._writer.changes()
            unused = self._shared.unused(sys.getrefcount)  # after `changes`, which may include an unused container
            return serialization.as_text([changes, unused, [self._writer.pack(argument) for argument in arguments]])
        except serialization.TooLong as error:
            self._shared.restore(kept)
            raise Unsupported(f"gives the program {error}") from None
        except BaseException:
            self._shared.restore(kept)
            raise

    def _refer(self, value: Any, depth: int) -> Any:
        """Return a reference to an object of the program, a function of the tests, or a library function or type."""
        number = number_of(value)
        if number is not None:
            return {"object": number}
        if isinstance(value, types.FunctionType) and not value.__closure__ and not value.__defaults__:
            strange = globals_of(value.__code__) - set(vars(builtins)) - set(self.defined)
            if not strange:
                return {"object": ["code", self._writer.pack(marshal.dumps(value.__code__))]}
            raise Unsupported(f"gives the program a function that uses {min(strange)} of the test")
        if isinstance(value, BaseException) and type(value).__module__ == "builtins":
            return {"object": ["made", self._writer.pack(type(value)), self._writer.pack(value.args)]}
        if value is Path:
            return {"object": "pathlib:Path"}
        if isinstance(value, Path):
            return {"object": ["made", {"object": "pathlib:Path"}, self._writer.pack((str(value),))]}
        name = library.name_of(value) if callable(value) else None
        if name is not None:
            return {"object": name}
        raise Unsupported(f"gives the program a {type(value).__name__}")

    def _resolve(self, content: Any) -> Any:
        """Return the local stand-in for an object of the program."""
        number, how, name, *extra = content
        if type(number) is not int or type(name) is not str:
            raise serialization.NotPlain("an object without a number or name")
        if how == "error":
            return self._error_types.get(number) or self._error_type(number, name, tuple(extra))
        if how == "raised":
            kind, (text, args) = extra
            return self._error(Remote(self.ask, number, "is", name, None), kind, text, args)
        self.objects = True
        if how == "like":
            return self._like(number, *extra)
        if how == "fields":
            kind, values, frozen = extra
            return Remote(self.ask, number, how, name, [kind, values, frozen])
        if how not in ("data", "member", "is", "own", "class"):
            raise serialization.NotPlain(f"an object of an unknown kind: {how}")
        return Remote(self.ask, number, how, name, extra[0] if how == "data" else extra)

    def _like(self, number: int, data: Any) -> Any:
        if number_of(data) == number:
            return data
        found = like(self.ask, number, data)
        shared = self._shared.held(data)
        if shared is not None:
            self._shared.put(shared, found)
        return found

    def _error_type(self, number: int, name: str, bases: tuple[Any, ...]) -> Any:
        if not bases or not all(isinstance(base, type) and issubclass(base, BaseException) for base in bases):
            raise serialization.NotPlain("a type of exceptions without a base")
        module, _, last = name.rpartition(".")
        ours = getattr(sys.modules.get(module), last, None) if library.has(module) else None
        if not isinstance(ours, type) or not issubclass(ours, BaseException):
            ours = error_type(self.ask, number, last, bases)
        self._error_types[number] = ours
        return ours

    def _error(self, remote: Remote, kind: Any, text: str, args: tuple[Any, ...]) -> BaseException:
        """Return a local exception that stands for one of the program."""
        if not isinstance(kind, type) or not issubclass(kind, BaseException) or type(text) is not str:
            raise serialization.NotPlain("an exception without a valid type")
        if issubclass(kind, StopIteration | StopAsyncIteration | GeneratorExit | BaseExceptionGroup):
            found: BaseException = ProgramError(text)
        else:
            try:
                found = kind.__new__(kind, *args)
                if kind.__module__ == "builtins":
                    found.__init__(*args)  # type: ignore[misc]
            except Exception:
                found = ProgramError(text)
        vars(found).update(_object=remote, _text=text)
        return found

    def send(self, message: Any) -> None:
        """Send a message to the program's process.

        Raises:
            Ended: The process no longer reads.
        """
        data = marshal.dumps(message)  # safe in this direction: the program's process trusts the judge
        self._socket.settimeout(max(0.001, self._deadline - time.monotonic()))
        try:
            self._socket.sendall(serialization.LENGTH.pack(len(data)) + data)
        except TimeoutError:
            raise Ended("time") from None
        except OSError:
            raise Ended("closed") from None

    def receive(self) -> tuple[str, Any]:
        """Return "value" and a value, or "error" and an exception with the attributes `line` and `limit`.

        Raises:
            Ended: The program's process gives no more answers, or an invalid one.
        """
        message = self._message()
        Remote.reading = True
        try:
            kind, *content = self._reader.read(message)
            if kind == "value":
                if len(content) > 1:
                    _, *content, printed = content
                    _print(printed)
                (value,) = content
                return kind, value
            if kind != "error":
                raise Ended("garbage")
            error: BaseException = ProgramError()
            if len(content) > 1:
                _, error, found, printed = content
                _print(printed)
                content = [found]
            ((report, line, limit),) = content
            error.line = f"{report} (line {int(line)})" if line else str(report)  # type: ignore[attr-defined]
            error.limit = limit if limit in _LIMITS else None  # type: ignore[attr-defined]
            return kind, error
        except (Exception, Unsupported):  # not a message of program.py
            raise Ended("garbage") from None
        finally:
            Remote.reading = False

    def _message(self) -> bytes:
        """Return the next message; bytes after it stay in the buffer."""
        received = self._received
        while True:
            if len(received) >= serialization.LENGTH.size:
                end = serialization.LENGTH.size + serialization.LENGTH.unpack_from(received)[0]
                if end > serialization.LONGEST:
                    raise serialization.NotPlain(f"a message of {end} bytes")
                if len(received) >= end:
                    message = bytes(received[serialization.LENGTH.size : end])
                    del received[:end]
                    return message
            self._wait()
            try:
                part = self._socket.recv(1 << 16)
            except OSError:
                part = b""
            if not part:
                raise Ended("closed")
            received += part

    def _wait(self) -> None:
        """Wait for the program, and meanwhile check that the executor is still there and the folder is small."""
        poll = select.poll()
        poll.register(0, 0)  # standard input: poll always reports its end
        # Waking up for each answer costs more than the answers: at first, wake up only if the process ends.
        poll.register(self._socket, 0 if self.patient else select.POLLIN)
        while (left := self._deadline - time.monotonic()) > 0:
            ready = dict(poll.poll(1000 * min(left, _PATIENCE if self.patient or self._folder else left)))
            if 0 in ready:
                sys.exit("the executor has closed the worker's standard input: no verdict is needed")
            if ready:
                return
            if self._folder and _size(self._folder) > self._disk:
                raise Ended("disk")
            self.patient = False
            poll.register(self._socket, select.POLLIN)
        raise Ended("time")


def _lost(tag: str) -> Remote:
    """Return the stand-in for a value that cannot be made here."""
    name = str(tag)[:40]
    return Remote(refuse(f"looks at a {name} that the judge can't make"), -1, "own", name, None)


def _print(printed: Any) -> None:
    """Print what the program has printed, because a test may read it."""
    for stream, text in zip((sys.stdout, sys.stderr), printed or (), strict=False):
        stream.write(text)


def _types(*values: Any) -> str:
    return " and ".join(value._name if type(value) is Remote else type(value).__name__ for value in values)


def _size(folder: str) -> int:
    """Return the total bytes of the files in a folder, counting at least one block per file."""
    total, hidden = 0, list[OSError]()
    for place, folders, files in os.walk(folder, onerror=hidden.append):
        for name in (*folders, *files):
            try:
                found = os.lstat(os.path.join(place, name))
                total += max(4096, found.st_size, 512 * found.st_blocks)
            except OSError:
                pass
    # A folder that may not be read could hold anything; a folder that was just removed holds nothing.
    return total if not any(isinstance(error, PermissionError) for error in hidden) else sys.maxsize
