"""Every two settings of a fine-tuning run together: precision, adapter, optimizer, validation, what is saved."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import MINI, compose_settings

from ilf.models.load import load_model, load_tokenizer
from ilf.sandbox import Limits, Sandbox
from ilf.tasks import mini
from ilf.tasks.mbpp import tasks_from
from ilf.training.ilf_module import ILFModule
from ilf.training.loops import fine_tune
from ilf.training.mbpp_datamodule import plan_draws
from ilf.types import Refinement

SETTINGS = {
    "trainer.precision": ["32-true", "bf16-mixed", "bf16-true"],
    "adapter": ["full", "lora", "qlora adapter.quantize=nf4", "qlora adapter.quantize=int8"],
    "optimizer": ["adamw", "adamw_8bit", "paged_adamw_8bit"],
    "training.gradient_checkpointing": ["false", "true"],
    "training.validate_n": ["0", "1"],
    "save.dtype": ["trained", "base", "bfloat16", "float16"],
}


def pairs(row: tuple[str, ...]) -> set[tuple[tuple[str, str], tuple[str, str]]]:
    return set(itertools.combinations(zip(SETTINGS, row, strict=True), 2))


def pairwise() -> list[tuple[str, ...]]:
    """Rows that together hold every pair of values, each row the one that adds most."""
    rows = list(itertools.product(*SETTINGS.values()))
    missing, chosen = set().union(*map(pairs, rows)), []
    while missing:
        chosen.append(max(rows, key=lambda row: len(pairs(row) & missing)))
        missing -= pairs(chosen[-1])
    return chosen


@pytest.fixture(scope="module")
def sandbox():
    sandbox = Sandbox(Limits())
    yield sandbox
    sandbox.close()


@pytest.mark.parametrize("row", pairwise(), ids=" ".join)
def test_every_two_settings_train_validate_and_save(row, sandbox, tmp_path):
    overrides = [f"{key}={value}" for key, value in zip(SETTINGS, row, strict=True)]
    settings = compose_settings(*(part for one in overrides for part in one.split()), "logger=none", "training.clip=1")
    settings.sampler.max_new_tokens = 16
    tokenizer = load_tokenizer(MINI)
    tasks = [task for task in tasks_from(mini.rows(), None, "paper")[0] if task.split == "refine"][:2]
    rows = [Refinement(i, tasks[0].prompt, f"    return {'x + ' * i}{i}", "gold") for i in range(4)]
    examples = [ILFModule.example(tokenizer, row, 512) for row in rows]
    draws = plan_draws([(task, task.prompt) for task in tasks], "validate", settings.training.validate_n, 0)
    settings.training.policy.epochs = 2
    settings.training.policy.batch_size = 2
    facts = fine_tune(
        settings,
        ILFModule,
        MINI,
        examples,
        examples[:1],
        draws,
        settings.training.policy,
        {task.task_id: task for task in tasks},
        tmp_path,
        sandbox,
    )
    assert facts["optimizer_steps"] == 4
    assert ("train_policy/validation_pass@1" in facts["metrics"]) == bool(draws)
    before, after = (dict(load_model(f, "auto").named_parameters()) for f in (MINI, tmp_path / "model"))
    trained = torch.bfloat16 if row[:2] in (("bf16-true", "full"), ("bf16-true", "lora")) else torch.float32
    dtype = {"trained": trained, "base": torch.float32}.get(row[-1]) or getattr(torch, row[-1])
    assert {p.dtype for p in after.values()} == {dtype}
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name].to(dtype), after[name]) for name in before)
