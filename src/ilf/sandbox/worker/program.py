"""A program's own process: runs the program, then calls its functions as the judge asks, and answers with plain data.

Nothing here is trusted: the program may rewrite all of it. It can then answer only what a program could have answered
anyway, since what is expected of the answers is known to the judge alone.
"""

import builtins
import errno
import json
import marshal
import operator
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from . import plain

PROGRAM = "<program>"
_DETAIL = 400  # characters of an exception's report that are kept
_OPERATIONS: dict[str, Callable[..., Any]] = {
    "attribute": getattr,
    "item": operator.getitem,
    "length": len,
    "iterator": iter,
    "next": lambda iterator: next(([item] for item in iterator), []),
    "list": list,
    "str": str,
}


def run(channel: int, full: int) -> None:
    """Serve the judge until it ends this process, or until there is no more to answer.

    Args:
        channel: Descriptor of a socket to the judge.
        full: Bytes of output at which an EFBIG is about the output rather than another file.
    """
    # The judge is to be trusted: what comes from it may be marshalled, with calls as code.
    text, setup, calls, more = marshal.loads(plain.receive(channel))
    server = _Server(channel, full)
    if server.start(text, setup):
        for call in calls:
            server.answer("evaluate", call)
        while more:
            server.answer(*marshal.loads(plain.receive(channel)))


class _Server:
    """The program's namespace, and those of its objects that the judge has a number for."""

    def __init__(self, channel: int, full: int) -> None:
        self._channel, self._full = channel, full
        self._objects: list[object] = []
        module = sys.modules["program"] = type(sys)("program")
        self._scope = module.__dict__

    def start(self, program: str, setup: str) -> bool:
        """Run the program and its set-up code; return whether they came to their end."""
        try:
            exec(compile(program, PROGRAM, "exec"), self._scope)
            if setup:
                exec(compile(setup, "<setup>", "exec"), self._scope)
        except BaseException as error:
            self._report(error)
            return False
        self._send("value", b"null")
        return True

    def answer(self, kind: str, payload: Any) -> None:
        """Do what the judge asks and send it the result, or the exception that came instead."""
        try:
            text = plain.dumps(self._perform(kind, payload), self._refer)
        except BaseException as error:
            self._report(error)
        else:
            self._send("value", text)

    def _perform(self, kind: str, payload: Any) -> Any:
        if kind == "evaluate":
            return eval(payload, self._scope)
        arguments = plain.loads(payload, self._objects.__getitem__)
        if kind == "defined":
            defined = [name for name in arguments[0] if name in self._scope]
            return {name: self._scope[name] for name in defined if type(self._scope[name]) is not type(sys)}
        if kind == "call":  # with the arguments as they are after it: the judge's copies follow
            function, positional, keywords = arguments
            return function(*positional, **keywords), positional, keywords
        return _OPERATIONS[kind](*arguments)

    def _refer(self, value: object) -> int:
        self._objects.append(value)
        return len(self._objects) - 1

    def _send(self, kind: str, text: bytes) -> None:
        plain.send(self._channel, b'["%s", %s]' % (kind.encode(), text))

    def _report(self, error: BaseException) -> None:
        """Send an exception: builtin type, text, last line of its report, line of the program, limit that it names."""
        report = "".join(traceback.format_exception_only(type(error), error)).strip().split("\n")[-1]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == PROGRAM]
        line = lines[-1] if lines else getattr(error, "lineno", None)
        known = (kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind)
        found = [next(known), report.partition(": ")[2][:_DETAIL], report[:_DETAIL], line, self._limit(error)]
        self._send("error", json.dumps(found).encode())

    def _limit(self, error: BaseException) -> str | None:
        """Return the verdict for an exception that one of our limits caused, None for any other."""
        if isinstance(error, MemoryError):
            return "memory"
        if isinstance(error, plain.TooLong):
            return "output"
        if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
            return "processes"
        if not isinstance(error, OSError) or error.errno is None:
            return None
        if error.errno == errno.EFBIG:
            return "output" if os.fstat(1).st_size >= self._full else "disk"
        return {errno.ENOSPC: "disk", errno.EAGAIN: "processes", errno.ENOMEM: "memory"}.get(error.errno)
