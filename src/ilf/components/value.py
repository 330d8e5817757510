"""Whether a plain value is of the type that an annotation states."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from ilf.files import whole
from ilf.types import InputError


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
        raise InputError(key, value, allowed, f"It takes {_name(hint)}.") from error
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
    """Return how a type is written, without its bounds: what is out of them is told which."""
    if get_origin(hint) is Annotated:
        return _name(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return " or ".join("null" if one is NoneType else _name(one) for one in get_args(hint))
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
