"""Stand-ins through which tests in the judge's process use objects of the program."""

import enum
import functools
from collections.abc import Callable, Generator
from typing import Any, ClassVar, NoReturn

from .containers import CONTAINERS, base_of

Ask = Callable[..., Any]  # asks the program: takes the operation and its arguments


class Unsupported(BaseException):
    """A test asks for something that plain data cannot answer. Not an Exception, which tests may catch."""

    last: ClassVar[str | None] = None  # what was asked for last, in case a test has caught it nevertheless

    def __init__(self, what: str) -> None:
        super().__init__(what)
        Unsupported.last = what


def plain(value: Any) -> Any:
    """Return the data by which an object of the program compares, so that its methods can't decide; or the value."""
    return value._extra if type(value) is Remote and value._how == "data" else value


def refuse(what: str) -> Callable[..., NoReturn]:
    """Return a function that raises Unsupported with the message `what`."""

    def refuse(*args: object, **keywords: object) -> NoReturn:
        raise Unsupported(what)

    return refuse


class Remote:
    """Stands for an object of the program that is not plain data.

    Args:
        ask: Asks the program to do something.
        number: The number by which the program knows the object.
        how: How it compares: see `objects.Objects.describe`.
        name: The name of its type.
        extra: The data by which it compares: plain data, or a type with the fields or with a member's name.
    """

    reading: ClassVar[bool] = False  # whether sets and dictionaries are being made from a message of the program
    __slots__ = ("_ask", "_extra", "_how", "_name", "_number")
    __array_ufunc__ = None  # makes numpy call our methods, rather than compare item by item

    def __init__(self, ask: Ask, number: int, how: str, name: str, extra: Any) -> None:
        for slot, value in zip(Remote.__slots__, (ask, extra, how, name, number), strict=True):
            object.__setattr__(self, slot, value)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """The type that `isinstance` sees."""
        return type(self._extra) if self._how == "data" else Remote

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        return self._ask("call", self, args, tuple(kwargs.items()))

    def __getattr__(self, name: str) -> Any:
        return self._ask("attribute", self, name)

    def __iter__(self) -> Any:
        return self._ask("iterator", self)

    def __next__(self) -> Any:
        found = self._ask("next", self)
        if not found:
            raise StopIteration
        return found[0]

    def __await__(self) -> Generator[None, None, Any]:
        yield from ()
        return self._ask("await", self)

    def __contains__(self, item: Any) -> bool:
        own = self._ask("has", self, "__contains__")
        if self._how == "data" and not own:
            return item in self._extra
        if not own or self._ask("has", self, "__iter__"):
            listed = item in self._ask("list", self)  # compared here, so that the program cannot decide
            if not own or self._ask("contains", self, item) is listed:
                return listed
        return bool(self._ask("operator", "contains", self, item))

    def __exit__(self, kind: Any, error: Any, trace: Any) -> Any:
        return self._ask("exit", self, kind, error)

    def __instancecheck__(self, value: object) -> Any:
        return self._ask("isinstance", value, self)

    def __subclasscheck__(self, kind: object) -> Any:
        return self._ask("issubclass", kind, self)

    def __eq__(self, other: object) -> Any:
        theirs = other._how if type(other) is Remote else ""
        if "own" in (self._how, theirs):
            return self._ask("equal", self, other)
        if self._how == "data":
            return self._extra == (other._extra if type(other) is Remote else other)
        if self._how == "member" and isinstance(other, enum.Enum):
            kind = type(other)
            return self._extra == [f"{kind.__module__}.{kind.__qualname__}", other.name]
        if self._how == "class" and isinstance(other, type):
            return self._extra == [f"{other.__module__}:{other.__qualname__}"]
        if type(other) is not Remote:
            return NotImplemented
        if self._how != theirs:
            return False
        if self._how == "fields":
            return self._extra[0] == other._extra[0] and self._ask("fields", self) == self._ask("fields", other)
        return self._extra == other._extra if self._how == "member" else self._number == other._number

    def __hash__(self) -> int:
        if self._how == "own" and not Remote.reading:
            raise Unsupported("takes the hash of an object of the program")
        if self._how == "fields":
            kind, values, frozen = self._extra
            if not frozen and not Remote.reading:
                raise TypeError(f"unhashable type: '{self._name}'")
            try:
                return hash((kind, tuple(values)))
            except TypeError:  # some of the values can be hashed only in the program
                return hash(kind)
        if self._how == "member":
            return hash(self._extra[1])
        return hash(self._extra if self._how == "data" else self._number)

    def __copy__(self) -> Any:
        return self._ask("copy", self)

    def __deepcopy__(self, memo: object) -> Any:
        return self._ask("deepcopy", self)


def _asking(name: str) -> Callable[..., Any]:
    return lambda self, *args: self._ask(name, self, *args)


def _between(name: str, reflected: bool = False) -> Callable[[Any, Any], Any]:
    """Return a binary operator. It needs trust if one operand is a value of the test, which may be the expected one."""

    def operate(self: Any, other: Any) -> Any:
        pair = (other, self) if reflected else (self, other)
        return self._ask("operator", name, *pair) if number_of(other) is None else self._ask(name, *pair)

    return operate


_UNARY = "str repr bool int float complex round abs format bytes index neg pos invert setattr delattr setitem delitem "
_UNARY += "reversed enter dir"
for _name in _UNARY.split():
    setattr(Remote, f"__{_name}__", _asking(_name))
for _name, _does in {"len": "length", "getitem": "item"}.items():
    setattr(Remote, f"__{_name}__", _asking(_does))
for _name in ("__doc__", "__module__"):
    setattr(Remote, _name, property(functools.partial(lambda name, self: self._ask("attribute", self, name), _name)))
_BINARY = "add sub mul truediv floordiv mod pow matmul and_ or_ xor lshift rshift divmod"
for _name in _BINARY.split():
    setattr(Remote, f"__{_name.rstrip('_')}__", _between(_name))
    setattr(Remote, f"__r{_name.rstrip('_')}__", _between(_name, reflected=True))
for _name in ("lt", "le", "gt", "ge"):
    setattr(Remote, f"__{_name}__", _between(_name))


class Like:
    """Mix-in for a value derived from plain data: the data are copied here, the program is asked for all else."""

    _ask: Ask
    _number: int

    def __getattr__(self, name: str) -> Any:
        if hasattr(type(self), name):  # an attribute that is not set yet
            raise AttributeError(name)
        return self._ask("attribute", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(type(self), name):
            object.__setattr__(self, name, value)
        else:
            self._ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._ask("delattr", self, name)

    def __repr__(self) -> Any:
        return self._ask("repr", self)

    def __str__(self) -> Any:
        return self._ask("str", self)

    def __format__(self, text: str) -> Any:
        return self._ask("format", self, text)

    def __copy__(self) -> Any:
        return self._ask("copy", self)

    def __deepcopy__(self, memo: object) -> Any:
        return self._ask("deepcopy", self)


_LIKE: dict[type, Any] = {}


def like(ask: Ask, number: int, data: Any) -> Any:
    """Return a stand-in for an object of the program that can be used as `data`."""
    base: Any = base_of(data) if type(data) in CONTAINERS else type(data)
    if base not in _LIKE:
        _LIKE[base] = type(f"Like{base.__name__}", (Like, base), {})
    if base in CONTAINERS:
        container = CONTAINERS[base]
        items = list(container.items(data))
        found = container.made(items) if base.__name__ == "array" else _LIKE[base]()
        container.fill(found, items)
    else:
        found = _LIKE[base](data)
    vars(found).update(_ask=ask, _number=number)
    return found


class ErrorType(type):
    """The metaclass of types that stand for the program's types of exceptions."""

    _ask: Ask
    _number: int

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        return cls._ask("call", cls, args, tuple(kwargs.items()))

    def __getattr__(cls, name: str) -> Any:
        return cls._ask("attribute", cls, name)


def error_type(ask: Ask, number: int, name: str, bases: tuple[type, ...]) -> Any:
    """Return a type of exceptions that stands for a type of the program."""
    own = {
        "_ask": staticmethod(ask),
        "_number": number,
        "__str__": lambda self: vars(self).get("_text", ""),
        "__getattr__": lambda self, name: self._ask("attribute", vars(self)["_object"], name),
    }
    try:
        return ErrorType(name, bases, own)
    except TypeError:  # only the program's interpreter can combine these bases
        return ErrorType(name, (Exception,), own)


def number_of(value: Any) -> int | None:
    """Return the number of an object of the program, or None for a value of the judge's process."""
    if type(value) is Remote or isinstance(value, ErrorType | Like):
        number: int = value._number
        return number if number >= 0 else None
    if isinstance(value, BaseException):
        found = vars(value).get("_object")
        return found and number_of(found)
    return None
