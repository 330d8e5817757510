"""Comparisons over arms and seeds, from job folders that these tests write."""

import csv
import json
import random
import shutil
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import compose_settings
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from ilf.analysis import comparison_page, plots
from ilf.analysis.comparison import write_comparison
from ilf.analysis.jobs import FIELDS
from ilf.analysis.results import metrics
from ilf.analysis.statistics import Difference, paired, pass_at_k, t_ci95
from ilf.cli.sweep import JobCallback
from ilf.types import InputError, Program, Verdict

N = 10  # samples per task
K = (1, 5)
TASKS = range(11, 31)
Counts = dict[int, int]  # number of passed programs, by task


def draw(chance: float, *seed: object) -> Counts:
    rng = random.Random(str((chance, seed)))
    return {task: sum(rng.random() < chance for _ in range(N)) for task in TASKS}


def part(passed: Counts) -> dict:
    programs = [
        Program(task, "test", i, 0, "", "", "", Verdict("passed" if i < c else "failed"))
        for task, c in passed.items()
        for i in range(N)
    ]
    return json.loads(json.dumps(metrics(programs, K)))


def write_job(
    folder: Path, overrides: list[str], finetuned: Counts | None, zero: Counts | None = None, **other
) -> Path:
    """Write the files of a finished job that a comparison reads, and return its folder."""
    said = dict(text.lstrip("+").split("=", 1) for text in overrides)
    seed, refinements = int(said.get("seed", 0)), said.get("refinements", said.get("arm", "model"))
    zero = draw(0.3, "zero", seed) if zero is None else zero
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    delta = None
    if finetuned is not None and finetuned.keys() == zero.keys():
        delta = {f"pass@{k}": difference(column(zero, k), column(finetuned, k)) for k in K}
    results = {
        "status": "complete",
        "arm": refinements,
        "refinements": refinements,
        "feedback": said.get("feedback", "scripted"),
        "annotator": "scripted",
        "refiner_kind": said.get("refiner", "finetuned"),
        "seed": seed,
        "data": said.get("data", "mini"),
        "data_sha256": said.get("data", "mini"),
        "model": "mini",
        "model_id": "mini",
        "matched": True,
        "zero_shot": part(zero),
        "refiner": part(draw(0.2, "refiner", seed)),
        "finetuned": None if finetuned is None else part(finetuned),
        "delta": delta,
        "training_task_ids": [400 + seed],
        "counts": {"training_examples": 100 + seed},
    }
    (folder / "results.json").write_text(json.dumps(results | other))
    return folder


def write_failure(folder: Path, overrides: list[str], error: str) -> None:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    (folder / "failed.json").write_text(json.dumps({"error": error}))


def column(passed: Counts, k: int) -> np.ndarray:
    return np.array([pass_at_k(N, c, k) for _, c in sorted(passed.items())])


def difference(before: np.ndarray, after: np.ndarray) -> Difference:
    found = paired([(dict(enumerate(before)), dict(enumerate(after)))])
    assert found
    return found


CHANCES = {"gold": 0.6, "human": 0.5, "model": 0.45}


def write_sweep(folder: Path, arms: list[str], seeds: list[int]) -> Path:
    jobs = [(arm, seed) for arm in arms for seed in seeds]
    for i, (arm, seed) in enumerate(jobs):
        overrides = [f"refinements={arm}", f"seed={seed}", "store.dir=store"]
        write_job(folder / f"{i}_{arm}_seed{seed}", overrides, draw(CHANCES[arm], arm, seed))
    return folder


def compare(*sweeps: Path, planned: Sequence[Sequence[str]] = ()) -> dict[str, list[dict[str, str]]]:
    """Write a comparison. Return the rows of its CSV files by the suffix of their names, its text and its plot."""
    target = sweeps[0].parent / f"compared_{'_'.join(s.name for s in sweeps)}"
    target.mkdir(exist_ok=True)
    write_comparison(target, sweeps, planned)
    found = {}
    for name in ("", "_arms", "_pairs"):
        with (target / f"comparison{name}.csv").open() as file:
            found[name] = list(csv.DictReader(file))
    return found | {"text": (target / "comparison.md").read_text(), "png": target / "comparison.png"}


def find_row(rows: list[dict[str, str]], **wanted: str) -> dict[str, str]:
    (row,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return row


LABELS = ["zero-shot", "gold", "human", "model"]


def test_result_of_an_arm_lies_between_those_of_its_seeds_though_they_have_different_tasks(tmp_path):
    # The mean over tasks of each task's mean over seeds would be 0.35.
    few, many = {11: 10, 12: 0}, {11: 10, 12: 4, 13: 2, 14: 0}
    write_job(tmp_path / "s" / "0", ["seed=0"], few, zero=few)
    write_job(tmp_path / "s" / "1", ["seed=1"], many, zero=many)
    row = find_row(compare(tmp_path / "s")["_arms"], arm="model")
    assert np.mean([1.0, 0.4, 0.2, 0.0]) < float(row["pass@1"]) < np.mean([1.0, 0.0])
    assert float(row["pass@1"]) == pytest.approx(np.mean([1.0, 0.0, 1.0, 0.4, 0.2, 0.0]))
    assert float(row["pass@1_low"]) < float(row["pass@1"]) < float(row["pass@1_high"])
    assert row["seeds"] == "2" and row["training_examples"] == "100-101"


def test_seed_interval_is_students_t_and_is_empty_for_one_seed(tmp_path):
    seeds = [draw(0.4, i) for i in range(3)]
    for i, passed in enumerate(seeds):
        write_job(tmp_path / "three" / str(i), [f"seed={i}"], passed)
    write_job(tmp_path / "one" / "0", ["seed=0"], seeds[0])
    row = find_row(compare(tmp_path / "three")["_arms"], arm="model")
    means = [column(passed, 1).mean() for passed in seeds]
    half = 4.303 * np.std(means, ddof=1) / np.sqrt(3)
    assert half > 0
    assert [float(row["pass@1_seeds_low"]), float(row["pass@1_seeds_high"])] == pytest.approx(
        [np.mean(means) - half, np.mean(means) + half]
    )
    one = compare(tmp_path / "one")
    assert (
        find_row(one["_arms"], arm="model")["pass@1_seeds_low"] == "" and "over seeds" not in one["text"].split("\n")[0]
    )


def test_t_interval_has_95_percent_coverage():
    rng = np.random.default_rng(0)
    for n in (2, 3, 10, 40):
        intervals = [t_ci95(rng.normal(0.3, 1, n).tolist()) for _ in range(1000)]
        assert 0.925 < np.mean([low <= 0.3 <= high for low, high in intervals]) < 0.972
    assert t_ci95([0.3]) is None


def test_pairs_of_arms_are_compared_by_a_paired_test_on_means_over_seeds(tmp_path):
    found = compare(write_sweep(tmp_path / "s", list(CHANCES), [0, 1, 2]))
    pairs = {(row["arm"], row["against"], row["metric"]): row for row in found["_pairs"]}
    assert [row["arm"] for row in found["_arms"]] == LABELS and len(pairs) == 6 * len(K)
    for k in K:
        gold, model = (
            np.mean([column(draw(CHANCES[a], a, s), k) for s in range(3)], axis=0) for a in ("gold", "model")
        )
        expected, row = difference(gold, model), pairs["model", "gold", f"pass@{k}"]
        assert float(row["points"]) == pytest.approx(100 * expected["mean"])
        assert float(row["p"]) == pytest.approx(expected["p_value"])
        assert [float(row["points_low"]), float(row["points_high"])] == pytest.approx(
            [100 * x for x in expected["ci95"]]
        )
        assert float(row["smallest_detectable_points"]) == pytest.approx(100 * expected["smallest_detectable"])
        assert (row["tasks"], row["shared_seeds"]) == ("20", "3")
        same = find_row(found["_arms"], arm="gold"), pairs["gold", "zero-shot", f"pass@{k}"]
        assert 100 * float(same[0][f"delta_pass@{k}"]) == pytest.approx(float(same[1]["points"]))
        assert same[0][f"p_pass@{k}"] == same[1]["p"]


def test_arms_are_compared_on_their_shared_seeds(tmp_path):
    write_sweep(tmp_path / "s", ["gold"], [0, 1, 2])
    write_job(tmp_path / "s" / "7_model_seed2", ["refinements=model", "seed=2"], draw(0.45, "model", 2))
    row = find_row(compare(tmp_path / "s")["_pairs"], arm="model", against="gold", metric="pass@1")
    expected = column(draw(0.45, "model", 2), 1).mean() - column(draw(0.6, "gold", 2), 1).mean()
    assert float(row["points"]) == pytest.approx(100 * expected) and row["shared_seeds"] == "1"


@pytest.mark.parametrize(
    "overrides",
    [
        ["llm.url=http://{}:1/v1", "sampler.url=http://{}/v1"],
        ["output_dir={}", "store.dir={}", "executor.workers=1{}"],
        ["data.path=/{}/mbpp.jsonl"],
        ["model=local", "model.path=/{}/model", "data.path={}"],
        ["feedback=human", "feedback.path=/{}/annotations.jsonl"],
    ],
)
def test_jobs_of_one_arm_may_run_on_different_machines(overrides, tmp_path):
    for seed in (0, 1):
        own = ["arm=ilf", *(text.format(seed) for text in overrides)]
        found = {"data_sha256": "d", "weights_sha256": "w", "feedback_sha256": "f"}
        write_job(tmp_path / "s" / str(seed), [*own, f"seed={seed}"], draw(0.5, seed), **found)
    found = compare(tmp_path / "s")
    assert [(row["arm"], row["seeds"]) for row in found["_arms"]] == [("zero-shot", "2"), ("ilf", "2")]


@pytest.mark.parametrize("digest", ["data_sha256", "weights_sha256", "feedback_sha256"])
@pytest.mark.parametrize("given", [[], ["data.path=/a.jsonl", "model.path=/m", "feedback.path=/f.jsonl"]])
def test_jobs_with_other_contents_of_the_same_name_are_other_arms(digest, given, tmp_path):
    for seed in (0, 1):
        found = {"data_sha256": "d", "weights_sha256": "w"} | {digest: f"{seed}23456789"}
        write_job(tmp_path / "s" / str(seed), ["arm=ilf", f"seed={seed}", *given], draw(0.5, seed), **found)
    labels = [row["arm"] for row in compare(tmp_path / "s")["_arms"]]
    assert {f"ilf, {digest}=023456", f"ilf, {digest}=123456"} < {*labels}
    assert ("zero-shot" in labels) == (digest == "feedback_sha256"), "feedback does not change the untrained policy"


def test_arms_without_shared_seeds_are_compared_over_all_seeds_with_a_note(tmp_path):
    write_sweep(tmp_path / "s", ["gold"], [0, 1])
    write_job(tmp_path / "s" / "7_model_seed2", ["refinements=model", "seed=2"], draw(0.45, "model", 2))
    found = compare(tmp_path / "s")
    row = find_row(found["_pairs"], arm="model", against="gold", metric="pass@1")
    gold = np.mean([column(draw(0.6, "gold", seed), 1).mean() for seed in (0, 1)])
    assert float(row["points"]) == pytest.approx(100 * (column(draw(0.45, "model", 2), 1).mean() - gold))
    assert row["shared_seeds"] == "0" and "different seeds: gold and model." in found["text"]


def test_holm_correction_only_raises_p_and_counts_pairs_per_metric(tmp_path):
    found = compare(write_sweep(tmp_path / "s", list(CHANCES), [0, 1]))
    for k in K:
        rows = [row for row in found["_pairs"] if row["metric"] == f"pass@{k}"]
        least = min(rows, key=lambda row: float(row["p"]))
        assert float(least["p_holm"]) == pytest.approx(min(1, len(rows) * float(least["p"])))
        assert all(float(row["p_holm"]) >= float(row["p"]) for row in rows)
        assert any(float(row["p_holm"]) > float(row["p"]) for row in rows)
        arms = [row for row in found["_arms"] if row["arm"] != "zero-shot"]
        least = min(arms, key=lambda row: float(row[f"p_pass@{k}"]))
        assert float(least[f"p_holm_pass@{k}"]) == pytest.approx(min(1, len(arms) * float(least[f"p_pass@{k}"])))


def test_failed_first_job_does_not_hide_the_other_jobs_of_its_arm(tmp_path):
    write_job(tmp_path / "0_gold_seed0", ["refinements=gold", "seed=0"], draw(0.5))
    write_failure(tmp_path / "1_model_seed0", ["refinements=model", "seed=0"], "out of memory")
    write_job(tmp_path / "2_model_seed1", ["refinements=model", "seed=1"], draw(0.9))
    write_comparison(tmp_path, [tmp_path])
    rows = {row["arm"]: row for row in csv.DictReader((tmp_path / "comparison_arms.csv").open())}
    assert (rows["model"]["seeds"], rows["model"]["failed"]) == ("1", "1") and float(rows["model"]["pass@1"]) > 0.7


def test_job_with_damaged_results_is_listed_as_failed(tmp_path):
    for i, arm in enumerate(("gold", "model")):
        write_job(tmp_path / "s" / f"{i}_{arm}", [f"refinements={arm}"], draw(0.5, i))
    file = tmp_path / "s" / "0_gold" / "results.json"
    file.write_bytes(file.read_bytes()[:100])
    write_comparison(tmp_path / "s", [tmp_path / "s"])
    rows = list(csv.DictReader((tmp_path / "s" / "comparison.csv").open()))
    assert [(row["arm"], row["status"]) for row in rows] == [("gold", "failed"), ("model", "complete")]
    assert "results.json" in rows[0]["error"] and "is damaged" in rows[0]["error"]


def test_arms_with_the_same_stored_results_are_noted(tmp_path):
    same, other = {"evaluate": ["a"]}, {"evaluate": ["b"]}
    for i, (rank, entries) in enumerate([(4, same), (8, same), (16, other)]):
        write_job(tmp_path / "s" / str(i), [f"adapter.rank={rank}"], draw(0.5, 1), entries=entries)
    write_comparison(tmp_path / "s", [tmp_path / "s"])
    page = (tmp_path / "s" / "comparison.md").read_text()
    assert page.count("have the same result") == 1
    assert "model, adapter.rank=4 and model, adapter.rank=8, seed 0, have the same result" in page


def test_failed_jobs_are_listed_and_do_not_change_other_results(tmp_path):
    sweep = write_sweep(tmp_path / "s", list(CHANCES), [0, 1])
    before = compare(sweep)
    before_size = before["png"].stat().st_size
    write_failure(sweep / "8_gold_seed5", ["refinements=gold", "seed=5"], "sampler.n=0: must be above 0\nand more")
    write_failure(sweep / "9_none_seed0", ["refinements=none", "seed=0"], "no | memory")
    stopped = write_job(sweep / "10_self_seed0", ["refinements=self", "seed=0"], draw(0.9), status="failed")
    after = compare(sweep)
    assert [row for row in after[""] if row["status"] != "failed"] == before[""]
    failed = [row for row in after[""] if row["status"] == "failed"]
    assert [(row["arm"], row["seed"]) for row in failed] == [("gold", "5"), ("none", "0"), ("self", "0")]
    assert failed[0]["error"] == "sampler.n=0: must be above 0" and failed[2]["error"] == "see run.log"
    assert not any(row[key] for row in failed for key in row if "pass@" in key)
    figures = [{k: v for k, v in row.items() if k != "failed"} for row in before["_arms"]]
    assert [{k: v for k, v in row.items() if k != "failed"} for row in after["_arms"][: len(figures)]] == figures
    assert [row["failed"] for row in after["_arms"]] == ["0", "1", "0", "0", "1", "1"]
    assert after["_pairs"] == before["_pairs"]
    table = after["text"].split("Failed jobs:")[1]
    assert "| 8_gold_seed5 | gold | 5 | sampler.n=0: must be above 0 |" in table and r"no \| memory" in table
    assert "| gold | 2 (1 failed) |" in after["text"]
    assert after["png"].stat().st_size > before_size
    # The job ran again in the same folder and failed, so its earlier results no longer count.
    shutil.rmtree(stopped)
    (sweep / "0_gold_seed0" / "failed.json").write_text('{"error": "killed"}')
    assert find_row(compare(sweep)[""], folder="0_gold_seed0")["finetuned_pass@1"] == ""


def test_sweep_with_only_failed_jobs_has_tables_and_a_plot(tmp_path):
    write_failure(tmp_path / "s" / "0_gold_seed0", ["refinements=gold"], "no memory")
    found = compare(tmp_path / "s")
    assert found["_pairs"] == [] and "no memory" in found["text"] and found["png"].exists()


def without_folders(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return sorted(({k: v for k, v in row.items() if k != "folder"} for row in rows), key=str)


def test_comparing_two_sweeps_equals_comparing_one_with_all_jobs(tmp_path):
    whole = compare(write_sweep(tmp_path / "whole", list(CHANCES), [0, 1]))
    first = write_sweep(tmp_path / "a", ["gold", "human"], [0, 1])
    second = write_sweep(tmp_path / "b", ["model"], [0, 1])
    merged = compare(first, second)
    for name in ("", "_arms", "_pairs"):
        assert without_folders(merged[name]) == without_folders(whole[name])
    assert merged["text"] == whole["text"]
    # The folders of the sweep's jobs can also be given one by one.
    alone = compare(*sorted(tmp_path.glob("whole/*")))
    assert alone["_arms"] == whole["_arms"] and alone["_pairs"] == whole["_pairs"]


def test_later_duplicate_of_a_job_replaces_the_earlier_unless_it_failed(tmp_path):
    first = write_sweep(tmp_path / "a", ["gold", "model"], [0])
    write_job(tmp_path / "b" / "0", ["refinements=gold", "seed=0"], draw(0.9, "other"))
    write_failure(tmp_path / "b" / "1", ["refinements=model", "seed=0"], "no memory")
    found = compare(first, tmp_path / "b")
    arms = {row["arm"]: row for row in found["_arms"]}
    assert float(arms["gold"]["pass@1"]) == pytest.approx(column(draw(0.9, "other"), 1).mean())
    assert float(arms["model"]["pass@1"]) == pytest.approx(column(draw(0.45, "model", 0), 1).mean())
    assert (arms["gold"]["seeds"], arms["model"]["seeds"], arms["model"]["failed"]) == ("1", "1", "1")
    assert f"{tmp_path / 'b' / '0'} replaces {first / '0_gold_seed0'}" in found["text"]
    # In the reverse order, the failed job ran again and succeeded.
    arms = {row["arm"]: row for row in compare(tmp_path / "b", first)["_arms"]}
    assert arms["model"]["failed"] == "0"


@pytest.mark.parametrize("status", ["interrupted", "partial", "no_training_examples"])
def test_an_incomplete_job_does_not_replace_a_complete_one(status, tmp_path):
    first = write_sweep(tmp_path / "a", ["gold"], [0])
    write_job(tmp_path / "b" / "0", ["refinements=gold", "seed=0"], draw(0.9, "other"))
    file = tmp_path / "b" / "0" / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"status": status}))
    alone = compare(first)["_arms"]
    for sweeps in (first, tmp_path / "b"), (tmp_path / "b", first):
        assert compare(*sweeps)["_arms"] == alone
    assert f"is {status} and not used" in compare(first, tmp_path / "b")["text"]


def test_labels_are_short_and_unique(tmp_path):
    overrides = {
        "gold": ["refinements=gold"],
        "human": ["refinements=human"],
        "model": ["refinements=model"],
        "model, feedback=shuffled": ["refinements=model", "feedback=shuffled"],
        "gold, training.policy.lr=0.0001": ["refinements=gold", "training.policy.lr=1e-4"],
        "gold, sampler.temperature=0.2": ["refinements=gold", "+sampler.temperature=0.2"],
    }
    for i, arm in enumerate(overrides.values()):
        aside = [
            f"store.dir=st{i}",
            f"logger.wandb.project=p{i}",
            f"hydra.job.num={i}",
            f"output_dir=o{i}",
            f"seed={i % 2}",
        ]
        write_job(tmp_path / "s" / f"{i}_x", [*arm, *aside], draw(0.5, i), draw(0.1) if i == 5 else None)
    found = compare(tmp_path / "s")
    labels = [row["arm"] for row in found["_arms"]]
    # Feedback and learning rate do not affect zero-shot results, so these arms share one. The temperature does.
    assert labels == ["zero-shot", "zero-shot, sampler.temperature=0.2", *overrides]
    deltas = {row["arm"]: float(row["delta_pass@1"]) for row in found["_arms"][2:]}
    assert deltas["gold"] == pytest.approx((column(draw(0.5, 0), 1) - column(draw(0.3, "zero", 0), 1)).mean())
    assert deltas["gold, sampler.temperature=0.2"] == pytest.approx(
        (column(draw(0.5, 5), 1) - column(draw(0.1), 1)).mean()
    )
    assert "Unless a run's name says otherwise: feedback=scripted." in found["text"]


def test_labels_leave_out_a_value_only_if_most_jobs_have_it(tmp_path):
    for i, feedback in enumerate(["scripted", "none"]):
        write_job(tmp_path / "s" / str(i), [f"feedback={feedback}"], draw(0.5, i))
    found = compare(tmp_path / "s")
    assert [row["arm"] for row in found["_arms"][1:]] == ["model, feedback=scripted", "model, feedback=none"]
    assert "Unless a run's name says otherwise" not in found["text"]
    write_job(tmp_path / "s" / "2", ["feedback=none", "refinements=gold"], draw(0.5, 2))
    found = compare(tmp_path / "s")
    assert [row["arm"] for row in found["_arms"][1:]] == ["model, feedback=scripted", "model", "gold"]
    assert "Unless a run's name says otherwise: feedback=none." in found["text"]


def test_labels_use_the_option_of_the_group_arm(tmp_path):
    for i, (arm, feedback) in enumerate([("gold", "scripted"), ("ilf", "scripted"), ("shuffled", "shuffled")]):
        write_job(tmp_path / "s" / str(i), [f"arm={arm}"], draw(0.5, i), feedback=feedback)
    write_job(tmp_path / "s" / "3", ["arm=ilf", "feedback=none"], draw(0.5, 3), feedback="none")
    write_job(tmp_path / "s" / "4", ["arm=human"], draw(0.5, 4))
    labels = [row["arm"] for row in compare(tmp_path / "s")["_arms"]]
    assert labels == ["zero-shot", "gold", "ilf", "shuffled", "ilf, feedback=none", "human"]


def test_arms_on_different_tasks_are_noted_and_not_compared(tmp_path):
    write_job(tmp_path / "s" / "0", ["refinements=gold"], draw(0.5, 0))
    write_job(tmp_path / "s" / "1", ["refinements=gold", "data=mbpp"], draw(0.5, 1), zero=draw(0.3, "other"))
    half = {task: c for task, c in draw(0.5, 2).items() if task < 21}
    write_job(tmp_path / "s" / "2", ["refinements=gold", "data.limit.test=10"], half, zero=half)
    found = compare(tmp_path / "s")
    pairs = {(row["arm"], row["against"]): row["tasks"] for row in found["_pairs"]}
    assert ("gold, data=mbpp", "gold") not in pairs and ("gold, data=mbpp", "zero-shot") not in pairs
    assert pairs["gold, data.limit.test=10", "gold"] == "10"
    assert "different tasks" in found["text"] and "zero-shot and gold, data=mbpp" in found["text"]
    # Each arm is compared with the zero-shot results on its own data.
    delta = float(find_row(found["_arms"], arm="gold, data=mbpp")["delta_pass@1"])
    assert delta == pytest.approx((column(draw(0.5, 1), 1) - column(draw(0.3, "other"), 1)).mean())


def test_run_without_a_fine_tuned_policy_shows_its_refiner_results(tmp_path):
    write_job(tmp_path / "s" / "0", ["feedback=scripted"], None, status="partial")
    write_job(tmp_path / "s" / "1", ["feedback=none"], None, status="partial", refiner=part(draw(0.05)))
    found = compare(tmp_path / "s")
    row = find_row(found["_arms"], arm="model, feedback=none")
    assert float(row["refiner_pass@1"]) == pytest.approx(column(draw(0.05), 1).mean()) and row["pass@1"] == ""
    assert "| partial |" in found["text"] and "1 ended with status partial" in found["text"]


def test_training_tasks_of_arms_are_matched_per_seed(tmp_path):
    sweep = write_sweep(tmp_path / "s", ["gold", "model"], [0, 1])
    assert "Unmatched" not in compare(sweep)["text"]
    write_job(sweep / "9", ["refinements=human", "seed=1"], draw(0.5), training_task_ids=[7])
    assert "Unmatched" in compare(sweep)["text"]


def test_different_zero_shot_results_of_the_same_seed_are_noted(tmp_path):
    write_job(tmp_path / "s" / "0", ["refinements=gold"], draw(0.5))
    write_job(tmp_path / "s" / "1", ["refinements=model"], draw(0.5))
    assert "other zero-shot" not in compare(tmp_path / "s")["text"]
    write_job(tmp_path / "s" / "2", ["refinements=self"], draw(0.5), zero=draw(0.8))
    found = compare(tmp_path / "s")
    assert "2 has other zero-shot results than 0" in found["text"]
    first = column(draw(0.3, "zero", 0), 1).mean()
    assert float(find_row(found["_arms"], arm="zero-shot")["pass@1"]) == pytest.approx(first)


def test_text_shows_the_pairs_with_the_smallest_p_and_csv_has_all(tmp_path):
    for i in range(6):
        write_job(tmp_path / "s" / str(i), [f"training.lr={i + 1}"], draw(0.3 + 0.05 * i, i))
    found = compare(tmp_path / "s")
    assert len(found["_pairs"]) == 21 * len(K) and "the 15 smallest p of 21 pairs" in found["text"]
    shown = [line for line in found["text"].split("All pairs of arms")[1].split("\n") if line.startswith("| model")]
    every = sorted(float(row["p"]) for row in found["_pairs"] if row["metric"] == "pass@1")
    assert len(shown) == 15 and every[14] < every[15]
    assert max(float(line.split("|")[4].replace("<", "")) for line in shown) == pytest.approx(every[14], abs=0.001)


def test_plot_grows_with_the_number_of_arms_and_seeds(tmp_path):
    small = compare(write_sweep(tmp_path / "small", ["gold"], [0]))["png"].read_bytes()
    seeds = compare(write_sweep(tmp_path / "seeds", ["gold"], [0, 1, 2]))["png"].read_bytes()
    large = compare(write_sweep(tmp_path / "large", list(CHANCES), [0, 1, 2]))["png"].read_bytes()
    assert small.startswith(b"\x89PNG") and len(small) < len(seeds) < len(large)
    assert seeds.count(b"IHDR") == 1
    height = [int.from_bytes(png[20:24], "big") for png in (small, large)]
    assert height[0] < height[1]


def shown_pairs(monkeypatch, *arguments, **named) -> dict[str, dict[tuple[str, str], list[float]]] | None:
    """Write a comparison. Return the numbers in comparison_pairs.png by metric and pair; None if there is no file."""
    shown = []

    def record(file, labels, series, title):
        pairs = [tuple(label.split(" against ")) for label in labels]
        rows = {name: [[100 * x for x in row[:4]] for row in rows] for name, rows in series.items()}
        shown.append({name: dict(zip(pairs, rows[name], strict=True)) for name in series})
        plots.differences(file, labels, series, title)

    monkeypatch.setattr(comparison_page, "differences", record)
    file = compare(*arguments, **named)["png"].with_name("comparison_pairs.png")
    assert file.exists() == bool(shown) and len(shown) <= 1
    return shown[0] if shown else None


def test_plot_of_pairs_has_the_planned_pairs_or_else_those_of_the_text(tmp_path, monkeypatch):
    sweep = write_sweep(tmp_path / "s", list(CHANCES), [0, 1])
    plan = [["model", "gold"], ["human", "zero-shot"], ["model", "none"]]  # `none` has no job
    planned, rows = shown_pairs(monkeypatch, sweep, planned=plan), compare(sweep, planned=plan)["_pairs"]
    assert list(planned) == [f"pass@{k}" for k in K]
    for name, pairs in planned.items():
        assert list(pairs) == [("model", "gold"), ("human", "zero-shot")]
        for (arm, against), numbers in pairs.items():
            row = find_row(rows, arm=arm, against=against, metric=name)
            columns = ("points", "points_low", "points_high", "smallest_detectable_points")
            assert numbers == pytest.approx([float(row[column]) for column in columns])
    assert all(len(pairs) == 6 for pairs in shown_pairs(monkeypatch, sweep).values())
    for i in range(6):
        write_job(tmp_path / "many" / str(i), [f"training.lr={i + 1}"], draw(0.3 + 0.05 * i, i))
    many, text = shown_pairs(monkeypatch, tmp_path / "many"), compare(tmp_path / "many")["text"]
    assert all(len(pairs) == 15 for pairs in many.values())
    assert all(f"| {arm} | {against} |" in text for arm, against in many["pass@1"])


def test_plot_of_pairs_is_deleted_if_no_pair_can_be_compared(tmp_path, monkeypatch):
    write_job(tmp_path / "s" / "0", ["refinements=gold"], draw(0.5))
    assert shown_pairs(monkeypatch, tmp_path / "s") is not None
    (tmp_path / "s" / "0" / "results.json").unlink()
    (tmp_path / "s" / "0" / "failed.json").write_text(json.dumps({"error": "no memory"}))
    assert shown_pairs(monkeypatch, tmp_path / "s") is None


def interval(row: dict[str, str], column: str) -> tuple[float, float]:
    return float(row[f"{column}_low"]), float(row[f"{column}_high"])


def test_difference_can_be_significant_over_tasks_but_not_over_seeds(tmp_path):
    for seed, chance in enumerate([0.9, 0.95, 0.4]):
        write_job(tmp_path / "s" / f"{seed}_gold", ["refinements=gold", f"seed={seed}"], draw(0.45, "gold", seed))
        write_job(tmp_path / "s" / f"{seed}_model", [f"seed={seed}"], draw(chance, "model", seed))
    found = compare(tmp_path / "s")
    row = find_row(found["_pairs"], arm="model", against="gold", metric="pass@1")
    assert float(row["p"]) < 0.001 and float(row["points_low"]) > 0
    low, high = interval(row, "points_seeds")
    assert low < 0 < float(row["points"]) < high
    assert f"[{low:+.1f}, {high:+.1f}]" in found["text"].split("All pairs of arms")[1]


def test_seed_interval_of_a_difference_is_paired_by_seed(tmp_path):
    """Variation between seeds that both arms share does not widen the interval."""
    seeds = [{task: base + task % 2 for task in TASKS} for base in (1, 4, 7)]
    more = [1, 2, 1]
    for seed, passed in enumerate(seeds):
        better = {task: count + more[seed] for task, count in passed.items()}
        write_job(tmp_path / "s" / f"{seed}_gold", ["refinements=gold", f"seed={seed}"], passed, zero=passed)
        write_job(tmp_path / "s" / f"{seed}_model", [f"seed={seed}"], better, zero=passed)
    write_job(tmp_path / "s" / "9_gold_alone", ["refinements=gold", "seed=9"], draw(0.9), zero=draw(0.1))
    found = compare(tmp_path / "s")
    half = 4.303 * np.std(more, ddof=1) / np.sqrt(3) / N
    expected = [np.mean(more) / N - half, np.mean(more) / N + half]
    row = find_row(found["_pairs"], arm="model", against="gold", metric="pass@1")
    assert interval(row, "points_seeds") == pytest.approx([100 * end for end in expected])
    model, gold = (find_row(found["_arms"], arm=arm) for arm in ("model", "gold"))
    assert interval(model, "delta_pass@1_seeds") == pytest.approx(expected)
    low, high = interval(gold, "pass@1_seeds")
    assert high - low > 3 * 2 * half  # an arm's own interval includes the shared variation
    assert f"[{100 * expected[0]:.1f}, {100 * expected[1]:.1f}]" in found["text"].split("All pairs of arms")[0]


def test_seed_interval_needs_two_shared_seeds_and_intervals_are_explained(tmp_path):
    one = compare(write_sweep(tmp_path / "one", ["gold", "model"], [0]))
    assert {row["points_seeds_low"] for row in one["_pairs"]} == {""}
    assert {row["delta_pass@1_seeds_high"] for row in one["_arms"]} == {""}
    assert (
        "One seed does not show how much results vary between seeds" in one["text"]
        and "| over seeds |" not in one["text"]
    )
    write_sweep(tmp_path / "two", ["gold"], [0, 1])
    write_sweep(tmp_path / "two", ["model"], [1, 2])
    two = compare(tmp_path / "two")
    pairs = {(row["arm"], row["against"]): row for row in two["_pairs"] if row["metric"] == "pass@1"}
    assert pairs["model", "gold"]["points_seeds_low"] == "" != pairs["gold", "zero-shot"]["points_seeds_low"]
    assert "for these trained models" in two["text"] and "for these tasks" in two["text"]
    assert "One seed" not in two["text"]


# ---- arm none: the untrained policy, sampled again -----------------------------------------------------------------


def passed(shift: float, *draws: object) -> Counts:
    """Return counts of a policy that passes each task with a probability `shift` above that of the untrained policy.

    `draws` seeds the random numbers.
    """
    rng, tasks = random.Random(str(draws)), random.Random(0)
    chances = {task: tasks.random() for task in TASKS}
    return {task: sum(rng.random() < chances[task] + shift for _ in range(N)) for task in TASKS}


def test_difference_to_arm_none_has_a_narrower_interval_than_to_zero_shot(tmp_path):
    for seed in range(4):
        for i, (arm, shift) in enumerate({"gold": 0.05, "model": 0.1, "none": 0}.items()):
            overrides = [f"refinements={arm}", f"seed={seed}"]
            zero = passed(0, "zero_shot", seed)
            write_job(tmp_path / "s" / f"{i}_{seed}", overrides, passed(shift, "evaluate", seed), zero=zero)
    found = compare(tmp_path / "s")
    for arm in ("gold", "model"):
        row = find_row(found["_arms"], arm=arm)
        for over in ("", "_seeds"):
            wide, narrow = (interval(row, f"delta_{base}pass@1{over}") for base in ("", "none_"))
            assert narrow[1] - narrow[0] < 0.8 * (wide[1] - wide[0])
        same = find_row(found["_pairs"], arm="none", against=arm, metric="pass@1")
        assert 100 * float(row["delta_none_pass@1"]) == pytest.approx(-float(same["points"]))
        assert row["p_none_pass@1"] == same["p"] and float(row["p_holm_none_pass@1"]) >= float(same["p"])
        assert f"{100 * float(row['delta_none_pass@1']):.1f} [" in found["text"]
    for arm in ("zero-shot", "none"):
        assert find_row(found["_arms"], arm=arm)["delta_none_pass@1"] == ""
    assert "| against none |" in found["text"] and "same random numbers" in found["text"]


def test_comparison_without_arm_none_does_not_mention_it(tmp_path):
    found = compare(write_sweep(tmp_path / "s", ["gold", "model"], [0]))
    assert "none" not in found["text"] and not [key for key in found["_arms"][0] if "none" in key]


def test_arms_are_compared_with_arm_none_of_the_same_sampling_settings(tmp_path):
    jobs = {
        "none": (["refinements=none", "training.lr=1"], 0, 0.2),
        "none, again": (["refinements=none", "training.lr=2"], 1, 0.3),  # the arm does not use the learning rate
        "none, cold": (["refinements=none", "sampler.temperature=0.2"], 0, 0.6),
        "model": (["training.lr=1"], 0, 0.7),
        "model, seed 1": (["training.lr=1"], 1, 0.7),
        "cold": (["sampler.temperature=0.2"], 0, 0.9),
        "alone": (["data=mbpp"], 0, 0.9),  # no arm none has these settings
    }
    for i, (name, (overrides, seed, chance)) in enumerate(jobs.items()):
        zero = draw(0.1, *overrides[-1:])
        write_job(tmp_path / "s" / str(i), [*overrides, f"seed={seed}"], draw(chance, name), zero=zero)
    rows = {row["arm"]: row for row in compare(tmp_path / "s")["_arms"]}
    mean = {name: column(draw(chance, name), 1).mean() for name, (_, _, chance) in jobs.items()}
    model = rows["model, training.lr=1"]
    expected = (mean["model"] - mean["none"] + mean["model, seed 1"] - mean["none, again"]) / 2
    assert float(model["delta_none_pass@1"]) == pytest.approx(expected) and model["delta_none_pass@1_seeds_low"]
    cold = rows["model, sampler.temperature=0.2"]
    assert float(cold["delta_none_pass@1"]) == pytest.approx(mean["cold"] - mean["none, cold"])
    assert rows["model, data=mbpp"]["delta_none_pass@1"] == ""


# ---- planned comparisons -------------------------------------------------------------------------------------------


def test_correction_of_planned_pairs_does_not_depend_on_other_arms(tmp_path):
    plan = [["model", "gold"], ["zero-shot", "model"]]
    few = write_sweep(tmp_path / "few", ["gold", "model"], [0, 1])
    many = write_sweep(tmp_path / "many", list(CHANCES), [0, 1])
    for i in range(6):
        write_job(many / f"9{i}", ["refinements=self", f"training.lr={i + 1}"], draw(0.4, i))
    alone, crowd = (
        [row for row in compare(s, planned=plan)["_pairs"] if row["family"] == "planned"] for s in (few, many)
    )
    assert alone == crowd and len(alone) == 2 * len(K)
    for k in K:
        rows = {(row["arm"], row["against"]): row for row in alone if row["metric"] == f"pass@{k}"}
        assert list(rows) == [tuple(pair) for pair in plan]  # in the planned direction
        least = min(rows.values(), key=lambda row: float(row["p"]))
        assert float(least["p_holm"]) == pytest.approx(min(1, 2 * float(least["p"])))


def test_planned_and_exploratory_pairs_are_corrected_separately(tmp_path):
    sweep = write_sweep(tmp_path / "s", list(CHANCES), [0, 1])
    plan = [["model", "gold"], ["model", "none"], ["self", "gold"]]
    found = compare(sweep, planned=plan)
    (row,) = [row for row in found["_pairs"] if row["family"] == "planned" and row["metric"] == "pass@1"]
    assert float(row["p_holm"]) == pytest.approx(min(1, 3 * float(row["p"])))
    rest = [row for row in found["_pairs"] if row["family"] == "exploratory" and row["metric"] == "pass@1"]
    least = min(rest, key=lambda row: float(row["p"]))
    assert len(rest) == 5 and float(least["p_holm"]) == pytest.approx(min(1, 5 * float(least["p"])))
    assert not any({row["arm"], row["against"]} == {"model", "gold"} for row in rest)
    first, second = found["text"].split("All other pairs of arms")
    assert first.startswith("Planned comparisons") and "| pass@1 | model | gold |" in first
    assert "exploratory" in second and "| model | gold |" not in second and "| gold | model |" not in second
    labels = "; ".join(LABELS)
    for label in ("none", "self"):
        assert f"{label} is no arm's name, and there are: {labels}." in found["text"]
    unplanned = compare(sweep)
    assert {row["family"] for row in unplanned["_pairs"]} == {"all"}
    assert "lanned" not in unplanned["text"] and "exploratory" not in unplanned["text"]


def test_planned_pair_can_use_an_unambiguous_prefix_of_a_label(tmp_path):
    for i, overrides in enumerate([["refinements=gold", "training.lr=1"], ["training.lr=1"], ["training.lr=2"]]):
        write_job(tmp_path / "s" / str(i), overrides, draw(0.5, i))
    full = "model, training.lr=2"
    found = compare(tmp_path / "s", planned=[["gold", full], ["model", "gold"], ["model, training.lr=1", "gold"]])
    planned = [row for row in found["_pairs"] if row["family"] == "planned" and row["metric"] == "pass@1"]
    gold = "gold, training.lr=1"
    assert [(row["arm"], row["against"]) for row in planned] == [(gold, full), ("model, training.lr=1", gold)]
    assert f"model is the name of several arms: model, training.lr=1; {full}." in found["text"]
    # A complete label names its arm, even if other labels begin with it.
    write_job(tmp_path / "s" / "4", [], draw(0.5, 4))
    found = compare(tmp_path / "s", planned=[["model", "gold"], ["gold", gold]])
    assert find_row(found["_pairs"], arm="model", against=gold, metric="pass@1")["family"] == "planned"
    assert f"gold and {gold}: both are the arm {gold}" in found["text"]


def test_planned_pair_with_a_failed_arm_is_noted(tmp_path):
    write_job(tmp_path / "s" / "0", ["refinements=gold"], draw(0.5))
    write_failure(tmp_path / "s" / "1", ["refinements=none"], "no memory")
    assert "gold and none: none has no results" in compare(tmp_path / "s", planned=[["gold", "none"]])["text"]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("[model,gold]", r"compare\.pairs='model'.*list of two names.*\[\[model,gold\],\[model,none\]\]"),
        ("[[model]]", r"compare\.pairs=\['model'\].*list of two names"),
        ("[[model,gold,none]]", "list of two names"),
        ("[[model,null]]", "list of two names"),
        ("[[model,1]]", "list of two names"),
        ("[[model,'']]", "list of two names"),
        ("[[model,model]]", r"compare\.pairs=\['model', 'model'\].*same arm twice"),
        ("[[model,gold],[gold,model]]", r"compare\.pairs=\['gold', 'model'\].*planned twice"),
    ],
)
@pytest.mark.parametrize("mode", ["run", "compare"])
def test_malformed_planned_pair_is_a_configuration_error(pairs, message, mode):
    with pytest.raises(InputError, match=message):
        compose_settings(f"mode={mode}", f"compare.pairs={pairs}", sweep=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["mode=compare", "compare=[a,b]"],
            "compare='[a,b]': is no longer a setting. Use its new name, compare.folders.",
        ),
        (["-m", "compare.pairs=[[model,model]]", "hydra.sweep.dir=out"], "names the same arm twice"),
    ],
)
def test_invalid_compare_settings_stop_the_command_before_any_job(arguments, said, tmp_path, cli):
    done = cli(*arguments)
    assert done.returncode != 0 and said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "0_model_seed0").exists()


# ---- other data sets -----------------------------------------------------------------------------------------------


def transfer(chance: float, *seed: object, data: str = "humaneval", sha: str = "h") -> dict:
    zero, tuned = draw(0.2, "transfer", data, sha), draw(chance, "transfer", *seed)
    delta = {f"pass@{k}": difference(column(zero, k), column(tuned, k)) for k in K}
    return {"data": data, "data_sha256": sha, "zero_shot": part(zero), "finetuned": part(tuned), "delta": delta}


def test_transfer_data_set_has_its_own_metrics(tmp_path):
    for i, (arm, chance) in enumerate({"gold": 0.3, "model": 0.7}.items()):
        write_job(tmp_path / "s" / str(i), [f"refinements={arm}"], draw(0.5, i), transfer=transfer(chance, arm))
    write_job(tmp_path / "s" / "2", ["refinements=self", "data@transfer=null"], draw(0.5, 2), transfer=None)
    found = compare(tmp_path / "s", planned=[["model", "gold"]])
    zero, gold, model = (draw(c, "transfer", *s) for c, *s in ((0.2, "humaneval", "h"), (0.3, "gold"), (0.7, "model")))
    for k in K:
        name = f"humaneval pass@{k}"
        rows = {row["arm"]: row for row in found["_arms"]}
        assert float(rows["zero-shot"][name]) == pytest.approx(column(zero, k).mean())
        assert float(rows["model"][name]) == pytest.approx(column(model, k).mean())
        assert rows["self, data@transfer=null"][name] == "" != rows["self, data@transfer=null"][f"pass@{k}"]
        expected = difference(column(zero, k), column(model, k))
        assert float(rows["model"][f"delta_{name}"]) == pytest.approx(expected["mean"])
        job = find_row(found[""], folder="1")
        assert float(job[f"finetuned_{name}"]) == pytest.approx(column(model, k).mean())
        assert float(job[f"p_{name}"]) == pytest.approx(expected["p_value"]) and f"refiner_{name}" not in job
        pair = find_row(found["_pairs"], arm="model", against="gold", metric=name)
        expected = difference(column(gold, k), column(model, k))
        assert float(pair["points"]) == pytest.approx(100 * expected["mean"]) and pair["family"] == "planned"
        # Zero-shot, gold and model make three pairs of this metric. Two are not planned and are corrected together.
        rest = [row for row in found["_pairs"] if row["metric"] == name and row["family"] == "exploratory"]
        least = min(rest, key=lambda row: float(row["p"]))
        assert len(rest) == 2 and float(least["p_holm"]) == pytest.approx(min(1, 2 * float(least["p"])))
        assert f"| run | {name} (%) | delta {name} (points) | p (Holm) |" in found["text"]
    assert found["text"].count("| self, data@transfer=null |") >= len(K)


def test_plot_has_one_panel_per_transfer_data_set(tmp_path):
    for i, name in enumerate(("plain", "humaneval", "mbpp")):
        other = transfer(0.5, name, data=name) if i else None
        write_job(tmp_path / "one" / name, ["seed=0"], draw(0.5), transfer=other)
        write_job(tmp_path / "three" / name, [f"seed={i}"], draw(0.5), transfer=other)
    plain, humaneval, three = (
        int.from_bytes(compare(folder)["png"].read_bytes()[16:20], "big")
        for folder in (tmp_path / "one" / "plain", tmp_path / "one" / "humaneval", tmp_path / "three")
    )
    assert 0 < humaneval - plain == three - humaneval
    assert humaneval - plain < plain / len(K)  # `plain` has one panel for each k


def test_data_sets_with_the_same_name_and_different_content_stay_separate(tmp_path):
    for i, sha in enumerate(("aaaaaaaaa", "bbbbbbbbb")):
        one = transfer(0.5, i, data="jsonl", sha=sha)
        write_job(tmp_path / "s" / str(i), [f"transfer.path={sha}"], draw(0.5, i), transfer=one)
    rows = {row["arm"]: row for row in compare(tmp_path / "s")["_arms"]}
    for i, sha in enumerate(("aaaaaaaaa", "bbbbbbbbb")):
        name = f"jsonl_{sha[:6]} pass@1"
        zero = column(draw(0.2, "transfer", "jsonl", sha), 1)
        assert float(rows["zero-shot"][name]) == pytest.approx(zero.mean())
        own = rows[f"model, transfer.path={sha}"]
        assert float(own[f"delta_{name}"]) == pytest.approx((column(draw(0.5, "transfer", i), 1) - zero).mean())
        assert own[f"jsonl_{'aaaaaabbbbbb'[6 - 6 * i : 12 - 6 * i]} pass@1"] == ""


def test_results_json_of_an_older_version_is_an_error_with_advice(tmp_path):
    folder = write_job(tmp_path / "s" / "0", [], draw(0.5))
    results = json.loads((folder / "results.json").read_text())
    del results["finetuned"]["per_task"]
    (folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(InputError, match=r"0/results\.json.*per_task.*again"):
        compare(tmp_path / "s")


def test_compare_command_writes_into_its_own_folder(tmp_path, cli):
    first = write_sweep(tmp_path / "a", ["gold"], [0, 1])
    write_sweep(tmp_path / "b", ["model"], [0, 1])
    # The command loads no model, so a missing model folder is not an error.
    done = cli("mode=compare", "compare.folders=[a,b]", "hydra.run.dir=out", "model=local", "model.path=nowhere")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert str(tmp_path / "out" / "comparison.png") in done.stdout and "delta (points)" in done.stdout
    assert "| gold | 2 |" in text and "| model | 2 |" in text
    assert not (first / "comparison.md").exists()


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ("[]", r"compare\.folders=\[\].*at least one folder.*multirun/A"),
        ("[nowhere]", r"compare\.folders='nowhere'.*no such folder"),
        ("[{empty}]", r"compare\.folders='.*empty'.*at least one finished job"),
    ],
)
def test_folders_that_cannot_be_compared_are_a_configuration_error(folders, message, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        compose_settings("mode=compare", f"compare.folders={folders.format(empty=tmp_path / 'empty')}")


def test_sweep_records_failed_jobs_until_a_rerun_succeeds(tmp_path, cli):
    settings = ["sampler.n=4", "evaluate.k=[1]", "logger=none", "data.limit.test=2", "stages=[zero_shot]"]
    plan = "compare.pairs=[[humna,zero-shot]]"
    sweep = ["-m", "hydra.sweep.dir=out", "sampler.temperature=0,0.8", "refinements=human", plan, *settings]
    assert cli(*sweep).returncode != 0
    rows = list(csv.DictReader((tmp_path / "out" / "comparison.csv").open()))
    assert [row["status"] for row in rows] == ["failed", "partial"]
    assert "sampler.temperature" in rows[0]["error"] and (rows[0]["data"], rows[0]["feedback"]) == ("mini", "scripted")
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| human, sampler.temperature=0 | 0 (1 failed) |" in text and "scripted annotator, not of people" in text
    assert "Planned but not compared: humna and zero-shot: humna is no arm's name, and there are: " in text
    assert cli(*[part.replace("=0,0.8", "=0.7") for part in sweep]).returncode == 0
    rows = list(csv.DictReader((tmp_path / "out" / "comparison.csv").open()))
    assert [row["status"] for row in rows] == ["partial", "partial"]
    assert not list((tmp_path / "out").glob("*/failed.json"))


def test_a_failed_job_does_not_prevent_the_selection_among_the_others(tmp_path, cli):
    few = [
        "sampler.n=2",
        "evaluate.k=[1]",
        "measure=[]",
        *(f"data.limit.{one}=8" for one in ("test", "refine", "train")),
    ]
    search = ["select=1", "select_min_programs=8", "stages=[sample,annotate,train_refiner,refine,train_policy]"]
    own = ["refinements=gold", "refinements.tasks=annotated", "logger=none", "hydra.sweep.dir=out"]
    done = cli("-m", "sampler.temperature=0,0.8", *few, *search, *own)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: 0_gold_seed0: sampler.temperature=")
    assert json.loads((tmp_path / "out" / "chosen" / "gold_seed0" / "results.json").read_text())["status"] == "complete"


def test_failed_job_releases_the_objects_in_its_traceback(tmp_path):
    """Hydra keeps the errors of all jobs of a sweep. Their tracebacks must not keep models in memory."""

    class Model:
        pass

    def train(model, held):
        held.append(weakref.ref(model))
        raise RuntimeError("out of memory")

    def job(held):
        try:
            train(Model(), held)
        except RuntimeError as error:
            raise ValueError("the run failed") from error

    held = []
    try:
        job(held)
    except ValueError as error:
        failed = JobReturn()
        failed.status, failed.return_value = JobStatus.FAILED, error
    own = {"feedback": "annotator"}
    config = OmegaConf.create(
        {
            "mode": "run",
            "arm": "gold",
            "seed": 0,
            "compare": {"pairs": []},
            "hydra": {
                "runtime": {"output_dir": str(tmp_path), "choices": {**dict.fromkeys(FIELDS.values(), "mini"), **own}},
                "mode": "MULTIRUN",
                "sweep": {"dir": str(tmp_path)},
            },
            "feedback": {"writer": "scripted"},
        }
    )
    assert held[0]() is not None
    JobCallback().on_job_end(config, failed)
    assert held[0]() is None
    assert json.loads((tmp_path / "failed.json").read_text())["error"] == "the run failed"
    assert json.loads((tmp_path / "failed.json").read_text())["feedback"] == "scripted"
