"""Decides which kind of batch a model supports, and reads prompts into one.

Rows of several batches can be joined if a model caches only keys and values, and takes positions and a mask, so that
a text may be padded on the left. Any other model (recurrent, state-space and hybrid models; positions that count from
the first column) reads one prompt at a time, without padding, in the cache that it creates itself.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch._subclasses import FakeTensor
from transformers.cache_utils import DummyLayer, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from ilf.models.batches import Batch, OwnBatch, SharedBatch, base, counted, join, takes
from ilf.models.cuda_graphs import capturable
from ilf.models.kv_cache import RoomyLayer
from ilf.models.shared_prefix import Group, Prompts, attending

log = logging.getLogger(__name__)
T = TypeVar("T")
_WORTH = 32  # tokens with which all prompts begin, from which on these are read separately

_tried: dict[str, tuple[bool, bool]] = {}  # by kind of model: the results of `tried`

# Cache layers that hold only keys and values, or nothing.
_PLAIN = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)


@dataclass(frozen=True)
class Beginning:
    """The tokens with which several prompts begin, such as worked examples.

    Args:
        tokens: The token ids.
        layers: Keys and values of each layer, (1, key/value heads, number of tokens, head size).
    """

    tokens: tuple[int, ...]
    layers: list[tuple[torch.Tensor, torch.Tensor]]


def read_beginning(model: Any, prompts: Iterable[tuple[int, ...]]) -> Beginning | None:
    """Read the tokens with which all prompts begin. Return None if they are few, or the model can't go on from them."""
    different = sorted(set(prompts))
    if len(different) < 2:
        return None
    # What the first and the last of sorted prompts share, all of them share.
    pairs = enumerate(zip(different[0], different[-1], strict=False))
    shared = next((i for i, (one, other) in pairs if one != other), len(different[0]))
    # At least one token of each prompt is left, whose logits are those of the first new token.
    tokens = different[0][: min(shared, min(map(len, different)) - 1)]
    if len(tokens) < _WORTH or not tried(model)[0]:
        return None
    cache = DynamicCache()
    ids = torch.tensor([tokens], device=model.device)
    model(input_ids=ids, cache=cache, use_cache=True, logits_to_keep=1)
    return Beginning(tokens, [(layer.keys, layer.values) for layer in cache.layers])


def prefill(model: Any, prompts: Sequence[Sequence[int]], pad: int, beginning: Beginning | None = None) -> Batch:
    """Read prompts into a new batch.

    Args:
        model: A causal transformers model.
        prompts: Token ids of each prompt; a single prompt if rows are not `joinable`.
        pad: The padding token.
        beginning: The beginning of all prompts, if `read_beginning` has read it.
    """
    if not joinable(model):
        (prompt,) = prompts
        return _prefill_own(model, prompt)
    return _prefill_joined(model, prompts, pad, *tried(model), beginning)


def _once(found: Callable[[Any], T]) -> Callable[[Any], T]:
    """Cache a function's result on the model itself."""

    @functools.wraps(found)
    def known(model: Any) -> T:
        model, name = base(model), f"_ilf_{found.__name__}"
        if not hasattr(model, name):
            setattr(model, name, found(model))
        kept: T = getattr(model, name)
        return kept

    return known


@_once
def joinable(model: Any) -> bool:
    """Return whether rows of several texts can be joined for a model, padded on the left."""
    if not (takes(model, "cache") and takes(model, "attention_mask")) or model._is_stateful:
        return False
    modules = dict(model.named_modules())
    # ALiBi's distances come from the mask, or are the same for all columns.
    placed = takes(model, "position_ids") or any("alibi" in name for m in modules.values() for name in dir(type(m)))
    # RoBERTa and its relatives count positions from after the padding token's id.
    odd = any("position" in name and getattr(m, "padding_idx", None) is not None for name, m in modules.items())
    cache = _own_cache(model)
    return placed and not odd and cache is not None and all(type(layer) in _PLAIN for layer in cache.layers)


@_once
def tried(model: Any) -> tuple[bool, bool]:
    """Return whether samples can share their prompt's KV cache, and whether steps can then be CUDA graphs.

    Both are tested rather than assumed. The model must use transformers' own attention, without windows, based only
    on the products of queries and keys.
    """
    if not joinable(model) or not takes(model, "position_ids") or not model._supports_attention_backend:
        return False, False
    if any(type(layer) is not DynamicLayer for layer in _own_cache(model).layers):
        return False, False
    kind = kind_of(model)
    if kind not in _tried:
        shares = _agrees(model, capture=False)
        _tried[kind] = shares, shares and capturable(next(model.parameters())) and _agrees(model, capture=True)
    return _tried[kind]


def kind_of(model: Any) -> str:
    """Return a key that is equal for models that differ only in weights: class, configuration, dtypes and device."""
    config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    first = next(model.parameters())
    fake = isinstance(first, FakeTensor)
    return json.dumps([type(model).__name__, config, str(_precision(model)), str(first.device), fake], default=str)


def _precision(model: Any) -> torch.dtype:
    """Return the dtype in which a model multiplies matrices, which autocast may set."""
    device: str = model.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype


@torch.inference_mode()
def _agrees(model: Any, capture: bool) -> bool:
    """Return whether a model gives the same logits with and without shared prompts.

    In 16 bits, they can't be equal. They may differ as much as the logits of two attention implementations.
    """
    other = "sdpa" if model.config._attn_implementation == "eager" else "eager"
    try:
        own = _few_logits(model)
        together = _few_logits(model, share=True, capture=capture)
        if isinstance(own, FakeTensor):  # only the memory is planned
            return True
        with attending(model, other):
            rounding = apart(_few_logits(model), own)
    except Exception as error:  # such as a feature that the model's attention lacks
        log.debug("prompts are not shared%s", " by CUDA graphs" if capture else "", exc_info=error)
        return False
    return apart(together, own) <= max(1e-3, 8 * torch.finfo(_precision(model)).eps, rounding)


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the distance of logits, (..., V), from expected ones, as a share of the expected logits' own spread."""
    return float((found - expected).norm() / (expected - expected.mean(dim=-1, keepdim=True)).norm())


def _few_logits(model: Any, share: bool = False, capture: bool = False) -> torch.Tensor:
    """Return the logits after a few tokens, (3, V)."""
    tokens = [i % model.config.get_text_config().vocab_size for i in range(0, 70, 7)]
    going = torch.ones(3, dtype=torch.bool, device=model.device)
    batch = join([(_prefill_joined(model, [tokens[:3], tokens[:7]], 0, share, capture), [0, 1, 1])])
    for token in tokens[7:]:
        batch.step(model, torch.full_like(going, token, dtype=torch.long), going)
    return batch.logits.float()


def _own_cache(model: Any) -> Any:
    """Return an empty cache with a model's kinds of layers; None if transformers can't build it."""
    if not takes(model, "cache") or not model._supports_default_dynamic_cache():
        return None
    if any(hasattr(module, "_setup_cache") for module in model.modules()):  # it keeps states outside of the cache
        return None
    try:
        return DynamicCache(config=model.config)
    except (KeyError, TypeError, ValueError, AttributeError):  # kinds of layers that only the model knows
        return None


def _prefill_own(model: Any, prompt: Sequence[int]) -> OwnBatch:
    cache = _own_cache(base(model))
    if cache is not None and all(type(layer) in _PLAIN for layer in cache.layers):
        cache = None  # not joinable because of its positions: read the whole text at each step
    ids = torch.tensor([list(prompt)], device=model.device)
    batch = OwnBatch(cache, torch.ones_like(ids), torch.empty(0), [len(prompt)], ids)
    batch.logits = batch.read(model, ids)
    return batch


def _prefill_joined(
    model: Any,
    prompts: Sequence[Sequence[int]],
    pad: int,
    share: bool,
    capture: bool,
    beginning: Beginning | None = None,
) -> Batch:
    lengths = [len(tokens) for tokens in prompts]
    width, begun = max(lengths), len(beginning.tokens) if beginning else 0
    rest = [[pad] * (width - len(tokens)) + list(tokens[begun:]) for tokens in prompts]
    # While the prompts are read, the padding is after their beginning.
    seen = torch.tensor([[1] * begun + [0] * (width - n) + [1] * (n - begun) for n in lengths], device=model.device)
    # Not the model's own cache: one with a sliding window drops tokens, and can't be joined.
    cache = DynamicCache()
    if beginning:
        cache.layers = [_repeated(layer, len(prompts)) for layer in beginning.layers]
    output = model(
        input_ids=torch.tensor(rest, device=model.device),
        attention_mask=seen,
        position_ids=counted(seen)[:, begun:],
        cache=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    if not share:
        return Batch(cache, seen, output.logits[:, -1], lengths)
    if beginning and min(lengths) < width:
        _pad_left(cache.layers, begun, width - torch.tensor(lengths, device=model.device)[:, None])
    rows = torch.arange(len(prompts), device=seen.device)
    group = Group([(layer.keys, layer.values) for layer in cache.layers], lengths, rows[:, None])
    cache.layers = [RoomyLayer(keys[:, :, :0], values[:, :, :0], 0) for keys, values in group.layers]
    shared = Prompts([group], [(0, i) for i in range(len(prompts))], rows)
    return SharedBatch(cache, seen[:, :0], output.logits[:, -1], lengths, shared, capture)


def _repeated(layer: tuple[torch.Tensor, torch.Tensor], rows: int) -> DynamicLayer:
    """Return a cache layer in which each of `rows` rows has the same keys and values."""
    repeated = DynamicLayer()
    repeated.lazy_initialization(*layer)
    repeated.keys, repeated.values = (part.expand(rows, -1, -1, -1) for part in layer)
    return repeated


def _pad_left(layers: Sequence[DynamicLayer], begun: int, gaps: torch.Tensor) -> None:
    """Move padding, `gaps` (B, 1) columns of each row, from after the first `begun` columns to the left of these."""
    columns = torch.arange(layers[0].keys.shape[2], device=gaps.device)
    source = torch.where(columns < gaps + begun, columns - gaps, columns)
    source = torch.where(columns < gaps, columns + begun, source)[:, None, :, None]
    for layer in layers:
        layer.keys, layer.values = (part.gather(2, source.expand_as(part)) for part in (layer.keys, layer.values))
