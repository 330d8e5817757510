"""Attention of many samples to a shared prompt, whose KV cache is stored, and read, only once.

A query attends separately to its prompt and to its own tokens. With o_1, o_2 the two outputs and a_1, a_2 the
logarithms of the sums of their exponentiated scores, attention to both is

    o = (exp(a_1) o_1 + exp(a_2) o_2) / (exp(a_1) + exp(a_2)),

which is exact. All samples of a prompt attend to it in one product, (samples x queries) by (keys).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ilf.models.kv_cache import stacked

_NAME = "ilf_shared"  # name under which this attention is registered in transformers
_CHEAP = 2_000_000  # multiplications that cost no more than the overhead of another group
_UNREAD = ("softcap", "position_bias", "s_aux")  # options that change attention and are not supported here


_Place = tuple[int, int, int]  # a prompt's location: batch, group, and index in the group


@dataclass
class Group:
    """Left-padded prompts with about the same number of rows each.

    Args:
        layers: Keys and values of each layer, (N, key/value heads, P, head size).
        lengths: The prompts' lengths in tokens.
        rows: The batch rows of each prompt, (N, G). If a prompt has fewer than G rows, its last row is repeated.
    """

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    lengths: list[int]
    rows: torch.Tensor

    def __post_init__(self) -> None:
        keys = self.layers[0][0]
        width = keys.shape[2]
        starts = width - torch.tensor(self.lengths, device=keys.device)[:, None]
        seen = torch.arange(width, device=keys.device) >= starts
        self.work = keys[0].numel()  # multiplications of one row with one prompt
        # Added to the scores, (N, 1, 1, P): -inf at padding.
        self.bias = None if min(self.lengths) == width else bias_of(seen)[:, None, None]


def bias_of(seen: torch.Tensor) -> torch.Tensor:
    """Return the bias to add to scores: 0 where a key is visible, else -inf; of the same shape."""
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -torch.inf)


@dataclass
class Prompts:
    """The prompts of a batch.

    Args:
        groups: All groups of prompts.
        owners: For each row, the group of its prompt and the prompt's index there.
        order: Each row's index among all rows of the groups, (B,).
    """

    groups: list[Group]
    owners: list[tuple[int, int]]
    order: torch.Tensor

    @property
    def lengths(self) -> list[int]:
        """The length of each row's prompt, in tokens."""
        return [self.groups[group].lengths[place] for group, place in self.owners]


def regrouped(parts: Sequence[tuple[Prompts, Sequence[int]]]) -> Prompts:
    """Return the prompts of the given rows of several batches, in the order of the batches."""
    rows_of: dict[_Place, list[int]] = {}
    for row, (part, i) in enumerate((part, i) for part, (_, index) in enumerate(parts) for i in index):
        rows_of.setdefault((part, *parts[part][0].owners[i]), []).append(row)
    owners, order = {}, {}
    groups: list[Group] = []
    done = 0
    for prompts in _alike(rows_of, {prompt: parts[prompt[0]][0].groups[prompt[1]].work for prompt in rows_of}):
        most = max(len(rows_of[prompt]) for prompt in prompts)
        for place, prompt in enumerate(prompts):
            for i, row in enumerate(rows_of[prompt]):
                owners[row], order[row] = (len(groups), place), done + place * most + i
        done += len(prompts) * most
        full = [rows_of[prompt] + rows_of[prompt][-1:] * (most - len(rows_of[prompt])) for prompt in prompts]
        groups.append(_group(parts, prompts, full))
    device = groups[0].rows.device
    return Prompts(
        groups,
        [owners[row] for row in range(len(owners))],
        torch.tensor([order[i] for i in range(len(order))]).to(device),
    )


def _alike(rows_of: dict[_Place, list[int]], work: dict[_Place, int]) -> Iterator[list[_Place]]:
    """Yield prompts for one group: they have about as many rows and tokens, or to pad them costs little."""
    group: list[_Place] = []
    most, largest, spent = 0, 0, 0
    for prompt in sorted(rows_of, key=lambda prompt: (-len(rows_of[prompt]), -work[prompt], prompt)):
        own = len(rows_of[prompt])
        alike = most <= 2 * own and largest <= 2 * work[prompt]
        fill = 0 if alike else most * largest - own * work[prompt]
        if group and spent + fill > _CHEAP:
            yield sorted(group)
            group, spent = [], 0
        if not group:
            most, largest, fill = own, work[prompt], 0
        spent += fill
        group.append(prompt)
    yield sorted(group)


def _group(parts: Sequence[tuple[Prompts, Sequence[int]]], prompts: Sequence[_Place], rows: list[list[int]]) -> Group:
    """Return a group of the given prompts, each located by batch, group and index."""
    places: dict[tuple[int, int], list[int]] = {}
    for part, group, place in prompts:
        places.setdefault((part, group), []).append(place)
    sources = [parts[part][0].groups[group] for part, group in places]
    device = sources[0].rows.device
    lengths = [source.lengths[i] for source, index in zip(sources, places.values(), strict=True) for i in index]
    if lengths == sources[0].lengths and len(sources) == 1:  # the whole group is reused
        layers = sources[0].layers
    else:
        index = [torch.tensor(index, device=device) for index in places.values()]
        layers = []
        for layer in zip(*(source.layers for source in sources), strict=True):
            keys, values = (stacked(tensors, index, max(lengths), 0) for tensors in zip(*layer, strict=True))
            layers.append((keys, values))
    return Group(layers, lengths, torch.tensor(rows, device=device))


@dataclass
class Step:
    """The prompts and the bias for a forward pass of a batch.

    Args:
        prompts: The prompts of its rows.
        bias: Added to the scores of the rows' own tokens, (B, 1, T, S): -inf where a key is not visible to a query.
    """

    prompts: Prompts
    bias: torch.Tensor


_step: Step | None = None  # the step of the current forward pass


@contextmanager
def reading(model: Any, step: Step) -> Iterator[None]:
    """Let a model attend to the prompts of a step in addition to its cache."""
    global _step
    try:
        _step = step
        with attending(model, _NAME):
            yield
    finally:
        _step = None


@contextmanager
def attending(model: Any, name: str) -> Iterator[None]:
    """Let a model use another attention implementation, one of transformers' own or a registered one."""
    if not hasattr(model, "_ilf_configs"):  # cached, as a model has many modules
        configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
        model._ilf_configs = list(configs.values())
    before = [(config, config._attn_implementation_internal) for config in model._ilf_configs]
    try:
        for config in model._ilf_configs:
            config._attn_implementation_internal = name
        yield
    finally:
        for config, own in before:
            config._attn_implementation_internal = own


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention of queries, (B, heads, T, d), to prompts and to their own keys, as (B, T, heads, d)."""
    assert _step is not None
    if strange := [name for name in _UNREAD if options.get(name) is not None]:
        raise NotImplementedError(f"attention with {', '.join(strange)} is not supported")
    rows, heads, length, size = query.shape
    shared = key.shape[1]  # key/value heads
    scale = size**-0.5 if scaling is None else scaling
    times = heads // shared
    asked = (query * scale).reshape(rows, shared, times * length, size)
    own, own_sum = _part(asked, key, value, _step.bias.repeat(1, 1, times, 1) if length > 1 else _step.bias)
    parts, sums = [], []
    for group in _step.prompts.groups:
        keys, values = group.layers[module.layer_idx]
        n, g = group.rows.shape
        together = asked[group.rows.flatten()].view(n, g, shared, -1, size).transpose(1, 2)
        part, total = _part(together.reshape(n, shared, -1, size), keys, values, group.bias)
        parts.append(part.view(n, shared, g, -1, part.shape[-1]).transpose(1, 2).flatten(0, 1))
        sums.append(total.view(n, shared, g, -1).transpose(1, 2).flatten(0, 1))
    part, total = torch.cat(parts)[_step.prompts.order], torch.cat(sums)[_step.prompts.order]
    weight = torch.sigmoid(total - own_sum)[..., None].to(own.dtype)
    output = torch.lerp(own, part, weight).view(rows, heads, length, -1)
    return output.transpose(1, 2).contiguous(), None


def _part(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return attention to some of the keys, (B, heads, T, d), and the log of the sum of the exponentiated scores."""
    scores = torch.matmul(query, key.transpose(2, 3)).float()
    if bias is not None:
        scores += bias
    largest = scores.amax(dim=-1, keepdim=True)
    weights = scores.sub_(largest).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    output = torch.matmul(weights.to(value.dtype), value) / total.to(value.dtype)
    return output, (largest + total.log())[..., 0]


ALL_ATTENTION_FUNCTIONS.register(_NAME, _attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, lambda *args, **options: None)
