"""Values of pandas as plain data: tables, columns, indexes, times and missing values.

A column crosses as the bytes of its numbers and times, or as a list of other values. A value that contains anything
else, or that is of a derived type, stays in the program.
"""

import datetime
import decimal
import fractions
import zoneinfo
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from . import arrays, library, serialization
from .containers import Container

_ZONES = (type(None), datetime.timezone, zoneinfo.ZoneInfo)
_NAMES = {type(None), bool, int, float, str, bytes, tuple, datetime.date, datetime.datetime}
_NAMES |= {pd.Timestamp, pd.Timedelta, type(pd.NaT), type(pd.NA), pd.Period, pd.Interval}
# The types of items with which a column of objects can cross.
_ITEMS = _NAMES | {complex, list, dict, set, frozenset, datetime.time, datetime.timedelta}
_ITEMS |= {decimal.Decimal, fractions.Fraction}
_LISTED = {f"{kind}{bits}" for kind in ("Int", "UInt") for bits in (8, 16, 32, 64)}  # data types of columns
_LISTED |= {"Float32", "Float64", "boolean", "string", "str"}
_INDEXES = {pd.Index, pd.DatetimeIndex, pd.TimedeltaIndex, pd.CategoricalIndex, pd.PeriodIndex, pd.IntervalIndex}

_OF_NUMPY = {pd.arrays.NumpyExtensionArray, pd.arrays.DatetimeArray, pd.arrays.TimedeltaArray}


class _Stays(Exception):
    """A value cannot cross and stays where it is."""


def use() -> None:
    """Register the types of pandas, so that their values cross."""
    library.more.append((apart, made))
    for kind, tag, taken, put_together in (
        (pd.Series, "pandas.Series", _series, _series_of),
        (pd.DataFrame, "pandas.DataFrame", _frame, _frame_of),
    ):
        serialization.add(kind, _container(kind, tag, taken, put_together))


def _container(kind: Any, tag: str, taken: Callable[[Any], Any], put_together: Callable[..., Any]) -> Container:
    def crosses(value: Any) -> bool:
        try:
            taken(value)
        except _Stays:
            return False
        return not value.attrs

    def seen(value: Any) -> bytes:
        try:
            return serialization.as_text(_COPYING.pack(taken(value)))
        except _Stays:
            raise serialization.TooLong("a table of which something no longer crosses") from None

    def fill(value: Any, parts: list[Any]) -> None:
        kind.__init__(value, put_together(*parts))

    return Container(tag, taken, lambda parts: put_together(*parts), fill, seen, crosses)


_COPYING = serialization.Writer(lambda value, depth: {"object": id(value)})


def _series(value: Any) -> tuple[Any, ...]:
    return _column(value.array), _index(value.index), _name(value.name)


def _series_of(column: Any, index: Any, name: Any) -> Any:
    array = _column_of(column)
    return pd.Series(array, index=_index_of(index), name=_of(name, *_NAMES), dtype=array.dtype)


def _frame(value: Any) -> tuple[Any, ...]:
    columns = tuple(_column(value.iloc[:, n].array) for n in range(value.shape[1]))
    return _index(value.columns), _index(value.index), columns


def _frame_of(names: Any, index: Any, columns: Any) -> Any:
    rows = _index_of(index)
    series = [_series_of(column, ("range", 0, len(rows), 1, None), None) for column in _of(columns, tuple)]
    found = pd.concat(series, axis=1) if series else pd.DataFrame(index=rows)
    found.index, found.columns = rows, _index_of(names)
    return found


def _column(array: Any) -> tuple[Any, ...]:
    """Return the content of an array of pandas. Raises _Stays if it cannot cross."""
    kind, dtype = type(array), array.dtype
    if kind is pd.Categorical:
        return "category", arrays.taken(np.asarray(array.codes)), _index(array.categories), bool(array.ordered)
    if kind is pd.arrays.PeriodArray:
        return "period", arrays.taken(np.asarray(array.asi8)), array.freqstr
    if kind is pd.arrays.IntervalArray:
        return "interval", _index(array.left), _index(array.right), array.closed
    if isinstance(dtype, pd.DatetimeTZDtype):
        return "zoned", arrays.taken(array.tz_convert("UTC").tz_localize(None).to_numpy()), _zone(dtype.tz)
    if str(dtype) in _LISTED:
        return "listed", str(dtype), tuple(map(_item, array.tolist()))
    values = array.to_numpy() if kind in _OF_NUMPY else None
    if arrays.crosses(values):
        return "numbers", arrays.taken(values)
    if values is None or values.dtype.kind != "O":
        raise _Stays
    return "objects", tuple(map(_item, values.tolist()))


def _column_of(parts: Any) -> Any:
    how, *rest = _of(parts, tuple)
    if how == "category":
        codes, categories, ordered = rest
        return pd.Categorical.from_codes(arrays.put_together(*codes), _index_of(categories), _of(ordered, bool))
    if how == "period":
        ordinals, frequency = rest
        return pd.PeriodIndex.from_ordinals(arrays.put_together(*ordinals), freq=_of(frequency, str)).array
    if how == "interval":
        left, right, closed = rest
        return pd.arrays.IntervalArray.from_arrays(_index_of(left), _index_of(right), _of(closed, str))
    if how == "zoned":
        times, zone = rest
        naive = pd.DatetimeIndex(arrays.put_together(*times))
        return naive.tz_localize("UTC").tz_convert(_of(zone, *_ZONES)).array
    if how == "listed":
        name, items = rest
        if name not in _LISTED:
            raise serialization.NotPlain("a column of an unknown type")
        return pd.array([_of(item, *_ITEMS) for item in _of(items, tuple)], dtype=name)
    if how == "numbers":
        return arrays.put_together(*rest[0])
    if how != "objects":
        raise serialization.NotPlain("a column of an unknown kind")
    found = np.empty(len(_of(rest[0], tuple)), dtype=object)
    for n, item in enumerate(rest[0]):
        found[n] = item if isinstance(item, np.generic) else _of(item, *_ITEMS)
    return found


def _array_of(parts: Any) -> Any:
    found = _column_of(parts)
    plain_ones = isinstance(found, np.ndarray) and found.dtype.kind not in "mM"
    return pd.arrays.NumpyExtensionArray(found) if plain_ones else pd.array(found)


def _index(value: Any) -> tuple[Any, ...]:
    kind = type(value)
    if kind is pd.RangeIndex:
        return "range", value.start, value.stop, value.step, _name(value.name)
    if kind is pd.MultiIndex:
        levels, codes = tuple(map(_index, value.levels)), tuple(arrays.taken(np.asarray(one)) for one in value.codes)
        return "levels", levels, codes, tuple(map(_name, value.names))
    if kind not in _INDEXES:
        raise _Stays
    frequency = value.freqstr if kind in (pd.DatetimeIndex, pd.TimedeltaIndex) else None
    return "values", _column(value.array), _name(value.name), frequency


def _index_of(parts: Any) -> Any:
    how, *rest = _of(parts, tuple)
    if how == "range":
        *numbers, name = rest
        return pd.RangeIndex(*(_of(number, int) for number in numbers), name=_of(name, *_NAMES))
    if how == "levels":
        levels, codes, names = (_of(part, tuple) for part in rest)
        made_of = [_index_of(level) for level in levels], [arrays.put_together(*one) for one in codes]
        return pd.MultiIndex(*made_of, names=[_of(name, *_NAMES) for name in names])
    if how != "values":
        raise serialization.NotPlain("an index of an unknown kind")
    column, name, frequency = rest
    array = _column_of(column)
    found = pd.Index(array, name=_of(name, *_NAMES), dtype=array.dtype)
    if frequency is not None:
        found.freq = _of(frequency, str)
    return found


def _name(value: Any) -> Any:
    found = library.number(value)
    if type(found) in _NAMES:
        return found
    raise _Stays


def _item(value: Any) -> Any:
    if type(value) in _ITEMS or (isinstance(value, np.generic) and library.apart(value, type(value))):
        return value
    raise _Stays


def _zone(zone: Any) -> Any:
    if type(zone) in _ZONES:
        return zone
    raise _Stays


def _of(value: Any, *kinds: Any) -> Any:
    if type(value) not in kinds:
        raise serialization.NotPlain(f"a {type(value).__name__} in a table")
    return value


# Single values by type: tag, function that returns the parts, function that makes the value from the parts.
_SINGLE: dict[Any, tuple[str, Callable[[Any], Any], Callable[..., Any]]] = {
    pd.Timestamp: ("Timestamp", lambda v: (v.asm8, _zone(v.tzinfo)), lambda time, zone: _timestamp(time, zone)),
    pd.Timedelta: ("Timedelta", lambda v: (v.asm8,), lambda time: pd.Timedelta(_of(time, np.timedelta64))),
    pd.Period: (
        "Period",
        lambda v: (v.ordinal, v.freqstr),
        lambda n, f: pd.Period(ordinal=_of(n, int), freq=_of(f, str)),
    ),
    pd.Interval: (
        "Interval",
        lambda v: (_item(v.left), _item(v.right), v.closed),
        lambda left, right, closed: pd.Interval(left, right, _of(closed, str)),
    ),
    type(pd.NaT): ("NaT", lambda v: (), lambda: pd.NaT),
    type(pd.NA): ("NA", lambda v: (), lambda: pd.NA),
    pd.Index: ("Index", lambda v: (_index(v),), lambda parts: _index_of(parts)),
    pd.api.extensions.ExtensionArray: ("array", lambda v: (_column(v),), lambda parts: _array_of(parts)),
}
_MAKES = {f"pandas.{tag}": make for tag, _, make in _SINGLE.values()}


def apart(value: Any, kind: type) -> tuple[str, Any] | None:
    """Return a tag and the parts of a single value, an index or an array of pandas, or None for any other value."""
    if kind not in _SINGLE:
        own = kind.__module__.partition(".")[0] == "pandas"
        bases = (pd.Index, pd.api.extensions.ExtensionArray)
        kind = next((base for base in bases if own and issubclass(kind, base)), kind)
    if kind not in _SINGLE:
        return None
    tag, parts, _ = _SINGLE[kind]
    try:
        return f"pandas.{tag}", parts(value)
    except _Stays:
        return None


def made(tag: str, parts: Any) -> Any:
    """Return the value whose tag and parts `apart` returned, or None for an unknown tag.

    Raises:
        Exception: The parts do not make such a value.
    """
    return _MAKES[tag](*parts) if tag in _MAKES else None


def _timestamp(time: Any, zone: Any) -> Any:
    found = pd.Timestamp(_of(time, np.datetime64))
    return found if _of(zone, *_ZONES) is None else found.tz_localize("UTC").tz_convert(zone)
