"""Every key on the command line is known and read by the run, or is an error that says what to do."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT, compose_settings

from ilf.checks.keys import _READ_BY, known_keys
from ilf.types import InputError

GROUPS = sorted({key.rpartition(".")[0] for key in known_keys()} - {"transfer.split", "transfer.limit", "transfer"})
UNCHECKED = ("llm.extra", "sampler.extra")  # extra fields of requests, which the server defines


@pytest.mark.parametrize("group", GROUPS)
def test_unknown_keys_are_input_errors_in_every_group(group):
    key = f"{group}.nosuch".lstrip(".")
    with pytest.raises(InputError, match=rf"{re.escape(key)}=3: is (no|not an?) (argument|setting)"):
        compose_settings(f"+{key}=3")
    with pytest.raises(InputError, match=re.escape(key)):
        compose_settings(f"++{key}=3")


SIMILAR = ("model", "module", "feedback.sources", "transfer", *UNCHECKED)  # one letter from another known key


@pytest.mark.parametrize("key", [key for key in known_keys() if key not in SIMILAR and not key.startswith("transfer.")])
def test_errors_about_misspelled_keys_suggest_the_known_key(key):
    group, _, name = key.rpartition(".")
    if len(name) < 4:
        pytest.skip("too short to be told from others by one letter")
    wrong = f"{group}.{name[:-2]}{name[-1]}{name[-2]}x".lstrip(".")
    with pytest.raises(InputError) as error:
        compose_settings(f"+{wrong}=3")
    assert f"Did you mean {key}?" in str(error.value)


def test_extra_fields_of_server_requests_can_have_any_name():
    settings = compose_settings("sampler=openai", "sampler.url=http://localhost:1/v1", "+sampler.extra.top_k=-1")
    assert settings.sampler.extra == {"top_k": -1}


# A valid value for each key that only some runs read.
VALUES = {
    "data.revision": "abc",
    "data.newlines": "published",
    "data.reindent": "true",
    "model.hub": "a/b",
    "model.revision": "abc",
    "feedback.path": str(ROOT / "README.md"),
    "feedback.apply": "train_and_refine",
    "feedback.select": "annotated_and_failed",
    "refiner.old_code_tokens": "100",
    "refinements.tasks": "annotated",
    "feedback.limit": "3",
    "objective.": "beta=0.2",
    "evaluate.feedback": "llm",
    "evaluate.reviser": "refiner",
    "rounds_from": "last",
    "failing": "any",
    "select_min_programs": "10",
    "refiner": "few_shot",
    "feedback.choose": "random",
    "llm.n": "2",
    "llm.": "model=x",
    "training.refiner.": "lr=1e-3",
    "training.policy.": "lr=1e-3",
    "training.": "max_length=100",
    "adapter": "lora",
    "optimizer": "adamw_8bit",
    "scheduler": "linear",
    "save.dtype": "bfloat16",
    "store.prune_days": "3",
    "pretrain.": "epochs=3",
    "annotate.": "port=8766",
    "compare.folders": "[x]",
    "compare.pairs": "[[model,gold]]",
    "run": str(ROOT),
    "export": "x.csv",
}
# Overrides of runs that don't read a key that the default run reads.
RUNS = {
    "data.revision": ["data=mbpp", f"data.path={ROOT / 'README.md'}", "feedback=unit_tests"],
    "data.newlines": ["data=mbpp", "feedback=unit_tests", "refinements=none"],
    "data.reindent": ["data=mbpp", "feedback=unit_tests", "refinements=none"],
    "refiner.old_code_tokens": ["refiner=policy"],
    "refinements.tasks": ["refinements=none"],
    "refiner": ["refinements=self", "refinements.match=false"],
    "feedback.choose": ["refinements=none", "feedback=unit_tests"],
    "feedback.limit": ["refinements=self", "refinements.match=false"],
    "failing": ["refinements=none"],
    "objective.": ["refinements=none", "objective=dpo"],
    "training.refiner.": ["refiner=few_shot"],
    "training.policy.": ["refinements=none"],
    **{key: ["refinements=none"] for key in ("training.", "adapter", "optimizer", "scheduler", "save.dtype")},
}


@pytest.mark.parametrize("key", _READ_BY)
def test_keys_that_a_run_does_not_read_are_input_errors(key):
    override = f"{key}{VALUES[key]}" if key.endswith(".") else f"{key}={VALUES[key]}"
    with pytest.raises(InputError, match=rf"{re.escape(key)}.* is read only by .*, so it would have no effect"):
        compose_settings(*RUNS.get(key, []), override)


def test_keys_that_a_run_reads_are_accepted():
    settings = compose_settings("adapter=lora", "adapter.r=8", "refiner=few_shot", "refiner.shots=2", "rounds=2")
    assert (settings.adapter.get("r"), settings.refiner.shots) == (8, 2)
    assert compose_settings("mode=compare", f"compare.folders=[{ROOT / 'tests'}]", "mode=store").mode == "store"


@pytest.mark.parametrize("group", [g for g in GROUPS if f"{g}.name" in known_keys()])
def test_the_name_key_cannot_choose_an_option(group):
    if "." in group:
        pytest.skip("part of a group")
    with pytest.raises(InputError, match=rf"{group}\.name='?\w+'?: (only records the chosen option|must be one of)"):
        compose_settings(f"{group}.name=foo")


@pytest.mark.parametrize("name", ["lr=0.003", "epochs=5", "batch_size=7"])
def test_shared_training_settings_apply_to_refiner_and_policy(name):
    key, _, value = name.partition("=")
    training = compose_settings(f"training.{name}").training
    assert getattr(training.refiner, key) == getattr(training.policy, key) == float(value)
    apart = compose_settings(f"training.{name}", f"training.refiner.{key}=3").training
    assert (getattr(apart.refiner, key), getattr(apart.policy, key)) == (3, float(value))


def test_mini_has_separate_training_settings_for_refiner_and_policy():
    training = compose_settings().training
    assert (training.refiner.lr, training.refiner.epochs) == (1e-4, 3)
    assert (training.policy.lr, training.policy.epochs) == (2e-4, 2)


def test_user_files_with_conflicting_or_misspelled_keys_are_errors(cli, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    file = tmp_path / "mine" / "experiment" / "mine.yaml"
    file.write_text("# @package _global_\ntraining:\n  refiner:\n    epochs: 3\n")
    done = cli("--config-dir", "mine", "experiment=mine", "training.epochs=2")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "training.epochs=2: has no effect on the refiner: a file sets training.refiner.epochs=3" in done.stderr
    file.write_text("# @package _global_\ntrainer:\n  presicion: 32-true\n")
    done = cli("--config-dir", "mine", "experiment=mine")
    assert done.returncode == 1 and "Did you mean trainer.precision?" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["+trainer.max_step=10"], "Did you mean trainer.max_steps?"),
        (["store.any_code=true"], "Use its new name, store.ignore_code_changes."),
        (["data=hub", "data.without=[1]"], "Use its new name, data.exclude_ids."),
        (["data=mbpp", "data.train_last=610"], "Use its new name, data.last_train_id."),
        (["select_least=10"], "Use its new name, select_min_programs."),
        (["training.warmup_steps=10"], "Use its new name, scheduler.num_warmup_steps."),
        (["sampler.temprature=1"], "Did you mean sampler.temperature?"),
        (["-m", "+sampler.top_p=0.5,0.9"], "sampler.top_p=0.5: is not an argument"),
        (["+foo=1"], "foo='1': is not a setting, so nothing would read it. `python run.py --cfg job` shows"),
        (["+hydra.foo=1"], "hydra.foo='1': is not a setting of Hydra"),
        (["hydra.job.nmae=x"], "hydra.job.nmae='x': is not a setting of Hydra"),
        (["~data"], "data._target_=null: must name a class or function"),
        (["hydra.job.chdir=true"], "hydra.job.chdir=True"),
        (["-m", "hydra.sweep.subdir=same", "seed=0,1"], "hydra.sweep.subdir='same'"),
        (["hydra.run.dir=/proc/nosuch"], "hydra.run.dir='/proc/nosuch': must be a folder that can be written"),
        (["store.dir="], "store.dir='': must not be empty"),
        (["stages=[]"], "stages=[]: must name at least one stage"),
        (["sampler.n=many"], "sampler.n='many': must be a valid integer"),
    ],
)
def test_invalid_commands_fail_with_an_error_of_one_line(cli, arguments, message):
    done = cli(*arguments)
    *others, error = done.stderr.splitlines()
    assert done.returncode == 1 and error.startswith("error: ") and message in error
    assert all(line.startswith("Error executing job") for line in others)  # by Hydra, for each job of a sweep


def test_removing_the_logger_group_gives_no_loggers():
    assert compose_settings("~logger").logger == {}


def test_cfg_prints_the_resolved_configuration(cli):
    done = cli("--cfg", "job", "--resolve")
    assert done.returncode == 0 and "output_dir: outputs/" in done.stdout and "${" not in done.stdout
