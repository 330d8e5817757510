"""Packs the linear layers of a model that is only sampled on a CPU: weights get the layout of oneDNN's kernels.

In the usual layout, a weight is reordered for each product, or multiplied as it is. Both are slower, especially for
few rows (docs/benchmarks.md). The products are the same up to rounding.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ilf.models.load import load_model
from ilf.models.prefill import apart, joinable, kind_of

log = logging.getLogger(__name__)

_agrees: dict[str, bool] = {}  # by kind of model: whether it gives the same results when packed
_ROWS = 64  # that the layout is chosen for; it suits fewer and more rows equally well


class _PackedLinear(nn.Module):
    """A linear layer with its weight in oneDNN's own layout. It can't move to another device or be trained."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.weight = linear.weight.detach().to("meta")  # for code that reads its dtype or shape
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product with the weight, plus the bias, (..., out)."""
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return product


def load_packed(
    folder: Path, dtype: torch.dtype, device: torch.device, attention: str = "auto", key: str = "model.path"
) -> Any:
    """Return a folder's model on the device where it is sampled, packed if that is a CPU; see `load_model`."""
    model = load_model(folder, dtype, attention, key=key)
    if packs(model, device, dtype) and not pack(model):
        model = load_model(folder, dtype, attention, key=key)
    return model.to(device)


def packs(model: Any, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether weights of this dtype can be packed. Recurrent layers can't: they read weights directly."""
    able = device.type == "cpu" and torch.backends.mkldnn.is_available()
    return able and dtype in (torch.float32, torch.bfloat16) and joinable(model)


def pack(model: Any) -> bool:
    """Pack a model's linear layers; return whether the results stay the same. If not, the model must be reloaded."""
    kind = kind_of(model)
    if _agrees.get(kind) is False:
        return False
    before = None if kind in _agrees else _few_logits(model)
    try:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear:  # a subclass may compute more
                    setattr(parent, name, _PackedLinear(child))
        if before is not None:
            # In 16 bits, rounding alone changes a real model's logits by a tenth.
            tolerance = 1e-3 if model.dtype == torch.float32 else 0.25
            _agrees[kind] = apart(_few_logits(model), before) <= tolerance
    except Exception as error:  # such as a model that reads its weights directly
        log.debug("weights are not packed", exc_info=error)
        _agrees[kind] = False
    return _agrees[kind]


@torch.inference_mode()
def _few_logits(model: Any) -> torch.Tensor:
    """Return the logits after each of a few tokens, (1, 8, V)."""
    tokens = torch.arange(8)[None] % model.config.get_text_config().vocab_size
    logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits.float()
