"""The KV cache of several texts: layers with room for more tokens, and functions that join rows of several layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers.cache_utils import DynamicLayer

ROOM = 64  # tokens by which the cache grows


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A KV cache layer with room for more tokens: a step writes its token without copying the earlier ones.

    Args:
        keys: (B, heads, T with room, head size).
        values: Of the same shape.
        length: The filled part of T.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._keep(keys, values, length)

    def _keep(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        self._parts, self._length = (keys, values), length
        self.keys, self.values = filled = keys[:, :, :length], values[:, :, :length]
        return filled

    @property
    def whole(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values with their room, (B, heads, columns, head size)."""
        return self._parts

    @property
    def columns(self) -> int:
        """The number of tokens that there is room for, filled or not."""
        return int(self._parts[0].shape[2])

    def fill(self, length: int) -> None:
        """Mark the first `length` columns of `whole` as filled."""
        self._keep(*self._parts, length)

    def grow(self, columns: int) -> None:
        """Add room for this many more tokens."""
        keys, values = (functional.pad(part, (0, 0, 0, columns)) for part in self._parts)
        self._keep(keys, values, self._length)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new tokens and return all tokens."""
        end = self._length + key_states.shape[2]
        if (missing := end - self.columns) > 0:
            self.grow(missing + ROOM)
        keys, values = self._parts
        keys[:, :, self._length : end] = key_states
        values[:, :, self._length : end] = value_states
        return self._keep(keys, values, end)


def stacked(tensors: Sequence[torch.Tensor], indices: Sequence[torch.Tensor], width: int, room: int) -> torch.Tensor:
    """Return the given rows of several tensors, (B, heads, T, size) each, concatenated.

    Args:
        tensors: Filled up to their last column; the left may be padding.
        indices: The rows of each tensor.
        width: The number of last columns to keep.
        room: The number of unfilled columns to add on the right.
    """
    counts = [len(index) for index in indices]
    _, heads, _, size = tensors[0].shape
    whole = tensors[0].new_empty(sum(counts), heads, width + room, size)
    for rows, tensor, index in zip(whole.split(counts), tensors, indices, strict=True):
        used = min(width, tensor.shape[2])
        rows[:, :, : width - used] = 0  # masked values must be finite, too
        if used:
            torch.index_select(tensor[:, :, tensor.shape[2] - used :], 0, index, out=rows[:, :, width - used : width])
    return whole


def joined(layers: Sequence[RoomyLayer], indices: Sequence[torch.Tensor], width: int) -> RoomyLayer:
    """Return a layer of the given rows of several layers."""
    keys, values = (
        stacked(parts, indices, width, ROOM) for parts in zip(*((one.keys, one.values) for one in layers), strict=True)
    )
    return RoomyLayer(keys, values, width)
