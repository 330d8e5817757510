"""The types whose values can be changed: how each is taken into items, and filled with them again.

By the type's own methods, whatever a derived class says.
"""

from array import array
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, NamedTuple


class Container(NamedTuple):
    """One of these types."""

    tag: str
    items: Callable[[Any], Iterable[Any]]  # what is in one; of a mapping each key and then its value
    made: Callable[[list[Any]], Any]  # an empty one for these items
    fill: Callable[[Any, list[Any]], object]  # give one these items in place of its own
    seen: Callable[[Any], bytes] | None = None  # what is in one as bytes, where that is not its items
    crosses: Callable[[Any], bool] | None = None  # whether one crosses; None: each does


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
    OrderedDict: Container(  # its order decides whether two are equal
        "OrderedDict",
        lambda v: chain.from_iterable(OrderedDict.items(v)),
        lambda items: OrderedDict(),
        _fill_mapping,
    ),
    Counter: Container(  # what it counts 0 times does not
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
    """Return which of `CONTAINERS` a value is one of, or derived from. Raises StopIteration where it is none."""
    kind = type(container)
    return kind if kind in CONTAINERS else next(base for base in kind.__mro__ if base in CONTAINERS)


def seen(container: Any) -> Any:
    """Return what is in a container: objects, to be compared by identity, or bytes."""
    kind = CONTAINERS[base_of(container)]
    return kind.seen(container) if kind.seen else tuple(kind.items(container))
