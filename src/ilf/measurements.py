"""Measurements with a run's models: how fine-tuning changed the policy, and the perplexity of each arm's programs.

The store holds them by their inputs, like the results of stages.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ilf.analysis.statistics import bootstrap_ci95
from ilf.files import sha256
from ilf.models.dtypes import training_dtype
from ilf.models.load import load_model
from ilf.models.onednn_linear import load_packed
from ilf.models.policy_change import Parted, divergence, perplexity, target_logps, weight_change
from ilf.runner import Runner
from ilf.settings import Settings
from ilf.training.trainer import precision, training_device
from ilf.types import Example, Outcome, Program, Refinement

log = logging.getLogger(__name__)

_KL_SAMPLES = 4  # of each task; with more, the mean over tasks hardly improves
_LOSES = 0.9  # warn if rounding keeps a smaller share of the update than this
_LOGITS = 2**26  # maximum logits of one forward pass: 256 MiB in 32 bits


def measure(settings: Settings, runner: Runner, outcome: Outcome) -> Iterator[tuple[str, Any]]:
    """Yield the name and value of each measurement in `settings.measure` for which the run has the models.

    `weight_change`: ||tuned - base|| / ||base|| of each group of layers, in the data type of sampling, with
    `update_kept`, the share of the update that this data type keeps. `kl`: KL(tuned || base) in nats per token, at the
    sampling temperature, on the tuned policy's samples on Test, with its interval over tasks; the KL at the ends of
    programs is separate. `perplexity`: of each arm's programs under the base, by source and task, with `end_loss`, the
    loss in nats at their ends.
    """
    base, last = runner.model, outcome.last
    # A later round may have trained a policy that was not evaluated.
    policy = outcome.policy if last.finetuned is None else last.policy
    if policy is not None:
        key = {"base": runner.weights(base), "tuned": runner.weights(policy)}
        if "weight_change" in settings.measure:
            yield from _weight_change(runner, base, policy, key)
        if "kl" in settings.measure and last.finetuned:
            if settings.evaluation.greedy:
                log.info("no KL is measured, because greedy decoding samples nothing")
            else:
                yield "kl", _kl(settings, runner, policy, last.finetuned, key)
    if "perplexity" in settings.measure and last.expressed:
        yield from _perplexity(settings, runner, last.expressed)


def _weight_change(runner: Runner, base: Path, tuned: Path, key: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    dtype = runner.dtype_of("evaluate", tuned)

    def work() -> dict[str, Any]:
        groups, kept = weight_change(base, tuned, dtype)
        return {"groups": groups, "kept": kept}

    found = runner.measure("weight_change", key | {"dtype": str(dtype)}, work)
    if found["kept"] < _LOSES:
        said = "sampling in %s keeps only %.0f%% of the update by fine-tuning: use model.dtype=float32"
        log.warning(said, str(dtype).removeprefix("torch."), 100 * found["kept"])
    yield "weight_change", found["groups"]
    if runner.settings.sampler.casts:  # otherwise a server chooses the data type of the weights
        yield "update_kept", found["kept"]


def _kl(
    settings: Settings, runner: Runner, policy: Path, programs: Sequence[Program], key: dict[str, Any]
) -> dict[str, Any]:
    temperature, device = settings.evaluation.temperature, training_device(settings.trainer)
    dtype = runner.dtype_of("evaluate", policy)
    some = [p for p in programs if p.sample < _KL_SAMPLES]

    def work() -> dict[str, dict[str, float]]:
        base, tuned = (load_packed(folder, dtype, device) for folder in (runner.model, policy))
        by_task = divergence(base, tuned, runner.tokenizer, some, temperature, _tokens(base))
        return {part: {str(i): getattr(found, part) for i, found in by_task.items()} for part in ("body", "end")}

    texts = sha256([(p.prompt, p.completion) for p in some])
    key = key | {
        "programs": texts,
        "temperature": temperature,
        "dtype": str(dtype),
        **_reading(settings),
    }
    found = runner.measure("kl", key, work)
    return _summed(found["body"]) | {"per_task": found["body"], "end": _summed(found["end"])}


def _summed(by_task: dict[str, float]) -> dict[str, Any]:
    values = np.array(list(by_task.values()))
    return {"mean": float(values.mean()), "ci95": list(bootstrap_ci95(values))}


def _perplexity(settings: Settings, runner: Runner, examples: Sequence[Refinement]) -> Iterator[tuple[str, Any]]:
    device = training_device(settings.trainer)
    dtype = runner.dtype_of("evaluate", runner.model)

    def work() -> list[Parted]:
        model = load_packed(runner.model, dtype, device)
        texts = [(e.prompt, e.target) for e in examples]
        return perplexity(model, runner.tokenizer, texts, _tokens(model))

    key = {
        "base": runner.weights(runner.model),
        "dtype": str(dtype),
        **_reading(settings),
    }
    values = runner.measure("perplexity", key | {"examples": sha256([asdict(e) for e in examples])}, work)
    body: dict[str, dict[str, float]] = defaultdict(dict)
    end: dict[str, dict[str, float]] = defaultdict(dict)
    for example, (perplexity_of_body, loss_of_end) in zip(examples, values, strict=True):
        if math.isfinite(perplexity_of_body):
            body[example.source][str(example.task_id)] = perplexity_of_body
            end[example.source][str(example.task_id)] = loss_of_end
    yield "perplexity", dict(body)
    yield "end_loss", dict(end)


def with_reference(settings: Settings, runner: Runner, base: Path, examples: Sequence[Example]) -> list[Example]:
    """Return examples with the log-probabilities of their targets under the initial policy of a training.

    They are computed once, in the precision of the training, so that its first step starts at a ratio of 1.

    Args:
        settings: Settings of the run.
        runner: Stores the log-probabilities.
        base: The policy's folder.
        examples: The training set. Their second texts get log-probabilities, too.
    """

    def bare(example: Example) -> Example:
        return replace(example, value=1.0, focus=None, other=None)

    texts = list(dict.fromkeys(bare(text) for e in examples for text in (e, e.other) if text is not None))
    kind, device, training = precision(settings.trainer), training_device(settings.trainer), settings.training

    def work() -> list[list[float]]:
        log.info("computing the reference log-probabilities of %d texts", len(texts))
        dtype = training_dtype(kind)
        model = load_model(base, dtype, settings.model.attention, training.quantize, device).to(device).eval()
        mixed = torch.float16 if kind == "16-mixed" else torch.bfloat16
        with torch.autocast(device.type, mixed, enabled=kind.endswith("-mixed")):
            return target_logps(model, runner.tokenizer, texts, _tokens(model))

    key = {
        "base": runner.weights(base),
        "precision": kind,
        "quantize": training.quantize,
        **_reading(settings),
    }
    key |= {"attention": settings.model.attention, "texts": sha256([asdict(text) for text in texts])}
    found = dict(zip(texts, runner.measure("reference", key, work), strict=True))

    def given(example: Example) -> Example:
        return replace(example, reference=tuple(found[bare(example)]), other=example.other and given(example.other))

    return [given(example) for example in examples]


def _reading(settings: Settings) -> dict[str, Any]:
    """Return the settings that determine tokenization, as a part of a key."""
    return {"bos": settings.model.bos, "chat": settings.chat}


def _tokens(model: Any) -> int:
    """Return the number of tokens for which the model computes logits at once."""
    return _LOGITS // int(model.config.get_text_config().vocab_size)
