"""The builtins and modules that tests see: Python's own functions, and the modules that do nothing but compute.

Tests are trusted, but they run outside the programs' isolation and on values that programs return.
"""

import asyncio
import builtins
import collections
import importlib
import random
import sys
import types
import unittest
from collections.abc import Callable
from typing import Any

from . import library, pytest_like
from .paths import Path
from .remote import Ask, Like, Remote, Unsupported, number_of, refuse

_PURE = """
__future__ _strptime abc array ast asyncio base64 binascii bisect bz2 calendar cmath codecs collections
collections.abc colorsys concurrent concurrent.futures contextlib contextvars copy csv dataclasses datetime decimal
difflib enum fractions functools graphlib hashlib heapq hmac html html.entities io ipaddress itertools json
json.decoder keyword lzma math numbers operator pprint queue quopri random re reprlib secrets shlex statistics string
struct textwrap threading time token traceback types typing unicodedata unicodedata unittest unittest.mock urllib
urllib.parse uuid warnings weakref zlib zoneinfo
"""
PURE = frozenset(_PURE.split())
_SHORT = {"np": "numpy", "pd": "pandas"}  # the usual names
_REFUSED = {"breakpoint", "compile", "eval", "exec", "exit", "help", "input", "open", "quit"}
_SIZES = "getsizeof maxsize float_info maxunicode version version_info byteorder hash_info int_info getrecursionlimit "
_SIZES += "intern implementation platform"
_STREAMS = ("stdout", "stderr")
program: list[Ask] = []  # holds the function that asks the program that is judged now


class _Sys:
    """Replacement for `sys`: its sizes and limits, and the streams that receive the programs' output."""

    def __getattr__(self, name: str) -> Any:
        if name in _SIZES.split() or name.strip("_") in _STREAMS:
            return getattr(sys, name)
        if name.startswith("_"):
            raise AttributeError(name)
        raise Unsupported(f"uses sys.{name}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _STREAMS:
            raise Unsupported(f"sets sys.{name}")
        setattr(sys, name, value)

    def setrecursionlimit(self, limit: int) -> None:
        program[-1]("call", sys.setrecursionlimit, (limit,), ())


def _seed(*args: Any, **keywords: Any) -> None:
    """Seed the random numbers of the test and of the program."""
    random.seed(*args, **keywords)
    program[-1]("call", random.seed, args, tuple(keywords.items()))


class _Pytest:
    """Replacement for `pytest` with the functions of `pytest_like`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in vars(pytest_like):
            raise Unsupported(f"uses pytest.{name}")
        return getattr(pytest_like, name)


def _without(name: str, **instead: Any) -> types.ModuleType:
    """Return a copy of a module in which `instead` replaces some of its names."""
    found = types.ModuleType(name)
    vars(found).update(vars(importlib.import_module(name)) | instead)
    return found


def _run(awaitable: Any, **keywords: Any) -> Any:
    async def wait() -> Any:
        return await awaitable

    return asyncio.run(wait(), **keywords)


class _TestCase(unittest.TestCase):
    """A TestCase whose assertions on identity and type also work for objects of the program."""

    def assertIs(self, first: Any, second: Any, msg: Any = None) -> None:
        assert same(first, second), msg or f"{first!r} is not {second!r}"

    def assertIsNot(self, first: Any, second: Any, msg: Any = None) -> None:
        assert not same(first, second), msg or f"unexpectedly identical: {first!r}"

    def assertIsInstance(self, value: Any, kind: Any, msg: Any = None) -> None:
        assert isinstance_(value, kind), msg or f"{value!r} is not an instance of {kind!r}"

    def assertNotIsInstance(self, value: Any, kind: Any, msg: Any = None) -> None:
        assert not isinstance_(value, kind), msg or f"{value!r} is an instance of {kind!r}"

    def assertSetEqual(self, first: Any, second: Any, msg: Any = None) -> None:
        assert first == second, msg or f"{first!r} != {second!r}"  # unittest would call the program's `difference`

    assertWarns = assertWarnsRegex = refuse("catches warnings")
    assertLogs = assertNoLogs = refuse("reads logs")


_SYS: Any = _Sys()
_INSTEAD: dict[str, Callable[[], Any]] = {
    "asyncio": lambda: _without("asyncio", run=_run),
    "codecs": lambda: _without("codecs", open=refuse("uses codecs.open")),
    "io": lambda: _without("io", **{n: refuse(f"uses io.{n}") for n in ("open", "open_code", "FileIO")}),
    "pathlib": lambda: _without("pathlib", Path=Path, PosixPath=Path),
    "pytest": _Pytest,
    "random": lambda: _without("random", seed=_seed),
    "sys": lambda: _SYS,
    "unittest": lambda: _without("unittest", main=lambda *args, **keywords: None, TestCase=_TestCase),
    "unittest.mock": lambda: _without("unittest.mock", patch=_Refused("unittest.mock.patch")),
    "warnings": lambda: _without("warnings", catch_warnings=refuse("catches warnings")),
}
_made: dict[str, Any] = {}


class _Refused:
    def __init__(self, what: str) -> None:
        self._what = what

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        raise Unsupported(f"uses {self._what}")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise Unsupported(f"uses {self._what}")


def module(name: str) -> Any:
    """Return a module for tests. Raises Unsupported if tests may not import it."""
    if name in _INSTEAD:
        if name not in _made:
            _made[name] = _INSTEAD[name]()
        return _made[name]
    if name not in PURE and name.partition(".")[0] not in library.packages:
        raise Unsupported(f"imports {name}")
    return importlib.import_module(name)


def packages_named(names: list[str]) -> dict[str, Any]:
    """Return the allowed packages among `names` (such as np), which tests may use without importing them."""
    full = {name: _SHORT.get(name, name) for name in names} if library.packages else {}
    return {name: module(package) for name, package in full.items() if package in library.packages & set(sys.modules)}


def _import(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
    if level:
        raise Unsupported("imports from a package of its own")
    found, (first, _, rest) = module(name), name.partition(".")
    for part in fromlist or ():
        if f"{name}.{part}" in PURE:
            setattr(found, part, module(f"{name}.{part}"))
        elif first in library.packages and not hasattr(found, part):
            importlib.import_module(f"{name}.{part}")
    if fromlist:
        return found
    if rest and name in _INSTEAD:
        setattr(module(first), rest, found)
    return module(first)


class _TypeOfType(type):
    """Metaclass of the replacement for `type`, which asks the program for the types of the program's objects."""

    def __call__(cls, *args: Any, **keywords: Any) -> Any:
        if len(args) != 1 or keywords:
            return type(*args, **keywords)
        (value,) = args
        if type(value) is Remote or isinstance(value, Like):
            return value._ask("type", value)
        found = type(value)
        return cls if found is type else found

    def __instancecheck__(cls, value: Any) -> bool:
        return bool(isinstance_(value, type))

    def __subclasscheck__(cls, kind: Any) -> bool:
        return issubclass(kind, type)

    def __eq__(cls, other: Any) -> bool:
        return other is cls or other is type

    def __hash__(cls) -> int:
        return hash(type)

    def __repr__(cls) -> str:
        return repr(type)


class _Type(type, metaclass=_TypeOfType):
    pass


def isinstance_(value: Any, kind: Any) -> Any:
    """Return what `isinstance` returns; for an object of the program, ask the program."""
    if isinstance(kind, tuple):
        return any(isinstance_(value, one) for one in kind)
    if type(value) is Remote and kind is not object:
        return value._ask("isinstance", value, type if kind is _Type else kind)
    if type(kind) is Remote:
        return kind._ask("isinstance", value, kind)
    if isinstance(value, Like) and not isinstance(value, kind):
        return value._ask("isinstance", value, kind)
    return isinstance(value, kind)


def _issubclass(kind: Any, other: Any) -> Any:
    if isinstance(other, tuple):
        return any(_issubclass(kind, one) for one in other)
    for one in (kind, other):
        if type(one) is Remote:
            return one._ask("issubclass", kind, other)
    return issubclass(kind, other)


def _callable(value: Any) -> Any:
    return value._ask("callable", value) if type(value) is Remote else callable(value)


def _id(value: Any) -> int:
    number = number_of(value)
    return id(value) if number is None else -1 - number


def _vars(*values: Any) -> Any:
    if len(values) == 1 and number_of(values[0]) is not None:
        return values[0]._ask("vars", values[0])
    return vars(*values)


def same(a: Any, b: Any) -> bool:
    """Return whether two values are the same object: `a is b`.

    Raises:
        Unsupported: The values are equal, and it is unknown whether they are the same object in the program.
    """
    if a is b or (a is type and b is _Type) or (a is _Type and b is type):
        return True
    if any(type(one) is Remote and one._how == "class" for one in (a, b)):
        return bool(a == b)
    numbers = number_of(a), number_of(b)
    if None not in numbers:
        return numbers[0] == numbers[1]
    if isinstance(a, float) and isinstance(b, float) and a != a and b != b:
        raise Unsupported("compares by identity")
    if type(a) is type(b) and isinstance(a, str | bytes | int | float | complex | tuple | frozenset) and a == b:
        raise Unsupported("compares by identity")
    return False


BUILTINS = vars(builtins) | {"__import__": _import} | {name: refuse(f"uses {name}") for name in _REFUSED}
BUILTINS |= {"type": _Type, "isinstance": isinstance_, "issubclass": _issubclass, "callable": _callable}
BUILTINS |= {"id": _id, "vars": _vars}


class Builtins(dict[str, Any]):
    """Python's builtins, and the program's names whose values may change, which are looked up at each access.

    Args:
        read: Returns the value of a name in the program.
        names: The program's names whose values may change.
    """

    def __init__(self, read: Callable[[str], Any], names: collections.abc.Collection[str]) -> None:
        super().__init__(BUILTINS)
        self._read, self._names = read, names

    def __getitem__(self, name: str) -> Any:
        return self._read(name) if name in self._names else super().__getitem__(name)
