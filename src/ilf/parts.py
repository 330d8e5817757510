"""Parts: the classes and functions that a configuration names by `_target_`, checked before any of them is called.

A user replaces a part by naming another class. What a part is given beside its arguments (a model's parameters, a
learning rate, the tasks of a run) is passed by its caller.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import pkgutil
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any, TypeVar, Union

from ilf.code_digest import code_sha256
from ilf.files import whole
from ilf.types import InputError

T = TypeVar("T")
_HYDRA = ("_target_", "_partial_")  # of Hydra's keys, those that say something here


@dataclass(frozen=True)
class Part:
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

    def takes(self, name: str) -> bool:
        """Return whether the target has a parameter of a name, or takes any."""
        parameters = _signature(self.resolve()).parameters
        return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def get(self, name: str, default: Any = None) -> Any:
        """Return an argument of the configuration, `default` where it gives none."""
        return self.arguments.get(name, default)

    def having(self, **arguments: Any) -> Part:
        """Return the part with other values of some arguments."""
        return Part(self.target, {**self.arguments, **arguments}, self.partial)

    def without(self, *names: str) -> Part:
        """Return the part with the target's own defaults for some arguments."""
        return Part(self.target, {k: v for k, v in self.arguments.items() if k not in names}, self.partial)

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
    if isinstance(value, Part):
        return functools.partial(value) if value.partial else value()
    if isinstance(value, Mapping):
        return {name: _called(one) for name, one in value.items()}
    return [_called(one) for one in value] if isinstance(value, list) else value


def _key(value: Any) -> Any:
    if isinstance(value, Part):
        return value.key()
    if isinstance(value, Mapping):
        return {name: _key(one) for name, one in value.items()}
    return [_key(one) for one in value] if isinstance(value, list) else value


def version_of(target: Any) -> str:
    """Return what tells a class or function from another state of its code.

    That is the `version` that it declares; of a library's the library's version; else a digest of the syntax of the
    module that holds it.
    """
    declared = getattr(target, "version", None)
    if isinstance(declared, str | int):
        return str(declared)
    module = inspect.getmodule(target)
    top = (getattr(target, "__module__", "") or "").partition(".")[0]
    from importlib import metadata

    packages = metadata.packages_distributions().get(top, [])
    if top != "ilf" and packages:
        return f"{packages[0]} {metadata.version(packages[0])}"
    return code_sha256(module) if module is not None and hasattr(module, "__file__") else code_sha256(target)


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
        return value.key() if isinstance(value, Part) else key_of(value)
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def node_of(part: Any) -> Any:
    """Return a part as plain values with its `_target_`, as a checkpoint may hold it; None for what can't be named."""
    if isinstance(part, Part):
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
    part = Part(node["_target_"], {name: from_node(value) for name, value in node.items() if name != "_target_"})
    return part() if is_dataclass(part.resolve()) else part


# ---- from a node of the configuration to what it stands for --------------------------------------------------------


def read(hint: Any, node: Any, key: str) -> Any:
    """Return what a node of the configuration stands for, checked.

    Args:
        hint: The type that its place asks for: `Part` (what `_target_` names, not called yet), a class (an instance of
            the one that `_target_` names, which must derive from it), a mapping or list of these, None besides, or a
            type of plain values.
        node: Plain values: mappings, lists, texts, numbers, None.
        key: The node's place, such as "optimizer", for errors.

    Raises:
        InputError: Names the key, the value, what is allowed and the nearest name that is.
    """
    needs = next((one for one in getattr(hint, "__metadata__", ()) if isinstance(one, Needs)), Needs())
    kind = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    options = typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else (kind,)
    parts = [one for one in options if _is_part(one)]
    if node is None and any(typing.get_origin(one) is dict for one in parts):
        return {}
    if type(None) in options and (node is None or (parts and node == {})):  # an option file without a key is empty
        return None
    if not parts:
        return check_value(hint, node, key)
    (one,) = parts
    if typing.get_origin(one) is dict:
        inner = typing.get_args(one)[1]
        _check_mapping(node, key, "of parts by name")
        own = {name: value for name, value in node.items() if value is not None and name not in needs.beside}
        return {str(name): read(inner, value, f"{key}.{name}") for name, value in own.items()}
    _check_mapping(node, key, "with `_target_`")
    if one is Part:
        return _part(node, key, needs)
    return _instance(one, node, key, needs)


def holds_parts(hint: Any) -> bool:
    """Return whether a type asks for a part, or for a mapping of parts: it is annotated with `Needs`."""
    if any(isinstance(one, Needs) for one in getattr(hint, "__metadata__", ())):
        return True
    return typing.get_origin(hint) is dict and holds_parts(typing.get_args(hint)[1])


def _is_part(hint: Any) -> bool:
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is dict:
        return holds_parts(typing.get_args(hint)[1])
    return hint is Part or is_dataclass(hint)


def _check_mapping(node: Any, key: str, what: str) -> None:
    if not isinstance(node, Mapping):
        raise InputError(key, node, f"must be a mapping {what}", f"`python run.py --cfg job` shows {key}.")


def _arguments(node: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a node's arguments. Raises InputError for a key of Hydra's that would be ignored."""
    for name in node:
        if str(name).startswith("_") and str(name).endswith("_") and name not in _HYDRA:
            advice = "Name a class or function that takes its arguments by name."
            raise InputError(f"{key}.{name}", node[name], f"is not read; of these keys {', '.join(_HYDRA)} are", advice)
    return {str(name): value for name, value in node.items() if name not in _HYDRA}


def _nested(value: Any, key: str) -> Any:
    """Return a value in which nodes with `_target_` are parts."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            return _part(value, key, Needs())
        return {name: _nested(one, f"{key}.{name}") for name, one in value.items()}
    return [_nested(one, f"{key}[{i}]") for i, one in enumerate(value)] if isinstance(value, list) else value


def _part(node: Mapping[str, Any], key: str, needs: Needs) -> Part:
    target = _target_of(node, key)
    arguments = {name: _nested(value, f"{key}.{name}") for name, value in _arguments(node, key).items()}
    partial = node.get("_partial_", False)
    if not isinstance(partial, bool):
        raise InputError(f"{key}._partial_", partial, "must be true or false", "Choose one of these.")
    _check_kind(target, needs, node, key)
    # An argument of another part that is called later gets the rest from that part, whatever it is.
    open_ended = partial and not needs.given and not needs.positional
    hints = _bind(target, arguments, key, needs, complete=not open_ended)
    for name, value in arguments.items():
        if name in hints and not _holds_part(value):
            check_value(hints[name], value, f"{key}.{name}", ours=target.__module__.startswith("ilf."))
    return Part(str(node["_target_"]), arguments, partial)


def _instance(kind: type, node: Mapping[str, Any], key: str, needs: Needs) -> Any:
    """Return an instance of a class of ours, or of a user's class that derives from it."""
    target = _target_of(node, key) if "_target_" in node or inspect.isabstract(kind) else kind
    path = f"{kind.__module__}.{kind.__qualname__}"
    if not (inspect.isclass(target) and issubclass(target, kind)):
        raise InputError(f"{key}._target_", node["_target_"], f"must be a class that derives from {path}", "Derive it.")
    if not is_dataclass(target) or ("__init__" in vars(target) and "__dataclass_fields__" not in vars(target)):
        allowed = "must be a dataclass: its fields are its arguments, and part of the store's keys"
        raise InputError(f"{key}._target_", node.get("_target_", path), allowed, "Put @dataclass above the class.")
    _check_kind(target, needs, node, key)
    if missing := sorted(getattr(target, "__abstractmethods__", ())):
        allowed = f"lacks what {path} asks for: {', '.join(missing)}"
        raise InputError(f"{key}._target_", node.get("_target_", path), allowed, "Write these methods.")
    arguments = _arguments(node, key)
    hints = _bind(target, arguments, key, needs)
    read_in = {name: read(hints.get(name, Any), value, f"{key}.{name}") for name, value in arguments.items()}
    return target(**read_in)


def _target_of(node: Mapping[str, Any], key: str) -> Any:
    if not isinstance(node.get("_target_"), str):
        advice = f"Give {key}._target_=package.module.Class, or choose an option: `python run.py --help` lists them."
        raise InputError(f"{key}._target_", node.get("_target_"), "must name a class or function", advice)
    return resolve(node["_target_"], f"{key}._target_")


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
        advice = f"Did you mean {module}.{near[0]}?" if near else "A package of your own must be on PYTHONPATH."
        raise InputError(key, path, f"can't be imported ({type(error).__name__}: {error})", advice) from error
    if not callable(found):
        raise InputError(key, path, f"must be a class or function, and is {type(found).__name__}", "Name another.")
    return found


def _check_kind(target: Any, needs: Needs, node: Mapping[str, Any], key: str) -> None:
    name = node.get("_target_")
    if needs.kind is not None and inspect.isclass(target) and not issubclass(target, pkgutil.resolve_name(needs.kind)):
        raise InputError(f"{key}._target_", name, f"must be a {needs.kind}", "Name a class that derives from it.")
    if absent := [one for one in needs.methods if inspect.isclass(target) and not callable(getattr(target, one, None))]:
        raise InputError(f"{key}._target_", name, f"lacks the methods {', '.join(absent)}", "Write them.")


def _signature(target: Any) -> inspect.Signature:
    try:
        return inspect.signature(target)
    except (ValueError, TypeError):  # made in C
        kinds = {"args": inspect.Parameter.VAR_POSITIONAL, "kwargs": inspect.Parameter.VAR_KEYWORD}
        return inspect.Signature([inspect.Parameter(name, kind) for name, kind in kinds.items()])


def _bind(target: Any, arguments: Mapping[str, Any], key: str, needs: Needs, complete: bool = True) -> dict[str, Any]:
    """Check that a target takes these arguments and what its caller passes; return the types that it states.

    Raises:
        InputError: It does not know one, or lacks one.
    """
    parameters = _signature(target).parameters
    named = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    own = [name for name in named[needs.positional :] if name not in needs.given]
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    path = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', target)}"
    if len(named) < needs.positional and not any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        allowed = f"takes {len(named)} arguments by place, and every run passes {needs.positional}"
        raise InputError(f"{key}._target_", path, allowed, "Name another one.")
    for name, value in arguments.items():
        if name in own or (anything and name not in named):
            continue
        if name in named:
            raise InputError(f"{key}.{name}", value, "is what every run passes itself", "Leave it out.")
        near = difflib.get_close_matches(name, own, 1)
        advice = f"Did you mean {key}.{near[0]}?" if near else "Leave it out."
        raise InputError(f"{key}.{name}", value, f"is no argument of {path}, which takes {', '.join(own)}", advice)
    if not complete:
        return _hints(target)
    for name in needs.given:
        if name not in named and not anything:
            raise InputError(f"{key}._target_", path, f"takes no {name}, which every run passes", "Name another one.")
    for name in own:
        here = name in arguments or name in needs.offered
        if parameters[name].default is inspect.Parameter.empty and not here:
            raise InputError(f"{key}.{name}", None, f"is an argument that {path} needs", f"Give +{key}.{name}=...")
    return _hints(target)


def _hints(target: Any) -> dict[str, Any]:
    """Return the types of a target's parameters, as far as they can be evaluated."""
    function = target.__init__ if inspect.isclass(target) else target
    found = {}
    space = {**vars(typing), **getattr(inspect.getmodule(function) or inspect.getmodule(target), "__dict__", {})}
    if inspect.isclass(target):
        space |= vars(inspect.getmodule(target) or types)
    for name, hint in _annotations(target, function):
        try:
            found[name] = eval(hint, space) if isinstance(hint, str) else hint
        except Exception:  # a name that its module imports for type checkers only
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


def _holds_part(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_part, value.values()))
    return isinstance(value, Part) or (isinstance(value, list) and any(map(_holds_part, value)))


def check_value(hint: Any, value: Any, key: str, ours: bool = True) -> Any:
    """Return a plain value as the type that a hint states: a list as a tuple, a whole number as a float.

    Args:
        hint: Of any class's parameter.
        value: Of the configuration.
        key: Its place.
        ours: Whether an empty text means that something is missing.

    Raises:
        InputError: It has another type, or is outside the range that the hint states.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.errors import PydanticUserError

    for text in _texts(value):
        if text != whole(text):
            allowed = "must be text, and half of a surrogate pair in it is none"
            raise InputError(key, value, allowed, "Give it in UTF-8.")
    if value == "" and ours:
        raise InputError(key, "", "must not be empty", "Leave it out, or give null.")
    if hint is Any:
        hint = None | bool | int | float | str | list | dict  # so that at least numbers are looked at
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True, strict=True, allow_inf_nan=False))
        # As of JSON, which has no tuples: lists stand for them.
        return adapter.validate_json(json.dumps(value))
    except ValidationError as error:
        said = {one["msg"] for one in error.errors() if one["type"] not in ("is_instance_of", "needs_python_object")}
        said -= {"Input should be a valid dictionary"} if len(said) > 1 else set()
        allowed = " or ".join(sorted(one.replace("Input should", "must") for one in said)) or f"must be {_name(hint)}"
        raise InputError(key, value, allowed, f"It is {_name(hint)}.") from error
    except PydanticUserError:  # a type that says nothing of values
        return value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from (str(name), *_texts(one))
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _name(hint: Any) -> str:
    """Return how a type is written."""
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
