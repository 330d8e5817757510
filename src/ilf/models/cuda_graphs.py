"""Captures a batch's step on a GPU as a CUDA graph, which is replayed without waiting for kernel launches.

A graph computes on the same memory and the same shapes each time. Therefore, each step reads the batch's whole room
for new tokens, masks the columns that are not written yet, and takes the column to write next from a number on the
device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch._subclasses import FakeTensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from ilf.models.kv_cache import RoomyLayer

log = logging.getLogger(__name__)

_stream: torch.cuda.Stream | None = None  # the stream that graphs are captured on
_newest: torch.cuda.CUDAGraph | None = None  # the next graph shares its memory pool


class _FixedLayer(DynamicLayer):  # type: ignore[misc]
    """A KV cache layer that always returns all of its columns. A step writes the column given by `column`, (1,)."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, column: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values, self.column = keys, values, column

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a token's keys and values, (B, heads, 1, head size), and return all columns."""
        self.keys.index_copy_(2, self.column, key_states)
        self.values.index_copy_(2, self.column, value_states)
        return self.keys, self.values


class FixedStep:
    """A decoding step of a batch, in place on memory that stays at the same address.

    Args:
        layers: The batch's own KV cache layers, with room for more tokens; they are written to.
        mask: 1 at the tokens of the batch's own texts, (B, T).
        starts: The position of each row's own first token, (B,).
        forward: Maps tokens (B, 1), positions (B, 1), the visibility of each column (B, 1, S), and the cache to
            logits (B, 1, V).
    """

    def __init__(
        self,
        layers: list[RoomyLayer],
        mask: torch.Tensor,
        starts: torch.Tensor,
        forward: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Any], torch.Tensor],
    ) -> None:
        rows, self.length = mask.shape
        self.columns = layers[0].columns
        self._layers, self._forward, self._starts = layers, forward, starts[:, None]
        self._column = torch.tensor([self.length], device=mask.device)
        self._all = torch.arange(self.columns, device=mask.device)
        self._mask = mask.new_zeros(rows, self.columns)
        self._mask[:, : self.length] = mask
        self._read = mask.sum(dim=1, keepdim=True)  # number of each row's own tokens
        self._tokens, self._going = mask.new_zeros(rows, 1), mask.new_zeros(rows, 1)
        for part in (part for layer in layers for part in layer.whole):
            part[:, :, self.length :] = 0  # masked values must be finite, too
        self._cache: Any = DynamicCache()
        self._cache.layers = [_FixedLayer(*layer.whole, self._column) for layer in layers]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._runs = 0
        self._logits = torch.empty(0)

    def __call__(self, tokens: torch.Tensor, going: torch.Tensor) -> torch.Tensor:
        """Append a token to each row, (B,), where `going`, (B,), is 1; return the next logits, (B, V).

        The returned tensor is valid until the next call.
        """
        self._tokens.copy_(tokens[:, None])
        self._going.copy_(going[:, None])
        if self._runs == 1 and capturable(tokens):
            try:
                self._graph = self._captured()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                log.warning("a step could not be captured as a CUDA graph and runs slower without one (%s)", error)
        if self._graph is not None:
            self._graph.replay()
        else:  # the first step runs without capture, as libraries initialize in it
            self._run()
        self._runs += 1
        self.length += 1
        return self._logits

    def _captured(self) -> torch.cuda.CUDAGraph:
        """Capture the step as a graph and return it; capturing computes nothing."""
        global _stream, _newest
        _stream = _stream or torch.cuda.Stream()
        pool = torch.cuda.graph_pool_handle() if _newest is None else _newest.pool()
        graph = torch.cuda.CUDAGraph()
        _stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(_stream):
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                self._run()
            except BaseException:
                with suppress(RuntimeError):  # which repeats that the capture failed
                    graph.capture_end()
                raise
            graph.capture_end()
        torch.cuda.current_stream().wait_stream(_stream)
        _newest = graph
        return graph

    def _run(self) -> None:
        self._mask.index_copy_(1, self._column, self._going)
        self._read.add_(self._going)
        positions = self._starts + (self._read - 1).clamp(min=0)
        seen = (self._mask[:, None] > 0) | (self._all == self._column)  # padding sees itself
        self._logits = self._forward(self._tokens, positions, seen, self._cache)[:, -1]
        self._column.add_(1)

    def settle(self) -> torch.Tensor:
        """Set the filled length of the layers, and return the mask, (B, T)."""
        for layer in self._layers:
            layer.fill(self.length)
        return self._mask[:, : self.length]


def capturable(tensor: torch.Tensor) -> bool:
    """Return whether computations on a tensor can be captured in a CUDA graph."""
    return tensor.is_cuda and not isinstance(tensor, FakeTensor)
