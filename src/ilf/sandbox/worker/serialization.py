"""Writes and reads plain data as text. Only such text crosses between a program's process and the judge.

Pickle is not used, so that reading runs no code. The text is JSON. A type that JSON does not have is an object with one
key, the tag: {"tuple": [1, 2]}. Values of the standard library cross as the parts that make them (`library.py`). An
object of any other type stays where it is and crosses as {"object": [n, ...]}, where only its own side can look up n.

If a test may access a list or another mutable value more than once, both sides hold it (`Shared`). It crosses as
{"shared": [n, tag, content]}, and n always stands for the same value.
"""

import json
import os
import struct
from collections.abc import Callable, Iterator
from operator import is_
from typing import Any

from . import library
from .containers import CONTAINERS, Container, base_of, seen

LONGEST = 4 << 20  # maximum bytes of a message
LENGTH = struct.Struct("<I")  # length of a message, which precedes it
DEPTH = 400  # maximum nesting of containers; values that lie deeper stay where they are
_SCALARS = {type(None), bool, str, float}
_LONG = 1 << 63  # larger integers cross in hexadecimal: decimal is quadratic, and limited to 4,300 digits


class NotPlain(ValueError):
    """A message is not in the format that `Writer` writes."""


class TooLong(ValueError):
    """A message has more bytes than may cross."""


class Shared:
    """The containers that both sides hold. Each message carries one side's changes to the other.

    Args:
        first: 0 on one side and 1 on the other, so that the sides never assign the same number.
    """

    def __init__(self, first: int) -> None:
        self._next = first
        self._known: dict[int, list[Any]] = {}  # number: a container, and its content as the other side knows it
        self._numbers: dict[int, int] = {}  # by id

    def get(self, number: int) -> Any:
        """Return the container with a number, or None if there is none."""
        return self._known.get(number, (None,))[0]

    def number(self, container: Any) -> tuple[int, bool]:
        """Return a container's number, assigning one if needed, and whether it already had one."""
        number = self._numbers.get(id(container))
        if number is not None:
            return number, True
        number, self._next = self._next, self._next + 2
        self.put(number, container)
        return number, False

    def held(self, container: Any) -> int | None:
        """Return the number of a container, or None if it has none."""
        return self._numbers.get(id(container))

    def put(self, number: int, container: Any) -> None:
        """Register a container, whose current content the other side knows."""
        if number in self._known:
            self._numbers.pop(id(self._known[number][0]), None)
        self._known[number] = [container, seen(container)]
        self._numbers[id(container)] = number

    def kept(self) -> tuple[Any, ...]:
        """Return a snapshot for `restore`, to be used if a message that was begun is not sent."""
        return self._next, {number: list(entry) for number, entry in self._known.items()}, dict(self._numbers)

    def restore(self, kept: tuple[Any, ...]) -> None:
        """Return to the state of a snapshot."""
        self._next, self._known, self._numbers = kept

    def changed(self) -> Iterator[tuple[int, Any]]:
        """Yield the containers that have changed since the other side saw them, and mark them as seen."""
        for number, entry in list(self._known.items()):
            container, before = entry
            now = seen(container)
            same = now == before if type(now) is bytes else len(now) == len(before) and all(map(is_, now, before))
            if not same:
                entry[1] = now
                yield number, container

    def forget(self, numbers: list[int]) -> None:
        """Forget containers that the other side no longer holds."""
        for number in numbers:
            container, _ = self._known.pop(number, (None, None))
            self._numbers.pop(id(container), None)

    def unused(self, count: Callable[[Any], int]) -> list[int]:
        """Forget containers to which nothing else refers, and return their numbers. `count` counts references."""
        found = [number for number, entry in self._known.items() if count(entry[0]) <= 2]  # the entry, and the argument
        self.forget(found)
        return found


class Writer:
    """Converts values to JSON-compatible data.

    Args:
        refer: Returns the reference to an object that is not plain data or that lies too deep.
        shared: The containers that both sides hold; None: each container crosses as a copy.
    """

    def __init__(self, refer: Callable[[Any, int], Any], shared: Shared | None = None) -> None:
        self._refer, self._shared = refer, shared

    def changes(self) -> list[Any]:
        """Return the packed containers that have changed since the other side saw them."""
        found = self._shared.changed() if self._shared else ()
        return [self._new(number, container, 0) for number, container in found]

    def pack(self, value: Any, depth: int = 0) -> Any:
        """Return a value as JSON-compatible data."""
        kind = type(value)
        if kind in _SCALARS:
            return value
        if kind is int:
            return value if -_LONG <= value < _LONG else {"int": hex(value)}
        if depth > DEPTH:
            return self._refer(value, depth)
        if kind is tuple:
            return {"tuple": [self.pack(item, depth + 1) for item in value]}
        if kind in CONTAINERS and ((crosses := CONTAINERS[kind].crosses) is None or crosses(value)):
            return self.container(value, depth)
        if kind is frozenset:
            return {"frozenset": [self.pack(item, depth + 1) for item in value]}
        if kind is bytes:
            return {"bytes": value.hex()}
        taken = library.apart(value, kind)
        if taken is not None:
            tag, parts = taken
            return {tag: [self.pack(part, depth + 1) for part in parts]}
        return self._refer(value, depth)

    def container(self, value: Any, depth: int) -> Any:
        """Return a packed container, also if its type is derived from one of the `CONTAINERS`."""
        if self._shared is not None:
            number, known = self._shared.number(value)
            return {"shared": [number, CONTAINERS[base_of(value)].tag]} if known else self._new(number, value, depth)
        container = CONTAINERS[base_of(value)]
        items = [self.pack(item, depth + 1) for item in container.items(value)]
        return {container.tag: items} if container.tag != "list" else items

    def _new(self, number: int, value: Any, depth: int) -> Any:
        container = CONTAINERS[base_of(value)]
        return {"shared": [number, container.tag, [self.pack(item, depth + 1) for item in container.items(value)]]}


_as_json = json.JSONEncoder(ensure_ascii=False, check_circular=False).encode  # made once, before programs are forked


def as_text(packed: Any) -> bytes:
    """Return the text, in UTF-8, of what `Writer.pack` returned.

    Raises:
        TooLong: The text has more bytes than may cross.
    """
    text = _as_json(packed).encode("utf-8", "surrogatepass")
    if len(text) > LONGEST - 100:
        raise TooLong(f"a result of {len(text)} bytes; at most {LONGEST} cross")
    return text


class Reader:
    """Reads the text of what `Writer` packed.

    Args:
        resolve: Returns the object for a reference that the `refer` of the other side's `Writer` made.
        shared: The containers that both sides hold.
        lost: Returns the stand-in for a value that cannot be made on this side, given its tag.
    """

    def __init__(self, resolve: Callable[[Any], Any], shared: Shared, lost: Callable[[str], Any] | None = None) -> None:
        self._resolve, self._shared, self._lost = resolve, shared, lost

    def read(self, text: bytes) -> Any:
        """Return the value of a text.

        Raises:
            NotPlain: The text is not in the format that `Writer` writes.
        """
        try:
            return json.loads(text.decode("utf-8", "surrogatepass"), object_hook=self._unpack)
        except Exception as error:
            raise NotPlain(f"a message that is not plain data: {type(error).__name__}") from None

    def _unpack(self, tagged: dict[str, Any]) -> Any:
        ((tag, content),) = tagged.items()
        if tag == "object":
            return self._resolve(content)
        if tag == "shared":
            return self._from_both(*content)
        if tag in _MADE:
            return _MADE[tag](content)
        try:
            return library.made(tag, content)
        except Exception:  # for example a type that only the program has, or a time in such a time zone
            if self._lost is None:
                raise
            return self._lost(tag)

    def _from_both(self, number: int, tag: str, items: list[Any] | None = None) -> Any:
        """Return the container with a number, filled with `items` if they are given."""
        kind = _TAGGED[tag]
        if type(number) is not int:
            raise NotPlain("a container without a number")
        found = self._shared.get(number)
        if found is None:
            found = CONTAINERS[kind].made(items or [])
        elif base_of(found) is not kind:
            raise NotPlain("another type than before")
        if items is not None:
            CONTAINERS[kind].fill(found, items)
        self._shared.put(number, found)
        return found


_TAGGED = {container.tag: kind for kind, container in CONTAINERS.items()}


def _filled(kind: type) -> Callable[[list[Any]], Any]:
    container = CONTAINERS[kind]

    def make(items: list[Any]) -> Any:
        found = container.made(items)
        container.fill(found, items)
        return found

    return make


_MADE: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "tuple": tuple,
    "frozenset": frozenset,
    "bytes": bytes.fromhex,
    **{tag: _filled(kind) for tag, kind in _TAGGED.items()},
}


def add(kind: type, container: Container) -> None:
    """Register another mutable type, so that its values cross."""
    CONTAINERS[kind] = container
    _TAGGED[container.tag] = kind
    _MADE[container.tag] = _filled(kind)


def send(channel: int, data: bytes) -> None:
    """Write one message to the socket of a descriptor."""
    left = memoryview(LENGTH.pack(len(data)) + data)
    while left:
        left = left[os.write(channel, left) :]


def receive(channel: int) -> bytes:
    """Read one message from the socket of a descriptor.

    Raises:
        EOFError: The other side has closed the socket.
    """
    (length,) = LENGTH.unpack(exactly(channel, LENGTH.size))
    return exactly(channel, length)


def exactly(channel: int, n: int) -> bytes:
    """Read exactly `n` bytes from a descriptor.

    Raises:
        EOFError: The other side has closed it before.
    """
    data = os.read(channel, n)
    if len(data) == n:
        return data
    parts = bytearray(data)
    while len(parts) < n:
        part = os.read(channel, n - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)
