"""Describes the objects that stay in the program's process: what they are, and how they compare."""

import enum
import sys
from collections.abc import Callable
from typing import Any

from .containers import CONTAINERS
from .serialization import DEPTH, Writer

# A value of a type derived from one of these can be compared as a value of this base.
_BASES = (*CONTAINERS, tuple, frozenset, str, bytes, int, float)
# Methods that a derived class may override although the judge uses a copy of its values as values of the base.
_ALLOWED = {"__new__", "__init__", "__repr__", "__str__", "__format__", "__doc__", "__dir__", "__sizeof__"}
_ALLOWED |= {"__getattribute__", "__setattr__", "__delattr__", "__class_getitem__", "__init_subclass__", "__class__"}
_TEXT = 10_000  # maximum characters of an exception's text
_ALLOWED |= {"__reduce__", "__reduce_ex__", "__getnewargs__", "__getnewargs_ex__", "__getstate__", "__subclasshook__"}


class Objects:
    """The objects that the judge knows by number. An object keeps its number."""

    def __init__(self) -> None:
        self._objects: list[object] = []
        self._numbers: dict[int, int] = {}  # by id; no object is ever freed

    def __getitem__(self, number: int) -> object:
        return self._objects[number]

    def number(self, value: object) -> int:
        """Return an object's number."""
        found = self._numbers.setdefault(id(value), len(self._objects))
        if found == len(self._objects):
            self._objects.append(value)
        return found

    def describe(self, writer: Writer, value: Any, depth: int) -> Any:
        """Return the description of an object: its number, how it compares, its type's name, and further data.

        It compares like the plain data that its type is derived from (`like`, which can also be used as that data, or
        `data`, if the type overrides methods), by the fields of a data class (`fields`), as a member of an enumeration
        (`member`), by identity (`is`), or by a method of the program (`own`). `class` is a type, `error` a type of
        exceptions, and `raised` an exception.
        """
        number, kind = self.number(value), type(value)
        name = getattr(kind, "__qualname__", "object")

        def object_of(how: str, *extra: Any) -> Any:
            return {"object": [number, how, name, *extra]}

        if depth > DEPTH:
            return object_of("own")
        if isinstance(value, type):
            if not issubclass(value, BaseException):
                library = value.__module__.partition(".")[0] in sys.stdlib_module_names
                return object_of("class", f"{value.__module__}:{value.__qualname__}" if library else None)
            bases = [writer.pack(base, depth + 1) for base in value.__bases__ if issubclass(base, BaseException)]
            return {"object": [number, "error", f"{value.__module__}.{value.__qualname__}", *bases]}
        if isinstance(value, BaseException):
            text = str(value)[:_TEXT]
            return object_of("raised", writer.pack(kind, depth + 1), writer.pack((text, value.args), depth + 1))
        equal = _definer(kind, "__eq__")
        base = next((base for base in kind.__mro__ if base in _BASES), None)
        if base is not None:
            own = {name for one in kind.__mro__[: kind.__mro__.index(base)] for name in vars(one)}
            changed = (own & set(dir(base))) - _ALLOWED
            if changed & {"__eq__", "__ne__", "__hash__"}:
                return object_of("own")
            return object_of("data" if changed else "like", _as_base(writer, value, base, depth))
        if name == "PosixPath" and kind.__module__ == "pathlib":
            return object_of("like", {"pathlib.PosixPath": [str(value)]})
        if isinstance(value, enum.Enum) and equal is object:
            return object_of("member", self._type(writer, kind), value.name)
        compared = _compared_fields(equal)
        if compared is not None:
            values = [getattr(value, name) for name in compared]
            frozen = _definer(kind, "__hash__") is equal and kind.__hash__ is not None
            return object_of("fields", self._type(writer, kind), [writer.pack(v, depth + 1) for v in values], frozen)
        return object_of("is" if equal is object and _definer(kind, "__ne__") is object else "own")

    def fields(self, value: Any) -> tuple[Any, ...]:
        """Return the values of the fields by which a data class compares."""
        names = _compared_fields(_definer(type(value), "__eq__"))
        return tuple(getattr(value, name) for name in names or ())

    def _type(self, writer: Writer, kind: type) -> Any:
        """Return the name of a type of the standard library, or the number of any other type."""
        name = f"{kind.__module__}.{kind.__qualname__}"
        found = getattr(sys.modules.get(kind.__module__), kind.__qualname__, None)
        return name if found is kind and kind.__module__ != "program" else self.number(kind)


_EXACT: dict[type, Callable[[Any], Any]] = {
    tuple: lambda value: tuple(tuple.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
    str: str.__str__,
    bytes: lambda value: bytes(memoryview(value)),
    int: int.__index__,
    float: float.__float__,
}


def _as_base(writer: Writer, value: Any, base: type, depth: int) -> Any:
    return writer.container(value, depth) if base in CONTAINERS else writer.pack(_EXACT[base](value), depth + 1)


def _definer(kind: type, name: str) -> type:
    return next(one for one in kind.__mro__ if name in vars(one))


def _compared_fields(definer: type) -> list[str] | None:
    """Return the fields that a data class's generated `__eq__` compares, or None if the class has another `__eq__`."""
    fields = vars(definer).get("__dataclass_fields__")
    code = getattr(vars(definer)["__eq__"], "__code__", None)
    if fields is None or code is None or code.co_filename != "<string>":
        return None
    return [name for name, field in fields.items() if field.compare and field._field_type.name == "_FIELD"]
