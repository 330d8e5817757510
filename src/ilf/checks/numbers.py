"""Checks that each number in the settings is finite and within its allowed range."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from ilf.components import Component
from ilf.settings import Settings, value_of
from ilf.types import InputError

# The allowed range of each number. Values that are null are not checked.
RANGES: dict[str, tuple[Callable[[Any], bool], tuple[str, ...]]] = {
    "at least 1": (
        lambda value: value >= 1,
        (
            "rounds",
            "evaluate.n",
            "llm.n",
            "llm.max_tokens",
            "llm.parallel",
            "training.epochs",
            "training.batch_size",
            "training.refiner.epochs",
            "training.refiner.batch_size",
            "training.policy.epochs",
            "training.policy.batch_size",
            "training.micro_batch_size",
            "training.max_length",
            "pretrain.vocabulary",
            "pretrain.hidden",
            "pretrain.intermediate",
            "pretrain.layers",
            "pretrain.heads",
            "pretrain.key_value_heads",
            "pretrain.batch_size",
            "pretrain.epochs",
        ),
    ),
    "above 0": (
        lambda value: value > 0,
        (
            "training.lr",
            "training.refiner.lr",
            "training.policy.lr",
            "pretrain.lr",
        ),
    ),
    "0 or more": (
        lambda value: value >= 0,
        (
            "llm.shots",
            "training.validate_n",
            "select",
            "select_min_programs",
            "evaluate.turns",
            "evaluate.temperature",
            "evaluate.top_k",
            "store.prune_days",
        ),
    ),
}


def check_finite(settings: Settings) -> None:
    """Raise InputError if a number in the settings is infinite or NaN."""
    for key, value in _floats("", settings):
        if not math.isfinite(value):
            raise InputError(key, value, "must be a finite number", "Use a finite number.")


def _floats(key: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yield every float in the settings with its key, including floats in lists and free-form fields."""
    if isinstance(value, Component):  # checked when it was read
        return
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _floats(f"{key}.{name}" if key else str(name), inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _floats(key, inner)
    elif isinstance(value, float):
        yield key, value


def check_numbers(settings: Settings) -> None:
    """Raise InputError if a number is outside its allowed range."""
    for allowed, (fits, keys) in RANGES.items():
        for key in keys:
            value = value_of(settings, key)
            if value is not None and not fits(value):
                raise InputError(key, value, f"must be {allowed}", "Choose a value in this range, or omit the setting.")
    if not settings.evaluate.k:
        raise InputError("evaluate.k", [], "must hold at least one k", "Use 'evaluate.k=[1]'.")
    _check_evaluation(settings)


def _check_evaluation(settings: Settings) -> None:
    """Check that each task has enough programs for each k of pass@k."""
    n = settings.evaluation.n
    if settings.evaluation.greedy and n > 1:
        allowed = "asks for several programs per task, and greedy decoding makes them all the same"
        raise InputError("evaluate.n", n, allowed, "Use evaluate.n=1 'evaluate.k=[1]'.")
    for k in settings.evaluate.k:
        for key, programs in (("sampler.n", settings.sampler.n), ("evaluate.n", n)):
            if not 1 <= k <= programs:
                allowed = f"pass@{k} needs k from 1 to {key}={programs}"
                lower = f"[1,{programs}]" if programs > 1 else "[1]"
                raise InputError(
                    "evaluate.k", settings.evaluate.k, allowed, f"Raise {key}, or set 'evaluate.k={lower}'."
                )
