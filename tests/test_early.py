"""Errors that would occur only after hours of sampling are raised at startup, and name the setting."""

import subprocess
import sys
import typing
from dataclasses import is_dataclass

import pytest
import torch
from conftest import MINI, ROOT, compose_settings
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel

from ilf.checks import check
from ilf.checks.numbers import RANGES
from ilf.components import Component, holds_components
from ilf.models.load import load_tokenizer
from ilf.settings import Settings
from ilf.tasks import Mini
from ilf.tasks.data import split_tasks
from ilf.training.dry_run import check_training
from ilf.types import InputError, NoTrainingExamples, Splits

# Numbers that accept any value, or that are checked together with other settings.
WITHOUT_RANGE = {"seed", "trainer.devices", "annotate.port", "evaluate.k", "feedback.shares"}
# Of `data@transfer`, a run reads only the limit of Test tasks, which is checked like that of `data`.
WITH_TRANSFER = "data@transfer=humaneval"


def numbers(kind=Settings, key=""):
    """Yield every setting that holds numbers, with its type, except those in COMPONENT_NUMBERS."""
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if holds_components(hint):
            continue
        own = f"{key}.{name}" if key else name
        parts = {hint, *typing.get_args(hint)}
        if found := next((part for part in parts if is_dataclass(part)), None):
            yield from numbers(found, own)
        elif parts & {int, float}:
            yield own, float in parts, typing.get_origin(hint) is list


NUMBERS = list(numbers())
FLOATS = [(key, is_list) for key, is_float, is_list in NUMBERS if is_float]


def set_value(settings, key, value):
    *path, last = key.split(".")
    for part in path[:-1]:
        settings = getattr(settings, part)
    node = getattr(settings, path[-1]) if path else settings
    if isinstance(node, Component):
        setattr(settings, path[-1], node.having(**{last: value}))
    else:
        setattr(node, last, value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("key", "is_list"), FLOATS)
def test_every_float_must_be_finite(key, is_list, value):
    settings = compose_settings(WITH_TRANSFER)
    set_value(settings, key, [0.5, value] if is_list else value)
    with pytest.raises(InputError) as error:
        check(settings)
    assert error.value.args[0] == key and "finite" in str(error.value)


COMPONENT_NUMBERS = [
    f"{group}.{name}"
    for group in ("sampler", "executor")
    for name, value in vars(getattr(compose_settings(), group)).items()
    if isinstance(value, int | float) and not isinstance(value, bool) and name != "halvings"
]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "many", "true", "null"])
@pytest.mark.parametrize("key", COMPONENT_NUMBERS)
def test_numbers_of_components_must_be_finite_and_in_range(key, value):
    with pytest.raises(InputError) as error:
        compose_settings(f"{key}={value}")
    assert error.value.args[0] == key and "must be" in str(error.value)


def test_numbers_in_llm_extra_must_be_finite():
    with pytest.raises(InputError, match=r"llm\.extra\.one\.two=nan"):
        compose_settings("+llm.extra.one.two=nan")


@pytest.mark.parametrize("key", sorted({key for key, *_ in NUMBERS} - WITHOUT_RANGE))
def test_every_number_has_a_range(key):
    settings = compose_settings(WITH_TRANSFER)
    set_value(settings, key, -1)
    with pytest.raises(InputError) as error:
        check(settings)
    name, _, allowed, _ = error.value.args
    assert name == key and allowed.startswith("must be")


def test_every_range_is_for_an_existing_setting():
    listed = {key for _, keys in RANGES.values() for key in keys}
    assert listed <= {key for key, *_ in NUMBERS} and not listed & WITHOUT_RANGE


BAD = {
    "one beta": (["optimizer.betas=[0.9]"], "optimizer.betas"),
    "three betas": (["optimizer.betas=[0.9,0.9,0.9]"], "optimizer.betas"),
    "a rate in words": (["optimizer.eps=small"], "optimizer.eps"),
    "a half rank": (["adapter=lora", "adapter.r=0.5"], "adapter.r"),
    "half a device": (["trainer=ddp", "trainer.devices=0.5"], "trainer.devices"),
    "an unknown precision": (["trainer.precision=8-bit"], "trainer.precision"),
    "more bytes than there are": (["executor.memory_mb=100000000000000"], "executor.memory_mb"),
    "a program that never ends": (["executor.time_limit=1e12"], "executor.time_limit"),
    "one phase's rate": (["training.policy.lr=0"], "training.policy.lr"),
}


@pytest.mark.parametrize("name", BAD)
def test_invalid_values_are_rejected_when_settings_are_composed(name):
    overrides, key = BAD[name]
    with pytest.raises(InputError) as error:
        compose_settings(*overrides)
    assert error.value.args[0] == key


TASKS = split_tasks(Mini().load()[0], {})
MINI_CONFIG = AutoConfig.from_pretrained(MINI)
# Values that libraries reject. They are set directly, without the checks of ranges, to test the dry run itself.
REFUSED = {
    "optimizer.betas": [[1.5, 0.9], [0.9, -1.0]],
    "optimizer.eps": [-1.0, 1e-60],  # 1e-60 is 0 in 32 bits, which gives 0/0 where a gradient is 0
    "optimizer.weight_decay": [-1.0],
    "training.refiner.lr": [1e300],
    "training.policy.lr": [-1.0, 1e300],
    "adapter.lora_dropout": [2.0],
    "adapter.r": [0],
    "adapter.target_modules": [["none_such"]],
    "scheduler.num_warmup_steps": [-1],
    "trainer.accelerator": ["foo"],
    "trainer.precision": ["8-bit"],
}


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "paged_adamw_8bit"])
@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in REFUSED.items() for value in values])
def test_the_dry_run_names_settings_that_libraries_reject(key, value, optimizer):
    settings = compose_settings("adapter=lora", f"optimizer={optimizer}")
    set_value(settings, key, value)
    with pytest.raises(InputError) as error:
        check_training(settings, MINI_CONFIG, TASKS)
    name, shown, _, advice = error.value.args
    assert (name, shown) == (key, value) and advice
    settings.stages = ["zero_shot", "sample"]  # these stages don't train
    check_training(settings, MINI_CONFIG, TASKS)


def test_the_dry_run_names_the_group_if_several_settings_are_invalid():
    settings = compose_settings()
    settings.optimizer = settings.optimizer.having(eps=-1.0, weight_decay=-1.0)
    with pytest.raises(InputError, match=r"^optimizer=\{.*'eps': -1\.0.*is rejected"):
        check_training(settings, MINI_CONFIG, TASKS)


def test_default_settings_do_not_import_peft_or_bitsandbytes(tmp_path):
    """Importing each takes a second."""
    code = f"""
import sys
sys.path[:0] = [{str(ROOT / "src")!r}]
from hydra import compose, initialize_config_dir
from ilf.build import build
from ilf.cli.config import register, settings_from
register()
own = ["logger=none", "output_dir={tmp_path}/run", "store.dir={tmp_path}/store"]
with initialize_config_dir({str(ROOT / "conf")!r}, version_base="1.3"):
    build(settings_from(compose("config", overrides=own)))
print("HEAVY", sorted({{"peft", "bitsandbytes"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert "HEAVY []" in done.stdout, done.stderr


WARMUPS = {  # 30 tasks of each split; the refiner trains on 24
    "the refiner's": (["training.refiner.batch_size=5", "training.policy.batch_size=1"], 2 * 5, "refiner"),
    "the policy's": (["training.refiner.batch_size=1", "training.policy.batch_size=7"], 2 * 5, "policy"),
    "of a few tasks": (["training.batch_size=2", "feedback.limit=5"], 2 * 3, "policy"),
    "without a refiner": (["training.batch_size=2", "refinements=gold", "refinements.tasks=annotated"], 30, "policy"),
}


@pytest.mark.parametrize("name", WARMUPS)
def test_a_warmup_longer_than_a_training_is_rejected_at_startup(name, small_stages):
    own, most, phase = WARMUPS[name]
    own = [*own, "training.policy.epochs=2"]
    own += ["training.refiner.epochs=2"] if name != "without a refiner" else []
    tasks = Splits((), TASKS.refine[:30], TASKS.train[:30])  # as many as `small_stages` has
    for accepted in ([f"scheduler.num_warmup_steps={most}"], ["scheduler.num_warmup_steps=1000", "stages=[sample]"]):
        check_training(compose_settings(*own, *accepted), MINI_CONFIG, tasks)
    with pytest.raises(InputError, match=rf"num_warmup_steps={most + 1}.* {most} .*the {phase}'s"):
        small_stages(*own, f"scheduler.num_warmup_steps={most + 1}")


@pytest.mark.parametrize(
    "more",
    [
        ["trainer.max_steps=200"],
        ["objective=multitask"],
        ["objective=kto"],
        ["refinements.per_task=2"],
        ["refinements.per_task=null"],
    ],
    ids=" ".join,
)
def test_a_warmup_is_accepted_if_the_number_of_steps_may_be_larger(more):
    own = ["training.refiner.batch_size=1", "training.policy.batch_size=7", "training.epochs=2", *more]
    tasks = Splits((), TASKS.refine[:30], TASKS.train[:30])
    check_training(compose_settings(*own, "scheduler.num_warmup_steps=20"), MINI_CONFIG, tasks)


def test_a_max_length_too_small_for_the_shortest_prompt_is_rejected(small_stages):
    stages = small_stages()
    lengths = {
        name: min(len(stages.tokenizer(task.prompt).input_ids) for task in getattr(stages.tasks, name))
        for name in ("refine", "train")
    }
    for limit in (1, max(lengths.values()) + 1):
        with pytest.raises(InputError, match=rf"training\.max_length={limit}.*shortest task prompt has \d+ tokens"):
            small_stages(f"training.max_length={limit}")
    small_stages(f"training.max_length={max(lengths.values()) + 2}")
    small_stages("training.max_length=1", "stages=[sample]")


@pytest.fixture
def short(tmp_path):
    """A model with only 256 learned positions."""
    config = GPT2Config(vocab_size=len(load_tokenizer(MINI)), n_positions=256, n_embd=8, n_layer=1, n_head=1)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "short")
    load_tokenizer(MINI).save_pretrained(tmp_path / "short")
    return ["model=local", f"model.path={tmp_path / 'short'}", "feedback=unit_tests", "data.limit.refine=4"]


TOO_LONG = [
    ([], r"training\.max_length=1024: exceeds the model's 256 positions.*training\.max_length=256"),
    (["sampler.max_new_tokens=220"], r"max_new_tokens=220: .* \d+ tokens of the prompt of task \d+ exceeds.*at most"),
    (["sampler.max_new_tokens=60", "refiner=few_shot", "refiner.shots=2"], r"shortest possible refine prompt of task"),
]


@pytest.mark.parametrize(("overrides", "message"), TOO_LONG)
def test_more_tokens_than_model_positions_are_rejected_at_startup(overrides, message, short, small_stages):
    own = ["training.max_length=256"] if overrides else []
    with pytest.raises(InputError, match=message):
        small_stages(*short, *own, *overrides)


def test_a_run_that_ends_at_a_too_long_refine_prompt_keeps_its_samples(short, small_stages, store):
    own = [*short, "training.max_length=256", "sampler.max_new_tokens=60", "sampler.n=2", "evaluate.k=[1]"]
    own += ["refiner=local", short[1].replace("model.", "refiner."), "data.limit.train=4", "measure=[]"]
    with pytest.raises(
        InputError, match=r"sampler\.max_new_tokens=60: .* tokens of a prompt exceeds .*refiner\.old_code_tokens"
    ):
        small_stages(*own).run()
    drawn = {file: file.read_bytes() for file in store.rglob("programs-*.jsonl")}
    assert len(drawn) == 2  # zero_shot and sample
    with pytest.raises(NoTrainingExamples):  # the refiner samples, but its random weights solve nothing
        small_stages(*own, "refiner.old_code_tokens=1").run()
    assert len(list(store.rglob("programs-*.jsonl"))) == 3
    assert {file: file.read_bytes() for file in drawn} == drawn
