"""Mutable types: how to split each value into items, and how to fill a value with items again.

The methods of the type itself are used, even if a derived class overrides them.
"""

from array import array
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, NamedTuple


class Container(NamedTuple):
    """How values of one mutable type are read and filled."""

    tag: str
    items: Callable[[Any], Iterable[Any]]  # returns the items of a value; of a mapping, each key and then its value
    made: Callable[[list[Any]], Any]  # returns an empty value that fits these items
    fill: Callable[[Any, list[Any]], object]  # replaces the items of a value
    seen: Callable[[Any], bytes] | None = None  # returns the content as bytes; None: the items are the content
    crosses: Callable[[Any], bool] | None = None  # returns whether a value can cross; None: each value can


def _fill_mapping(mapping: Any, items: list[Any]) -> None:
    type_of = OrderedDict if isinstance(mapping, OrderedDict) else dict
    type_of.clear(mapping)
    for key, value in zip(items[::2], items[1::2], strict=True):
        type_of.__setitem__(mapping, key, value)


def _fill_default(mapping: Any, items: list[Any]) -> None:
    mapping.default_factory = items[0]
    _fill_mapping(mapping, items[1:])


def _fill_list(container: Any, items: list[Any]) -> None:
    list.__setitem__(container, slice(None), items)


def _fill_set(container: Any, items: list[Any]) -> None:
    set.clear(container)
    set.update(container, items)


def _fill_deque(container: Any, items: list[Any]) -> None:
    deque.clear(container)
    deque.extend(container, items[1:])


CONTAINERS: dict[type, Container] = {
    list: Container("list", list.__iter__, lambda items: [], _fill_list),
    dict: Container("dict", lambda v: chain.from_iterable(dict.items(v)), lambda items: {}, _fill_mapping),
    set: Container("set", set.__iter__, lambda items: set(), _fill_set),
    OrderedDict: Container(  # the order of its items matters for equality
        "OrderedDict",
        lambda v: chain.from_iterable(OrderedDict.items(v)),
        lambda items: OrderedDict(),
        _fill_mapping,
    ),
    Counter: Container(  # a key that is counted 0 times does not matter for equality
        "Counter", lambda v: chain.from_iterable(dict.items(v)), lambda items: Counter(), _fill_mapping
    ),
    defaultdict: Container(
        "defaultdict",
        lambda v: chain([v.default_factory], chain.from_iterable(dict.items(v))),
        lambda items: defaultdict(),
        _fill_default,
    ),
    deque: Container(
        "deque",
        lambda v: chain([v.maxlen], deque.__iter__(v)),
        lambda items: deque(maxlen=items[0] if items else None),
        _fill_deque,
    ),
    bytearray: Container(
        "bytearray",
        lambda v: [bytes(memoryview(v))],
        lambda items: bytearray(),
        lambda v, items: bytearray.__setitem__(v, slice(None), items[0]),
        lambda v: bytes(memoryview(v)),
    ),
    array: Container(
        "array",
        lambda v: [v.typecode, array.tolist(v)],
        lambda items: array(items[0]),
        lambda v, items: array.__setitem__(v, slice(None), array(items[0], items[1])),
        lambda v: bytes(memoryview(v)),
    ),
}


def base_of(container: Any) -> type:
    """Return the type in `CONTAINERS` that a value has or is derived from. Raises StopIteration if there is none."""
    kind = type(container)
    return kind if kind in CONTAINERS else next(base for base in kind.__mro__ if base in CONTAINERS)


def seen(container: Any) -> Any:
    """Return the content of a container: a tuple of objects, to be compared by identity, or bytes."""
    kind = CONTAINERS[base_of(container)]
    return kind.seen(container) if kind.seen else tuple(kind.items(container))
