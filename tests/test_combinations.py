"""Every pair of fine-tuning settings works together: a tiny model is trained, sampled and saved."""

import itertools
from pathlib import Path

import pytest
import torch
from architectures import folder_of
from conftest import MINI, ROOT, compose_settings
from transformers import AutoModelForCausalLM

from ilf.checks import _ALLOWED
from ilf.models.load import load_tokenizer
from ilf.sandbox import Limits, Sandbox
from ilf.settings import Phase
from ilf.training.dry_run import check_training
from ilf.training.ilf_module import ILFModule
from ilf.training.mbpp_datamodule import plan_draws
from ilf.training.stage_jobs import JUDGE, FineTuning, Model
from ilf.types import Refinement, Splits, Task

FACTORS = {
    "trainer.precision": ["bf16-true", "bf16-mixed", "32-true"],
    "adapter": ["full", "lora", "qlora", "qlora training.quantize=int8", "ia3", "lora adapter.use_dora=true"],
    "optimizer": ["adamw", "adamw_8bit", "paged_adamw_8bit", "sgd", "adafactor"],
    "scheduler": ["linear", "cosine", "constant"],
    "training.validate_n": ["1", "0"],
    "training.gradient_checkpointing": ["true", "false"],
    "save.dtype": ["float32", "base", "bfloat16", "float16"],
}
TASK = Task(1, "train", "t", "def f(x):\n    return 1", "f", ("assert f(1) == 1",), "", '"""\nt\n"""\n\ndef f(x):\n')


def pairs(row):
    return set(itertools.combinations(enumerate(row), 2))


def rows():
    """Yield combinations of values, chosen greedily so that few of them cover every pair of values."""
    every = list(itertools.product(*FACTORS.values()))
    left = set().union(*map(pairs, every))
    while left:
        row = max(every, key=lambda one: len(pairs(one) & left))
        left -= pairs(row)
        yield row


def test_factors_list_every_option_file_and_every_dtype_of_a_policy():
    for group in ("adapter", "optimizer", "scheduler"):
        options = {file.stem for file in (ROOT / "conf" / group).glob("*.yaml")}
        assert {value.split()[0] for value in FACTORS[group]} == options
    assert set(FACTORS["save.dtype"]) == set(_ALLOWED["save.dtype"])


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Return a model in 16 bits, like most published models, with the tokenizer of mini."""
    folder = folder_of("Llama", tmp_path_factory.mktemp("base"), vocab_size=1280, eos_token_id=0)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    load_tokenizer(MINI).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("row", rows(), ids=" ".join)
def test_every_pair_of_settings_works_together(row, base, tmp_path):
    own = " ".join(f"{key}={value}" for key, value in zip(FACTORS, row, strict=True)).split()
    settings = compose_settings("trainer=cpu", "sampler.max_new_tokens=4", f"model.path={base}", *own)
    tokenizer = load_tokenizer(base)
    config = AutoModelForCausalLM.from_pretrained(base).config
    check_training(settings, config, Splits((), (), (TASK,)))
    examples = [
        ILFModule.example(tokenizer, Refinement(1, TASK.prompt, f"    return {i}", "gold"), 100) for i in (1, 2)
    ]
    draws = plan_draws([(TASK, TASK.prompt)], "validate_policy", settings.training.validate_n, 0)
    settings.training.policy = Phase(1e-2, 2, 1)
    model = Model(base, "", settings.model.attention, None)
    job = FineTuning.of(settings, "policy", model, examples=examples, validation=examples, draws=draws)
    judge = settings.callbacks[JUDGE].having(sandbox=Sandbox(Limits()), tasks={1: TASK})
    found = job.run(judge, tmp_path)
    assert found["optimizer_steps"] == 4
    metrics = {"train_policy/validation_loss"} | ({"train_policy/validation_pass@1"} if draws else set())
    assert metrics <= set(found["metrics"])
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    dtype = {"base": "bfloat16"}.get(settings.save.dtype, settings.save.dtype)
    assert {p.dtype for p in saved.parameters()} == {getattr(torch, dtype)}
