"""Plain data as text: all that crosses between a program's process and the judge. Never pickle: reading runs no code.

JSON, in which what JSON lacks is an object of one key, the tag: {"tuple": [1, 2]}. A value of any other type stays
where it is, and crosses as {"object": n}, a number that only its own side can look up. A value of a subclass crosses as
its base (a defaultdict as a dict), by the base's own methods; an OrderedDict and a Counter, which compare otherwise
than a dict, as themselves.
"""

import builtins
import importlib
import json
import os
import struct
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

LONGEST = 4 << 20  # bytes in a message
LENGTH = struct.Struct("<I")  # of a message, before it
_SCALARS = (type(None), bool, str, float)
_CONTAINERS: tuple[tuple[type, str], ...] = ((tuple, "tuple"), (list, ""), (set, "set"), (frozenset, "frozenset"))
# The order of the first decides whether two are equal, and what the second counts 0 times does not.
_MAPPINGS: tuple[tuple[type, str], ...] = (
    (OrderedDict, "collections.OrderedDict"),
    (Counter, "collections.Counter"),
    (dict, "dict"),
)
_LONG = 1 << 63  # larger integers cross in hexadecimal: decimal is quadratic, and limited to 4,300 digits
_DEPTH = 100  # containers within containers; deeper ones stay where they are


class NotPlain(ValueError):
    """A message that `dumps` did not write."""


class TooLong(ValueError):
    """A message of more bytes than cross."""


def dumps(value: object, refer: Callable[[object], int]) -> bytes:
    """Return `value` as text, in UTF-8. `refer(object)` gives the number for an object that is not plain data.

    Raises:
        TooLong: If the text has more bytes than cross.
    """
    text = json.dumps(_pack(value, refer, 0), ensure_ascii=False).encode("utf-8", "surrogatepass")
    if len(text) > LONGEST - 100:
        raise TooLong(f"a result of {len(text)} bytes; at most {LONGEST} cross")
    return text


def loads(text: bytes, resolve: Callable[[int], object]) -> Any:
    """Return the value that `text` stands for. `resolve(number)` gives what stands for an object.

    Raises:
        NotPlain: If the text is not what `dumps` writes.
    """

    def unpack(tagged: dict[str, Any]) -> object:
        ((tag, content),) = tagged.items()
        if tag == "object":
            if type(content) is not int:
                raise NotPlain("an object without a number")
            return resolve(content)
        return _READ[tag](content)

    try:
        return json.loads(text.decode("utf-8", "surrogatepass"), object_hook=unpack)
    except Exception as error:
        raise NotPlain(f"a message that is not plain data: {type(error).__name__}") from None


def _pack(value: Any, refer: Callable[[object], int], depth: int) -> Any:
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is int:
        return value if -_LONG <= value < _LONG else {"int": hex(value)}
    if depth > _DEPTH:
        return {"object": refer(value)}
    for base, tag in _CONTAINERS:
        if issubclass(kind, base):
            items = [_pack(item, refer, depth + 1) for item in base.__iter__(value)]  # type: ignore[attr-defined]
            return {tag: items} if tag else items
    for base, tag in _MAPPINGS:
        if issubclass(kind, base):
            pairs = base.items(value)  # type: ignore[attr-defined]
            return {tag: [[_pack(k, refer, depth + 1), _pack(v, refer, depth + 1)] for k, v in pairs]}
    if issubclass(kind, (bytes, bytearray)):
        return {"bytes" if issubclass(kind, bytes) else "bytearray": bytes(memoryview(value)).hex()}
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    if kind is range:
        return {"range": [_pack(n, refer, depth + 1) for n in (value.start, value.stop, value.step)]}
    bases: tuple[tuple[type, Callable[[Any], object]], ...]
    bases = ((int, int.__index__), (float, float.__float__), (str, str.__str__))
    for base, plain in bases:
        if issubclass(kind, base):
            return _pack(plain(value), refer, depth)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name in _LIBRARY and getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is kind:
        parts = _LIBRARY[name](value)
        if parts is not None:
            return {name: [_pack(part, refer, depth + 1) for part in parts]}
    if kind is type and getattr(builtins, name := value.__name__, None) is value:
        return {"type": name}
    return {"object": refer(value)}


# Values of the standard library that cross: how each is taken apart into the arguments that make it again.
_LIBRARY: dict[str, Callable[[Any], Any]] = {
    "decimal.Decimal": lambda value: [str(value)],
    "fractions.Fraction": lambda value: [value.numerator, value.denominator],
    "collections.deque": lambda value: [list(value)],
    "datetime.date": lambda value: [value.year, value.month, value.day],
    "datetime.timedelta": lambda value: [value.days, value.seconds, value.microseconds],
    "datetime.datetime": lambda v: (
        None if v.tzinfo else [v.year, v.month, v.day, v.hour, v.minute, v.second, v.microsecond]
    ),
    "datetime.time": lambda v: None if v.tzinfo else [v.hour, v.minute, v.second, v.microsecond],
}


def _make(name: str) -> Callable[[Any], object]:
    def make(parts: Any) -> object:
        module, _, kind = name.partition(".")
        return getattr(importlib.import_module(module), kind)(*parts)

    return make


def _type(name: str) -> type:
    found = getattr(builtins, name)
    if not isinstance(found, type):
        raise TypeError(name)
    return found


_READ: dict[str, Callable[[Any], object]] = {
    "int": lambda text: int(text, 16),
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict": dict,
    "collections.OrderedDict": OrderedDict,
    "collections.Counter": lambda pairs: Counter(dict(pairs)),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": lambda parts: complex(*parts),
    "range": lambda parts: range(*parts),
    "type": _type,
    **{name: _make(name) for name in _LIBRARY},
}


def send(channel: int, data: bytes) -> None:
    """Write one message to the socket of a descriptor."""
    left = memoryview(LENGTH.pack(len(data)) + data)
    while left:
        left = left[os.write(channel, left) :]


def receive(channel: int) -> bytes:
    """Read one message from the socket of a descriptor.

    Raises:
        EOFError: If the other side closed it.
    """
    (length,) = LENGTH.unpack(exactly(channel, LENGTH.size))
    return exactly(channel, length)


def exactly(channel: int, n: int) -> bytes:
    """Read `n` bytes from a descriptor.

    Raises:
        EOFError: If the other side closed it before.
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
