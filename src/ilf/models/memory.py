"""Plans the peak memory of a run's device from the model's config.json alone, without reading weights.

Parameters, gradients and optimizer states are counted on the whole model without storage. Temporary tensors are
measured: a model with one layer does a real step on tensors without storage while every allocation is counted, and
the memory that the layer keeps is multiplied by the number of layers. The plan leaves out rounding and fragmentation
by allocators, libraries, and CUDA's own context (about 0.5 GB).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers.cache_utils import DynamicCache, DynamicLayer

from ilf.components import Component
from ilf.models.batches import Batch, SharedBatch, choose, join
from ilf.models.dtypes import training_dtype
from ilf.models.kv_cache import RoomyLayer
from ilf.models.load import adapt
from ilf.models.meta_tensors import Meter, empty_model, pretended, with_one_layer
from ilf.models.onednn_linear import packs
from ilf.models.optimizer_state import optimizer_bytes, state_of
from ilf.models.prefill import joinable, prefill
from ilf.models.targets import last_logits, token_losses
from ilf.protocols import Sampler

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Need:
    """Bytes of a device's memory at the peak of one kind of work."""

    work: str
    parameters: int
    gradients: int = 0
    optimizer: int = 0
    cache: int = 0  # the KV cache
    activations: int = 0  # and all other temporary tensors
    pageable: int = 0  # the part of the optimizer's states that a paged optimizer can move to system memory

    @property
    def total(self) -> int:
        """All bytes."""
        return self.parameters + self.gradients + self.optimizer + self.cache + self.activations

    @property
    def least(self) -> int:
        """The bytes that can't leave the device."""
        return self.total - self.pageable


@dataclass(frozen=True)
class FineTuning:
    """The settings that decide the memory of a fine-tuning."""

    adapter: Component | None
    optimizer: Component
    precision: str  # Lightning's: 32-true | bf16-mixed | bf16-true
    rows: int  # examples per forward pass
    tokens: int  # of the longest example
    checkpointing: bool  # whether activations are recomputed in the backward pass
    attention: str = "auto"  # auto | eager | sdpa | flash_attention_2
    quantize: str | None = None  # how the frozen base model's weights are stored: nf4 | int8

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of gradients and of weights that are not quantized."""
        return training_dtype(self.precision)


def _cached(measured: Callable[..., tuple[int, int]]) -> Callable[..., tuple[int, int]]:
    """Cache a measurement by its arguments, which the jobs of a sweep repeat."""
    known: dict[str, tuple[int, int]] = {}

    @functools.wraps(measured)
    def found(config: Any, *arguments: Any) -> tuple[int, int]:
        key = repr((config.to_dict(), arguments))
        if key not in known:
            known[key] = measured(config, *arguments)
        return known[key]

    return found


def sampling(
    config: Any, settings: Sampler, dtype: torch.dtype, tokens: int, attention: str = "auto", device: str = "cpu"
) -> Need:
    """Return the memory of sampling: the weights, the KV cache of every program, and one layer's temporary tensors.

    Args:
        config: The model's transformers configuration.
        settings: Sets the programs sampled at once, the programs per task, and the new tokens.
        dtype: The dtype of the weights.
        tokens: The length of the longest prompt, in tokens.
        attention: As in `FineTuning`.
        device: "cuda" or "cpu", whose operations are counted.
    """
    model = empty_model(config, dtype, attention)
    parameters = sum(map(_bytes, model.parameters()))
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    if tied and packs(model, torch.device(device), dtype):
        parameters += _bytes(head.weight)  # a packed copy, in addition to the tied embeddings
    with _where_it_can(config, "it is sampled"):
        cache, activations = _sampling_step(config, settings, dtype, tokens, attention, device)
        return Need("sampling", parameters, cache=cache, activations=activations)
    return Need("sampling", parameters)


@contextmanager
def _where_it_can(config: Any, work: str) -> Iterator[None]:
    """Log a warning if a kind of work can't be fully counted: only the memory plan depends on it."""
    try:
        yield
    except Exception as error:  # models raise different exception classes
        reason = " ".join(str(error).split())[:200]
        log.warning(
            "the memory plan can't count the cache and activations of %s while %s (%s): it includes only weights, "
            "gradients and the optimizer's state",
            config.model_type,
            work,
            reason,
        )


def _one_for_all(config: Any) -> Any:
    """Return the configuration with one layer that represents all layers.

    Raises:
        ValueError: No single layer can represent all.
    """
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    if len(kinds) > 1 and not all(issubclass(kind, DynamicLayer) for kind in kinds):
        raise ValueError("its layers are of different kinds")
    return with_one_layer(config)


@_cached
def _sampling_step(
    config: Any, settings: Sampler, dtype: torch.dtype, tokens: int, attention: str, device: str
) -> tuple[int, int]:
    """Return the bytes of every program's KV cache, and of temporary tensors beside it."""
    layers, rows = config.get_text_config().num_hidden_layers, settings.batch_size
    # A batch holds programs of consecutive tasks.
    prompts, last = min(rows, -(-rows // settings.n) + 1), tokens + settings.max_new_tokens
    model = empty_model(_one_for_all(config), dtype, attention)
    if not joinable(model):
        raise ValueError("it reads one prompt at a time")
    with pretended(model, device), torch.no_grad():
        meter = Meter(model.parameters())
        with meter:
            batch = join([(prefill(model, [[1] * tokens] * prompts, 1), [0] * rows)])
            choose(batch.logits, torch.rand(rows), settings.temperature)
            starting = (_kept(batch), meter.most())
            # The last step, in which each layer runs out of room and grows, and all rows are joined again.
            (layer,), room = batch.cache.layers, (0, 0, 0, last - 1 - tokens)
            width = batch.mask.shape[1] + last - 1 - tokens
            layer = RoomyLayer(functional.pad(layer.keys, room), functional.pad(layer.values, room), width)
            batch.cache.layers, batch.lengths = [layer], [last - 1] * rows
            batch.mask = torch.ones(rows, width, dtype=torch.long)
            del layer
            meter.forget()
            batch.step(model, torch.ones(rows, dtype=torch.long), torch.ones(rows, dtype=torch.long))
            choose(batch.logits, torch.rand(rows), settings.temperature)
            batch = join([(batch, list(range(rows)))])
            ending = (_kept(batch), meter.most())
    kept, most = max(starting, ending, key=lambda pair: pair[0] * (layers - 1) + pair[1])
    return layers * kept, most - kept


def fine_tuning(config: Any, how: FineTuning, device: str = "cpu", shards: int = 1) -> Need:
    """Return the memory of a fine-tuning: the peak of the backward pass or of the optimizer step, if that is higher.

    Args:
        config: The model's transformers configuration.
        how: The settings that decide it.
        device: "cuda" or "cpu", whose operations are counted.
        shards: The number of processes that share what is trained.
    """
    model = adapt(empty_model(config, torch.float32, how.attention), how.adapter).to(how.dtype)
    quantised = [linear.weight for linear in _quantised(model)] if how.quantize else []
    trained = [p for p in model.parameters() if p.requires_grad]
    parameters = sum(map(_bytes, model.parameters()))
    for weight in quantised:
        parameters += quantised_bytes(weight.shape, str(how.quantize)) - _bytes(weight)
    optimizer = optimizer_bytes(how.optimizer, trained)
    paged = state_of(how.optimizer, how.dtype).paged and device != "cpu"
    pageable = optimizer_bytes(how.optimizer, [p for p in trained if p.numel() >= 1e5]) if paged else 0
    activations = -(-_optimizer_step(how, trained, device) // shards)
    with _where_it_can(config, "it is fine-tuned"):
        kept, most = _training_step(config, how, device)
        activations = max(most + (config.get_text_config().num_hidden_layers - 1) * kept, activations)
    if quantised:  # each weight is dequantized for its own product
        activations += max(weight.numel() for weight in quantised) * _compute_dtype(how).itemsize
    parameters, gradients, optimizer = (
        -(-part // shards) for part in (parameters, sum(map(_bytes, trained)), optimizer)
    )
    return Need("fine-tuning", parameters, gradients, optimizer, activations=activations, pageable=pageable)


def written(config: Any, how: FineTuning, dtype: torch.dtype) -> tuple[int, int]:
    """Return the bytes that a fine-tuning writes: its model folder, including an adapter, and a checkpoint.

    Args:
        config: The model's transformers configuration.
        how: The settings that decide it.
        dtype: The dtype of the weights in the folder.
    """
    model = adapt(empty_model(config, torch.float32, how.attention), how.adapter)
    trained = [p for p in model.parameters() if p.requires_grad]
    adapter = 0 if how.adapter is None else sum(map(_bytes, trained))
    whole = sum(map(_bytes, model.parameters())) - adapter  # merged
    folder = whole * dtype.itemsize // 4 + adapter
    trained = [p.to(how.dtype) for p in trained]
    return folder, sum(map(_bytes, trained)) + optimizer_bytes(how.optimizer, trained)


def quantised_bytes(shape: torch.Size, kind: str) -> int:
    """Return the bytes of a linear layer's weight, (out, in), in bitsandbytes' format, including its scales."""
    if kind == "int8":
        return shape.numel() + 4 * shape[0]
    blocks = -(-shape.numel() // 64)
    # nf4's 16 values; scales in 8 bits, which have their own scales, 256 values and mean
    return -(-shape.numel() // 2) + 4 * 16 + blocks + 4 * -(-blocks // 256) + 4 * 256 + 4


@_cached
def _training_step(config: Any, how: FineTuning, device: str) -> tuple[int, int]:
    """Return the bytes that one layer keeps for the backward pass, and a one-layer model's peak beside its weights."""
    live: list[int] = []
    model = adapt(empty_model(_one_for_all(config), how.dtype, how.attention), how.adapter).train()
    if how.quantize:  # a product with a quantized weight keeps no copy of it
        for linear in _quantised(model):
            weight = torch.empty_like(linear.weight, dtype=_compute_dtype(how))
            linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    with pretended(model, device):
        for p in model.parameters():
            p.grad = torch.empty_like(p) if p.requires_grad else None  # gradients of earlier micro-batches
        if how.checkpointing:
            model.activation_checkpointing_enable()
        meter = Meter([*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)])
        (layer,) = _layers(model)
        layer.register_forward_pre_hook(lambda *_: live.append(meter.live))
        layer.register_forward_hook(lambda *_: live.append(meter.live))
        ids = torch.ones(how.rows, how.tokens, dtype=torch.long)
        with meter:
            with torch.autocast(device, torch.bfloat16, enabled=how.precision == "bf16-mixed", cache_enabled=False):
                logits = last_logits(model, ids, ids, how.tokens)
                loss = token_losses(logits, ids).sum()
            del logits
            loss.backward()
    return live[1] - live[0], meter.most()


def _optimizer_step(how: FineTuning, trained: Sequence[torch.Tensor], device: str) -> int:
    """Return the bytes of temporary tensors in an optimizer step."""
    optimizer, scratch = how.optimizer, state_of(how.optimizer, how.dtype).scratch
    if device == "cuda":
        if optimizer.target.startswith("bitsandbytes.") or optimizer.get("fused"):  # their kernels need no memory
            return 0
        # torch takes the square roots of all tensors at once, except in Adafactor
        if scratch and optimizer.get("foreach") is not False and not optimizer.target.endswith(".Adafactor"):
            return sum(map(_bytes, trained))
    return round(scratch * max(trained, key=torch.Tensor.numel).numel())


def _layers(model: Any) -> Any:
    return next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))


def _quantised(model: Any) -> list[torch.nn.Linear]:
    """Return the linear layers whose weights are quantized: all frozen ones but the head."""
    head = model.get_output_embeddings()
    linear = (module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head)
    return [one for one in linear if not one.weight.requires_grad]


def _compute_dtype(how: FineTuning) -> torch.dtype:
    return torch.bfloat16 if how.precision.startswith("bf16") else torch.float32


def _kept(batch: Batch) -> int:
    """Return the bytes of the first layer's KV cache, including its room for new tokens and the prompts."""
    (layer,) = batch.cache.layers
    prompts = (
        [part for group in batch.prompts.groups for part in group.layers[0]] if isinstance(batch, SharedBatch) else []
    )
    return sum(part.untyped_storage().nbytes() for part in (layer.keys, layer.values, *prompts))


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.itemsize
