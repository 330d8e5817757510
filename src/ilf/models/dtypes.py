"""The dtypes of weights while they are sampled, trained and saved."""

from __future__ import annotations

from typing import Any

import torch

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def training_dtype(precision: str) -> torch.dtype:
    """Return the dtype of gradients, and of weights that are not quantized, in a training with a given precision."""
    true = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
    return true.get(precision, torch.float32)


def sampling_dtype(name: str, device: torch.device, learns: bool = True) -> torch.dtype:
    """Return the dtype of the weights during sampling.

    Args:
        name: float32 | bfloat16 | auto. auto is bfloat16 if the device is faster with it and `learns` is true.
        device: The device that samples.
        learns: Whether the programs are only training data, rather than a fine-tuned model's or used for the reported
            results.
    """
    if name != "auto":
        return _DTYPES[name]
    faster = has_bfloat16(device) or (device.type == "cpu" and _cpu_has_fast_bfloat16())
    return torch.bfloat16 if faster and learns else torch.float32


def compute_dtype(device: torch.device | None) -> torch.dtype:
    """Return the dtype for products with NF4 weights: bfloat16 on a GPU that supports it, else float32."""
    return torch.bfloat16 if has_bfloat16(device) else torch.float32


def saving_dtype(name: str, base: Any) -> torch.dtype:
    """Return the dtype that `save.dtype` names; `base` is the configuration of the model that was fine-tuned."""
    return (base.dtype or torch.float32) if name == "base" else _DTYPES[name]


def has_bfloat16(device: torch.device | None) -> bool:
    """Return whether a device is a GPU with native bfloat16; older GPUs only emulate it."""
    return device is not None and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _cpu_has_fast_bfloat16() -> bool:
    """Return whether the CPU multiplies faster in bfloat16 than in float32.

    This is so with AMX, and with AVX512-BF16 from AMD. On Intel without AMX, or in a virtual machine that hides AMX,
    sampling with AVX512-BF16 is slower than in float32 (docs/benchmarks.md).
    """
    found = torch.cpu.get_capabilities()
    intel = str(found.get("cpu_name", "")).startswith("Intel")
    return bool(found.get("amx_bf16") or (found.get("avx512_bf16") and not intel))
