"""comparison*: the arms of one or several sweeps side by side, rewritten each time a job ends."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock

from ilf.analysis.arms import Arm, Arms, Pair, Row, arms_of, pair_of, planned_pair
from ilf.analysis.comparison_page import markdown, plot, plot_pairs
from ilf.analysis.jobs import FIELDS, Job, measured, metric_names, read_jobs, scripted_note
from ilf.analysis.schema import PARTS, Reported
from ilf.analysis.statistics import holm, over_seeds, rate_ci95, t_ci95, task_means
from ilf.files import to_csv, write_atomically

_NOTHING = (None, None)  # in place of an interval


def write_comparison(target: Path, sweeps: Sequence[Path], planned: Sequence[Sequence[str]] = ()) -> None:
    """Write the comparison of all finished jobs to `target`. Safe to call from several jobs at once.

    Args:
        target: The folder to write to.
        sweeps: Folders of sweeps or of single runs. If two have the same job, the later one counts.
        planned: The planned comparisons, as pairs of labels: an arm, and the arm that it is compared against.

    Raises:
        InputError: An older version wrote one of the results.json files.
    """
    with FileLock(target / ".comparison.lock"):
        jobs, notes = read_jobs(sweeps)
        if jobs:
            _write(target, jobs, planned, notes)


def _write(target: Path, jobs: list[Job], planned: Sequence[Sequence[str]], notes: list[str]) -> None:
    names = metric_names(jobs)
    arms = arms_of(jobs, notes)
    plan = [pair for labels in planned if (pair := planned_pair(labels, arms.shown, notes))]
    others = [pair for pair in itertools.combinations(arms.shown, 2) if set(pair) not in map(set, plan)]
    rows = [_arm_row(arm, names) for arm in arms.shown]
    pair_rows = []
    for name in names:
        _add_differences(rows, arms, name)
        said = notes if name == names[0] else []
        # The correction counts all planned comparisons, including those whose jobs have not finished.
        pair_rows += _pair_rows(_pairs(plan, name, said), "planned", len(planned))
        rest = _pairs(others, name, said)
        pair_rows += _pair_rows(rest, "exploratory" if planned else "all", len(rest))
    write_atomically(target / "comparison.csv", _csv(_job_rows(jobs, names)))
    write_atomically(target / "comparison_arms.csv", _csv(rows))
    write_atomically(target / "comparison_pairs.csv", _csv(pair_rows))
    notes = [*_notes(jobs), *notes]
    write_atomically(target / "comparison.md", markdown(jobs, arms.shown, rows, pair_rows, names, notes))
    plot(target, jobs, arms.shown, rows, names)
    plot_pairs(target, jobs, pair_rows, names)


def _notes(jobs: list[Job]) -> list[str]:
    """Return notes on the jobs that limit the comparison."""
    notes = [
        f"{job['folder']} ended with status {job['status']}."
        for job in jobs
        if job["status"] not in ("complete", "failed")
    ]
    for one, other in itertools.combinations(jobs, 2):
        if one["seed"] == other["seed"] and one.get("entries", {}) == other.get("entries") != {}:
            notes.append(
                f"{one['label']} and {other['label']}, seed {one['seed']}, have the same result: nothing in these "
                "runs reads what sets them apart."
            )
    trained = [job for job in jobs if job["training_task_ids"]]
    ids = {(job["seed"], json.dumps(job["training_task_ids"])) for job in trained}
    if not all(job["matched"] for job in jobs if job["status"] != "failed") or len(ids) > len(
        {seed for seed, _ in ids}
    ):
        notes.append("Unmatched: not all arms trained on the same task ids.")
    arms, annotators = ({job["refinements"] for job in jobs}, {job["annotator"] for job in jobs})
    return [*filter(None, [scripted_note(arms, annotators)]), *notes]


# ---- pairs ---------------------------------------------------------------------------------------------------------


def _pairs(arms: Iterable[tuple[Arm, Arm]], name: str, notes: list[str]) -> list[Pair]:
    """Return pairs of arms compared by a metric, and add notes on those that cannot be compared."""
    both = [pair for pair in arms if all(arm.values(arm.part, name) for arm in pair)]
    found = {pair: pair_of(*pair, name) for pair in both}
    pairs = [pair for pair in found.values() if pair]
    skipped = [f"{before.label} and {after.label}" for (before, after), pair in found.items() if not pair]
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
    deltas = {
        (i, name): found[own]
        for i, job in enumerate(jobs)
        for name in names
        for results, own in [measured(job, name)]
        if own in (found := results.get("delta") or {})
    }
    corrected: dict[tuple[int, str], float] = {}
    for name in names:
        tested = {key: delta["p_value"] for key, delta in deltas.items() if key[1] == name}
        corrected |= dict(zip(tested, holm(list(tested.values())), strict=True))
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
            results, own = measured(job, name)
            for part in _parts(name):
                found = results.get(part) or {}
                row[f"{part}_{name}"] = found.get(own)
                row[f"{part}_{name}_low"], row[f"{part}_{name}_high"] = found.get("ci95", {}).get(own, _NOTHING)
            delta = deltas.get((i, name))
            row |= {
                f"delta_{name}": delta and delta["mean"],
                f"p_{name}": delta and delta["p_value"],
                f"p_holm_{name}": corrected.get((i, name)),
            }
        rows.append(row)
    return rows


def _parts(name: str) -> list[Reported]:
    """Return the keys of results.json that may hold a metric. The refiner is not evaluated on another data set."""
    return [part for part in PARTS if part != "refiner" or " " not in name]


def _arm_row(arm: Arm, names: list[str]) -> Row:
    own = arm.part == "finetuned"  # zero-shot has no training examples
    examples = sorted({n for job in arm.jobs if own and (n := job["counts"]["training_examples"]) is not None})
    row: Row = {
        "arm": arm.label,
        "seeds": arm.seeds(failed=False),
        "failed": arm.seeds(failed=True),
        "training_examples": "-".join(map(str, dict.fromkeys([*examples[:1], *examples[-1:]]))),
    }
    for name in names:
        columns: dict[str, Reported] = {f"refiner_{name}": "refiner"} if "refiner" in _parts(name) else {}
        for column, part in (columns | {name: arm.part}).items():
            values = arm.values(part, name)
            means, weights = task_means(over_seeds(values.values()))
            row[column] = float(np.average(means, weights=weights)) if values else None
            row[f"{column}_low"], row[f"{column}_high"] = rate_ci95(means, weights) if values else _NOTHING
            row[f"{column}_seeds_low"], row[f"{column}_seeds_high"] = t_ci95(arm.means(part, name)) or _NOTHING
    return row


def _add_differences(rows: list[Row], arms: Arms, name: str) -> None:
    """Add to the arms' rows their difference to zero-shot and, if there is one, to the untrained policy."""
    for prefix, baselines in {"": arms.zero, "none_": arms.none}.items():
        if prefix and not baselines:
            continue
        found = {}
        for arm in arms.own:
            baseline = baselines.get(arm.jobs[0]["zero_label"])
            if baseline and (arm.trains or not prefix) and (pair := pair_of(baseline, arm, name)):
                found[arm] = pair
        corrected = dict(zip(found, holm([pair.found["p_value"] for pair in found.values()]), strict=True))
        for arm, row in zip(arms.shown, rows, strict=True):
            one, column = found.get(arm), f"{prefix}{name}"
            difference = one and one.found
            row[f"delta_{column}"] = difference and difference["mean"]
            row[f"delta_{column}_low"], row[f"delta_{column}_high"] = difference["ci95"] if difference else _NOTHING
            over = (one and one.seeds_ci95) or _NOTHING
            row[f"delta_{column}_seeds_low"], row[f"delta_{column}_seeds_high"] = over
            row[f"p_{column}"], row[f"p_holm_{column}"] = difference and difference["p_value"], corrected.get(arm)


def _pair_rows(pairs: list[Pair], family: str, size: int) -> list[Row]:
    """Return the rows of pairs of arms.

    Args:
        pairs: The pairs, compared by one metric.
        family: The pairs that Holm's correction is over: "planned", all others ("exploratory"), or "all".
        size: The number of pairs in the family.
    """
    p_values = [pair.found["p_value"] for pair in pairs]
    corrected = holm(p_values + [1.0] * (size - len(pairs)))
    rows = []
    for pair, p_holm in zip(pairs, corrected, strict=False):
        found, smallest = pair.found, pair.found["smallest_detectable"]
        seeds = pair.seeds_ci95 or _NOTHING
        rows.append(
            {
                "metric": pair.name,
                "family": family,
                "arm": pair.after.label,
                "against": pair.before.label,
                "tasks": pair.tasks,
                "shared_seeds": pair.seeds,
                "points": 100 * found["mean"],
                "points_low": 100 * found["ci95"][0],
                "points_high": 100 * found["ci95"][1],
                "points_seeds_low": None if seeds[0] is None else 100 * seeds[0],
                "points_seeds_high": None if seeds[1] is None else 100 * seeds[1],
                "p": found["p_value"],
                "p_holm": p_holm,
                "smallest_detectable_points": None if smallest is None else 100 * smallest,
            }
        )
    return rows
