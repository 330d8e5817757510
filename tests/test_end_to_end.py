"""Complete runs with the mini model, mostly from the command line: results, sweeps, tracking, kill and resume."""

import contextlib
import csv
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import warm
from conftest import MINI, ROOT, SMALL

from ilf.training.ilf_module import ILFModule

DIRS = ["store.dir=store", "hydra.sweep.dir=out"]
FOLDERS = ["0_gold_seed0", "1_human_seed0", "2_model_seed0", "3_self_seed0", "4_none_seed0"]
METRICS = {"pass@1", "pass@4", "ci95", "one_correct", "n_tasks", "n_samples"}


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_programs(folder: Path) -> dict[str, list[dict]]:
    """Return all data on the sampled programs except their times."""
    found = {p.stem: read_jsonl(p) for p in sorted((folder / "programs").glob("*.jsonl"))}
    for rows in found.values():
        for row in rows:
            del row["seconds"]
            row["detail"] = "" if row["verdict"] == "timed_out" else row["detail"]
    return found


def read_results(folder: Path) -> dict:
    """Return results.json without the times."""
    found = json.loads((folder / "results.json").read_text())
    return {k: v for k, v in found.items() if k != "seconds"}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """Run a sweep over five arms, and return its folder."""
    folder = tmp_path_factory.mktemp("sweep")
    arms, plan = "refinements=gold,human,model,self,none", "compare.pairs=[[model,gold],[zero-shot,none]]"
    done = warm.run(ROOT / "run.py", ["-m", arms, plan, *SMALL, *DIRS], folder)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "out" / "stdout").write_text(done.stdout)
    return folder / "out"


def test_results_json_is_complete_and_consistent(sweep):
    found = json.loads((sweep / "2_model_seed0" / "results.json").read_text())
    expected = {
        "refinements": "model",
        "feedback": "scripted",
        "annotator": "scripted",
        "seed": 0,
        "data": "mini",
        "model": "mini",
        "model_id": "mini",
        "feedback_on_policy": True,
        "status": "complete",
    }
    assert expected.items() <= found.items()
    for part in ("zero_shot", "refiner", "finetuned"):
        assert set(found[part]) >= METRICS
        assert all(low <= found[part][name] <= high for name, (low, high) in found[part]["ci95"].items())
    assert found["zero_shot"]["n_tasks"] == 8 and found["zero_shot"]["n_samples"] == 4
    assert 0 < found["zero_shot"]["pass@1"] < 1
    assert found["refiner"]["solved_tasks"] == found["training_task_ids"]
    assert found["counts"]["training_examples"] == len(found["training_task_ids"]) > 0
    assert set(found["delta"]["pass@1"]) == {"mean", "ci95", "p_value", "smallest_detectable"}
    assert found["delta"]["pass@1"]["mean"] == pytest.approx(
        found["finetuned"]["pass@1"] - found["zero_shot"]["pass@1"]
    )
    assert {"torch", "transformers", "pytorch-lightning"} <= set(found["versions"])
    stages = {
        "sample",
        "zero_shot",
        "annotate",
        "train_refiner",
        "refine",
        "train_policy",
        "evaluate",
        "report",
        "reused",
    }
    assert set(found["seconds"]) == stages
    keys = [set(json.loads(f.read_text())) for f in sweep.glob("*/results.json")]
    assert len(keys) == 5 and all(k == keys[0] for k in keys)


def test_reported_metrics_match_the_stored_programs(sweep):
    folder = sweep / "2_model_seed0"
    found = json.loads((folder / "results.json").read_text())
    for part, file, tasks in (
        ("zero_shot", "zero_shot", 8),
        ("refiner", "refinements", found["refiner"]["n_tasks"]),
        ("finetuned", "finetuned", 8),
    ):
        rows = read_jsonl(folder / "programs" / f"{file}.jsonl")
        assert len(rows) == 4 * tasks
        assert found[part]["pass@1"] == pytest.approx(sum(r["verdict"] == "passed" for r in rows) / len(rows))
        columns = "task_id split sample seed prompt completion program verdict detail tests seconds"
        assert set(rows[0]) == set(columns.split())
        assert len({r["seed"] for r in rows}) == len(rows)
    assert {r["verdict"] for r in rows} >= {"passed", "failed"}


def test_arms_share_samples_and_train_on_the_same_tasks(sweep):
    folders = [sweep / name for name in FOLDERS[:3]]
    results = [json.loads((f / "results.json").read_text()) for f in folders]
    assert results[0]["seconds"]["reused"] == []
    shared = {"zero_shot", "sample", "annotate", "train_refiner", "refine"}
    assert all(shared <= set(r["seconds"]["reused"]) for r in results[1:])
    assert all(len(list((sweep.parent / "store" / stage).iterdir())) == 1 for stage in shared)
    assert len({json.dumps(r["training_task_ids"]) for r in results}) == 1
    assert len({(f / "programs" / "zero_shot.jsonl").read_text() for f in folders}) == 1
    sources = [{row["source"] for row in read_jsonl(f / "training.jsonl")} for f in folders]
    assert sources == [{"gold"}, {"human"}, {"model"}]
    for folder in folders:
        for row in read_jsonl(folder / "training.jsonl"):
            assert row["task_id"] >= 311 and row["parent"] and row["feedback"]


def test_arm_self_trains_on_as_many_own_samples_of_other_tasks(sweep):
    own, model = (read_jsonl(sweep / name / "training.jsonl") for name in (FOLDERS[3], FOLDERS[2]))
    rows = read_jsonl(sweep / FOLDERS[3] / "programs" / "sample.jsonl")
    correct = [r for r in rows if r["verdict"] == "passed" and r["split"] == "train"]
    samples, solvable = {r["program"] for r in correct}, {r["task_id"] for r in correct}
    assert solvable and len(own) == len(model) and {row["source"] for row in own} == {"self"}
    assert not {row["task_id"] for row in own} & {row["task_id"] for row in model}
    assert all(row["task_id"] >= 311 and row["prompt"] + row["target"] in samples for row in own)
    assert json.loads((sweep / FOLDERS[3] / "results.json").read_text())["matched"] is False


def test_arm_none_resamples_the_untrained_policy(sweep):
    found = json.loads((sweep / FOLDERS[4] / "results.json").read_text())
    assert found["counts"]["training_examples"] == 0 and found["refiner"] is None
    assert found["finetuned"] != found["zero_shot"] and not (sweep / FOLDERS[4] / "policy").exists()


def test_sweep_writes_and_prints_its_comparison(sweep):
    rows = list(csv.DictReader((sweep / "comparison.csv").open()))
    assert [row["refinements"] for row in rows] == ["gold", "human", "model", "self", "none"]
    results = json.loads((sweep / "2_model_seed0" / "results.json").read_text())
    assert float(rows[2]["finetuned_pass@1"]) == results["finetuned"]["pass@1"]
    assert float(rows[2]["p_holm_pass@1"]) >= float(rows[2]["p_pass@1"]) == results["delta"]["pass@1"]["p_value"]
    assert (sweep / "comparison.png").read_bytes().startswith(b"\x89PNG")
    text = (sweep / "comparison.md").read_text()
    assert text.count("\n| zero-shot | 1 |") == 1
    printed = (sweep / "stdout").read_text()
    table = printed[printed.index("delta (points)") :].splitlines()
    arms = [line.split()[0] for line in table[2:8]]
    assert arms == ["zero-shot", "gold", "human", "model", "self", "none"] and "out/comparison.md" in printed
    pairs = list(csv.DictReader((sweep / "comparison_pairs.csv").open()))
    planned = [(row["metric"], row["arm"], row["against"]) for row in pairs if row["family"] == "planned"]
    assert planned == [(f"pass@{k}", *pair) for k in (1, 4) for pair in (("model", "gold"), ("zero-shot", "none"))]
    assert text.startswith("Planned comparisons") and "Planned but not compared" not in text
    arms = {row["arm"]: row for row in csv.DictReader((sweep / "comparison_arms.csv").open())}
    none, model = (
        json.loads((sweep / job / "results.json").read_text())["finetuned"] for job in (FOLDERS[4], FOLDERS[2])
    )
    assert float(arms["model"]["delta_none_pass@1"]) == pytest.approx(model["pass@1"] - none["pass@1"])
    assert "human: the refinements of a scripted annotator, not of people." in text and "Unmatched" in text
    for folder in sweep.glob("[0-9]*"):
        assert (folder / "summary.md").read_text().startswith("# ILF: ")
        assert (folder / "plots" / "pass_at_k.png").stat().st_size > 5000
        assert "finished in" in (folder / "run.log").read_text() or "reused" in (folder / "run.log").read_text()


def wandb_records(file: Path) -> Iterator[bytes]:
    """Yield the records of an offline run.

    The file is a header of 7 bytes and a LevelDB log: blocks of 32 KiB, with parts that have a header of 7 bytes each.
    """
    data, at, record = file.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a complete record or its last part
            yield record
            record = b""


def test_offline_wandb_run_has_metrics_settings_and_artifacts(sweep):
    from wandb.proto import wandb_internal_pb2

    folder = sweep / "0_gold_seed0"  # the job that ran all stages; the others reuse its results
    command = next(line for line in (sweep / "stdout").read_text().splitlines() if "wandb sync" in line)
    assert str(folder / "wandb") in command
    files = list(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 1
    history, config, artifacts, run = {}, {}, set(), None
    for data in wandb_records(files[0]):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            for item in record.history.item:
                history["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        elif kind == "run":
            run = record.run
            config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "artifact":
            artifacts.add(record.artifact.type)
    results = json.loads((folder / "results.json").read_text())
    for part in ("zero_shot", "refiner", "finetuned"):
        assert history[f"{part}/pass@1"] == pytest.approx(results[part]["pass@1"])
    assert "train_policy/loss" in history and "evaluate/programs/path" in history
    assert config["sampler"]["n"] == 4 and config["refinements"]["_target_"] == "ilf.refinements.Gold"
    assert {"dataset", "results"} <= artifacts
    assert (run.job_type, run.run_group) == ("gold", "out")


def test_trained_models_can_be_loaded_and_sampled_by_another_run(sweep, small_stages):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name in ("policy", "refiner"):
        folder = sweep / "2_model_seed0" / name
        assert AutoModelForCausalLM.from_pretrained(folder) and AutoTokenizer.from_pretrained(folder)
    stages = small_stages(
        "model=local",
        f"model.path={sweep / '2_model_seed0' / 'policy'}",
        "stages=[zero_shot]",
        "sampler.max_new_tokens=64",
    )
    found = stages.run()
    assert found["status"] == "partial" and found["zero_shot"]["n_tasks"] == 8 and found["finetuned"] is None


def test_changed_scoring_executes_the_stored_samples_again(small_stages, monkeypatch):
    def run(*overrides):
        stages = small_stages("stages=[zero_shot]", *overrides)
        return stages.run(), read_jsonl(stages.folder / "programs" / "zero_shot.jsonl")

    _, first = run()
    monkeypatch.setattr("ilf.training.stage_jobs.load_packed", None)  # nothing can be sampled
    again, rows = run("executor.tests=unseen")
    assert again["seconds"]["reused"] == []
    assert [(row["program"], row["tests"]) for row in rows] == [(row["program"], row["tests"][1:]) for row in first]
    assert [row["verdict"] == "passed" for row in rows] == [all(row["tests"][1:]) for row in first]
    assert small_stages("stages=[zero_shot]").run()["seconds"]["reused"] == ["zero_shot"]


def test_more_tasks_or_samples_per_task_sample_only_new_programs(small_stages, tmp_path, monkeypatch):
    drawn = []
    draw = ILFModule.sample
    monkeypatch.setattr(ILFModule, "sample", lambda self, draws: drawn.extend(draws) or draw(self, draws))

    def run(*overrides):
        drawn.clear()
        stages = small_stages("stages=[zero_shot]", *overrides)
        stages.run()
        return [row["program"] for row in read_jsonl(stages.folder / "programs" / "zero_shot.jsonl")]

    run()
    more = ["data.limit.test=11", "sampler.n=6"]
    grown = run(*more)
    # The first run sampled 4 programs for each of 8 tasks.
    ids = sorted({draw.task_id for draw in drawn})
    assert sorted((d.task_id, d.sample) for d in drawn) == [
        (i, s) for i in ids for s in range(6) if s >= 4 or ids.index(i) >= 8
    ]
    assert run(*more, f"store.dir={tmp_path / 'another'}") == grown and len(drawn) == 66
    run(*more, "sampler.temperature=0.7")
    assert len(drawn) == 66  # another temperature needs new programs
    monkeypatch.setattr("ilf.training.stage_jobs.load_packed", None)
    fewer = run("data.limit.test=3", "sampler.n=5")
    assert drawn == [] and len(fewer) == 15 and set(fewer) <= set(grown)


@pytest.mark.slow  # every resumed run covers the same code
def test_stages_can_run_one_after_the_other(small_stages):
    from ilf.types import InputError

    with pytest.raises(InputError, match=r"stages=.*refine needs sample.*Add sample"):
        small_stages("stages=[refine]").run()
    partial = small_stages("stages=[sample,zero_shot]").run()
    assert partial["status"] == "partial" and partial["refiner"] is None and partial["zero_shot"]
    # Without examples on Refine, collecting feedback succeeds and training the refiner is an error.
    alone, training = small_stages("stages=[sample,annotate]"), small_stages("stages=[sample,annotate,train_refiner]")
    for stages in (alone, training):
        stages.tasks = replace(stages.tasks, refine=())
    assert alone.run()["status"] == "partial" and (alone.folder / "feedback.jsonl").read_text()
    with pytest.raises(InputError, match="provides no example on the Refine split"):
        training.run()
    whole = small_stages().run()
    assert {"sample", "zero_shot"} <= set(whole["seconds"]["reused"]) and whole["status"] == "complete"


def test_empty_training_set_is_an_error_after_results_are_written(cli, tmp_path):
    local = ["refiner=local", f"refiner.path={MINI}"]
    done = cli(*SMALL, "store.dir=store", "logger=csv", "training.max_length=50", *local, "hydra.run.dir=out")
    assert done.returncode != 0 and "no program is left to fine-tune on" in done.stderr, done.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (found["status"], found["finetuned"]) == ("no_training_examples", None)


def test_verdicts_on_test_do_not_affect_training(small_stages, monkeypatch):
    """Inverting the verdicts on Test changes neither the training set nor the trained weights."""
    from ilf.training import unit_test_callback

    few = ["data.limit.test=3", "data.limit.refine=10", "data.limit.train=10", "training.epochs=2"]
    first = small_stages(*few).run()
    score = unit_test_callback.score

    def score_with_inverted_test_verdicts(pairs, sandbox, tests, as_paper=False):
        from dataclasses import replace

        found = score(pairs, sandbox, tests, as_paper)
        flip = {"passed": "failed", "failed": "passed"}
        return [
            replace(v, verdict=flip.get(v.verdict, v.verdict)) if t.split == "test" else v
            for v, (_, t) in zip(found, pairs, strict=True)
        ]

    monkeypatch.setattr(unit_test_callback, "score", score_with_inverted_test_verdicts)
    stages = small_stages("store.reuse=false", *few)
    second = stages.run()
    assert second["zero_shot"]["pass@1"] == pytest.approx(1 - first["zero_shot"]["pass@1"])
    assert second["training_task_ids"] == first["training_task_ids"]
    hashes = [stages.runner.weights(stages.folder.parent / f"run{i}" / "policy") for i in (0, 1)]
    assert hashes[0] == hashes[1]


# The log message or checkpoint after which each stage is interrupted. If possible, it is in the middle of the stage.
MARKS = [
    ("zero_shot", "zero_shot: 1 of"),
    ("sample", "sample: 2 of"),
    ("annotate", "annotate: started"),
    ("train_refiner", "CHECKPOINT train_refiner"),
    ("refine", "refine: 1 of"),
    ("train_policy", "CHECKPOINT train_policy"),
    ("evaluate", "evaluate: 1 of"),
]
BUDGET = [
    *SMALL,
    "data.limit.test=4",
    "data.limit.refine=20",
    "data.limit.train=20",
    "sampler.batch_size=8",
    "training.epochs=4",
    "store.dir=store",
    "logger=csv",
]


# Runs run.py and suspends it at the first log message that contains the mark, so that the test can interrupt it there
# even on a busy machine.
STOPPING_SCRIPT = """
import logging, os, runpy, signal, sys
program, mark = sys.argv.pop(1), sys.argv.pop(1)
emit = logging.FileHandler.emit
def emit_and_stop(handler, record):
    emit(handler, record)
    if mark in record.getMessage():
        os.kill(os.getpid(), signal.SIGSTOP)
logging.FileHandler.emit = emit_and_stop
sys.argv[0] = program
runpy.run_path(program, run_name="__main__")
"""


def signal_at(folder: Path, mark: str, number: int, by: int = signal.SIGKILL) -> int | None:
    """Start the run, send it the signal `by` when it has reached `mark`, and return its exit code."""
    (folder / "stops.py").write_text(STOPPING_SCRIPT)
    arguments = [str(ROOT / "run.py"), mark, *BUDGET, f"hydra.run.dir=killed{number}"]
    process = warm.start(folder / "stops.py", arguments, folder, folder / f"killed{number}")
    running = psutil.Process(process.pid)
    deadline = time.monotonic() + 240
    try:
        while time.monotonic() < deadline and process.is_alive():
            if running.status() == psutil.STATUS_STOPPED:
                break
            if mark.startswith("CHECKPOINT") and any(folder.glob(f"store/{mark.split()[1]}/*/checkpoints/last.ckpt")):
                break
            time.sleep(0.005)
        log = folder / f"killed{number}" / "run.log"
        assert process.is_alive(), f"the run ended before {mark}: {log.read_text()[-2000:]}"
        children = running.children(recursive=True)
        os.kill(process.pid, by)
        os.kill(process.pid, signal.SIGCONT)
        process.join(20)
        _, left = psutil.wait_procs(children, timeout=20)
        assert not left, f"{left} outlive the run"
        return process.exitcode
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    whole = warm.run(ROOT / "run.py", [*BUDGET, "hydra.run.dir=run"], folder)
    assert whole.returncode == 0, whole.stderr[-2000:]
    return folder / "run"


def test_run_killed_in_every_stage_matches_an_uninterrupted_run(cli, unbroken, tmp_path):
    for number, (stage, mark) in enumerate(MARKS):
        signal_at(tmp_path, mark, number)
        assert not list((tmp_path / "store" / stage).glob("*/done*.json")), f"{stage} was done before the kill"
    check_resumed_run(unbroken, cli, tmp_path)
    assert not list((tmp_path / "store").rglob("*.ckpt"))


@pytest.mark.slow  # faster tests cover a kill in every stage and a signal to a sweep
def test_signal_in_any_stage_sets_the_exit_code_and_allows_resuming(cli, unbroken, tmp_path):
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    for number, (stage, mark) in enumerate(MARKS):
        by = signals[number % len(signals)]
        assert signal_at(tmp_path, mark, number, by) == 128 + by, stage
        stderr = (tmp_path / f"killed{number}.err").read_text()
        assert stderr.count("run the same command again to resume") == 1 and "Traceback" not in stderr
        found = json.loads((tmp_path / f"killed{number}" / "results.json").read_text())
        assert found["status"] == "interrupted" and found["finetuned"] is None
        assert not list((tmp_path / "store" / stage).glob("*/done*.json")), f"{stage} was done before the signal"
    check_resumed_run(unbroken, cli, tmp_path)


def check_resumed_run(unbroken: Path, cli, folder: Path) -> None:
    """Resume the interrupted run, and compare it with the uninterrupted run."""
    last = cli(*BUDGET, "hydra.run.dir=resumed")
    assert last.returncode == 0, last.stderr[-2000:]
    assert read_programs(unbroken) == read_programs(folder / "resumed")
    assert read_results(unbroken) == read_results(folder / "resumed")
    assert read_jsonl(unbroken / "training.jsonl") == read_jsonl(folder / "resumed" / "training.jsonl")
    log = "".join(file.read_text() for file in folder.glob("*/run.log"))
    assert log.count("stored samples are reused") >= 4
    assert log.count("resuming from") >= 2
    for name in ("policy", "refiner"):
        weights = [(run / name / "model.safetensors").read_bytes() for run in (unbroken, folder / "resumed")]
        assert weights[0] == weights[1]


def test_signal_stops_a_sweep_and_keeps_its_comparison(tmp_path):
    few = ["sampler.n=4", "evaluate.k=[1]", "data.limit.test=4", "data.limit.refine=12", "data.limit.train=12"]
    arguments = ["-m", "refinements=gold,model,human", *few, "logger=none", *DIRS]
    process = warm.start(ROOT / "run.py", arguments, tmp_path, tmp_path / "printed")
    second = tmp_path / "out" / "1_model_seed0" / "run.log"
    while process.is_alive() and not (second.exists() and "train_policy: started" in second.read_text()):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    process.join(20)
    assert process.exitcode == 128 + signal.SIGTERM
    rows = list(csv.DictReader((tmp_path / "out" / "comparison.csv").open()))
    assert [row["status"] for row in rows] == ["complete", "interrupted"]
    assert not (tmp_path / "out" / "2_human_seed0").exists()


def test_run_calls_algorithm_1_once(small_stages, monkeypatch):
    from ilf import algorithm

    calls = []
    original = algorithm.run
    monkeypatch.setattr(algorithm, "run", lambda do, *a, **k: (calls.append(do), original(do, *a, **k)))
    stages = small_stages("data.limit.test=3", "data.limit.train=10")
    assert stages.run()["status"] == "complete" and calls == [stages]


def test_store_can_be_listed_and_pruned(cli, small_stages):
    small_stages("stages=[zero_shot]", "sampler.n=1", "evaluate.k=[1]", "data.limit.test=2").run()
    listing = cli("mode=store", "store.dir=store", "hydra.run.dir=a")
    assert "zero_shot" in listing.stdout and "done" in listing.stdout
    kept = cli("mode=store", "store.dir=store", "store.prune_days=1", "hydra.run.dir=b")
    assert "removed 0" in kept.stdout
    gone = cli("mode=store", "store.dir=store", "store.prune_days=0", "hydra.run.dir=c")
    assert "removed 1" in gone.stdout and "zero_shot" not in gone.stdout


def test_samples_do_not_depend_on_the_training_precision(small_stages, tmp_path):
    """During sampling the weights have the dtype model.dtype, which is part of the samples' store key."""
    drawn = []
    for precision in ("32-true", "bf16-true"):
        own = [f"trainer.precision={precision}", f"store.dir={tmp_path / precision}", "stages=[zero_shot]"]
        stages = small_stages(*own, "trainer.accelerator=cpu")
        stages.run()
        drawn.append([row["program"] for row in read_jsonl(stages.folder / "programs" / "zero_shot.jsonl")])
    assert drawn[0] == drawn[1] and len(drawn[0]) == 32
