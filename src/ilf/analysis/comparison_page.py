"""comparison.md and comparison.png: a comparison to read and to look at."""

from __future__ import annotations

import os
from pathlib import Path

from ilf.analysis.arms import Arm, Row
from ilf.analysis.jobs import Job
from ilf.analysis.markdown import inline, table
from ilf.analysis.plots import Point, bars
from ilf.analysis.wording import model_name, p_text, percent

_SHOWN_PAIRS = 15  # in comparison.md; more are in comparison_pairs.csv


def _interval(row: Row, name: str) -> str:
    return "" if row[name] is None else percent(row[name], [row[f"{name}_low"], row[f"{name}_high"]])


def _p(value: float | None) -> str:
    return "" if value is None else p_text(value).removeprefix("= ")


def _arm_cells(arm: Arm, row: Row, names: list[str], several: bool) -> list[str]:
    seeds = f"{row['seeds']} ({row['failed']} failed)" if row["failed"] else str(row["seeds"])
    cells = [arm.label, seeds, row["training_examples"], *(_interval(row, f"refiner_{name}") for name in names[:1])]
    for name in names:
        low, high = row[f"{name}_seeds_low"], row[f"{name}_seeds_high"]
        cells.append(_interval(row, name) or (arm.status if name == names[0] else ""))
        cells += ["" if low is None else f"[{100 * low:.1f}, {100 * high:.1f}]"] if several else []
    return cells + [_interval(row, f"delta_{name}") for name in names] + [_p(row[f"p_holm_{name}"]) for name in names]


def markdown(
    jobs: list[Job], arms: list[Arm], rows: list[Row], pairs: list[Row], names: list[str], notes: list[str]
) -> str:
    """Return comparison.md.

    Args:
        jobs: All that have ended.
        arms: Zero-shot first.
        rows: Of comparison_arms.csv, one an arm.
        pairs: Rows of comparison_pairs.csv.
        names: Of the metrics, such as pass@1.
        notes: What limits the comparison.
    """
    several = any(row["seeds"] > 1 for row in rows)
    head = ["run", "seeds", "examples", *(f"refiner {name} (%)" for name in names[:1])]
    for name in names:
        head += [f"{name} (%)", *(["over seeds"] if several else [])]
    head += [*(f"delta {name} (points)" for name in names), *(f"p {name} (Holm)" for name in names)]
    lines = [
        *table(head, (_arm_cells(arm, row, names, several) for arm, row in zip(arms, rows, strict=True))),
        "",
        "pass@k on Test (the refiner's: on the annotated Train tasks) in percent: the mean over seeds within a task, "
        "then over tasks, with its 95% interval over tasks"
        + ("; over seeds: Student's 95% interval" if several else "")
        + ". delta is paired over tasks against zero-shot; p is a two-sided sign-flip permutation test, Holm-corrected "
        "over the arms.",
    ]
    first = [row for row in pairs if row["metric"] == names[0]]
    if first:
        shown = first if len(first) <= _SHOWN_PAIRS else sorted(first, key=lambda row: row["p"])[:_SHOWN_PAIRS]
        lines += [
            "",
            f"Every two arms on the tasks and seeds that both have, {names[0]}"
            + (f": the {_SHOWN_PAIRS} smallest p of {len(first)} pairs" if len(first) > _SHOWN_PAIRS else "")
            + " (Holm-corrected over all pairs):",
            "",
            *table(
                ["arm", "against", "difference (points)", "p", "p (Holm)", "smallest detectable"],
                (_pair_cells(row) for row in shown),
            ),
        ]
    failed = [job for job in jobs if job["status"] == "failed"]
    if failed:
        cells = [[job["folder"], job["label"], str(job["seed"]), job["error"]] for job in failed]
        lines += ["", "Failed jobs:", "", *table(["job", "run", "seed", "error"], cells)]
    return "\n".join([*lines, *([""] if notes else []), *(f"- {inline(note)}" for note in notes), ""])


def _pair_cells(row: Row) -> list[str]:
    smallest = row["smallest_detectable_points"]
    return [
        row["arm"],
        row["against"],
        f"{row['points']:+.1f} [{row['points_low']:+.1f}, {row['points_high']:+.1f}]",
        _p(row["p"]),
        _p(row["p_holm"]),
        "unknown" if smallest is None else f"{smallest:.1f}",
    ]


def plot(target: Path, jobs: list[Job], arms: list[Arm], rows: list[Row], names: list[str]) -> None:
    """Draw comparison.png: each arm's pass@k with its interval over tasks, and a point for each seed."""

    def points(column: str) -> list[Point]:
        return [
            row[column] if row[column] is None else (row[column], row[f"{column}_low"], row[f"{column}_high"])
            for row in rows
        ]

    # An arm without any figure has its status there: "failed", or how far it was to go.
    states = [
        None if any(row[name] is not None for name in names) else arm.status
        for arm, row in zip(arms, rows, strict=True)
    ]
    series: dict[str, list[Point]] = {
        name: [point or state for point, state in zip(points(name), states, strict=True)] for name in names
    } or {"pass@k": list(states)}
    seeds = {name: [arm.means(arm.part, name) for arm in arms] for name in names}
    for name in names[:1]:
        refiners = points(f"refiner_{name}")
        if len({point for point in refiners if point}) > 1:  # else it is the same for all
            series[f"refiner {name}"] = refiners
            seeds[f"refiner {name}"] = [arm.means("refiner", name) for arm in arms]
    known = [job for job in jobs if job["status"] != "failed"]
    data, models = (", ".join(dict.fromkeys(found)) for found in ([j["data"] for j in known], map(model_name, known)))
    scratch = target / f".comparison.{os.getpid()}.png"
    title = f"data {data}, model {models}" if known else "no job has figures"
    bars(scratch, [arm.label for arm in arms], series, title, seeds)
    scratch.replace(target / "comparison.png")
