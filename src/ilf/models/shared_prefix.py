"""Attention of many samples to the prompt that they have in common: its keys and values are held, and read, once.

A query attends to its prompt and to its own tokens apart. With o_1, o_2 the two outputs and a_1, a_2 the logarithms of
the sums of their exponentiated scores, attention to both is

    o = (exp(a_1) o_1 + exp(a_2) o_2) / (exp(a_1) + exp(a_2)),

which is exact. All samples of a prompt ask it in one product, (samples x queries) by (keys).
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

_NAME = "ilf_shared"  # of the attention, among transformers'
_CHEAP = 2_000_000  # multiplications that take no longer than the operations of one more group
_UNREAD = ("softcap", "position_bias", "s_aux")  # what attention may be given that changes it, and this does not read


_Place = tuple[int, int, int]  # of a prompt: batch, group, and place there


@dataclass
class Group:
    """Prompts of about as many rows each, left-padded.

    Args:
        layers: Keys and values of each layer, (N, key/value heads, P, size of a head).
        lengths: Of the prompts, in tokens.
        rows: Which rows of the batch have each, (N, G); where one has fewer than G, its last row again.
    """

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    lengths: list[int]
    rows: torch.Tensor

    def __post_init__(self) -> None:
        keys = self.layers[0][0]
        width = keys.shape[2]
        starts = width - torch.tensor(self.lengths, device=keys.device)[:, None]
        seen = torch.arange(width, device=keys.device) >= starts
        self.work = keys[0].numel()  # multiplications of a row with a prompt
        # What is added to scores, (N, 1, 1, P): -inf where a prompt has only padding.
        self.bias = None if min(self.lengths) == width else bias_of(seen)[:, None, None]


def bias_of(seen: torch.Tensor) -> torch.Tensor:
    """Return what is added to scores: 0 where a key is seen, else -inf; of the same shape."""
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -torch.inf)


@dataclass
class Prompts:
    """The prompts of a batch.

    Args:
        groups: All of them.
        owners: The group of each row's prompt, and the prompt's place there.
        order: Each row's place among all rows of the groups, (B,).
    """

    groups: list[Group]
    owners: list[tuple[int, int]]
    order: torch.Tensor

    @property
    def lengths(self) -> list[int]:
        """The length of each row's prompt, in tokens."""
        return [self.groups[group].lengths[place] for group, place in self.owners]


def regrouped(parts: Sequence[tuple[Prompts, Sequence[int]]]) -> Prompts:
    """Return the prompts of the named rows of several batches, those of one after those of the other."""
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
    """Yield prompts that go into one group, as they have about as many rows, or the rows that fill up cost little."""
    group: list[_Place] = []
    most, spent = 0, 0
    for prompt in sorted(rows_of, key=lambda prompt: (-len(rows_of[prompt]), prompt)):
        own = len(rows_of[prompt])
        fill = (most - own) * work[prompt] if most > 2 * own else 0
        if group and spent + fill > _CHEAP:
            yield sorted(group)
            group, spent, fill = [], 0, 0
        most, spent = most if group else own, spent + fill
        group.append(prompt)
    yield sorted(group)


def _group(parts: Sequence[tuple[Prompts, Sequence[int]]], prompts: Sequence[_Place], rows: list[list[int]]) -> Group:
    """Return a group of the named prompts, each by batch, group and place."""
    places: dict[tuple[int, int], list[int]] = {}
    for part, group, place in prompts:
        places.setdefault((part, group), []).append(place)
    sources = [parts[part][0].groups[group] for part, group in places]
    device = sources[0].rows.device
    lengths = [source.lengths[i] for source, index in zip(sources, places.values(), strict=True) for i in index]
    if lengths == sources[0].lengths and len(sources) == 1:  # all that was there
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
    """What a batch reads on.

    Args:
        prompts: Which its rows have.
        bias: What is added to the scores of their own tokens, (B, 1, T, S): -inf where a query does not see one.
    """

    prompts: Prompts
    bias: torch.Tensor


_step: Step | None = None  # the one that models are in


@contextmanager
def reading(model: Any, step: Step) -> Iterator[None]:
    """Have a model attend to the prompts of a step besides what its cache has."""
    global _step
    try:
        _step = step
        with attending(model, _NAME):
            yield
    finally:
        _step = None


@contextmanager
def attending(model: Any, name: str) -> Iterator[None]:
    """Have a model attend by another implementation of attention, of transformers' or registered with them."""
    if not hasattr(model, "_ilf_configs"):  # of its modules, of which there are many
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
    """Return the attention of queries, (B, heads, T, d), to prompts and to keys of their own, as (B, T, heads, d)."""
    assert _step is not None
    if strange := [name for name in _UNREAD if options.get(name) is not None]:
        raise NotImplementedError(f"attention with {', '.join(strange)}")
    rows, heads, length, size = query.shape
    shared = key.shape[1]  # heads that have keys and values
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
    """Return attention to some of the keys, (B, heads, T, d), and the log of the sum of their scores' exponentials."""
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
