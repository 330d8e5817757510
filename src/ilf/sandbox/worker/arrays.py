"""Values of numpy as plain data: the type, shape and bytes of arrays and single numbers.

What is read is checked before numpy sees it. Arrays of Python objects, arrays of records, and values of types derived
from ndarray stay where they are.
"""

import binascii
import math
import re
from typing import Any

import numpy as np

from . import library, serialization
from .containers import Container

# Types of numbers, text and times, for which all bytes are valid values.
_TYPE = re.compile(r"[<>|]([biufcSU])[0-9]{1,9}|[<>][mM]8(\[[0-9]{0,9}(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?", re.ASCII)
_LONGEST_TEXT = 0x10FFFF  # the largest code point of a character


def use() -> None:
    """Register the types of numpy, so that their values cross."""
    library.more.append((apart, made))
    serialization.add(
        np.ndarray, Container("numpy.ndarray", taken, lambda parts: put_together(*parts), _fill, _seen, crosses)
    )


def crosses(array: Any) -> bool:
    """Return whether a value is an array of numbers, text or times."""
    return type(array) is np.ndarray and _TYPE.fullmatch(array.dtype.str) is not None


def taken(array: Any) -> tuple[str, tuple[int, ...], str]:
    """Return an array's type, its shape, and its bytes as text.

    Raises:
        serialization.TooLong: The array has more bytes than may cross. Raised before bytes are copied.
    """
    _look_at_size(array)
    return array.dtype.str, array.shape, binascii.b2a_base64(array.tobytes(), newline=False).decode()


def put_together(kind: Any, shape: Any, data: Any) -> Any:
    """Return the array that is made of these parts.

    Raises:
        serialization.NotPlain: The parts do not make an array.
    """
    known = _TYPE.fullmatch(kind) if type(kind) is str else None
    if not known or type(shape) is not tuple or type(data) is not str:
        raise serialization.NotPlain("an array without a valid type, shape or bytes")
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in shape):
        raise serialization.NotPlain("an array without a valid shape")
    found, content = np.dtype(kind), binascii.a2b_base64(data, strict_mode=True)
    if found.str != kind or not found.itemsize or len(content) != found.itemsize * math.prod(shape):
        raise serialization.NotPlain("an array whose size differs from the size of its bytes")
    if not content:
        return np.zeros(shape, found)  # takes no memory, whatever the shape
    array: Any = np.frombuffer(content, found)
    if known[1] == "b":
        array = np.frombuffer(content, np.uint8) != 0  # a byte other than 0 and 1 is not a valid bool
    elif known[1] == "U" and np.frombuffer(content, f"{kind[0]}u4").max() > _LONGEST_TEXT:
        raise serialization.NotPlain("text with an invalid character")
    return array.reshape(shape).copy()


def apart(value: Any, kind: Any) -> tuple[str, Any] | None:
    """Return a tag and the parts of a single number, text or time of numpy, or of a type of numpy; else None."""
    if kind.__module__ == "numpy" and issubclass(kind, np.generic):
        array = np.asarray(value)
        return ("numpy.generic", taken(array)) if crosses(array) and array.dtype.type is kind else None
    if issubclass(kind, np.dtype):
        return ("numpy.dtype", [value.str]) if _TYPE.fullmatch(value.str) else None
    if kind is type and issubclass(value, np.generic | np.ndarray) and vars(np).get(name := value.__name__) is value:
        return "numpy.type", [name]
    return None


def made(tag: str, parts: Any) -> Any:
    """Return the value whose tag and parts `apart` returned, or None for an unknown tag.

    Raises:
        Exception: The parts do not make such a value.
    """
    if tag == "numpy.generic":
        return put_together(*parts)[()]
    if tag == "numpy.dtype" and _TYPE.fullmatch(*parts):
        return np.dtype(*parts)
    if tag == "numpy.type" and issubclass(vars(np)[parts[0]], np.generic | np.ndarray):
        return vars(np)[parts[0]]
    return None


def _fill(array: Any, parts: list[Any]) -> None:
    found = put_together(*parts)
    if found.dtype != array.dtype or found.size != array.size:
        raise serialization.NotPlain("an array of another type or size than before")
    if found.shape != array.shape:
        array.shape = found.shape
    array[...] = found


def _look_at_size(array: Any) -> None:
    if array.nbytes > serialization.LONGEST:
        raise serialization.TooLong(f"an array of {array.nbytes} bytes; at most {serialization.LONGEST} cross")


def _seen(array: Any) -> bytes:
    _look_at_size(array)
    data: bytes = array.tobytes()
    return repr((array.dtype.str, array.shape)).encode() + data
