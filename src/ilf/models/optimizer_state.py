"""Measures the memory of any optimizer's states by taking steps on small tensors."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ilf.components import Component
from ilf.models.meta_tensors import Meter


@dataclass(frozen=True)
class OptimizerState:
    """The memory of an optimizer's states and steps, measured on small tensors on the CPU."""

    small: tuple[float, float]  # bytes per element, and fixed bytes, of a tensor under 4,096 elements
    large: tuple[float, float]  # the same of a larger tensor, for which some optimizers keep less
    scratch: float  # temporary bytes per element in a step
    paged: bool  # whether large states can move to system memory

    def of(self, numbers: int) -> int:
        """Return the bytes of the states of a tensor with this many elements."""
        each, besides = self.small if numbers < 4096 else self.large
        return round(each * numbers + besides)


@functools.cache
def _state_of(target: str, arguments: str, dtype: torch.dtype) -> OptimizerState:
    part = Component(target, json.loads(arguments))

    def steps(count: int, *shape: int) -> tuple[int, int, Any]:
        """Return the bytes of the states of `count` tensors, the peak of a step, and the optimizer."""
        trained = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for _ in range(count)]
        gradients = [torch.ones_like(parameter) for parameter in trained]
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient
        optimizer = part(trained, lr=1e-3)
        with Meter([*trained, *gradients]) as meter:
            optimizer.step()
        states = [one for p in trained for one in optimizer.state[p].values() if isinstance(one, torch.Tensor)]
        kept = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in states}
        return sum(kept.values()), meter.most(), optimizer

    def step(*shape: int) -> tuple[int, int, Any]:
        """Return one tensor's states in bytes, without shared ones, the peak of a step, and the optimizer."""
        (one, most, optimizer), (two, _, _) = steps(1, *shape), steps(2, *shape)
        return two - one, most - one, optimizer

    (first, _, _), (second, _, _) = step(1024), step(2048)
    small = (second - first) / 1024
    (less, _, _), (more, most, optimizer) = step(256, 256), step(512, 256)
    large = (more - less) / 256**2
    scratch = max(0, most) / (2 * 256**2)
    paged = bool(getattr(optimizer, "is_paged", False))
    return OptimizerState((small, first - 1024 * small), (large, less - 256**2 * large), scratch, paged)


def state_of(optimizer: Component, dtype: torch.dtype) -> OptimizerState:
    """Return the memory of an optimizer's states and steps for tensors of a dtype."""
    return _state_of(optimizer.target, json.dumps(optimizer.arguments, default=repr), dtype)


def optimizer_bytes(optimizer: Component, trained: Iterable[torch.Tensor]) -> int:
    """Return the bytes of an optimizer's states for the trained tensors."""
    return sum(state_of(optimizer, p.dtype).of(p.numel()) for p in trained)
