"""What the command prints for people: the plan of a run at its start, and results with their meaning at its end.

Nothing else is printed to standard output, apart from the log. Tables fit a terminal of 80 columns.
"""

from __future__ import annotations

import csv
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from ilf.analysis.formatting import p_text, percent
from ilf.analysis.report import labeled_metrics, next_runs
from ilf.analysis.schema import Results
from ilf.analysis.sentences import conclusion
from ilf.installation import COMMAND
from ilf.settings import Settings
from ilf.types import Splits

_ALPHA = 0.05  # of Holm-corrected p-values


def _table(*columns: str) -> Table:
    """Return an empty table whose first column is never wrapped."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, no_wrap=i == 0, overflow="fold")
    return table


def show_plan(settings: Settings, tasks: Splits) -> None:
    """Print which stages will run, on what and where.

    Args:
        settings: Checked.
        tasks: By split, as limited by the settings.
    """
    n, reported, option = settings.sampler.n, settings.evaluation.n, settings.option
    refiner, policy = settings.training.refiner, settings.training.policy
    test, refine, train = len(tasks.test), len(tasks.refine), len(tasks.train)
    stages = {
        "zero_shot": ("sample the policy on Test", f"{test} tasks x {reported} programs"),
        "sample": ("sample it on Refine and Train", f"{refine + train} tasks x {n} programs"),
        "annotate": (f"feedback={option('feedback')} on failing tasks", ""),
        "train_refiner": (f"refiner={option('refiner')}", f"{refiner.epochs} epochs, lr {refiner.lr:g}"),
        "refine": ("sample the refiner on Train", f"{n} programs a task"),
        "train_policy": (f"refinements={option('refinements')}", f"{policy.epochs} epochs, lr {policy.lr:g}"),
        "evaluate": ("sample the new policy on Test", f"{test} tasks x {reported} programs"),
    }
    skipped = set()
    if not settings.refines:
        skipped |= {"train_refiner", "refine"}
    if not settings.refiner.trains:
        skipped.add("train_refiner")
    if not settings.refinements.trains:
        skipped |= {"sample", "annotate", "train_policy"}
    table = _table("stage", "what", "how much")
    for stage, (what, size) in stages.items():
        if stage in settings.stages and stage not in skipped:
            table.add_row(stage, what, size)
    console = Console(highlight=False)
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
    console = Console(highlight=False)
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
    for command, reason in next_runs(results)[:2] if alone else ():
        console.print(f"Next: {reason}")
        console.print(f"  {command}\n", soft_wrap=True)
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
        rows = list(csv.DictReader(opened))
    name = next((key for key in (rows[0] if rows else {}) if key.startswith("pass@")), None)
    console = Console(highlight=False)
    if name is not None:
        several = any(row["seeds"] != "1" or row["failed"] not in ("", "0") for row in rows)
        table = _table("arm", *["seeds"][:several], "examples", f"{name} (%)", "delta (points)", "p (Holm)")
        for row in rows:
            difference = _cell(row, f"delta_{name}")
            p = p_text(float(row[f"p_holm_{name}"])).removeprefix("= ") if row.get(f"p_holm_{name}") else ""
            failed = f" ({row['failed']} failed)" if row["failed"] not in ("", "0") else ""
            cells = [row["arm"], *[row["seeds"] + failed][:several], row["training_examples"], _cell(row, name)]
            table.add_row(*cells, difference, p)
        console.print()
        console.print(table)
        console.print(f"{_differences(rows, name)}\n")
        if overrides and all(row["seeds"] == "1" for row in rows if row[name]):
            seeds = [one for one in overrides if not one.startswith("seed=")]
            console.print("Next: one seed does not show how much results vary between seeds.")
            console.print(f"  {shlex.join([*COMMAND.split(), '-m', *seeds, 'seed=0,1,2'])}", soft_wrap=True)
            console.print()
    for file in (folder / "comparison.md", folder / "comparison.png"):
        console.print(str(file), soft_wrap=True)


def show_page(file: Path) -> None:
    """Print a Markdown page, such as that of a study, with the path of its figure."""
    console = Console(highlight=False)
    console.print(Markdown(file.read_text(encoding="utf-8")))
    console.print(f"\n{file}\n{file.with_suffix('.png')}", soft_wrap=True)


def _cell(row: dict[str, str], column: str) -> str:
    """Return a proportion of a row and its interval, in percent."""
    if not row.get(column):
        return ""
    value, low, high = (float(row[key]) for key in (column, f"{column}_low", f"{column}_high"))
    return percent(value, [low, high])


def _differences(rows: Iterable[dict[str, str]], name: str) -> str:
    """Return in a sentence which arms differ from zero-shot."""
    groups: dict[str, list[str]] = {"higher than zero-shot": [], "lower": [], "no significant difference": []}
    higher, lower, same = groups.values()
    for row in rows:
        if row.get(f"p_holm_{name}"):
            differs = float(row[f"p_holm_{name}"]) < _ALPHA
            group = same if not differs else higher if float(row[f"delta_{name}"]) > 0 else lower
            group.append(row["arm"])
    said = [f"{what}: {', '.join(arms)}" for what, arms in groups.items() if arms]
    return f"{name}, at a Holm-corrected level of {_ALPHA:g}: {'; '.join(said)}." if said else "No arm can be compared."
