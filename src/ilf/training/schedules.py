"""Learning-rate schedules of a fine-tuning."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from ilf.settings import STEPS
from ilf.types import InputError


def linear(optimizer: Optimizer, num_training_steps: int, num_warmup_steps: int = 0) -> LRScheduler:
    """Return a schedule with linear warm-up and linear decay to 0.

    Args:
        optimizer: Its learning rate is the peak.
        num_training_steps: Optimizer steps of the whole training.
        num_warmup_steps: Steps in which the learning rate rises from 0.

    Raises:
        InputError: The warm-up is longer than the training, or negative.
    """
    # Same as transformers' get_linear_schedule_with_warmup, whose module needs seconds to import peft and bitsandbytes.
    steps, warmup = num_training_steps, num_warmup_steps
    if not 0 <= warmup <= steps:
        allowed = f"must be from 0 to the number of training steps, {steps}"
        raise InputError("scheduler.num_warmup_steps", warmup, allowed, "Lower it, or train longer.")
    return LambdaLR(optimizer, lambda t: t / warmup if t < warmup else (steps - t) / max(1, steps - warmup))


def make_schedule(scheduler: Callable[..., Any], optimizer: Optimizer, steps: float) -> Any:
    """Return a scheduler that is stepped once per optimizer step.

    Args:
        scheduler: Builds a scheduler for an optimizer. Its parameter for the number of steps is filled in, unless it
            is set.
        optimizer: The optimizer.
        steps: Optimizer steps of the whole training; infinite if the training has no end.

    Raises:
        InputError: The scheduler depends on the number of steps, and the training has no end.
    """
    target = scheduler.resolve() if hasattr(scheduler, "resolve") else getattr(scheduler, "func", scheduler)
    given = getattr(scheduler, "arguments", None) or getattr(scheduler, "keywords", None) or {}
    wanted = [name for name in STEPS if name in inspect.signature(target).parameters and given.get(name) is None]
    if wanted and steps == float("inf"):
        allowed = "sets no end to the training, but the scheduler needs the number of steps"
        raise InputError("trainer.max_epochs", None, allowed, "Set max_epochs or max_steps, or use another scheduler.")
    return scheduler(optimizer, **{name: int(steps) for name in wanted})
