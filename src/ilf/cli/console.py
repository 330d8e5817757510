"""What the command prints for people: the plan of a run at its start, and results with their meaning at its end.

Nothing else is printed to standard output, apart from the log. Tables fit a terminal of 80 columns.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ilf.analysis.arms import Row
from ilf.analysis.comparison_page import interval, p_cell
from ilf.analysis.formatting import percent
from ilf.analysis.report import labeled_metrics, next_runs
from ilf.analysis.schema import Results
from ilf.analysis.sentences import ALPHA, ONE_SEED, conclusion
from ilf.installation import command
from ilf.settings import Settings
from ilf.types import Splits

_TEXTS = ("arm", "training_examples")  # columns of comparison_arms.csv that are not numbers


def _console() -> Console:
    return Console(highlight=False, markup=False)  # a list in an override is no markup


def _table(*columns: str) -> Table:
    """Return an empty table. Long names in its first column are wrapped, numbers in the others are not."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, no_wrap=i > 0, overflow="fold")
    return table


def show_plan(settings: Settings, tasks: Splits) -> None:
    """Print which stages will run, on what and where.

    Args:
        settings: Checked.
        tasks: By split, as limited by the settings.
    """
    n, reported, option = settings.sampler.n, settings.evaluation.n, settings.option
    refiner, policy = settings.training.refiner, settings.training.policy
    learned = len(tasks.prompt) + len(tasks.refine) + len(tasks.train)
    test, where = len(tasks.test) + len(tasks.transfer), "Test and transfer" if tasks.transfer else "Test"
    stages = {
        "zero_shot": (f"sample the policy on {where}", f"{test} tasks x {reported} programs"),
        "sample": ("sample it on the other splits", f"{learned} tasks x {n} programs"),
        "annotate": (f"feedback={option('feedback')} on failing tasks", ""),
        "train_refiner": (f"refiner={option('refiner')}", f"{refiner.epochs} epochs, lr {refiner.lr:g}"),
        "refine": ("sample the refiner on Train", f"{n} programs a task"),
        "train_policy": (f"refinements={option('refinements')}", f"{policy.epochs} epochs, lr {policy.lr:g}"),
        "evaluate": (f"sample the new policy on {where}", f"{test} tasks x {reported} programs"),
    }
    trains = settings.refinements.trains
    runs = {
        **{"sample": trains, "annotate": settings.needs_feedback, "train_policy": trains},
        **{"train_refiner": settings.refines and settings.refiner.trains, "refine": settings.refines},
    }
    table = _table("stage", "what", "how much")
    for stage, (what, size) in stages.items():
        if stage in settings.stages and runs.get(stage, True):
            table.add_row(stage, what, size)
    console = _console()
    console.print(table)
    groups = ("model", "data", "adapter", "objective", "trainer")
    console.print(", ".join([*(f"{group}={option(group)}" for group in groups), f"seed={settings.seed}"]))
    console.print(f"finished stages are reused from {settings.store.dir}", soft_wrap=True)
    console.print(f"results go to {settings.output_dir}\n", soft_wrap=True)


def show_results(results: Results, folder: Path, upload: str | None, alone: bool) -> None:
    """Print a run's metrics, what they mean, where its files are and what to run next.

    Args:
        results: What results.json holds.
        folder: The run's.
        upload: The command that uploads the run to Weights & Biases, if any.
        alone: Whether the run is no job of a sweep, which says at its end what to run next.
    """
    console = _console()
    metrics = labeled_metrics(results)
    if metrics:
        names = list(next(iter(metrics.values()))["ci95"])
        table = _table("", *(f"{name} (%)" for name in names), "tasks x samples")
        for label, found in metrics.items():
            cells = [percent(found[name], found["ci95"][name]) for name in names]
            table.add_row(label, *cells, f"{found['n_tasks']} x {found['n_samples']}")
        console.print()
        console.print(table)
    console.print(f"{conclusion(results)}\n")
    for suggested, reason in next_runs(results)[:2] if alone else ():
        console.print(f"Next: {reason}")
        console.print(f"  {suggested}\n", soft_wrap=True)
    files = [folder / "summary.md", folder / "results.json", *sorted((folder / "plots").glob("*.png"))]
    for file in files:
        console.print(str(file), soft_wrap=True)
    if upload:
        console.print(f"upload to Weights & Biases: {upload}", soft_wrap=True)


def show_comparison(folder: Path, overrides: Sequence[str] = ()) -> None:
    """Print the arms of a comparison, what sets them apart from zero-shot, and what to run next.

    Args:
        folder: The folder with comparison.md, comparison.png and comparison_arms.csv.
        overrides: The sweep's command, to suggest the next one.
    """
    if not (file := folder / "comparison_arms.csv").exists():
        return
    with file.open(encoding="utf-8", newline="") as opened:
        rows: list[Row] = [
            {key: None if value == "" else value if key in _TEXTS else float(value) for key, value in row.items()}
            for row in csv.DictReader(opened)
        ]
    names = [key for key in (rows[0] if rows else {}) if key.startswith("pass@")]
    name = next((name for name in names if any(row[name] is not None for row in rows)), None)
    console = _console()
    if name is not None:
        several = any(row["seeds"] != 1 or row["failed"] for row in rows)
        table = _table("arm", *["seeds"][:several], "examples", f"{name} (%)", "delta (points)", "p (Holm)")
        for row in rows:
            failed = f" ({row['failed']:.0f} failed)" if row["failed"] else ""
            seeds = [f"{row['seeds']:.0f}{failed}"][:several]
            cells = [interval(row, name), interval(row, f"delta_{name}"), p_cell(row[f"p_holm_{name}"])]
            table.add_row(row["arm"], *seeds, row["training_examples"] or "", *cells)
        console.print()
        console.print(table)
        console.print(f"{_differences(rows, name)}\n")
        if overrides and not several:
            given = [one for one in overrides if not one.startswith("seed=")]
            console.print(f"Next: {ONE_SEED}")
            console.print(f"  {command('-m', *given, 'seed=0,1,2')}\n", soft_wrap=True)
    for file in (folder / "comparison.md", folder / "comparison.png", folder / "comparison_pairs.png"):
        if file.exists():  # without a pair of arms, there is no picture of pairs
            console.print(str(file), soft_wrap=True)


def show_page(file: Path) -> None:
    """Print a study's page as it is, since its table may be wide and hold commands, and the path of its figure."""
    print(f"\n{file.read_text(encoding='utf-8')}\n{file}\n{file.with_suffix('.png')}")


def _differences(rows: Iterable[Row], name: str) -> str:
    """Return in a sentence which arms differ from zero-shot."""
    groups: dict[str, list[str]] = {"higher than zero-shot": [], "lower": [], "no significant difference": []}
    higher, lower, same = groups.values()
    for row in rows:
        if (p := row[f"p_holm_{name}"]) is not None:
            (same if p >= ALPHA else higher if row[f"delta_{name}"] > 0 else lower).append(row["arm"])
    said = [f"{what}: {', '.join(arms)}" for what, arms in groups.items() if arms]
    return f"{name}, at a Holm-corrected level of {ALPHA:g}: {'; '.join(said)}." if said else "No arm can be compared."
