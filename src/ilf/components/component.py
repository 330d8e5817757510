"""Components: a class or function by its name, and the key that identifies its results in the store."""

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
    """A class or function by its name, with some of its arguments. The caller passes the others.

    Arguments that are components themselves are called again each time, so that two calls share nothing.
    """

    target: str  # dotted path
    arguments: Mapping[str, Any] = field(default_factory=dict)
    partial: bool = False  # as an argument of another component: whether to pass it uncalled, as functools.partial

    def __call__(self, *args: Any, **more: Any) -> Any:
        """Call the target with the configured arguments, `args` and `more`; `more` overrides configured arguments."""
        return self.resolve()(*args, **{name: _called(value) for name, value in self.arguments.items()} | more)

    def resolve(self) -> Callable[..., Any]:
        """Return the class or function. Raises InputError if there is none."""
        found: Callable[..., Any] = resolve(self.target, "_target_")
        return found

    def get(self, name: str, default: Any = None) -> Any:
        """Return a configured argument, or `default` if it is not configured."""
        return self.arguments.get(name, default)

    def having(self, **arguments: Any) -> Component:
        """Return a copy of the component with new values for some arguments."""
        return Component(self.target, {**self.arguments, **arguments}, self.partial)

    def without(self, *names: str) -> Component:
        """Return a copy of the component without some arguments, which then have the target's own defaults."""
        return Component(self.target, {k: v for k, v in self.arguments.items() if k not in names}, self.partial)

    def key(self, aside: Sequence[str] = ()) -> dict[str, Any]:
        """Return the key that determines the component's results: target, arguments and code version.

        Args:
            aside: Arguments that do not affect results, which the key leaves out.
        """
        target = self.resolve()
        own = {**self.arguments}
        for name in (*aside, *getattr(target, "changes_nothing", ())):
            own.pop(name, None)
        arguments = {name: _key(value) for name, value in sorted(own.items())}
        return {"target": self.target, "arguments": arguments, "code": version_of(target)}


@dataclass(frozen=True)
class Needs:
    """The requirements for the component of a setting, given in the setting's annotation."""

    kind: str | None = None  # dotted path of the class that the component must be, or derive from
    given: tuple[str, ...] = ()  # arguments that the caller passes by name
    offered: tuple[str, ...] = ()  # arguments that the caller passes if the target takes them and they are not set
    positional: int = 0  # number of positional arguments that the caller passes
    beside: tuple[str, ...] = ()  # in a mapping of components: plain values, which components read by interpolation


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
    """Return the class or function at a dotted path.

    Raises:
        InputError: There is none. The message suggests the nearest name in its module.
    """
    try:
        found = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        module, _, name = path.rpartition(".")
        try:
            near = difflib.get_close_matches(name, dir(pkgutil.resolve_name(module)), 1) if module else []
        except (ImportError, AttributeError, ValueError):
            near = []
        advice = "A package of your own must be on PYTHONPATH, and so must everything that it imports."
        if near and isinstance(error, AttributeError):
            advice = f"Did you mean {module}.{near[0]}?"
        raise InputError(key, path, f"can't be imported ({type(error).__name__}: {error})", advice) from error
    if not callable(found):
        raise InputError(key, path, f"must be a class or function, not {type(found).__name__}", "Name another.")
    return found


@functools.cache
def _installed() -> tuple[Path, ...]:
    """Return the folders that installed packages are in."""
    return tuple({Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib")})


def version_of(target: Any) -> str:
    """Return the version of the code of a class or function.

    This is the `version` that it declares, else the version of the installed package that it belongs to, else a digest
    of the syntax of its module and of the modules of the classes that it derives from.
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
    """Return name and version of the installed package that a class or function belongs to; None if there is none."""
    file = getattr(inspect.getmodule(target), "__file__", None)
    top = (getattr(target, "__module__", "") or "").partition(".")[0]
    if top in sys.stdlib_module_names:
        return top
    number = str(getattr(sys.modules.get(top), "__version__", ""))
    if not (file and number) or top == "ilf":
        return None
    installed = any(Path(file).resolve().is_relative_to(folder) for folder in _installed())
    return f"{top} {number.partition('+')[0]}" if installed else None  # builds for other devices have the same code


def key_of(component: Any, aside: Sequence[str] = ()) -> dict[str, Any]:
    """Return the key that determines the results of a component that is a dataclass: class, fields and code version.

    The key leaves out the fields in `aside`, and those that the class names in `changes_nothing`.
    """
    kind = type(component)
    ignored = (*aside, *getattr(kind, "changes_nothing", ()))
    names = [one.name for one in fields(component) if one.init and one.name not in ignored]
    own = {name: plain(getattr(component, name)) for name in names}
    return {"target": f"{kind.__module__}.{kind.__qualname__}", "arguments": own, "code": version_of(kind)}


def plain(value: Any) -> Any:
    """Return a value of a component's field as it stands in the store's keys."""
    if is_dataclass(value) and not isinstance(value, type):
        return value.key() if isinstance(value, Component) else key_of(value)
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def node_of(component: Any) -> Any:
    """Return a component as plain values with its `_target_`, for a checkpoint; None for a callable without a name."""
    if isinstance(component, Component):
        return {"_target_": component.target, **{name: node_of(value) for name, value in component.arguments.items()}}
    if isinstance(component, functools.partial):
        return {"_target_": f"{component.func.__module__}.{component.func.__qualname__}", **component.keywords}
    if is_dataclass(component) and not isinstance(component, type):
        kind = type(component)
        own = {one.name: node_of(getattr(component, one.name)) for one in fields(component) if one.init}
        return {"_target_": f"{kind.__module__}.{kind.__qualname__}", **own}
    return None if callable(component) else component


def from_node(node: Any) -> Any:
    """Return the inverse of `node_of`: an instance if `_target_` is a dataclass, else a `Component`."""
    if not (isinstance(node, Mapping) and "_target_" in node):
        return node
    arguments = {name: from_node(value) for name, value in node.items() if name != "_target_"}
    component = Component(node["_target_"], arguments)
    return component() if is_dataclass(component.resolve()) else component
