"""The store and the run's folder: damaged files are reported and replaced; results of two runs are never mixed."""

from __future__ import annotations

import json
import math
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SMALL, compose_settings
from hypothesis import given
from hypothesis import strategies as st

from ilf.cli.config import opened
from ilf.files import JsonLines, canonical, digests, read_json, to_json, weights_sha256
from ilf.run_folder import FolderTaken, claimed
from ilf.store import Entry, Store
from ilf.training.fine_tuning import FineTuningModule
from ilf.types import InputError

FEW = ["data.limit.test=3", "data.limit.refine=12", "data.limit.train=12", "training.policy.epochs=1"]
KINDS = {
    "programs": "*/*/programs-*.jsonl",
    "samples": "*/*/samples.jsonl",
    "marks": "*/*/done*.json",
    "keys": "*/*/key.json",
    "weights": "*/*/model/model.safetensors",
    "configurations": "*/*/model/*.json",
    "digests": "digests.json",
}
DAMAGES: dict[str, Callable[[Path], object]] = {
    "emptied": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "removed": Path.unlink,
    "changed": lambda file: file.write_bytes(file.read_bytes().replace(b"0", b"1").replace(b"passed", b"failed")),
    "changed in its values": lambda file: file.write_bytes(re.sub(rb'[0-9a-f](?="[,}])', b"7", file.read_bytes())),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dict]:
    """Return a store with a complete run, and the run's results."""
    folder = tmp_path_factory.mktemp("whole")
    own = [f"store.dir={folder / 'store'}", f"output_dir={folder / 'run'}", "logger=none"]
    with opened(compose_settings(*SMALL, *own, *FEW)) as stages:
        return folder / "store", stages.run()


def reproducible(results: dict) -> dict:
    """Return the results that are equal in every run with the same settings."""
    return {name: value for name, value in results.items() if name not in ("seconds", "entries", "overrides")}


CASES = [
    *((kind, "cut") for kind in KINDS),
    *((kind, "changed") for kind in KINDS if kind not in ("marks", "keys", "digests")),  # a mark or key has no digest
    ("digests", "changed in its values"),
    *(("programs", "emptied"), ("samples", "removed"), ("marks", "emptied"), ("weights", "removed")),
]
QUICK = {  # every kind of file and every damage; the other cases are slow tests
    *(("programs", "changed"), ("samples", "removed"), ("marks", "emptied"), ("keys", "cut"), ("weights", "changed")),
    *(("configurations", "cut"), ("digests", "changed in its values")),
}


@pytest.mark.parametrize(
    ("kind", "damage"), [pytest.param(*one, marks=() if one in QUICK else pytest.mark.slow) for one in CASES]
)
def test_damaged_files_are_replaced_and_results_do_not_change(kind, damage, whole, store, small_stages, caplog):
    shutil.copytree(whole[0], store)
    digests([file for file in store.glob("*/*/**/*") if file.is_file()], store / "digests.json")  # of the copies, too
    files = sorted(store.glob(KINDS[kind]))
    assert files
    content = {file: file.read_bytes() for file in files}
    for file in files:
        DAMAGES[damage](file)
    changed = {file for file in files if not file.exists() or file.read_bytes() != content[file]}
    assert changed
    results = small_stages(*FEW).run()
    assert reproducible(results) == reproducible(whole[1])
    aside = {file.name.rsplit("-", 2)[0] for file in store.glob("damaged/*")}
    if kind in ("keys", "digests"):  # these are written again, and their entries are reused
        assert not aside and len(results["seconds"]["reused"]) >= 7
        for old, new in ((json.loads(content[file]), read_json(file)) for file in files):
            assert new == old if kind == "keys" else new["files"].items() <= old["files"].items()
    else:
        assert aside == {file.relative_to(store).parts[0] for file in changed}
    assert kind == "keys" or all(any(str(file) in line for line in caplog.messages) for file in changed)
    assert small_stages(*FEW).run()["seconds"]["reused"], "what was computed anew is there"


def test_intact_samples_are_reused_if_their_verdicts_are_damaged(whole, store, small_stages, caplog):
    shutil.copytree(whole[0], store)
    (file,) = store.glob("evaluate/*/programs-*.jsonl")
    file.write_bytes(b"")
    before = (file.parent / "samples.jsonl").read_bytes()
    caplog.set_level("INFO")
    small_stages(*FEW).run()
    assert (file.parent / "samples.jsonl").read_bytes() == before
    assert "evaluate: 12 stored samples are reused" in caplog.text


def test_an_unfinished_entry_with_a_damaged_row_is_set_aside(whole, store, small_stages, caplog):
    shutil.copytree(whole[0], store)
    (mark,) = store.glob("zero_shot/*/done*.json")
    mark.unlink()
    file = mark.parent / "samples.jsonl"
    lines = file.read_bytes().split(b"\n")
    lines[2] = lines[2][:20]
    file.write_bytes(b"\n".join(lines))
    assert reproducible(small_stages(*FEW).run()) == reproducible(whole[1])
    assert "samples.jsonl:3" in caplog.text and len(list(store.glob("damaged/zero_shot-*"))) == 1


def test_a_damaged_entry_of_a_stage_that_does_not_run_is_not_used(whole, store, small_stages, caplog):
    shutil.copytree(whole[0], store)
    for file in store.glob("sample/*/programs-*.jsonl"):
        file.write_bytes(b"")
    with pytest.raises(InputError, match=r"annotate needs sample, which is not finished"):
        small_stages(*FEW, "stages=[annotate]").run()
    assert "has changed. This entry is not used" in caplog.text


def test_an_unfinished_part_of_an_entry_is_no_damage_of_other_parts(tmp_path):
    """Two scorings share the samples. Files that one has not finished are no damage of the other."""
    store, key = Store(tmp_path), {"a": 1}
    with store.entry("sample", key, "done-one.json") as entry:
        JsonLines(entry.path / "samples.jsonl").append([{"x": 1}])
        JsonLines(entry.path / "verdicts-two.jsonl").append([{"x": 1}])
        JsonLines(entry.path / "programs-two.jsonl").append([{"x": 1}])
        JsonLines(entry.path / "programs-one.jsonl").append([{"x": 1}])
        entry.finish({})
    with store.entry("sample", key, "done-two.json") as entry:
        JsonLines(entry.path / "verdicts-two.jsonl").append([{"x": 2}])
        JsonLines(entry.path / "programs-two.jsonl").append([{"x": 2}])
        entry.finish({})
    for part in ("one", "two"):
        assert store.is_done("sample", key, f"done-{part}.json")
    assert not list(tmp_path.glob("damaged/*"))


# ---- JSON ----------------------------------------------------------------------------------------------------------

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@given(VALUES)
def test_json_round_trips_any_value(value):
    assert json.loads(to_json(value)) == value
    assert json.loads(to_json(value, indent=1).encode()) == value


@given(st.text(st.characters(), min_size=1))
def test_json_lines_round_trip_any_text(tmp_path_factory, text):
    file = JsonLines(tmp_path_factory.mktemp("rows") / "rows.jsonl")
    file.append([{"text": text}, {"text": text + "\ud800"}])
    assert file.read() == [{"text": text}, {"text": text + "\ud800"}]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("write", [to_json, canonical])
def test_writing_a_nonfinite_number_is_an_error_that_names_its_place(bad, write):
    with pytest.raises(ValueError, match=r"kl\.per_task\.1 = -?(nan|inf)"):
        write({"kl": {"mean": 1.0, "per_task": [2.0, bad]}})


def test_invalid_json_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "results.json").write_text('{"a": 1')
    with pytest.raises(InputError, match=r"results\.json.*is damaged"):
        read_json(tmp_path / "results.json")


# ---- the run's folder ----------------------------------------------------------------------------------------------


def test_a_run_folder_in_use_is_locked(tmp_path):
    settings = compose_settings(f"output_dir={tmp_path / 'run'}")
    refused = []

    def other() -> None:
        try:
            with claimed(settings):
                refused.append(False)
        except FolderTaken:
            refused.append(True)

    with claimed(settings):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    other()
    assert refused == [True, False]


@pytest.mark.parametrize(
    ("changed", "taken"),
    [
        ("seed=1", True),
        ("sampler.n=12", True),
        ("refinements=gold", True),
        ("executor.compare=approx", True),
        ("stages=[sample]", False),
        ("logger=csv", False),
        ("executor.workers=3", False),
        ("store.dir=elsewhere", False),
    ],
)
def test_a_run_folder_rejects_settings_that_change_results(changed, taken, tmp_path):
    own = f"output_dir={tmp_path / 'run'}"
    with claimed(compose_settings(own)):
        pass
    before = (tmp_path / "run" / "settings.json").read_bytes()
    if not taken:
        with claimed(compose_settings(own, changed)):
            return
    key = "refinements._target_" if changed.startswith("refinements") else changed.partition("=")[0]
    with pytest.raises(FolderTaken, match=rf"output_dir=.*{key} was .* and is .*hydra\.run\.dir"):
        claimed(compose_settings(own, changed)).__enter__()
    assert (tmp_path / "run" / "settings.json").read_bytes() == before


def test_hydra_writes_nothing_into_another_runs_folder(cli, tmp_path):
    few = ["data.limit.test=2", "stages=[zero_shot]", "logger=none", "store.dir=store", "hydra.run.dir=run"]
    assert cli(*few).returncode == 0
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    second = cli(*few, "seed=1")
    assert second.returncode == 1 and "seed was 0 and is 1" in second.stderr and "Traceback" not in second.stderr
    assert before == {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    assert cli(*few).returncode == 0, "the same command goes on"


def test_a_saved_configuration_runs_again(cli, tmp_path):
    few = ["data.limit.test=2", "stages=[zero_shot]", "logger=none", "store.dir=store", "sampler.n=10"]
    assert cli(*few, "hydra.run.dir=run").returncode == 0
    again = cli("--config-path", str(tmp_path / "run" / ".hydra"), "--config-name", "config", "hydra.run.dir=again")
    assert again.returncode == 0, again.stderr[-2000:]
    first, second = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("run", "again"))
    assert first["zero_shot"] == second["zero_shot"] and second["seconds"]["reused"] == ["zero_shot"]
    wrong = cli("--config-path", str(tmp_path / "run" / ".hydra"), "--config-name", "config", "+sampler.m=1")
    assert wrong.returncode == 1 and "sampler.m=1: is not an argument" in wrong.stderr


def test_a_run_that_ends_before_its_training_is_marked_as_finished_trains_no_step_again(small_stages, monkeypatch):
    steps, finish, step = [], Entry.finish, FineTuningModule.training_step
    monkeypatch.setattr(FineTuningModule, "training_step", lambda *given: steps.append(given) or step(*given))

    def interrupted(entry, facts):
        if "optimizer_steps" in facts:
            raise KeyboardInterrupt
        return finish(entry, facts)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Entry, "finish", interrupted)
        small_stages(*FEW, "refinements=gold", "refinements.tasks=annotated").run()
    trained = len(steps)
    stages = small_stages(*FEW, "refinements=gold", "refinements.tasks=annotated")
    results = stages.run()
    assert trained == len(steps) == results["counts"]["optimizer_steps"] > 0
    assert "train_policy/loss" in stages.runner.fine_tuned["train_policy"]["metrics"]
    assert not list(Path(stages.settings.store.dir).rglob("*.ckpt"))


def test_the_digest_of_a_model_covers_its_chat_templates(tmp_path):
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "config.json").write_text("{}")
    found = {weights_sha256(tmp_path, tmp_path / "digests")}
    for name in ("chat_template.jinja", "additional_chat_templates/tools.jinja"):
        for text in ("a", "other"):
            (tmp_path / name).write_text(text)
            found.add(weights_sha256(tmp_path, tmp_path / "digests"))
    assert len(found) == 5
