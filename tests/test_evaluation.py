"""How programs are sampled for evaluation, and how settings are selected on Refine."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import MINI, compose_settings

from ilf.cli import sweep
from ilf.models import dtypes
from ilf.sampling import HFSampler
from ilf.tasks.data import split_tasks
from ilf.types import InputError, Task


def test_evaluation_settings_do_not_affect_training_samples(small_stages, tmp_path):
    few = ("sampler.n=4", "data.limit.test=2", "data.limit.refine=4", "data.limit.train=4", "measure=[]")
    changes = ("evaluate.n=3", "evaluate.top_k=5", "evaluate.k=[1]")
    stages, other = (
        small_stages(*few, *changes, "stages=[sample,zero_shot]"),
        small_stages(*few, "stages=[sample]", f"store.dir={tmp_path / 'other'}"),
    )
    found, _ = stages.run(), other.run()
    files = (run.folder / "programs" / "sample.jsonl" for run in (stages, other))
    changed, default = ([json.loads(line)["program"] for line in file.read_text().splitlines()] for file in files)
    assert changed == default and len(changed) == 4 * (2 + 4 + 4)
    assert found["zero_shot"]["n_samples"] == stages.runner.sampler_of("evaluate").n == 3
    own = {"n": 3, "temperature": stages.settings.sampler.temperature, "top_k": 5, "dtype": "torch.float32"}
    assert found["evaluation"] == own and found["sampling"]["top_k"] == 0


def test_greedy_samples_do_not_depend_on_the_seed(small_stages):
    greedy = ("stages=[zero_shot]", "evaluate.temperature=0", "evaluate.n=1", "evaluate.k=[1]", "measure=[]")
    rows = []
    for seed in (0, 1):
        stages = small_stages(*greedy, f"seed={seed}")
        stages.run()
        file = stages.folder / "programs" / "zero_shot.jsonl"
        rows.append([json.loads(line)["program"] for line in file.read_text().splitlines()])
    assert rows[0] == rows[1] and len(set(rows[0])) == len(rows[0])


@pytest.mark.parametrize(
    ("dtype", "learns", "reported"),
    [("auto", "bfloat16", "float32"), ("bfloat16", "bfloat16", "bfloat16"), ("float32", "float32", "float32")],
)
def test_auto_bfloat16_excludes_evaluation_and_fine_tuned_models(
    small_stages, monkeypatch, tmp_path, dtype, learns, reported
):
    """bfloat16 would round small updates away. The zero-shot samples use the same dtype as the evaluation."""
    monkeypatch.setattr(dtypes, "_cpu_has_fast_bfloat16", lambda: True)
    runner = small_stages(f"model.dtype={dtype}").runner
    learns, reported = getattr(torch, learns), getattr(torch, reported)
    assert runner.dtype_of("sample", MINI) == learns
    tuned = tmp_path / "policy"  # a later round samples it
    for stage, model in (("sample", tuned), ("zero_shot", MINI), ("evaluate", MINI), ("evaluate", tuned)):
        assert runner.dtype_of(stage, model) == reported
    assert runner.dtype_of("refine", tuned) == runner.dtype_of("validate", tuned) == reported


@pytest.mark.parametrize(
    ("processor", "dtype"),
    [
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, torch.float32),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, torch.bfloat16),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"architecture": "arm64"}, torch.float32),
    ],
)
def test_auto_dtype_is_bfloat16_only_on_cpus_where_it_is_faster(monkeypatch, processor, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    assert dtypes.sampling_dtype("auto", torch.device("cpu")) == dtype
    assert dtypes.sampling_dtype("auto", torch.device("cpu"), learns=False) == torch.float32


# ---- selection of settings on Refine ------------------------------------------------------------------------------


def test_validation_covers_refine_tasks_without_annotations():
    tasks = [Task(i, "refine" if i < 8 else "train", "t", "", "f", (), "", "p") for i in range(1, 12)]
    splits = split_tasks(tasks, {"refine": 5}, only={1, 2, 9})
    assert [t.task_id for t in splits.refine] == [1, 2] and [t.task_id for t in splits.train] == [9]
    assert [t.task_id for t in splits.validation] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("more", "count"), [(["select=1"], 20), (["select=4", "data.limit.refine=30"], 120)])
def test_selection_on_too_few_programs_is_rejected_at_startup(small_stages, more, count):
    selecting = "stages=[sample,annotate,train_refiner,refine,train_policy]"
    with pytest.raises(InputError, match=rf"select=.*on {count} programs.*select_min_programs={count}"):
        small_stages(selecting, "data.limit.refine=20", *more)
    small_stages(selecting, "data.limit.refine=20", *more, f"select_min_programs={count}")


def write_results(folder: Path, arm: str, passed: float, **phase: float) -> None:
    phase = {"lr": 1e-4, "epochs": 2, "batch_size": 8, **phase}
    overrides = [f"arm={arm}", *(f"training.policy.{name}={value}" for name, value in phase.items())]
    found = {"arm": arm, "seed": 0, "overrides": overrides, "validation": {"pass@1": passed}, "training": phase}
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ([(0.5, {"lr": 1e-3}), (0.5, {"lr": 1e-5}), (0.4, {"lr": 1e-6})], "lr=1e-05"),
        ([(0.5, {"epochs": 5}), (0.5, {"epochs": 1})], "epochs=1"),
        ([(0.5, {"batch_size": 8}), (0.5, {"batch_size": 32})], "batch_size=32"),
        ([(0.5, {"lr": 1e-5}), (0.6, {"lr": 1e-3, "epochs": 5})], "lr=0.001"),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_selection_breaks_ties_in_favor_of_less_training(tmp_path, monkeypatch, settings, chosen, order):
    for i, (passed, phase) in enumerate(settings[::order]):
        write_results(tmp_path / f"{i}_gold", "gold", passed, **phase)
    ran = []
    monkeypatch.setattr(sweep, "_run_chosen", lambda folder, target, overrides: ran.append(overrides))
    assert sweep.select_and_report(tmp_path) == []
    assert len(ran) == 1 and f"training.policy.{chosen}" in ran[0]


def test_a_setting_that_was_tried_twice_is_evaluated_once(tmp_path, monkeypatch):
    for i, passed in enumerate((0.5, 0.6, 0.5)):
        write_results(tmp_path / f"{i}_gold", "gold", passed, lr=1e-3 if passed == 0.5 else 1e-5)
        write_results(tmp_path / f"{i}_again", "gold", passed, lr=1e-3 if passed == 0.5 else 1e-5)
    monkeypatch.setattr(sweep, "_run_chosen", lambda folder, target, overrides: target.mkdir(parents=True))
    assert sweep.select_and_report(tmp_path) == []
    assert [folder.name for folder in (tmp_path / "chosen").iterdir()] == ["gold_seed0"]


def test_last_train_id_moves_later_tasks_to_test(mbpp_file):
    settings = compose_settings("data=mbpp", f"data.path={mbpp_file}", "data.last_train_id=610", "feedback=unit_tests")
    by_split = {}
    for task in settings.data.load()[0]:
        by_split.setdefault(task.split, []).append(task.task_id)
    assert by_split["test"] == [*range(11, 111), *range(611, 975)] and by_split["train"] == [*range(311, 611)]
    assert by_split["refine"] == [*range(111, 311)] and len(by_split["prompt"]) == 10
    assert settings.data.place_of("test", "train") == "ids 11 to 110, 611 to 974, 311 to 610"
    with pytest.raises(InputError, match=r"data\.last_train_id=300"):
        compose_settings("data=mbpp", f"data.path={mbpp_file}", "data.last_train_id=300", "feedback=unit_tests")


@dataclass
class Warm(HFSampler):
    """A sampler without greedy decoding."""

    def check(self) -> None:
        if self.temperature == 0:
            raise InputError("evaluate.temperature", 0, "is nothing that this sampler does", "Use another.")


def test_samplers_can_reject_evaluation_settings():
    own = "++sampler._target_=test_evaluation.Warm"
    compose_settings(own)
    with pytest.raises(InputError, match=r"evaluate\.temperature=0: is nothing that this sampler does"):
        compose_settings(own, "evaluate.temperature=0", "evaluate.n=1", "evaluate.k=[1]")
