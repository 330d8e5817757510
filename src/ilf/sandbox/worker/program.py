"""A program's own process: runs the program, calls its functions as the judge asks, and answers with plain data.

Nothing in this process is trusted, because the program may rewrite all of it. Even then it can only give answers that a
program could have given anyway, since only the judge knows the expected values.
"""

import builtins
import contextlib
import copy
import errno
import functools
import marshal
import operator
import os
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from typing import Any

from . import library, serialization
from .objects import Objects

PROGRAM = "<program>"
_DETAIL = 400  # maximum characters of an exception's report
_PRINTED = 1 << 20  # maximum bytes of the output of one call that are sent to the judge
_BUILTINS = "str repr bool int float complex round abs hash format bytes divmod"
_OPERATORS = "index neg pos invert add sub mul truediv floordiv mod pow matmul and_ or_ xor lshift rshift "
_OPERATORS += "lt le gt ge eq ne contains"
_OPERATIONS: dict[str, Callable[..., Any]] = {
    "attribute": getattr,
    "setattr": setattr,
    "delattr": delattr,
    "item": operator.getitem,
    "setitem": operator.setitem,
    "delitem": operator.delitem,
    "length": len,
    "iterator": iter,
    "next": lambda iterator: next(([item] for item in iterator), []),
    "list": list,
    "call": lambda function, positional, keywords: function(*positional, **dict(keywords)),
    "has": lambda value, name: hasattr(type(value), name),
    "isinstance": isinstance,
    "issubclass": issubclass,
    "type": type,
    "dir": dir,
    "vars": vars,
    **{name: getattr(builtins, name) for name in _BUILTINS.split()},
    **{name: getattr(operator, name) for name in _OPERATORS.split()},
    "reversed": reversed,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "enter": lambda manager: type(manager).__enter__(manager),
    "exit": lambda manager, kind, error: type(manager).__exit__(manager, kind, error, None),
    "callable": callable,
}


def run(channel: int, full: int) -> None:
    """Answer the judge until it kills this process, or until all questions are answered.

    Args:
        channel: Descriptor of a socket to the judge.
        full: Bytes of output from which an EFBIG is attributed to the output rather than to another file.
    """
    # The judge is trusted, so that its messages may use marshal and contain calls as code.
    text, setup, calls, more = marshal.loads(serialization.receive(channel))
    server = _Conversation(channel, full) if more else _Server(channel, full)
    if server.start(text, setup):
        server.serve(calls)


_STARTED = serialization.as_text(["value", None])


class _Server:
    """Holds the program's namespace and evaluates calls in it whose results are only compared."""

    def __init__(self, channel: int, full: int) -> None:
        self._channel, self._full = channel, full
        self._copying = serialization.Writer(lambda value, depth: self._objects.describe(self._copying, value, depth))
        module = sys.modules["program"] = type(sys)("program")
        self._scope = module.__dict__

    @functools.cached_property
    def _objects(self) -> Objects:
        return Objects()

    def start(self, program: str, setup: str) -> bool:
        """Run the program and its set-up code; return whether they ran without an exception."""
        try:
            exec(compile(program, PROGRAM, "exec"), self._scope)
            if setup:
                exec(compile(setup, "<setup>", "exec"), self._scope)
        except BaseException as error:
            self._report(error)
            return False
        serialization.send(self._channel, _STARTED)
        return True

    def serve(self, calls: Sequence[types.CodeType]) -> None:
        """Answer all calls, which the judge has sent at once."""
        for call in calls:
            self.evaluate(call)

    def evaluate(self, call: types.CodeType) -> None:
        """Send the result of a call as a copy, or the exception that it raised."""
        try:
            self._send(["value", self._copying.pack(eval(call, self._scope))])
        except BaseException as error:
            self._report(error)

    def _send(self, message: list[Any]) -> None:
        serialization.send(self._channel, serialization.as_text(message))

    def _report(self, error: BaseException) -> None:
        """Send an exception: the last line of its report, its line in the program, and the limit that caused it."""
        self._send(["error", described(error, self._full)])


class _Conversation(_Server):
    """A server that answers the judge's questions one at a time, and shares mutable values with it."""

    def __init__(self, channel: int, full: int) -> None:
        super().__init__(channel, full)
        self._shared = serialization.Shared(1)
        self._sharing = serialization.Writer(
            lambda value, depth: self._objects.describe(self._sharing, value, depth), self._shared
        )
        self._reader = serialization.Reader(self._resolve, self._shared)
        self._printed = [0, 0]  # bytes of standard output and standard error that were sent to the judge
        self._told_before = False

    def serve(self, calls: Sequence[types.CodeType]) -> None:
        """Answer one question after the other, until the judge kills this process."""
        while True:
            self.answer(*marshal.loads(serialization.receive(self._channel)))

    def answer(self, kind: str, payload: Any) -> None:
        """Do what the judge asks, and send the result or the exception that was raised."""
        if kind == "evaluate":
            self.evaluate(payload)
            self._told()
            return
        try:
            serialization.send(self._channel, self._answered("value", self._perform(kind, payload)))
        except BaseException as error:
            self._raised(error)

    def _raised(self, error: BaseException) -> None:
        """Send an exception, its description, and what was printed."""
        found = described(error, self._full)
        try:
            serialization.send(self._channel, self._answered("error", error, found))
        except Exception:  # raised by the program's own methods
            self._send(["error", found])

    def _answered(self, kind: str, result: Any, *more: Any) -> bytes:
        """Return an answer as text, preceded by the changes that were made here to shared containers."""
        kept, limit = self._shared.kept(), sys.getrecursionlimit()
        sys.setrecursionlimit(max(limit, 20 * serialization.DEPTH))
        try:
            changes = self._sharing.changes()
            return serialization.as_text([kind, changes, self._sharing.pack(result), *more, self._told()])
        except BaseException:
            self._shared.restore(kept)
            raise
        finally:
            sys.setrecursionlimit(limit)

    def _perform(self, kind: str, payload: Any) -> Any:
        _, unused, arguments = self._reader.read(payload)
        self._shared.forget(unused)
        if kind == "defined":
            if not self._told_before:  # what was printed so far belongs to no test
                self._told()
                self._told_before = True
            defined = [name for name in arguments[0] if name in self._scope]
            return tuple((name, self._scope[name]) for name in defined if type(self._scope[name]) is not type(sys))
        if kind == "name":
            (name,) = arguments
            return self._scope[name]
        if kind == "fields":
            return self._objects.fields(*arguments)
        if kind == "await":
            return _awaited(*arguments)
        return _OPERATIONS[kind](*arguments)

    def _resolve(self, content: Any) -> Any:
        if type(content) is int:
            return self._objects[content]
        if type(content) is str:
            return library.named(content)
        how, *parts = content
        if how == "code":
            return types.FunctionType(marshal.loads(parts[0]), self._scope)
        made, arguments = parts
        return made(*arguments)

    def _told(self) -> list[str] | None:
        """Return what was printed to standard output and standard error since the last call, or None."""
        found = []
        for i, (stream, descriptor) in enumerate(((sys.stdout, 1), (sys.stderr, 2))):
            with contextlib.suppress(Exception):  # the program may have replaced the stream
                stream.flush()
            size = os.fstat(descriptor).st_size
            text = os.pread(descriptor, min(size - self._printed[i], _PRINTED), self._printed[i])
            found.append(text.decode("utf-8", "replace"))
            self._printed[i] = size
        return found if any(found) else None


def described(error: BaseException, full: int) -> list[Any]:
    """Return the last line of an exception's report, its line in the program, and the limit that caused it.

    Args:
        error: The exception.
        full: Bytes of output from which an EFBIG is attributed to the output rather than to another file.
    """
    report = "".join(traceback.format_exception_only(type(error), error)).strip().split("\n")[-1]
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == PROGRAM]
    if not lines and isinstance(error, SyntaxError) and error.filename == PROGRAM:  # not one in the set-up code
        lines = [error.lineno]
    line = lines[-1] if lines else None
    return [report[:_DETAIL], line, _limit(error, full)]


def _limit(error: BaseException, full: int) -> str | None:
    """Return the verdict for an exception that one of our limits caused, or None for any other exception."""
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, serialization.TooLong):
        return "output"
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "processes"
    if not isinstance(error, OSError) or error.errno is None:
        return None
    if error.errno == errno.EFBIG:
        return "output" if os.fstat(1).st_size >= full else "disk"
    return {errno.ENOSPC: "disk", errno.EAGAIN: "processes", errno.ENOMEM: "memory"}.get(error.errno)


def _awaited(value: Any) -> Any:
    """Return the result of an awaitable."""
    import asyncio

    async def wait() -> Any:
        return await value

    return asyncio.run(wait())
