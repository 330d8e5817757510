"""What a model has seen of several texts: batches that rows leave and join, and, slower, such as rows can't join.

Rows of several batches are put together where a model caches keys and values and nothing else, and takes positions and
a mask, so that a text may be padded on its left. Any other model (recurrent, state-space and hybrid ones; positions
that are counted from the first column) reads one prompt at a time, without padding, in the cache that it makes itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers.cache_utils import DummyLayer, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_ROOM = 64  # tokens by which the cache grows
# Layers of a cache that hold keys and values, or nothing.
_PLAIN = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)


@dataclass
class Batch:
    """What a model has seen of several texts: left-padded, so that all of them end in the last column."""

    cache: Any  # a DynamicCache: keys and values of each layer, (B, heads, T, size of a head)
    mask: torch.Tensor  # (B, T), 1 where a text is
    logits: torch.Tensor  # of what comes next, (B, V)
    lengths: list[int]  # of the texts, in tokens

    def step(self, model: Any, tokens: torch.Tensor, going: torch.Tensor) -> None:
        """Go on by one token a row, (B,), where `going`, (B,): the others stay, and come to no later position."""
        self.lengths = [length + 1 for length in self.lengths]
        self.logits = self.go_on(model, tokens[:, None], going[:, None].to(self.mask.dtype))[:, -1]

    def go_on(self, model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Read on, tokens and where they are real (B, T), and return the logits of what comes after each, (B, T, V)."""
        self.mask = torch.cat([self.mask, mask], dim=1)
        logits: torch.Tensor = model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=_positions(self.mask)[:, -ids.shape[1] :],
            cache=self.cache,
            use_cache=True,
        ).logits
        return logits

    def row(self, i: int) -> Batch:
        """Return one row as a batch of its own."""
        cache: Any = DynamicCache()
        own = slice(i, i + 1)
        width = self.mask.shape[1]
        cache.layers = [RoomyLayer(one.keys[own].clone(), one.values[own].clone(), width) for one in self.cache.layers]
        return Batch(cache, self.mask[own].clone(), self.logits[own].clone(), self.lengths[own])


@dataclass
class OwnBatch(Batch):
    """Continuations of one prompt, in the cache that the model makes itself, or without one: each step reads all."""

    ids: torch.Tensor  # (B, T)

    def step(self, model: Any, tokens: torch.Tensor, going: torch.Tensor) -> None:
        """Go on by one token a row, (B,); rows that don't go on are read on too, and decide nothing."""
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
        self.lengths = [length + 1 for length in self.lengths]
        self.logits = self.read(model, self.ids if self.cache is None else tokens[:, None])

    def read(self, model: Any, new: torch.Tensor) -> torch.Tensor:
        """Return the logits of what comes after `new`, (B, T), the newest of `ids`: (B, V)."""
        options: dict[str, Any] = {"use_cache": False}
        if self.cache is not None:
            options = {"cache": self.cache, "use_cache": True}
            if takes(model, "position_ids"):  # a model without attention can't count them by its cache
                end = self.ids.shape[1]
                options["position_ids"] = torch.arange(end - new.shape[1], end, device=new.device).expand_as(new)
        if takes(model, "logits_to_keep"):
            options["logits_to_keep"] = 1
        logits: torch.Tensor = model(input_ids=new, **options).logits
        return logits[:, -1]

    def only(self, index: Sequence[int]) -> OwnBatch:
        """Return the named rows, perhaps one several times."""
        rows = torch.tensor(index, device=self.ids.device)
        if self.cache is not None:
            self.cache.reorder_cache(rows)
        lengths = [self.lengths[i] for i in index]
        return OwnBatch(self.cache, self.mask[rows], self.logits[rows], lengths, self.ids[rows])


def joinable(model: Any) -> bool:
    """Return whether rows of several texts of a model can be put together, padded on their left."""
    model = _base(model)
    if not (takes(model, "cache") and takes(model, "attention_mask")) or model._is_stateful:
        return False
    modules = dict(model.named_modules())
    # Alibi's distances come from the mask, or are the same for all columns.
    placed = takes(model, "position_ids") or any("alibi" in name for m in modules.values() for name in dir(type(m)))
    # RoBERTa and its relatives count positions from behind the padding token's.
    odd = any("position" in name and getattr(m, "padding_idx", None) is not None for name, m in modules.items())
    cache = _own_cache(model)
    return placed and not odd and cache is not None and all(type(layer) in _PLAIN for layer in cache.layers)


def _own_cache(model: Any) -> Any:
    """Return an empty cache of the kinds of layers that a model has; None where transformers knows of none for it."""
    if not takes(model, "cache") or not model._supports_default_dynamic_cache():
        return None
    if any(hasattr(module, "_setup_cache") for module in model.modules()):  # states that it keeps outside of its cache
        return None
    try:
        return DynamicCache(config=model.config)
    except (KeyError, TypeError, ValueError, AttributeError):  # kinds of layers that only the model itself knows
        return None


def takes(model: Any, name: str) -> bool:
    """Return whether a model reads an argument of this name, behind an adapter or not."""
    return name in inspect.signature(_base(model).forward).parameters


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _prefill_own(model: Any, prompt: Sequence[int]) -> OwnBatch:
    cache = _own_cache(_base(model))
    if cache is not None and all(type(layer) in _PLAIN for layer in cache.layers):
        cache = None  # it is the positions that don't fit: such models are read whole
    ids = torch.tensor([list(prompt)], device=model.device)
    batch = OwnBatch(cache, torch.ones_like(ids), torch.empty(0), [len(prompt)], ids)
    batch.logits = batch.read(model, ids)
    return batch


def prefill(model: Any, prompts: Sequence[Sequence[int]], pad: int) -> Batch:
    """Return a batch of prompts.

    Args:
        model: A causal language model of transformers.
        prompts: Token ids of each; a single one where rows are not `joinable`.
        pad: The token to pad with.
    """
    if not joinable(model):
        (prompt,) = prompts
        return _prefill_own(model, prompt)
    lengths = [len(tokens) for tokens in prompts]
    width = max(lengths)
    ids = torch.tensor([[pad] * (width - len(tokens)) + list(tokens) for tokens in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - n) + [1] * n for n in lengths], device=model.device)
    # Not the cache that the model would make: one with a sliding window forgets, and can't be put together.
    cache = DynamicCache()
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=_positions(mask),
        cache=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return Batch(cache, mask, output.logits[:, -1], lengths)


def join(parts: Sequence[tuple[Batch, list[int]]]) -> Batch:
    """Return a batch of the named rows of several, no wider than its longest text.

    They are taken apart: only one layer's keys and values are there twice at a time.
    """
    if isinstance(own := parts[0][0], OwnBatch):
        return own.only(parts[0][1])
    width = max(part.lengths[i] for part, index in parts for i in index)
    indices = [torch.tensor(index, device=part.mask.device) for part, index in parts]
    counts = [len(index) for _, index in parts]

    def joined(tensors: list[torch.Tensor]) -> torch.Tensor:  # of each part: (B, heads, T, size)
        _, heads, _, size = tensors[0].shape
        whole = tensors[0].new_empty(sum(counts), heads, width + _ROOM, size)
        for rows, tensor, index in zip(whole.split(counts), tensors, indices, strict=True):
            used = min(width, tensor.shape[2])
            rows[:, :, : width - used] = 0  # masked, but what is masked must be a number
            torch.index_select(tensor[:, :, tensor.shape[2] - used :], 0, index, out=rows[:, :, width - used : width])
        return whole

    cache = DynamicCache()
    for i in range(len(parts[0][0].cache.layers)):
        layers = [part.cache.layers[i] for part, _ in parts]
        new = RoomyLayer(joined([one.keys for one in layers]), joined([one.values for one in layers]), width)
        cache.layers.append(new)
        for part, _ in parts:
            part.cache.layers[i] = None
        del layers
    both = [(part, index) for (part, _), index in zip(parts, indices, strict=True)]
    masks = [functional.pad(part.mask[index], (width, 0))[:, -width:] for part, index in both]
    logits = torch.cat([part.logits[index] for part, index in both])
    return Batch(cache, torch.cat(masks), logits, [part.lengths[i] for part, index in parts for i in index])


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A layer of the cache with room for more tokens: a step writes its token instead of copying all before it.

    Args:
        keys: (B, heads, T with room, size of a head).
        values: Likewise.
        length: How much of T is filled.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._keep(keys, values, length)

    def _keep(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        self._parts, self._length = (keys, values), length
        self.keys, self.values = filled = keys[:, :, :length], values[:, :, :length]
        return filled

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add new tokens and return all."""
        keys, values = self._parts
        end = self._length + key_states.shape[2]
        if (missing := end - keys.shape[2]) > 0:
            keys, values = (functional.pad(part, (0, 0, 0, missing + _ROOM)) for part in (keys, values))
        keys[:, :, self._length : end] = key_states
        values[:, :, self._length : end] = value_states
        return self._keep(keys, values, end)


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """Return position ids (B, T) that count from 0 at each row's first real token."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def choose(logits: torch.Tensor, uniform: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return a token id for each row of `logits` (B, V), drawn with the numbers of `uniform` (B,) in [0, 1).

    It is -1 where the logits are no numbers.
    """
    cumulative = torch.softmax(logits.float() / temperature, dim=-1).cumsum(dim=-1)
    # Scaled by the total, which rounding leaves a little off 1, so that no token past the last is chosen.
    target = uniform[:, None].to(cumulative.dtype) * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
    return chosen.masked_fill(cumulative[:, -1].isnan(), -1)
