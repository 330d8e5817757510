"""comparison*: the arms of one or several sweeps side by side, made anew as each job ends."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from ilf.analysis.arms import Arm, Row, arms_of
from ilf.analysis.comparison_page import markdown, plot
from ilf.analysis.jobs import FIELDS, Job, read_jobs
from ilf.analysis.schema import PARTS, Reported
from ilf.analysis.statistics import Difference, bootstrap_ci95, holm, over_seeds, paired, t_ci95
from ilf.files import to_csv, write_atomically


@dataclass(frozen=True)
class Pair:
    """Two arms compared over the tasks that both have."""

    name: str  # the metric
    before: Arm
    after: Arm
    tasks: int
    seeds: int  # that both have
    found: Difference


def write_comparison(target: Path, sweeps: Sequence[Path]) -> None:
    """Write into `target` the comparison of all jobs that have ended. Safe to call from several jobs at once.

    Args:
        target: The folder to write to.
        sweeps: Folders of sweeps, or of single runs; the later one stands where two have the same job.

    Raises:
        InputError: A results.json is of an older version.
    """
    with FileLock(target / ".comparison.lock"):
        jobs, notes = read_jobs(sweeps)
        if jobs:
            _write(target, jobs, notes)


def _write(target: Path, jobs: list[Job], notes: list[str]) -> None:
    names = list(dict.fromkeys(name for job in jobs for part in PARTS for name in (job[part] or {}).get("ci95", {})))
    zero, arms = arms_of(jobs, notes)
    everyone = [*zero.values(), *arms]
    pairs = [pair for name in names for pair in _pairs(everyone, name, notes if name == names[0] else [])]
    rows = [_arm_row(arm, names) for arm in everyone]
    for name in names:
        own = {
            pair.after: pair
            for pair in pairs
            if pair.name == name and pair.before is zero.get(pair.after.jobs[0]["zero_label"])
        }
        corrected = dict(zip(own, holm([pair.found["p_value"] for pair in own.values()]), strict=True))
        for arm, row in zip(everyone, rows, strict=True):
            found = own[arm].found if arm in own else None
            row[f"delta_{name}"] = found and found["mean"]
            row[f"delta_{name}_low"], row[f"delta_{name}_high"] = found["ci95"] if found else (None, None)
            row[f"p_{name}"], row[f"p_holm_{name}"] = found and found["p_value"], corrected.get(arm)
    pair_rows = [row for name in names for row in _pair_rows([pair for pair in pairs if pair.name == name])]
    write_atomically(target / "comparison.csv", _csv(_job_rows(jobs, names)))
    write_atomically(target / "comparison_arms.csv", _csv(rows))
    write_atomically(target / "comparison_pairs.csv", _csv(pair_rows))
    notes = [*_notes(jobs), *notes]
    write_atomically(target / "comparison.md", markdown(jobs, everyone, rows, pair_rows, names, notes))
    plot(target, jobs, everyone, rows, names)


def _notes(jobs: list[Job]) -> list[str]:
    """Return what of the jobs themselves limits the comparison."""
    notes = [
        f"{job['folder']} ended with status {job['status']}."
        for job in jobs
        if job["status"] not in ("complete", "failed")
    ]
    for one, other in itertools.combinations(jobs, 2):
        if one["seed"] == other["seed"] and one.get("entries", {}) == other.get("entries") != {}:
            notes.append(
                f"{one['label']} and {other['label']}, seed {one['seed']}, are the same result: nothing in these "
                "runs reads what sets them apart."
            )
    trained = [job for job in jobs if job["training_task_ids"]]
    ids = {(job["seed"], json.dumps(job["training_task_ids"])) for job in trained}
    if not all(job["matched"] for job in jobs if job["status"] != "failed") or len(ids) > len(
        {seed for seed, _ in ids}
    ):
        notes.append("Unmatched: not all arms trained on the same task ids.")
    return notes


def _pairs(arms: Collection[Arm], name: str, notes: list[str]) -> list[Pair]:
    values = {arm: found for arm in arms if (found := arm.values(arm.part, name))}
    pairs, skipped = [], []
    for before, after in itertools.combinations(values, 2):
        # The same seed gives both arms the same draws before fine-tuning: what they share there cancels.
        shared = values[before].keys() & values[after].keys()
        x, y = (over_seeds(values[arm][seed] for seed in shared or values[arm]) for arm in (before, after))
        tasks = sorted(x.keys() & y.keys(), key=int)
        if before.data_sha256 != after.data_sha256 or not tasks:
            skipped.append(f"{before.label} and {after.label}")
            continue
        difference = paired(np.array([x[task] for task in tasks]), np.array([y[task] for task in tasks]))
        pairs.append(Pair(name, before, after, len(tasks), len(shared), difference))
    apart = [f"{pair.before.label} and {pair.after.label}" for pair in pairs if not pair.seeds]
    for what, named in (("Not compared, being on different tasks", skipped), ("Compared over different seeds", apart)):
        if named:
            more = f"; and {len(named) - 5} more pairs" if len(named) > 5 else ""
            notes.append(f"{what}: {'; '.join(named[:5])}{more}.")
    return pairs


# ---- rows ----------------------------------------------------------------------------------------------------------


def _csv(rows: Sequence[Row]) -> str:
    return to_csv(rows, list(rows[0]) if rows else [])


def _job_rows(jobs: list[Job], names: list[str]) -> list[Row]:
    corrected = {}
    for name in names:
        tested = {i: by_name[name]["p_value"] for i, job in enumerate(jobs) if name in (by_name := job["delta"] or {})}
        for i, p in zip(tested, holm(list(tested.values())), strict=True):
            corrected[i, name] = p
    rows = []
    for i, job in enumerate(jobs):
        row: Row = {
            "folder": job["folder"],
            "arm": job["label"],
            "status": job["status"],
            "error": job["error"],
            **{field: job[field] for field in FIELDS},
            "seed": job["seed"],
            "training_examples": job["counts"]["training_examples"],
        }
        for name in names:
            for part in PARTS:
                found = job[part] or {}
                row[f"{part}_{name}"] = found.get(name)
                row[f"{part}_{name}_low"], row[f"{part}_{name}_high"] = found.get("ci95", {}).get(name, (None, None))
            delta = (job["delta"] or {}).get(name)
            row |= {
                f"delta_{name}": delta and delta["mean"],
                f"p_{name}": delta and delta["p_value"],
                f"p_holm_{name}": corrected.get((i, name)),
            }
        rows.append(row)
    return rows


def _arm_row(arm: Arm, names: list[str]) -> Row:
    own = arm.part == "finetuned"  # zero-shot has no examples
    examples = sorted({n for job in arm.jobs if own and (n := job["counts"]["training_examples"]) is not None})
    row: Row = {
        "arm": arm.label,
        "seeds": sum(job["status"] != "failed" for job in arm.jobs),
        "failed": sum(job["status"] == "failed" for job in arm.jobs),
        "training_examples": "-".join(map(str, dict.fromkeys([*examples[:1], *examples[-1:]]))),
    }
    for name in names:
        columns: dict[str, Reported] = {f"refiner_{name}": "refiner", name: arm.part}
        for column, part in columns.items():
            values = arm.values(part, name)
            over_tasks = np.array(list(over_seeds(values.values()).values()))
            nothing = (None, None)
            row[column] = float(over_tasks.mean()) if values else None
            row[f"{column}_low"], row[f"{column}_high"] = bootstrap_ci95(over_tasks) if values else nothing
            row[f"{column}_seeds_low"], row[f"{column}_seeds_high"] = t_ci95(arm.means(part, name)) or nothing
    return row


def _pair_rows(pairs: list[Pair]) -> list[Row]:
    rows = []
    for pair, p_holm in zip(pairs, holm([pair.found["p_value"] for pair in pairs]), strict=True):
        found, smallest = pair.found, pair.found["smallest_detectable"]
        rows.append(
            {
                "metric": pair.name,
                "arm": pair.after.label,
                "against": pair.before.label,
                "tasks": pair.tasks,
                "shared_seeds": pair.seeds,
                "points": 100 * found["mean"],
                "points_low": 100 * found["ci95"][0],
                "points_high": 100 * found["ci95"][1],
                "p": found["p_value"],
                "p_holm": p_holm,
                "smallest_detectable_points": None if smallest is None else 100 * smallest,
            }
        )
    return rows
