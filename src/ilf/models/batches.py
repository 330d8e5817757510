"""A model's state after several texts: batches whose rows leave and join, and slower ones whose rows can't join."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional
from transformers.cache_utils import DynamicCache

from ilf.models.cuda_graphs import FixedStep
from ilf.models.kv_cache import ROOM, RoomyLayer, joined
from ilf.models.shared_prefix import Prompts, Step, bias_of, reading, regrouped

_CACHED = 500_000  # logits, of 4 bytes each


def ran_out(error: RuntimeError) -> bool:
    """Return whether memory ran out. CUDA raises a class of its own, and the CPU's allocator a plain error."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@dataclass
class Batch:
    """A model's state after several texts. They are left-padded, so that all end in the last column."""

    cache: Any  # a DynamicCache: keys and values of each layer, (B, heads, T, head size)
    mask: torch.Tensor  # (B, T), 1 at the tokens of a text
    logits: torch.Tensor  # of the next token, (B, V)
    lengths: list[int]  # of the texts, in tokens

    def step(self, model: Any, tokens: torch.Tensor, going: torch.Tensor) -> None:
        """Append a token to each row, (B,), where `going`, (B,); other rows keep their text and position."""
        self.lengths = [length + 1 for length in self.lengths]
        self.logits = self.go_on(model, tokens[:, None], going[:, None].to(self.mask.dtype))[:, -1]

    def go_on(self, model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Append tokens, (B, T), with their mask, (B, T), and return the logits after each token, (B, T, V)."""
        self.mask = torch.cat([self.mask, mask], dim=1)
        logits: torch.Tensor = model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=counted(self.mask)[:, -ids.shape[1] :],
            cache=self.cache,
            use_cache=True,
        ).logits
        return logits

    def settle(self) -> None:
        """Update `cache` and `mask` with all tokens read, so that rows can be taken out of them."""

    def row(self, i: int) -> Batch:
        """Return one row as a separate batch."""
        self.settle()
        cache: Any = DynamicCache()
        own = slice(i, i + 1)
        width = self.mask.shape[1]
        cache.layers = [RoomyLayer(one.keys[own].clone(), one.values[own].clone(), width) for one in self.cache.layers]
        return Batch(cache, self.mask[own].clone(), self.logits[own].clone(), self.lengths[own])


@dataclass
class SharedBatch(Batch):
    """Samples whose prompts' KV cache is stored once: cache and mask cover only the samples' own tokens."""

    prompts: Prompts
    capture: bool  # whether steps are captured as CUDA graphs
    _fixed: FixedStep | None = None

    def step(self, model: Any, tokens: torch.Tensor, going: torch.Tensor) -> None:
        """Append a token to each row, (B,), where `going`, (B,); other rows keep their text and position."""
        if not self.capture:
            super().step(model, tokens, going)
            return
        if self._fixed is None or self._fixed.length == self._fixed.columns:
            self.settle()
            for layer in self.cache.layers:
                if layer.columns == self.mask.shape[1]:
                    layer.grow(ROOM)
            forward = partial(_forward, model, self.prompts)
            self._fixed = FixedStep(self.cache.layers, self.mask, self._starts(), forward)
        self.lengths = [length + 1 for length in self.lengths]
        self.logits = self._fixed(tokens, going)

    def go_on(self, model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Append tokens, (B, T), with their mask, (B, T), and return the logits after each token, (B, T, V)."""
        self.settle()
        self.mask = torch.cat([self.mask, mask], dim=1)
        columns = torch.arange(self.mask.shape[1], device=ids.device)
        own = columns[-ids.shape[1] :, None]
        # A padding token sees itself, because a softmax over no keys is not a number.
        seen = (self.mask[:, None] > 0) & (columns <= own) | (columns == own)
        positions = (self._starts()[:, None] + counted(self.mask))[:, -ids.shape[1] :]
        return _forward(model, self.prompts, ids, positions, seen, self.cache)

    def settle(self) -> None:
        """Update `cache` and `mask` with all tokens read, so that rows can be taken out of them."""
        if self._fixed is not None:
            self.mask, self._fixed = self._fixed.settle(), None

    def row(self, i: int) -> SharedBatch:
        """Return one row as a separate batch."""
        own, prompts = super().row(i), regrouped([(self.prompts, [i])])
        return SharedBatch(own.cache, own.mask, own.logits, own.lengths, prompts, self.capture)

    def _starts(self) -> torch.Tensor:
        return torch.tensor(self.prompts.lengths, device=self.mask.device)


def _forward(
    model: Any, prompts: Prompts, ids: torch.Tensor, positions: torch.Tensor, seen: torch.Tensor, cache: Any
) -> torch.Tensor:
    """Return the logits after each token, (B, T, V); queries see the given (B, T, S) columns of their own."""
    with reading(model, Step(prompts, bias_of(seen)[:, None])):
        logits: torch.Tensor = model(input_ids=ids, position_ids=positions, cache=cache, use_cache=True).logits
    return logits


@dataclass
class OwnBatch(Batch):
    """Continuations of one prompt, in the cache that the model itself creates.

    Without a cache, each step reads the whole texts.
    """

    ids: torch.Tensor  # (B, T)

    def step(self, model: Any, tokens: torch.Tensor, going: torch.Tensor) -> None:
        """Append a token to each row, (B,). Finished rows are also continued, without any effect on the others."""
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
        self.lengths = [length + 1 for length in self.lengths]
        self.logits = self.read(model, self.ids if self.cache is None else tokens[:, None])

    def read(self, model: Any, new: torch.Tensor) -> torch.Tensor:
        """Return the logits after `new`, (B, T), the newest tokens of `ids`: (B, V)."""
        options: dict[str, Any] = {"use_cache": False}
        if self.cache is not None:
            options = {"cache": self.cache, "use_cache": True}
            if takes(model, "position_ids"):  # a model without attention can't infer them from its cache
                end = self.ids.shape[1]
                options["position_ids"] = torch.arange(end - new.shape[1], end, device=new.device).expand_as(new)
        if takes(model, "logits_to_keep"):
            options["logits_to_keep"] = 1
        logits: torch.Tensor = model(input_ids=new, **options).logits
        return logits[:, -1]

    def only(self, index: Sequence[int]) -> OwnBatch:
        """Return the given rows, which may repeat."""
        rows = torch.tensor(index, device=self.ids.device)
        if self.cache is not None:
            self.cache.reorder_cache(rows)
        lengths = [self.lengths[i] for i in index]
        return OwnBatch(self.cache, self.mask[rows], self.logits[rows], lengths, self.ids[rows])


def takes(model: Any, name: str) -> bool:
    """Return whether a model's forward has an argument of this name, with or without an adapter."""
    return name in inspect.signature(base(model).forward).parameters


def base(model: Any) -> Any:
    """Return the base model of a model that may have an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def join(parts: Sequence[tuple[Batch, list[int]]]) -> Batch:
    """Return a batch of the given rows of several batches, no wider than its longest text.

    The source batches are consumed: only one layer's KV cache exists twice at a time.
    """
    first = parts[0][0]
    if isinstance(first, OwnBatch):
        return first.only(parts[0][1])
    for part, _ in parts:
        part.settle()
    lengths = [part.lengths[i] for part, index in parts for i in index]
    indices = [torch.tensor(index, device=part.mask.device) for part, index in parts]
    both = [(part, index) for (part, _), index in zip(parts, indices, strict=True)]
    logits = torch.cat([part.logits[index] for part, index in both])
    prompts = None
    width = max(lengths)
    if isinstance(first, SharedBatch):
        prompts = regrouped([(part.prompts, index) for part, index in parts if isinstance(part, SharedBatch)])
        width = max(length - prompt for length, prompt in zip(lengths, prompts.lengths, strict=True))
    cache: Any = DynamicCache()
    for i in range(len(first.cache.layers)):
        cache.layers.append(joined([part.cache.layers[i] for part, _ in parts], indices, width))
        for part, _ in parts:
            part.cache.layers[i] = None
    mask = torch.cat([functional.pad(part.mask[i], (width, 0))[:, part.mask.shape[1] :] for part, i in both])
    if isinstance(first, SharedBatch) and prompts is not None:
        return SharedBatch(cache, mask, logits, lengths, prompts, first.capture)
    return Batch(cache, mask, logits, lengths)


def counted(mask: torch.Tensor) -> torch.Tensor:
    """Return position ids, (B, T), that count from 0 at each row's first real token."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def choose(logits: torch.Tensor, uniform: torch.Tensor, temperature: float, top_k: int = 0) -> torch.Tensor:
    """Return a token id for each row of `logits` (B, V), sampled with the numbers of `uniform` (B,) in [0, 1).

    The id is -1 if the logits are not numbers. At temperature 0, it is the most likely token, and the first of
    equals. With `top_k` above 0, only that many of the most likely tokens can be sampled, and tokens as likely as the
    last of them.
    """
    # On a CPU, process a few rows at a time, which stay in its cache: 7 times faster for 120 rows of 150,000.
    rows = max(1, _CACHED // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    both = zip(logits.split(rows), uniform.split(rows), strict=True)
    return torch.cat([_inverted(some, numbers, temperature, top_k) for some, numbers in both])


def _inverted(logits: torch.Tensor, uniform: torch.Tensor, temperature: float, top_k: int) -> torch.Tensor:
    if temperature == 0:
        return logits.argmax(dim=-1).masked_fill(logits.isnan().any(dim=-1), -1)
    if 0 < top_k < logits.shape[1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -math.inf)
    cumulative = torch.softmax(logits.float() / temperature, dim=-1).cumsum(dim=-1)
    # Scale by the total, which rounding leaves a little off 1, so that no token past the last is chosen.
    target = uniform[:, None].to(cumulative.dtype) * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
    return chosen.masked_fill(cumulative[:, -1].isnan(), -1)
