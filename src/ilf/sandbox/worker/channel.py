"""The judge's side of the channel to a program: questions out, answers in, until the program's time is up."""

import builtins
import marshal
import os
import select
import socket
import sys
import time
from typing import Any

from . import plain
from .remote import Remote, Unsupported, number_of

_LIMITS = {"memory", "processes", "output", "disk"}  # verdicts that an exception can name
# Exceptions that are made of more than a text, or that would end a loop of the test.
_NOT_RAISED = (UnicodeDecodeError, UnicodeEncodeError, UnicodeTranslateError, ExceptionGroup, StopIteration)
_PATIENCE = 0.05  # seconds until unread answers are read, and between looks at a folder that has no limit of its own


class Ended(BaseException):
    """The program's process gives no more answers, and why: "time", "closed", "garbage" or "disk"."""


class ProgramError(Exception):
    """An exception of the program that has no counterpart here, or is no ordinary Exception, such as SystemExit."""


class Channel:
    """Messages to and from the program's process.

    Args:
        ours: A socket whose other end the process has.
        wall_limit: Seconds until no answer is waited for.
        folder: The program's folder where nothing but this looks at its size, else None.
        disk: Bytes that may be in it.
    """

    def __init__(self, ours: socket.socket, wall_limit: float, folder: str | None, disk: int) -> None:
        self._socket, self._deadline = ours, time.monotonic() + wall_limit
        self._folder, self._disk = folder, disk
        self._received = bytearray()
        self.patient = False  # whether all answers were asked for at once, and none is waited for alone

    def close(self) -> None:
        """Close the judge's end."""
        self._socket.close()

    def ask(self, kind: str, *arguments: object) -> Any:
        """Have the program do something, and return the result or raise the exception that came instead."""
        self.send((kind, plain.dumps(list(arguments), number_of)))
        answer, content = self.receive()
        if answer == "value":
            return content
        known, text = getattr(builtins, content[0], None), content[1]
        raised: Exception = ProgramError(text)
        if isinstance(known, type) and issubclass(known, Exception) and not issubclass(known, _NOT_RAISED):
            raised = known(text)
        raised.line, raised.limit = line_of(content), content[4]  # type: ignore[attr-defined]
        raise raised

    def send(self, message: Any) -> None:
        """Send what the program's process is to do.

        Raises:
            Ended: If it reads no more.
        """
        data = marshal.dumps(message)  # which the program's side may read: it trusts us
        self._socket.settimeout(max(0.001, self._deadline - time.monotonic()))
        try:
            self._socket.sendall(plain.LENGTH.pack(len(data)) + data)
        except TimeoutError:
            raise Ended("time") from None
        except OSError:
            raise Ended("closed") from None

    def receive(self) -> tuple[str, Any]:
        """Return "value" and a value, or "error" and what `program._Server._report` sends.

        Raises:
            Ended: If the program's process gives no more answers, or another one than these.
        """
        try:
            kind, content = plain.loads(self._message(), lambda number: Remote(self.ask, number))
            if kind == "error":
                *texts, line, limit = content
                name, text, report = map(str, texts)
                content = name, text, report, int(line) if line else None, limit if limit in _LIMITS else None
            elif kind != "value":
                raise Ended("garbage")
            return kind, content
        except (Exception, Unsupported):  # another message than program.py sends
            raise Ended("garbage") from None

    def _message(self) -> bytes:
        """Return the next message; what has come with it is kept."""
        received = self._received
        while True:
            if len(received) >= plain.LENGTH.size:
                end = plain.LENGTH.size + plain.LENGTH.unpack_from(received)[0]
                if end > plain.LONGEST:
                    raise plain.NotPlain(f"a message of {end} bytes")
                if len(received) >= end:
                    message = bytes(received[plain.LENGTH.size : end])
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
        """Wait for the program; meanwhile see that somebody waits for its verdict, and that its folder is small."""
        poll = select.poll()
        poll.register(0, 0)  # standard input: its end is always reported
        # To be woken for each answer costs more than they do: at first only for the end of the process.
        poll.register(self._socket, 0 if self.patient else select.POLLIN)
        while (left := self._deadline - time.monotonic()) > 0:
            ready = dict(poll.poll(1000 * min(left, _PATIENCE if self.patient or self._folder else left)))
            if 0 in ready:
                sys.exit("nobody waits for the verdict")
            if ready:
                return
            if self._folder and _size(self._folder) > self._disk:
                raise Ended("disk")
            self.patient = False
            poll.register(self._socket, select.POLLIN)
        raise Ended("time")


def line_of(error: tuple[str, str, str, int | None, str | None]) -> str:
    """Return an exception of the program in one line."""
    _, _, report, line, _ = error
    return f"{report} (line {line})" if line else report


def _size(folder: str) -> int:
    """Return the bytes in a folder's files, each counted as one block at least."""
    total, hidden = 0, list[OSError]()
    for place, folders, files in os.walk(folder, onerror=hidden.append):
        for name in (*folders, *files):
            try:
                found = os.lstat(os.path.join(place, name))
                total += max(4096, found.st_size, 512 * found.st_blocks)
            except OSError:
                pass
    # A folder that may not be read could hold anything; one that has just gone holds nothing.
    return total if not any(isinstance(error, PermissionError) for error in hidden) else sys.maxsize
