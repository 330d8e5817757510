"""Checks that a class or function accepts the arguments that a configuration gives it."""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

from ilf.components.component import Needs
from ilf.types import InputError


def signature(target: Any) -> inspect.Signature:
    """Return a target's signature; one that accepts any arguments if the target has none."""
    try:
        return inspect.signature(target)
    except (ValueError, TypeError):  # implemented in C
        kinds = {"args": inspect.Parameter.VAR_POSITIONAL, "kwargs": inspect.Parameter.VAR_KEYWORD}
        return inspect.Signature([inspect.Parameter(name, kind) for name, kind in kinds.items()])


def bind(target: Any, arguments: Mapping[str, Any], key: str, needs: Needs, complete: bool = True) -> dict[str, Any]:
    """Check that a target accepts the configured arguments and those of its caller; return its annotated types.

    Args:
        target: The class or function.
        arguments: The arguments from the configuration.
        key: The key of the component, for error messages.
        needs: What the caller passes.
        complete: Whether all other arguments must be given, too.

    Raises:
        InputError: An argument is unknown to the target, or is missing.
    """
    parameters = signature(target).parameters
    named = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    own = [name for name in named[needs.positional :] if name not in needs.given]
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    path = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', target)}"
    if len(named) < needs.positional and not any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        allowed = f"takes {len(named)} positional arguments, but every run passes {needs.positional}"
        raise InputError(f"{key}._target_", path, allowed, "Name another one.")
    for name, value in arguments.items():
        if name in own or (anything and name not in named):
            continue
        if name in named:
            raise InputError(f"{key}.{name}", value, "is an argument that every run passes itself", "Leave it out.")
        near = difflib.get_close_matches(name, own, 1)
        advice = f"Did you mean {key}.{near[0]}?" if near else "Leave it out."
        raise InputError(f"{key}.{name}", value, f"is not an argument of {path}, which takes {', '.join(own)}", advice)
    if not complete:
        return hints(target)
    for name in needs.given:
        if name not in named and not anything:
            raise InputError(f"{key}._target_", path, f"takes no {name}, which every run passes", "Name another one.")
    for name in own:
        here = name in arguments or name in needs.offered
        if parameters[name].default is inspect.Parameter.empty and not here:
            raise InputError(f"{key}.{name}", None, f"is an argument that {path} needs", f"Add +{key}.{name}=...")
    return hints(target)


def hints(target: Any) -> dict[str, Any]:
    """Return the annotated types of a target's parameters, leaving out annotations that can't be evaluated."""
    function = target.__init__ if inspect.isclass(target) else target
    found = {}
    space = {**vars(typing), **getattr(inspect.getmodule(function) or inspect.getmodule(target), "__dict__", {})}
    if inspect.isclass(target):
        space |= vars(inspect.getmodule(target) or types)
    for name, hint in _annotations(target, function):
        try:
            found[name] = eval(hint, space) if isinstance(hint, str) else hint
        except Exception:  # a name that its module only imports for type checkers
            continue
    return found


def _annotations(target: Any, function: Any) -> Iterator[tuple[str, Any]]:
    if is_dataclass(target):
        for base in reversed(target.__mro__):  # type: ignore[union-attr]
            try:
                yield from typing.get_type_hints(base, include_extras=True).items()
            except Exception:
                yield from vars(base).get("__annotations__", {}).items()
    yield from ((name, hint) for name, hint in getattr(function, "__annotations__", {}).items() if name != "return")
