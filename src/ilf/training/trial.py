"""What a run needs only after hours of sampling, tried at its start: what can't work is refused then.

Ranges of single settings are checked before; here is what only torch, bitsandbytes, peft and Lightning know.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from ilf.models.load import adapt
from ilf.models.sampling import check_room, positions
from ilf.models.storageless import empty_model, with_one_layer
from ilf.settings import Phase, Settings, value_of
from ilf.training.fine_tuning import make_optimizer, make_schedule
from ilf.training.trainer import make_trainer, precision, training_device
from ilf.types import InputError, Splits, Task

_TRIED = 4096  # numbers of the parameter that is tried: of fewer, bitsandbytes keeps no 8-bit state


def trainings(settings: Settings) -> dict[str, Phase]:
    """Return the fine-tunings that the requested stages hold, "refiner" and "policy", with their settings."""
    arm, stages, found = settings.refinements.name, settings.stages, {}
    refines = arm in ("model", "self") or settings.refinements.tasks == "solved"
    if "train_refiner" in stages and settings.refiner.name == "finetuned" and arm != "none" and refines:
        found["refiner"] = settings.training.refiner
    if "train_policy" in stages and arm != "none":
        found["policy"] = settings.training.policy
    return found


def trained_tasks(name: str, tasks: Splits) -> tuple[Task, ...]:
    """Return the tasks that a fine-tuning's examples can be on."""
    return tasks.refine if name == "refiner" else tasks.train


def check_training(settings: Settings, config: Any, tasks: Splits) -> None:
    """Make what each fine-tuning will need besides the model, and take a step with it.

    Args:
        settings: Checked.
        config: The policy's, of transformers.
        tasks: By split, restricted and limited.

    Raises:
        InputError: Something is refused, or a step gives no finite numbers; names the setting. Or the warm-up is longer
            than any training on these tasks can be.
    """
    for name, phase in trainings(settings).items():
        _check_warmup(settings, name, phase, len(trained_tasks(name, tasks)))
        values = [f"optimizer.{key}" for key in ("betas", "eps", "weight_decay", "name")]
        _try(settings, "optimizer", [f"training.{name}.lr", *values], partial(_step, name))
        values = [f"trainer.{key}" for key in ("precision", "accelerator", "strategy")]
        _try(settings, "trainer", [f"training.{name}.epochs", *values], partial(_trainer, name))
    if trainings(settings):
        values = ["training.gradient_checkpointing"]
        _try(settings, "training.gradient_checkpointing", values, partial(_checkpointed, config))
    if trainings(settings) and settings.adapter.name != "full":
        values = [f"adapter.{key}" for key in ("rank", "alpha", "dropout", "name")]
        with torch.random.fork_rng(devices=[]):  # LoRA's first matrices are random
            _try(settings, "adapter", values, partial(_adapted, config))


def _step(name: str, settings: Settings) -> None:
    """Take a step of a fine-tuning's optimizer, on numbers of which every other one has no gradient."""
    dtype = torch.bfloat16 if precision(settings.trainer) == "bf16-true" else torch.float32
    parameter = torch.nn.Parameter(torch.zeros(_TRIED, dtype=dtype, device=training_device(settings.trainer)))
    optimizer = make_optimizer(settings.optimizer, [parameter], getattr(settings.training, name).lr)
    parameter.grad = torch.zeros_like(parameter)
    parameter.grad[::2] = 1
    optimizer.step()
    if not bool(parameter.isfinite().all()):
        raise ValueError("the first step gives numbers that are not finite")
    make_schedule(optimizer, settings.training.warmup_steps, settings.training.warmup_steps + 1)


def _trainer(name: str, settings: Settings) -> None:
    make_trainer(settings.trainer, callbacks=[], loggers=[], epochs=getattr(settings.training, name).epochs)


def _adapted(config: Any, settings: Settings) -> None:
    adapt(_small(config, settings), settings.adapter)


def _checkpointed(config: Any, settings: Settings) -> None:
    if settings.training.gradient_checkpointing:
        _small(config, settings).activation_checkpointing_enable()


def _small(config: Any, settings: Settings) -> Any:
    """Return the model without storage, of one layer where one can be had apart from others."""
    try:
        return empty_model(with_one_layer(config), torch.float32, settings.model.attention)
    except (ValueError, TypeError, IndexError, AttributeError, StrictDataclassError):
        return empty_model(config, torch.float32, settings.model.attention)


def _try(settings: Settings, group: str, keys: Sequence[str], make: Callable[[Settings], None]) -> None:
    """Make something of settings; where it is refused, blame the setting whose default is accepted, else the group."""
    try:
        make(settings)
        return
    except Exception as error:  # each library raises its own
        refusal = error
    reason = f"is refused ({type(refusal).__name__}: {' '.join(str(refusal).split())[:300]})"
    values = {key: value_of(settings, key) for key in keys}
    for key, value in values.items():
        default = value_of(Settings(), key)
        default = {"optimizer.name": "adamw", "adapter.name": "full"}.get(key, default)
        mended = copy.deepcopy(settings)
        parent, _, field = key.rpartition(".")
        setattr(value_of(mended, parent), field, default)
        try:
            make(mended)
        except Exception:  # it is not this one alone
            continue
        key = key.removesuffix(".name")
        raise InputError(key, value, reason, f"{key}={default} is accepted.") from refusal
    raise InputError(group, values, reason, "Leave these settings at their defaults.") from refusal


def _check_warmup(settings: Settings, name: str, phase: Phase, tasks: int) -> None:
    """Check the warm-up against the most steps that the first round's training can have."""
    if name == "refiner":
        tasks -= tasks // 5  # what is held out
    elif settings.refinements.limit is not None:
        tasks = min(tasks, settings.refinements.limit)
    steps, warmup = phase.epochs * math.ceil(tasks / phase.batch_size), settings.training.warmup_steps
    if tasks and warmup > steps:
        raise InputError(
            "training.warmup_steps",
            warmup,
            f"is longer than the {name}'s training, {steps} optimizer steps at most ({phase.epochs} epochs of {tasks} "
            f"examples, {phase.batch_size} a step)",
            f"Lower it, raise training.{name}.epochs, or lower training.{name}.batch_size.",
        )


def check_positions(settings: Settings, config: Any, tasks: Splits, tokens: Mapping[int, int], template: int) -> None:
    """Check that the policy's model has positions for the rows that it is trained on and for what is known of prompts.

    Of a refine prompt, the old program and the feedback are written only later: where they make it too long, sampling
    ends with an error before the first program of that stage, and nothing that was done before it is lost.

    Args:
        settings: Checked.
        config: The policy's, of transformers.
        tasks: By split, restricted and limited.
        tokens: Of each task's prompt, by id.
        template: Tokens of a refine prompt besides program, feedback and the task's prompt.

    Raises:
        InputError: It has fewer.
    """
    places, limit, stages = positions(config), settings.training.max_length, set(settings.stages)
    if places is not None and limit > places and trainings(settings):
        advice = f"Give training.max_length={places}: longer rows are rejected, and named."
        raise InputError("training.max_length", limit, f"passes the model's {places} positions", advice)
    if settings.sampler.name == "openai":
        return
    new = settings.sampler.max_new_tokens
    sampled: list[Task] = []
    if stages & {"zero_shot", "evaluate"}:
        sampled += tasks.test
    if "sample" in stages:
        sampled += [*tasks.prompt, *tasks.refine, *tasks.train]
    for task in sampled:
        check_room(config, tokens[task.task_id], new, f"the prompt of task {task.task_id},")
    if "refine" in stages and settings.refiner.name in ("finetuned", "few_shot"):
        shots = settings.refiner.shots if settings.refiner.name == "few_shot" else 0
        example = template + min((tokens[task.task_id] for task in tasks.prompt), default=0)
        for task in tasks.train:
            prompt = shots * example + template + tokens[task.task_id]
            check_room(config, prompt, new, f"a refine prompt of task {task.task_id}, which is at least")


def check_lengths(settings: Settings, tasks: Splits, tokens: Mapping[int, int]) -> None:
    """Check that a row of training examples can hold a task's prompt, a token of a program, and EOS.

    Args:
        settings: Checked.
        tasks: By split, restricted and limited.
        tokens: Of each task's prompt, by id.

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
                f"is too small for any row to train the {name} on: the shortest task prompt has {shortest} tokens",
                "Raise it: a row is a prompt, the program after it, and EOS.",
            )
