"""Draws programs: batched, seeded sample by sample, stopped where the function ends.

A sample depends on its own seed and not on its neighbours: each step takes one uniform number from the sample's own
stream and inverts the cumulative distribution. Prompts are prefilled once for all their samples in a batch, and
finished samples leave the batch, so that one long program does not make the others be computed on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers.cache_utils import DynamicLayer

from ilf.settings import Sampling
from ilf.tasks.prompts import cut, function_end
from ilf.types import Draw

log = logging.getLogger(__name__)

_LEAVE = 0.9  # finished samples leave once no more than this share of the batch goes on: each leaving copies the cache
_ROOM = 64  # tokens by which the cache grows


class Sampler:
    """Samples completions from a causal language model.

    Args:
        settings: Temperature, bound on new tokens.
    """

    def __init__(self, settings: Sampling) -> None:
        self.settings = settings
        self.halvings = 0  # how often memory ran out and a batch was drawn in two halves

    def sample(self, model: Any, tokenizer: Any, draws: Sequence[Draw]) -> list[str]:
        """Return the completion of each draw, in order, cut where the function ends.

        Args:
            model: A causal language model of transformers, on any device.
            tokenizer: Its tokenizer, with a padding token.
            draws: One batch; samples of one prompt are prefilled together.

        Raises:
            torch.OutOfMemoryError: Memory runs out for a single program.
        """
        try:
            return self._batch(model, tokenizer, draws)
        except RuntimeError as error:  # CUDA's error is a subclass; the CPU allocator raises a plain one
            out_of_memory = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
            if not out_of_memory or len(draws) == 1:
                raise
        self.halvings += 1
        half = len(draws) // 2
        log.warning("memory ran out for %d programs at once; drawing them in halves of %d", len(draws), half)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self.sample(model, tokenizer, draws[:half]) + self.sample(model, tokenizer, draws[half:])

    @torch.inference_mode()
    def _batch(self, model: Any, tokenizer: Any, draws: Sequence[Draw]) -> list[str]:
        limit = self.settings.max_new_tokens
        prompts = list(dict.fromkeys(draw.prompt for draw in draws))
        tokenized = [tokenizer(p, add_special_tokens=False).input_ids for p in prompts]
        width = max(map(len, tokenized))
        pad, device = tokenizer.pad_token_id, model.device
        ids = torch.tensor([[pad] * (width - len(t)) + t for t in tokenized], device=device)  # (P, T), left-padded
        mask = torch.tensor([[0] * (width - len(t)) + [1] * len(t) for t in tokenized], device=device)
        output = model(
            input_ids=ids, attention_mask=mask, position_ids=_positions(mask), use_cache=True, logits_to_keep=1
        )

        rows = torch.tensor([prompts.index(draw.prompt) for draw in draws], device=device)  # one row a sample: (B,)
        cache = output.past_key_values
        cache.batch_select_indices(rows)
        make_room(cache)
        logits, mask = output.logits[rows, -1], mask[rows]
        uniform = torch.stack([torch.rand(limit, generator=torch.Generator().manual_seed(d.seed)) for d in draws])
        uniform = uniform.to(device)  # (B, limit)
        active = list(range(len(draws)))  # which draw each row of the batch belongs to
        done: set[int] = set()  # draws
        tokens: list[list[int]] = [[] for _ in draws]
        ends = _end_ids(model, tokenizer)
        for step in range(limit):
            chosen = self._choose(logits, uniform[active, step])
            for draw, token in zip(active, chosen.tolist(), strict=True):
                if draw in done:
                    continue
                if token not in ends:
                    tokens[draw].append(token)
                if token in ends or _function_ended(tokenizer, tokens[draw]):
                    done.add(draw)
            kept = [row for row, draw in enumerate(active) if draw not in done]
            if not kept or step + 1 == limit:
                break
            if len(kept) <= _LEAVE * len(active):
                index = torch.tensor(kept, device=device)
                cache.batch_select_indices(index)
                mask, chosen, active = mask[index], chosen[index], [active[row] for row in kept]
            mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
            output = model(
                input_ids=chosen[:, None],
                attention_mask=mask,
                position_ids=_positions(mask)[:, -1:],
                past_key_values=cache,
                use_cache=True,
            )
            logits = output.logits[:, -1]
        return [cut(tokenizer.decode(t, skip_special_tokens=True)) for t in tokens]

    def _choose(self, logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        """Return a token id for each row of `logits` (B, V), drawn with the numbers of `uniform` (B,) in [0, 1)."""
        cumulative = torch.softmax(logits.float() / self.settings.temperature, dim=-1).cumsum(dim=-1)
        # Scaled by the total, which rounding leaves a little off 1, so that no token past the last is chosen.
        target = uniform[:, None].to(cumulative.dtype) * cumulative[:, -1:]
        return torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)


def make_room(cache: Any) -> None:
    """Give each layer of a cache room for more tokens: one by one, so that only one is there twice."""
    for i, one in enumerate(cache.layers):
        if type(one) is DynamicLayer:
            cache.layers[i] = RoomyLayer(one)


class RoomyLayer(DynamicLayer):
    """A layer of the cache with room for more tokens: a step writes its token instead of copying all before it.

    Args:
        layer: What is cached so far: `keys` and `values`, (B, heads, T, size of a head).
    """

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        assert layer.keys is not None and layer.values is not None  # filled by the prompt
        self.lazy_initialization(layer.keys, layer.values)
        self._keep([functional.pad(part, (0, 0, 0, _ROOM)) for part in (layer.keys, layer.values)], layer.keys.shape[2])

    def _keep(self, parts: list[torch.Tensor], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        self._parts, self._length = parts, length
        self.keys, self.values = keys, values = parts[0][:, :, :length], parts[1][:, :, :length]
        return keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add new tokens and return all."""
        end = self._length + key_states.shape[2]
        if end > self._parts[0].shape[2]:
            self._parts = [functional.pad(part, (0, 0, 0, end - part.shape[2] + _ROOM)) for part in self._parts]
        for part, states in zip(self._parts, (key_states, value_states), strict=True):
            part[:, :, self._length : end] = states
        return self._keep(self._parts, end)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows."""
        self._keep([part[indices] for part in self._parts], self._length)


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """Return position ids (B, T) that count from 0 at each row's first real token."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def _end_ids(model: Any, tokenizer: Any) -> set[int]:
    """Return the ids that end a text: the tokenizer's and the model's."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return {i for i in [*ids, tokenizer.eos_token_id] if i is not None}


def _function_ended(tokenizer: Any, tokens: list[int]) -> bool:
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    last = text[text.rfind("\n") + 1 :]
    # A function can only have ended where the newest line starts a statement in the first column.
    return bool(last) and not last[0].isspace() and last[0] != "#" and function_end(text) is not None
