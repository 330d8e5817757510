"""A class or function by its name, and what tells its results from those of another."""

from __future__ import annotations

import difflib
import functools
import inspect
import pkgutil
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from ilf.code_digest import code_sha256
from ilf.types import InputError


@dataclass(frozen=True)
class Component:
    """A class or function by its name, with some of its arguments. Calling it passes the others.

    Arguments that are themselves parts are called anew each time, so that two calls share nothing.
    """

    target: str  # its dotted path
    arguments: Mapping[str, Any] = field(default_factory=dict)
    partial: bool = False  # as another part's argument: whether that gets the part itself, to call it

    def __call__(self, *args: Any, **more: Any) -> Any:
        """Call the target with the arguments of the configuration, `args` and `more`; the last come first."""
        return self.resolve()(*args, **{name: _called(value) for name, value in self.arguments.items()} | more)

    def resolve(self) -> Callable[..., Any]:
        """Return the class or function. Raises InputError where there is none."""
        found: Callable[..., Any] = resolve(self.target, "_target_")
        return found

    def get(self, name: str, default: Any = None) -> Any:
        """Return an argument of the configuration, `default` where it gives none."""
        return self.arguments.get(name, default)

    def having(self, **arguments: Any) -> Component:
        """Return the part with other values of some arguments."""
        return Component(self.target, {**self.arguments, **arguments}, self.partial)

    def without(self, *names: str) -> Component:
        """Return the part with the target's own defaults for some arguments."""
        return Component(self.target, {k: v for k, v in self.arguments.items() if k not in names}, self.partial)

    def key(self, aside: Sequence[str] = ()) -> dict[str, Any]:
        """Return what decides the part's results: target, arguments and code.

        Args:
            aside: Arguments that change no result.
        """
        target = self.resolve()
        own = {**self.arguments}
        for name in (*aside, *getattr(target, "changes_nothing", ())):
            own.pop(name, None)
        arguments = {name: _key(value) for name, value in sorted(own.items())}
        return {"target": self.target, "arguments": arguments, "code": version_of(target)}


@dataclass(frozen=True)
class Needs:
    """What a place in the settings asks of its part; stands in the place's annotation."""

    kind: str | None = None  # dotted path of a class that the part must be, or derive from
    methods: tuple[str, ...] = ()  # that its class must have
    given: tuple[str, ...] = ()  # arguments that the caller passes by name
    offered: tuple[str, ...] = ()  # that the caller passes to a target which has them, unless the configuration does
    positional: int = 0  # how many the caller passes before them
    beside: tuple[str, ...] = ()  # in a mapping of parts: plain values that the parts read by interpolation


def _called(value: Any) -> Any:
    if isinstance(value, Component):
        return functools.partial(value) if value.partial else value()
    if isinstance(value, Mapping):
        return {name: _called(one) for name, one in value.items()}
    return [_called(one) for one in value] if isinstance(value, list) else value


def _key(value: Any) -> Any:
    if isinstance(value, Component):
        return value.key()
    if isinstance(value, Mapping):
        return {name: _key(one) for name, one in value.items()}
    return [_key(one) for one in value] if isinstance(value, list) else value


def resolve(path: str, key: str) -> Any:
    """Return the class or function of a dotted path.

    Raises:
        InputError: There is none; names the nearest name that its module has.
    """
    try:
        found = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        module, _, name = path.rpartition(".")
        try:
            near = difflib.get_close_matches(name, dir(pkgutil.resolve_name(module)), 1) if module else []
        except (ImportError, AttributeError, ValueError):
            near = []
        advice = "A package of your own must be on PYTHONPATH, with all that it imports."
        if near and isinstance(error, AttributeError):
            advice = f"Did you mean {module}.{near[0]}?"
        raise InputError(key, path, f"can't be imported ({type(error).__name__}: {error})", advice) from error
    if not callable(found):
        raise InputError(key, path, f"must be a class or function, and is {type(found).__name__}", "Name another.")
    return found


@functools.cache
def _installed() -> tuple[Path, ...]:
    """Return the folders of installed packages."""
    return tuple({Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib")})


def version_of(target: Any) -> str:
    """Return what tells a class or function from another state of its code.

    That is the `version` that it declares; of an installed package its version; else a digest of the syntax of the
    module that holds it, and of those of the classes that it derives from.
    """
    declared = vars(target).get("version") if hasattr(target, "__dict__") else None
    if isinstance(declared, str | int):
        return str(declared)
    if number := _library(target):
        return number
    kinds = [kind for kind in getattr(target, "__mro__", (target,)) if not _library(kind)]
    modules = {m.__name__: m for kind in kinds if (m := inspect.getmodule(kind)) and getattr(m, "__file__", None)}
    return code_sha256(*modules.values()) if modules else code_sha256(target)


def _library(target: Any) -> str | None:
    """Return name and version of the installed package that a class or function is of, None where it is of none."""
    file = getattr(inspect.getmodule(target), "__file__", None)
    top = (getattr(target, "__module__", "") or "").partition(".")[0]
    if top in sys.stdlib_module_names:
        return top
    number = str(getattr(sys.modules.get(top), "__version__", ""))
    if not (file and number) or top == "ilf":
        return None
    installed = any(Path(file).resolve().is_relative_to(folder) for folder in _installed())
    return f"{top} {number.partition('+')[0]}" if installed else None  # a build for another device is the same code


def key_of(part: Any, aside: Sequence[str] = ()) -> dict[str, Any]:
    """Return what decides the results of one of our parts, a dataclass: its class, its fields and its code.

    Left out are the fields that its class names in `changes_nothing`.
    """
    kind = type(part)
    names = [
        one.name for one in fields(part) if one.init and one.name not in (*aside, *getattr(kind, "changes_nothing", ()))
    ]
    own = {name: _plain(getattr(part, name)) for name in names}
    return {"target": f"{kind.__module__}.{kind.__qualname__}", "arguments": own, "code": version_of(kind)}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return value.key() if isinstance(value, Component) else key_of(value)
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def node_of(part: Any) -> Any:
    """Return a part as plain values with its `_target_`, as a checkpoint may hold it; None for what can't be named."""
    if isinstance(part, Component):
        return {"_target_": part.target, **{name: node_of(value) for name, value in part.arguments.items()}}
    if isinstance(part, functools.partial):
        return {"_target_": f"{part.func.__module__}.{part.func.__qualname__}", **part.keywords}
    if is_dataclass(part) and not isinstance(part, type):
        kind = type(part)
        own = {one.name: node_of(getattr(part, one.name)) for one in fields(part) if one.init}
        return {"_target_": f"{kind.__module__}.{kind.__qualname__}", **own}
    return None if callable(part) else part


def from_node(node: Any) -> Any:
    """Return what `node_of` was given: an instance of a dataclass, else what makes one."""
    if not (isinstance(node, Mapping) and "_target_" in node):
        return node
    part = Component(node["_target_"], {name: from_node(value) for name, value in node.items() if name != "_target_"})
    return part() if is_dataclass(part.resolve()) else part
