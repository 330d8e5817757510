"""Immutable values of the standard library, which cross as the parts that make them.

Both sides make values of the types that are listed here. These types do nothing but hold values.
"""

import builtins
import collections
import functools
import importlib
import operator
import re
import sys
import types
from collections.abc import Callable
from typing import Any

_Parts = Callable[[Any], Any]  # returns the parts of a value, or None if the value cannot cross
_Made = Callable[..., Any]


def _attributes(*names: str) -> _Parts:
    return lambda value: [getattr(value, name) for name in names]


def _text(value: Any) -> list[str]:
    return [str(value)]


def _folded(name: str) -> _Made:
    return lambda *parts: getattr(importlib.import_module("datetime"), name)(*parts[:-1], fold=parts[-1])


def _holding(name: str) -> _Made:
    def make(data: Any) -> Any:
        found = getattr(collections, name)()
        found.data = data  # the same object that both sides hold, not a copy
        return found

    return make


packages: set[str] = set()  # packages that programs and tests may import: see packages.py
more: list[tuple[Callable[[Any, type], Any], Callable[[str, Any], Any]]] = []  # `apart` and `made` of these packages


def number(value: Any) -> Any:
    """Return a number of numpy as a Python number, and any other value unchanged."""
    if not packages or type(value).__module__ != "numpy" or value.shape != ():
        return value
    return value.item() if value.dtype.kind in "biufc" else value


_RAW: dict[type, tuple[str, _Parts, _Made]] = {  # types that cannot be looked up by name
    complex: ("complex", _attributes("real", "imag"), complex),
    range: ("range", _attributes("start", "stop", "step"), range),
    slice: ("slice", _attributes("start", "stop", "step"), slice),
    type(...): ("Ellipsis", lambda value: [], lambda: ...),
    type(NotImplemented): ("NotImplemented", lambda value: [], lambda: NotImplemented),
    memoryview: ("memoryview", lambda v: [v.tobytes()] if v.format == "B" and v.ndim == 1 else None, memoryview),
    types.MappingProxyType: ("mappingproxy", lambda v: [dict(v)], types.MappingProxyType),
    types.GenericAlias: ("generic", _attributes("__origin__", "__args__"), types.GenericAlias),
    types.UnionType: ("union", lambda v: list(v.__args__), lambda *kinds: functools.reduce(operator.or_, kinds)),
}
_mapping: Any
for _mapping in ({}, collections.OrderedDict()):
    _RAW[type(_mapping.keys())] = "keys", list, lambda *keys: dict.fromkeys(keys).keys()
    _RAW[type(_mapping.items())] = "items", list, lambda *pairs: dict(pairs).items()
    _RAW[type(_mapping.values())] = "values", list, lambda *values: dict(enumerate(values)).values()

_NAMED: dict[str, tuple[_Parts, _Made | None]] = {  # None: the type itself makes the value
    "collections.ChainMap": (lambda v: list(v.maps), None),
    "collections.UserDict": (_attributes("data"), _holding("UserDict")),
    "collections.UserList": (_attributes("data"), _holding("UserList")),
    "collections.UserString": (_attributes("data"), None),
    "datetime.date": (_attributes("year", "month", "day"), None),
    "datetime.datetime": (
        _attributes("year", "month", "day", "hour", "minute", "second", "microsecond", "tzinfo", "fold"),
        _folded("datetime"),
    ),
    "datetime.time": (_attributes("hour", "minute", "second", "microsecond", "tzinfo", "fold"), _folded("time")),
    "datetime.timedelta": (_attributes("days", "seconds", "microseconds"), None),
    "datetime.timezone": (lambda v: v.__getinitargs__(), None),
    "decimal.Decimal": (_text, None),
    "fractions.Fraction": (_attributes("numerator", "denominator"), None),
    **{f"ipaddress.IPv{n}{kind}": (_text, None) for n in "46" for kind in ("Address", "Network", "Interface")},
    # `objects.py` takes these apart. They are made as pure paths, which cannot read files.
    "pathlib.PosixPath": (lambda v: None, lambda text: named("pathlib:PurePosixPath")(text)),
    "pathlib.PurePosixPath": (_text, None),
    "pathlib.PureWindowsPath": (_text, None),
    "re.Pattern": (lambda v: [v.pattern, v.flags] if len(v.pattern) < 1000 else None, re.compile),
    "statistics.NormalDist": (_attributes("mean", "stdev"), None),
    "types.SimpleNamespace": (lambda v: [vars(v)], lambda names: types.SimpleNamespace(**names)),
    "uuid.UUID": (_attributes("hex"), None),
    "zoneinfo.ZoneInfo": (lambda v: [v.key] if v.key else None, None),
}
_TYPES_OF = {"array", "builtins", "collections", "collections.abc", "datetime", "decimal", "fractions", "ipaddress"}
_TYPES_OF |= {"numbers", "uuid"}


def apart(value: Any, kind: type) -> tuple[str, Any] | None:
    """Return a tag and the parts that make a value of the standard library, or None for any other value."""
    if kind in _RAW:
        tag, parts, _ = _RAW[kind]
        found = parts(value)
        return None if found is None else (tag, found)
    if not isinstance(kind.__module__, str):  # the stand-in for an object of the program
        return None
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name in _NAMED and getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is kind:
        found = _NAMED[name][0](value)
        return None if found is None else (name, found)
    if issubclass(kind, type) and value.__module__ in _TYPES_OF:
        dotted = name_of(value)
        return ("type", [dotted]) if dotted and dotted.partition(":")[0] in _TYPES_OF else None
    return next((found for other, _ in more if (found := other(value, kind)) is not None), None)


def made(tag: str, parts: Any) -> Any:
    """Return the value whose tag and parts `apart` returned.

    Raises:
        Exception: The parts do not make such a value.
    """
    for known, _, make in _RAW.values():
        if known == tag:
            return make(*parts)
    for _, other in more:
        found = other(tag, parts)
        if found is not None:
            return found
    if tag == "type":
        (name,) = parts
        found = named(name)
        if name.partition(":")[0] not in _TYPES_OF or not isinstance(found, type):
            raise TypeError(name)
        return found
    return (_NAMED[tag][1] or named(":".join(tag.rsplit(".", 1))))(*parts)


def named(name: str) -> Any:
    """Return the object with a name MODULE:PATH in the standard library or an allowed package, or None."""
    module, _, path = name.partition(":")
    if not has(module):
        return None
    found: Any = builtins if module == "builtins" else importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def has(module: str) -> bool:
    """Return whether a module belongs to the standard library or to a package that programs may import."""
    root = module.partition(".")[0]
    return root in sys.stdlib_module_names or root in packages


def name_of(value: Any) -> str | None:
    """Return the name MODULE:PATH of a function or type of the library, or None if it has no such name."""
    module = getattr(getattr(value, "__objclass__", value), "__module__", "")
    for path in (getattr(value, "__qualname__", ""), getattr(value, "__name__", "")):
        found = named(f"{module}:{path}")
        if found is value or (isinstance(value, types.MethodType) and found == value):
            return f"{module}:{path}"
    return next((f"types:{name}" for name, one in vars(types).items() if one is value), None)
