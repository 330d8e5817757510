"""Checks of plain values against type annotations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from ilf.files import whole
from ilf.types import InputError


def check_value(hint: Any, value: Any, key: str, ours: bool = True) -> Any:
    """Check a plain value against a type hint and convert it: a list to a tuple, an integer to a float.

    Args:
        hint: The type hint of a parameter of any class.
        value: The value in the configuration.
        key: The key of the value, for error messages.
        ours: Whether the parameter is one of ILF's own, for which an empty string counts as missing.

    Raises:
        InputError: The value has another type, or is outside the range that the hint states.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.errors import PydanticUserError

    for text in _texts(value):
        if text != whole(text):
            allowed = "must be valid text, but it contains half of a surrogate pair"
            raise InputError(key, value, allowed, "Give it in UTF-8.")
    if value == "" and ours:
        raise InputError(key, "", "must not be empty", "Leave it out, or give null.")
    if hint is Any:
        hint = None | bool | int | float | str | list | dict  # so that at least numbers are checked
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True, strict=True, allow_inf_nan=False))
        # Validated as JSON, in which lists stand for tuples.
        return adapter.validate_json(json.dumps(value))
    except ValidationError as error:
        said = {one["msg"] for one in error.errors() if one["type"] not in ("is_instance_of", "needs_python_object")}
        said -= {"Input should be a valid dictionary"} if len(said) > 1 else set()
        allowed = " or ".join(sorted(one.replace("Input should", "must") for one in said)) or f"must be {_name(hint)}"
        raise InputError(key, value, allowed, f"It takes {_name(hint)}.") from error
    except PydanticUserError:  # a type that pydantic can't validate
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
    """Return the name of a type without its bounds, which pydantic's own message states."""
    if get_origin(hint) is Annotated:
        return _name(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return " or ".join("null" if one is NoneType else _name(one) for one in get_args(hint))
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
