"""What an optimizer keeps of the parameters that it trains, whichever it is: measured by its steps on small tensors."""

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
    """What an optimizer keeps and takes, as measured by its steps on small tensors on the CPU."""

    small: tuple[float, float]  # bytes a number of a tensor of under 4,096 numbers, and bytes besides
    large: tuple[float, float]  # of a larger one, of which some optimizers keep less
    scratch: float  # bytes a number that come and go in a step
    paged: bool  # whether large states can move to the system's memory

    def of(self, numbers: int) -> int:
        """Return the bytes that are kept of a tensor."""
        each, besides = self.small if numbers < 4096 else self.large
        return round(each * numbers + besides)


@functools.cache
def _state_of(target: str, arguments: str, dtype: torch.dtype) -> OptimizerState:
    part = Component(target, json.loads(arguments))

    def steps(count: int, *shape: int) -> tuple[int, int, Any]:
        """Return what is kept of `count` tensors, what a step takes at most, and the optimizer."""
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
        """Return what is kept of one tensor, without what all share, what a step takes at most, and the optimizer."""
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
    """Return what an optimizer keeps of the tensors of a type, and takes for a step."""
    return _state_of(optimizer.target, json.dumps(optimizer.arguments, default=repr), dtype)


def optimizer_bytes(optimizer: Component, trained: Iterable[torch.Tensor]) -> int:
    """Return the bytes of an optimizer's states."""
    return sum(state_of(optimizer, p.dtype).of(p.numel()) for p in trained)
