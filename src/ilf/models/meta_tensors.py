"""Runs a model on tensors without storage, to count the memory of every allocation without computing anything."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS


class Meter(TorchDispatchMode):
    """Counts the bytes of all live tensors that were created while it is active.

    Args:
        known: Tensors that are not counted.
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live, self._most = 0, 0
        self._seen = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and (storage := leaf.untyped_storage()) not in self._seen:
                self._seen.add(storage)
                size = storage.nbytes()
                self.live += size
                self._most = max(self._most, self.live)
                weakref.finalize(storage, self._gone, size)
        return out

    def _gone(self, size: int) -> None:
        self.live -= size

    def most(self) -> int:
        """Return the peak number of bytes."""
        return self._most

    def forget(self) -> None:
        """Reset the peak to the current number of bytes."""
        self._most = self.live


def with_one_layer(config: Any) -> Any:
    """Return a copy of a model's config with a single layer."""
    config = copy.deepcopy(config)
    config.get_text_config().num_hidden_layers = 1
    return config


def empty_model(config: Any, dtype: torch.dtype, attention: str) -> Any:
    """Return the model on the meta device."""
    # FlashAttention need not be installed here: sdpa's kernels keep the same tensors.
    named = {"auto": None, "flash_attention_2": "sdpa"}.get(attention, attention)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=named).eval()
    if model._can_set_experts_implementation():
        model.set_experts_implementation("ilf_meta")
    return model


def _experts(experts: Any, states: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Compute like a layer's experts, on tensors of the same sizes, whichever experts are chosen.

    Of transformers' own implementations, one requires 16 bits here, one requires the choice of experts, and one
    copies weights for each token.
    """
    up, down = (experts.gate_up_proj if experts.has_gate else experts.up_proj)[0], experts.down_proj[0]
    rows = states.repeat_interleave(chosen.shape[-1], dim=0) @ (up if experts.is_transposed else up.T)
    rows = experts._apply_gate(rows) if experts.has_gate else experts.act_fn(rows)
    rows = rows @ (down if experts.is_transposed else down.T) * weights.reshape(-1, 1)
    out: torch.Tensor = rows.view(len(states), -1, states.shape[-1]).sum(dim=1).to(states.dtype)
    return out


ALL_EXPERTS_FUNCTIONS["ilf_meta"] = _experts


@contextmanager
def pretended(model: Any, device: str) -> Iterator[None]:
    """Let a model on the meta device compute as if it were on `device`: kernels are chosen, but nothing has storage."""
    with FakeTensorMode(), torch.device(device):
        made: dict[int, torch.Tensor] = {}  # tied weights stay tied
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, old in tensors.items():
                    if old is not None and id(old) not in made:
                        new = torch.empty(old.shape, dtype=old.dtype)
                        made[id(old)] = (
                            torch.nn.Parameter(new, old.requires_grad) if tensors is module._parameters else new
                        )
                    tensors[name] = old if old is None else made[id(old)]
        yield
