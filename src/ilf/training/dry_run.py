"""Tries at the start of a run what it needs only after hours of sampling, and rejects what can't work.

The ranges of single settings are checked earlier. This module checks what only torch, bitsandbytes, peft and
Lightning know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from ilf.components import Component
from ilf.models.dtypes import training_dtype
from ilf.models.load import adapt
from ilf.models.meta_tensors import empty_model, with_one_layer
from ilf.models.tokens import check_room, positions
from ilf.protocols import Objective
from ilf.refinements import Refinements
from ilf.settings import Phase, Settings
from ilf.training.schedules import make_schedule
from ilf.training.trainer import make_trainer, precision, training_device
from ilf.types import InputError, Splits, Task

_TRIED = 4096  # elements of the trial parameter: bitsandbytes keeps no 8-bit state for fewer
_MANY = 10**9  # optimizer steps of a training whose number of examples is not known at the start


def trainings(settings: Settings) -> dict[str, Phase]:
    """Return the settings of each fine-tuning in the requested stages, by name ("refiner" or "policy")."""
    found = {}
    if settings.trains_refiner:
        found["refiner"] = settings.training.refiner
    if "train_policy" in settings.stages and settings.refinements.trains:
        found["policy"] = settings.training.policy
    return found


def trained_tasks(name: str, tasks: Splits) -> tuple[Task, ...]:
    """Return the tasks that the examples of a fine-tuning can come from."""
    return tasks.refine if name == "refiner" else tasks.train


def check_training(settings: Settings, config: Any, tasks: Splits) -> None:
    """Build everything that each fine-tuning needs besides the model, and take a trial optimizer step.

    Args:
        settings: The checked settings.
        config: The policy's transformers configuration.
        tasks: The tasks by split, restricted and limited.

    Raises:
        InputError: A component rejects its arguments, a step gives non-finite numbers, or the warm-up is longer than
            any training on these tasks can be. The error names the setting.
    """
    device, kind = training_device(settings.trainer), precision(settings.trainer)
    for name, phase in trainings(settings).items():
        steps = _most_steps(settings, name, phase, len(trained_tasks(name, tasks)))
        _try(
            "optimizer",
            optimizer := settings.optimizer.having(lr=phase.lr),
            partial(_step, dtype=training_dtype(kind), device=device),
            {"lr": f"training.{name}.lr"},
        )
        if settings.scheduler is not None and steps:
            try:
                _try("scheduler", settings.scheduler, partial(_schedule, optimizer, steps), {})
            except InputError as error:
                key, value, allowed, advice = error.args
                raise InputError(key, value, f"{allowed} (the {name}'s fine-tuning)", advice) from error
        _try("trainer", settings.trainer, partial(make_trainer, epochs=phase.epochs), {})
    if trainings(settings) and settings.training.gradient_checkpointing:
        try:
            _small(config, settings).activation_checkpointing_enable()
        except Exception as error:  # models raise different exception classes
            raise _refused("training.gradient_checkpointing", True, error, "Leave it out.") from error
    if trainings(settings) and settings.adapter is not None:
        with torch.random.fork_rng(devices=[]):  # LoRA's first matrices are random
            _try("adapter", settings.adapter, lambda adapter: adapt(_small(config, settings), _untrained(adapter)), {})


def _untrained(adapter: Component) -> Component:
    """Return the adapter with random numbers at its start if it would factorize the weights, which are not loaded."""
    return adapter.having(init_lora_weights=True) if isinstance(adapter.get("init_lora_weights"), str) else adapter


def _step(optimizer: Component, dtype: torch.dtype, device: torch.device) -> None:
    """Take an optimizer step on a parameter where every other element has a gradient of 0."""
    parameter = torch.nn.Parameter(torch.zeros(_TRIED, dtype=dtype, device=device))
    made = optimizer([parameter])
    parameter.grad = torch.zeros_like(parameter)
    parameter.grad[::2] = 1
    made.step()
    if not bool(parameter.isfinite().all()):
        raise ValueError("the first optimizer step gives non-finite numbers")


def _schedule(optimizer: Component, steps: float, scheduler: Component) -> None:
    """Build the schedule of a training with this many steps."""
    make_schedule(scheduler, optimizer([torch.nn.Parameter(torch.zeros(1))]), steps)


def _small(config: Any, settings: Settings) -> Any:
    """Return the model without storage, with a single layer if its configuration allows that."""
    try:
        return empty_model(with_one_layer(config), torch.float32, settings.model.attention)
    except (ValueError, TypeError, IndexError, AttributeError, StrictDataclassError):
        return empty_model(config, torch.float32, settings.model.attention)


def _try(group: str, part: Component, make: Callable[[Component], object], names: Mapping[str, str]) -> None:
    """Try a component. If it is rejected, raise an error for the argument whose default works, or for all arguments.

    Args:
        group: The component's configuration group.
        part: The component to try.
        make: Tries the component.
        names: The full keys of arguments that are not keys of the group.
    """
    try:
        make(part)
        return
    except InputError:
        raise
    except Exception as error:  # libraries raise different exception classes
        refusal = error
    for name, value in part.arguments.items():
        mended = part.without(name) if name not in names else part.having(**{name: 1e-6})
        try:
            make(mended)
        except Exception:  # this argument alone is not the cause
            continue
        raise _refused(names.get(name, f"{group}.{name}"), value, refusal, "Leave it at its default.") from refusal
    raise _refused(group, dict(part.arguments), refusal, "Leave these at their defaults.") from refusal


def _refused(key: str, value: object, error: Exception, advice: str) -> InputError:
    reason = f"is rejected ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
    return InputError(key, value, reason, advice)


def _most_steps(settings: Settings, name: str, phase: Phase, tasks: int) -> float:
    """Return the largest number of optimizer steps that the training in the first round can have."""
    trainer = settings.trainer
    epochs, limit = trainer.get("max_epochs"), trainer.get("max_steps", -1)
    if limit != -1 and epochs is None:  # as many epochs as it takes
        return float(limit)
    if name == "refiner":
        tasks = settings.refiner.trained_on(tasks)
    elif settings.feedback.limit is not None and not settings.refinements.unmatched:
        tasks = min(tasks, settings.feedback.limit)
    epochs = epochs or phase.epochs
    a_step = phase.batch_size * trainer.get("accumulate_grad_batches", 1)
    steps: float = epochs * math.ceil(tasks / a_step)
    if name == "policy" and not _one_example_each(settings):
        steps = _MANY
    if epochs < 0:
        steps = math.inf
    return min(steps, limit) if limit != -1 else steps


def _one_example_each(settings: Settings) -> bool:
    """Return whether the policy is trained on at most one example per task."""
    arm = settings.refinements
    one_program = type(arm).more is Refinements.more or getattr(arm, "per_task", None) == 1
    return one_program and type(settings.objective).examples is Objective.examples


def check_positions(settings: Settings, config: Any, tasks: Splits, tokens: Mapping[int, int], template: int) -> None:
    """Check that the policy has enough positions for its training rows and for what is known of the prompts.

    The old program and the feedback of a refine prompt are written only later. If they make the prompt too long,
    sampling stops with an error before the first program of that stage, and all earlier results are kept.

    Args:
        settings: The checked settings.
        config: The policy's transformers configuration.
        tasks: The tasks by split, restricted and limited.
        tokens: The number of tokens of each task's prompt, by task id.
        template: The number of tokens of a refine prompt besides the program, the feedback and the task's prompt.

    Raises:
        InputError: The model has too few positions.
    """
    places, limit, stages = positions(config), settings.training.max_length, set(settings.stages)
    if places is not None and limit > places and trainings(settings):
        advice = f"Set training.max_length={places}: longer rows are rejected, and listed."
        raise InputError("training.max_length", limit, f"exceeds the model's {places} positions", advice)
    if not settings.sampler.local:
        return
    new = settings.sampler.max_new_tokens
    sampled: list[Task] = []
    if stages & {"zero_shot", "evaluate"}:
        sampled += tasks.test
    if "sample" in stages:
        sampled += [*tasks.prompt, *tasks.refine, *tasks.train]
    for task in sampled:
        check_room(config, tokens[task.task_id], new, f"the prompt of task {task.task_id}")
    refiner = settings.refiner
    if "refine" in stages and refiner.reads_program and refiner.folder is None:
        example = template + min((tokens[task.task_id] for task in tasks.prompt), default=0)
        for task in tasks.train:
            prompt = refiner.worked_examples * example + template + tokens[task.task_id]
            check_room(config, prompt, new, f"the shortest possible refine prompt of task {task.task_id}")


def check_lengths(settings: Settings, tasks: Splits, tokens: Mapping[int, int]) -> None:
    """Check that a training row can hold a task's prompt, one token of a program, and EOS.

    Args:
        settings: The checked settings.
        tasks: The tasks by split, restricted and limited.
        tokens: The number of tokens of each task's prompt, by task id.

    Raises:
        InputError: `training.max_length` is too small for every task.
    """
    limit = settings.training.max_length
    for name in trainings(settings):
        shortest = min((tokens[task.task_id] for task in trained_tasks(name, tasks)), default=0)
        if shortest + 2 > limit:
            raise InputError(
                "training.max_length",
                limit,
                f"is too small for any training row of the {name}: the shortest task prompt has {shortest} tokens",
                "Raise it: a row consists of a prompt, a program and EOS.",
            )
