"""comparison.md, comparison.png and comparison_pairs.png: the page and the plots of a comparison."""

from __future__ import annotations

from pathlib import Path

from ilf.analysis.arms import Arm, Row
from ilf.analysis.formatting import model_name, p_text, percent
from ilf.analysis.jobs import Job
from ilf.analysis.markdown import inline, table
from ilf.analysis.plots import Point, bars, differences
from ilf.analysis.sentences import ONE_SEED
from ilf.files import replacing

_SHOWN_PAIRS = 15  # at most, in comparison.md; comparison_pairs.csv has all


def interval(row: Row, column: str) -> str:
    """Return a proportion of a row with its 95% interval over tasks, in percent; empty if there is none."""
    return "" if row[column] is None else percent(row[column], [row[f"{column}_low"], row[f"{column}_high"]])


def _over_seeds(low: float | None, high: float | None, form: str = ".1f") -> str:
    return "" if low is None or high is None else f"[{low:{form}}, {high:{form}}]"


def p_cell(value: float | None) -> str:
    """Return a p-value for a cell of a table; empty if there is none."""
    return "" if value is None else p_text(value).removeprefix("= ")


def _arm_table(arms: list[Arm], rows: list[Row], name: str, first: bool) -> list[str]:
    """Return the table of one metric. The first table has all arms, and the columns that belong to no metric."""
    titles = {name: f"{name} (%)", f"delta_{name}": f"delta {name} (points)", f"delta_none_{name}": "against none"}
    titles = {column: title for column, title in titles.items() if column in rows[0]}
    refiner = f"refiner_{name}" if first and f"refiner_{name}" in rows[0] else None
    several = any(row["seeds"] > 1 for row in rows)
    head = ["run", *(["seeds", "examples"] if first else []), *([f"refiner {name} (%)"] if refiner else [])]
    for column, title in titles.items():
        head += [title, *(["over seeds"] if several else []), *(["p (Holm)"] if column == f"delta_{name}" else [])]
    body = []
    for arm, row in zip(arms, rows, strict=True):
        if not first and row[name] is None:
            continue
        failed = f" ({row['failed']} failed)" if row["failed"] else ""
        cells = [arm.label, *([f"{row['seeds']}{failed}", row["training_examples"]] if first else [])]
        cells += [interval(row, refiner)] if refiner else []
        for column in titles:
            cells.append(interval(row, column) or (arm.status if column == name else ""))
            low, high = (row[f"{column}_seeds_{end}"] for end in ("low", "high"))
            cells += [_over_seeds(low and 100 * low, high and 100 * high)] if several else []
            cells += [p_cell(row[f"p_holm_{name}"])] if column == f"delta_{name}" else []
        body.append(cells)
    return [*table(head, body), ""]


def _legend(rows: list[Row], pairs: list[Row], names: list[str]) -> list[str]:
    """Return the explanation of the numbers and of what each interval covers."""
    said = [
        "pass@k on Test (the refiner's: on the annotated Train tasks) in percent: the mean over seeds and tasks. A "
        "task counts once for each seed that has it."
    ]
    if any(" " in name for name in names):
        said.append("A metric whose name starts with a data set is pass@k on that data set.")
    said += [
        "delta: the difference to zero-shot, paired over tasks. p: two-sided sign-flip permutation test over tasks, "
        "Holm-corrected over the arms.",
        "Brackets hold 95% intervals over tasks. They and p describe the variation between tasks, for these trained "
        "models.",
    ]
    if any(row["seeds"] > 1 for row in rows):
        said.append(
            "over seeds: Student's 95% interval over seeds; of a difference, over the seeds that both arms have. It "
            "describes the variation between trainings, for these tasks."
        )
    else:
        said.append(ONE_SEED)
    if any(key.startswith("delta_none_") for key in rows[0]):
        said.append(
            "against none: the difference, in points, to the untrained policy sampled again. Unlike zero-shot, it is "
            "sampled with the same random numbers as the arms, so part of the noise cancels."
        )
    if any(row["family"] == "exploratory" for row in pairs):
        said.append("All other comparisons are exploratory.")
    return [f"- {line}" for line in said]


def _pair_table(pairs: list[Row], several: bool, metric: bool) -> list[str]:
    head = [*(["metric"] if metric else []), "arm", "against", "difference (points)"]
    head += [*(["over seeds"] if several else []), "p", "p (Holm)", "smallest detectable"]
    body = []
    for row in pairs:
        smallest = row["smallest_detectable_points"]
        cells = [*([row["metric"]] if metric else []), row["arm"], row["against"]]
        cells += [f"{row['points']:+.1f} {_over_seeds(row['points_low'], row['points_high'], '+.1f')}"]
        cells += [_over_seeds(row["points_seeds_low"], row["points_seeds_high"], "+.1f")] if several else []
        cells += [p_cell(row["p"]), p_cell(row["p_holm"]), "unknown" if smallest is None else f"{smallest:.1f}"]
        body.append(cells)
    return [*table(head, body), ""]


def _all_pairs(pairs: list[Row], name: str, several: bool) -> list[str]:
    """Return the table of the first metric's pairs that were not planned; if they are many, those of the smallest p."""
    found = [row for row in pairs if row["metric"] == name and row["family"] != "planned"]
    if not found:
        return []
    exploratory = found[0]["family"] == "exploratory"
    which = f"{'All other' if exploratory else 'All'} pairs of arms, on their common tasks and seeds, {name}"
    shown = _smallest_p(found)
    if len(shown) < len(found):
        which += f": the {len(shown)} smallest p of {len(found)} pairs"
    over = "these pairs, all of them exploratory" if exploratory else "all pairs"
    return [f"{which} (Holm-corrected over {over}):", "", *_pair_table(shown, several, metric=False)]


def _smallest_p(pairs: list[Row]) -> list[Row]:
    """Return the pairs or, if they are too many to read, those of the smallest p."""
    return pairs if len(pairs) <= _SHOWN_PAIRS else sorted(pairs, key=lambda row: row["p"])[:_SHOWN_PAIRS]


def markdown(
    jobs: list[Job], arms: list[Arm], rows: list[Row], pairs: list[Row], names: list[str], notes: list[str]
) -> str:
    """Return comparison.md.

    Args:
        jobs: All finished jobs.
        arms: The arms, zero-shot first.
        rows: The rows of comparison_arms.csv, one per arm.
        pairs: The rows of comparison_pairs.csv.
        names: The names of the metrics, such as pass@1.
        notes: Notes on the limits of the comparison.
    """
    several = any(row["seeds"] > 1 for row in rows)
    lines = []
    if planned := [row for row in pairs if row["family"] == "planned"]:
        title = "Planned comparisons (Holm-corrected over these alone, for each metric):"
        lines += [title, "", *_pair_table(planned, several, metric=True)]
    for name in names or [""]:
        lines += _arm_table(arms, rows, name, first=name == (names or [""])[0])
    lines += [*_legend(rows, pairs, names), ""]
    lines += _all_pairs(pairs, names[0], several) if names else []
    if failed := [job for job in jobs if job["status"] == "failed"]:
        cells = [[job["folder"], job["label"], str(job["seed"]), job["error"]] for job in failed]
        lines += ["Failed jobs:", "", *table(["job", "run", "seed", "error"], cells), ""]
    return "\n".join([*lines, *(f"- {inline(note)}" for note in notes)]).rstrip("\n") + "\n"


def plot(target: Path, jobs: list[Job], arms: list[Arm], rows: list[Row], names: list[str]) -> None:
    """Plot comparison.png: each arm's pass@k with its interval over tasks, and a point for each seed."""
    names = _plotted(names)

    def points(column: str) -> list[Point]:
        return [
            row[column] if row[column] is None else (row[column], row[f"{column}_low"], row[f"{column}_high"])
            for row in rows
        ]

    # An arm without results shows its status instead, such as "failed".
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
        if len({point for point in refiners if point}) > 1:  # otherwise it is the same for all arms
            series[f"refiner {name}"] = refiners
            seeds[f"refiner {name}"] = [arm.means("refiner", name) for arm in arms]
    with replacing(target / "comparison.png") as file:
        bars(file, [arm.label for arm in arms], series, _subject(jobs), seeds)


def plot_pairs(target: Path, jobs: list[Job], pairs: list[Row], names: list[str]) -> None:
    """Plot comparison_pairs.png: the planned comparisons or, without any, the pairs in the table of all pairs.

    A pair that lacks one of the metrics is left out. If no pair is left, an earlier plot is deleted.
    """
    names = _plotted(names)
    planned = [row for row in pairs if row["family"] == "planned"]
    shown = planned or _smallest_p([row for row in pairs if row["metric"] == names[0]] if names else [])
    by_pair: dict[tuple[str, str], dict[str, Row]] = {(row["arm"], row["against"]): {} for row in shown}
    for row in pairs:
        if row["metric"] in names and (found := by_pair.get((row["arm"], row["against"]))) is not None:
            found[row["metric"]] = row
    whole = {pair: found for pair, found in by_pair.items() if len(found) == len(names)}
    if not whole:
        (target / "comparison_pairs.png").unlink(missing_ok=True)
        return
    series = {name: [_difference(found[name]) for found in whole.values()] for name in names}
    kind = "planned comparisons" if planned else "pairs of arms"
    with replacing(target / "comparison_pairs.png") as file:
        differences(file, [f"{arm} against {other}" for arm, other in whole], series, f"{kind}: {_subject(jobs)}")


def _difference(row: Row) -> tuple[float, float, float, float, str]:
    smallest = row["smallest_detectable_points"]
    points = row["points"], row["points_low"], row["points_high"], float("nan") if smallest is None else smallest
    value, low, high, smallest = (number / 100 for number in points)
    return value, low, high, smallest, f"{row['points']:+.1f}, p {p_text(row['p_holm'])}"


def _plotted(names: list[str]) -> list[str]:
    """Return the metrics that have a panel: of a transfer data set only the first, as more are too many to read."""
    first = {name.rpartition(" ")[0]: name for name in reversed(names)}
    return [name for name in names if " " not in name or name in first.values()]


def _subject(jobs: list[Job]) -> str:
    known = [job for job in jobs if job["status"] != "failed"]
    data, models = (", ".join(dict.fromkeys(found)) for found in ([j["data"] for j in known], map(model_name, known)))
    return f"data {data}, model {models}" if known else "no job has figures"
