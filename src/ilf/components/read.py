"""Conversion of configuration nodes to checked components, instances and plain values."""

from __future__ import annotations

import inspect
import json
import pkgutil
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Union

from ilf.components.component import Component, Needs, plain, resolve
from ilf.components.signature import bind
from ilf.components.value import check_value
from ilf.types import InputError

_HYDRA = ("_target_", "_partial_")  # the keys of Hydra's instantiate that are supported here


def read(hint: Any, node: Any, key: str) -> Any:
    """Check a node of the configuration and return the object that it describes.

    Args:
        hint: The type of the setting: `Component` (the target of `_target_`, not called yet), a class (an instance of
            the class that `_target_` names, which must derive from it), a mapping or list of these, a union of these
            with None, or a type of plain values.
        node: The node as plain values: mappings, lists, strings, numbers, None.
        key: The key of the node, such as "optimizer", for error messages.

    Raises:
        InputError: The node is not valid. The message names the key, the value, what is allowed and the nearest valid
            name.
    """
    needs = next((one for one in getattr(hint, "__metadata__", ()) if isinstance(one, Needs)), Needs())
    kind = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    options = typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else (kind,)
    parts = [one for one in options if _is_part(one)]
    if node is None and any(typing.get_origin(one) is dict for one in parts):
        return {}
    if type(None) in options and (node is None or (parts and node == {})):  # an option file without keys gives {}
        return None
    if not parts:
        return check_value(hint, node, key)
    (one,) = parts
    if typing.get_origin(one) is dict:
        inner = typing.get_args(one)[1]
        _check_mapping(node, key, "of components by name")
        own = {name: value for name, value in node.items() if value is not None and name not in needs.beside}
        return {str(name): read(inner, value, f"{key}.{name}") for name, value in own.items()}
    _check_mapping(node, key, "with `_target_`")
    if one is Component:
        return _part(node, key, needs)
    return _instance(one, node, key, needs)


def holds_components(hint: Any) -> bool:
    """Return whether a type is a component or a mapping of components, which means that `Needs` annotates it."""
    if any(isinstance(one, Needs) for one in getattr(hint, "__metadata__", ())):
        return True
    return typing.get_origin(hint) is dict and holds_components(typing.get_args(hint)[1])


def _is_part(hint: Any) -> bool:
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is dict:
        return holds_components(typing.get_args(hint)[1])
    return hint is Component or is_dataclass(hint)


def _check_mapping(node: Any, key: str, what: str) -> None:
    if not isinstance(node, Mapping):
        raise InputError(key, node, f"must be a mapping {what}", f"`python run.py --cfg job` shows {key}.")


def _arguments(node: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a node's arguments. Raises InputError for a key of Hydra that is not supported."""
    for name in node:
        if str(name).startswith("_") and str(name).endswith("_") and name not in _HYDRA:
            allowed = f"is not supported; of Hydra's keys only {', '.join(_HYDRA)} are"
            advice = "Name a class or function that takes its arguments by name."
            raise InputError(f"{key}.{name}", node[name], allowed, advice)
    return {str(name): value for name, value in node.items() if name not in _HYDRA}


def _nested(value: Any, key: str) -> Any:
    """Return a value in which nodes with `_target_` have become components."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            return _part(value, key, Needs())
        return {name: _nested(one, f"{key}.{name}") for name, one in value.items()}
    return [_nested(one, f"{key}[{i}]") for i, one in enumerate(value)] if isinstance(value, list) else value


def _part(node: Mapping[str, Any], key: str, needs: Needs) -> Component:
    target = _target_of(node, key)
    arguments = {name: _nested(value, f"{key}.{name}") for name, value in _arguments(node, key).items()}
    partial = node.get("_partial_", False)
    if not isinstance(partial, bool):
        raise InputError(f"{key}._partial_", partial, "must be true or false", "Choose one of these.")
    _check_kind(target, needs, node, key)
    # A partial argument gets its remaining arguments from the component that calls it, which can't be checked here.
    open_ended = partial and not needs.given and not needs.positional
    hints = bind(target, arguments, key, needs, complete=not open_ended)
    for name, value in arguments.items():
        if name in hints and not _holds_part(value):
            check_value(hints[name], value, f"{key}.{name}", ours=target.__module__.startswith("ilf."))
    return Component(str(node["_target_"]), arguments, partial)


def _instance(kind: type, node: Mapping[str, Any], key: str, needs: Needs) -> Any:
    """Return an instance of `kind`, or of the class that `_target_` names, which must derive from it."""
    target = _target_of(node, key) if "_target_" in node or inspect.isabstract(kind) else kind
    path = f"{kind.__module__}.{kind.__qualname__}"
    if not (inspect.isclass(target) and issubclass(target, kind)):
        allowed = f"must be a class that derives from {path}"
        raise InputError(f"{key}._target_", node["_target_"], allowed, "Derive your class from it.")
    if not is_dataclass(target) or ("__init__" in vars(target) and "__dataclass_fields__" not in vars(target)):
        allowed = "must be a dataclass: its fields are its arguments, and belong to the store's keys"
        raise InputError(f"{key}._target_", node.get("_target_", path), allowed, "Decorate the class with @dataclass.")
    _check_kind(target, needs, node, key)
    if missing := sorted(getattr(target, "__abstractmethods__", ())):
        allowed = f"lacks what {path} requires: {', '.join(missing)}"
        raise InputError(f"{key}._target_", node.get("_target_", path), allowed, "Implement these methods.")
    arguments = _arguments(node, key)
    hints = bind(target, arguments, key, needs)
    read_in = {name: read(hints.get(name, Any), value, f"{key}.{name}") for name, value in arguments.items()}
    made = target(**read_in)
    for one in fields(made):
        try:
            json.dumps(plain(getattr(made, one.name)), allow_nan=False)
        except (TypeError, ValueError) as error:
            allowed = f"must be text, finite numbers, lists or mappings, as in the store's keys ({error})"
            advice = "Declare the field as such a type, and convert it where it is used."
            raise InputError(f"{key}.{one.name}", getattr(made, one.name), allowed, advice) from error
    return made


def _target_of(node: Mapping[str, Any], key: str) -> Any:
    if not isinstance(node.get("_target_"), str):
        advice = f"Give {key}._target_=package.module.Class, or choose an option: `python run.py --help` lists them."
        raise InputError(f"{key}._target_", node.get("_target_"), "must name a class or function", advice)
    return resolve(node["_target_"], f"{key}._target_")


def _check_kind(target: Any, needs: Needs, node: Mapping[str, Any], key: str) -> None:
    name = node.get("_target_")
    if needs.kind is not None and inspect.isclass(target) and not issubclass(target, pkgutil.resolve_name(needs.kind)):
        raise InputError(f"{key}._target_", name, f"must be a {needs.kind}", "Name a class that derives from it.")


def _holds_part(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_part, value.values()))
    return isinstance(value, Component) or (isinstance(value, list) and any(map(_holds_part, value)))
