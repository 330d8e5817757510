"""The building blocks of studies: finished runs (`Job`), `Study`, and helpers for rows and statistics."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import numpy as np

from ilf.analysis.formatting import model_name, p_text, percent, samples
from ilf.analysis.jobs import job_folders, read_job, scripted_note, setting_of
from ilf.analysis.markdown import table
from ilf.analysis.schema import SCHEMA, Part, Results
from ilf.analysis.sentences import trained_on
from ilf.analysis.statistics import PerSeed, bootstrap_ci95, over_seeds, paired, pass_at_k, rate_ci95, task_means
from ilf.types import InputError

Row = dict[str, Any]  # a row of a study's table: values by name; names that end in `_text` hold their formatted text
K = TypeVar("K")

# Notes that several studies share.
INTERVALS = "Percent, with 95% intervals over tasks (seeds are averaged within a task first)."
PAIRED = (
    "Differences are paired over tasks, in points; p is a two-sided sign-flip permutation test, uncorrected "
    "for the number of rows (comparison.md of a sweep has Holm's correction)."
)


@dataclass(frozen=True)
class Job:
    """A finished run: its folder and results."""

    folder: Path
    results: Results

    def rows(self, file: str) -> list[dict[str, Any]]:
        """Return the rows of one of the run's JSON Lines files; no rows if the file does not exist."""
        path = self.folder / file
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []  # splitlines would split texts
        return [json.loads(line) for line in lines if line]


@dataclass(frozen=True)
class Study:
    """A table and a figure, with notes."""

    title: str
    about: str  # data, model and sampling; see `subject`
    columns: dict[str, str]  # of the Markdown table: column name -> key of `rows`
    rows: list[Row]  # of the CSV file; the Markdown table shows them in this order
    draw: Callable[[Path, str], None]  # writes the figure to a file, with a caption above it
    notes: list[str] = field(default_factory=list)

    def markdown(self, picture: str) -> str:
        """Return the Markdown page: title, table, notes and figure."""
        lines = [
            f"# {self.title}",
            "",
            f"{self.about[:1].upper()}{self.about[1:]}.",
            "",
            *table(list(self.columns), map(self._cells, self.rows)),
        ]
        return "\n".join([*lines, "", *(f"{note}\n" for note in self.notes), f"![{self.title}]({picture})", ""])

    def _cells(self, row: Row) -> list[str]:
        return ["" if (value := row.get(key)) is None else str(value) for key in self.columns.values()]


class Mixed(ValueError):
    """The jobs of a study differ in more than the study compares."""


def read_jobs(folders: Sequence[Path]) -> tuple[list[Job], dict[str, str]]:
    """Return the finished jobs in folders of sweeps or runs, and the errors of the failed ones by folder.

    If two jobs have the same arm, seed, setting and status, the later one counts.
    """
    found: dict[Any, Job] = {}
    failed = {}
    for folder in [job for one in folders if one.is_dir() for job in job_folders(one)]:
        status, results, error = read_job(folder)
        of_a_study = results.get("study") or results.get("study_table")
        if of_a_study and status != "failed" and results.get("schema") != SCHEMA:
            allowed = f"must have schema {SCHEMA}, but another version of this package wrote it"
            advice = "Run the job again: its finished stages are reused from the store."
            raise InputError("results.json", str(folder / "results.json"), allowed, advice)
        if status == "failed":
            failed[folder.name] = error.get("error") or "see run.log"
        else:
            setting = frozenset(setting_of(results.get("overrides", [])).items())
            alike = results.get("arm"), results.get("seed"), status, setting
            found.pop(alike, None)
            found[alike] = Job(folder, results)
    return list(found.values()), failed


def subject(jobs: Sequence[Job]) -> str:
    """Return a line that describes the jobs: data, model, samples per task and seeds."""
    first = jobs[0].results
    seeds = sorted({job.results["seed"] for job in jobs})
    return (
        f"data {first['data']}, model {model_name(first)}, {samples(first)}, "
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    )


def arm_notes(jobs: Sequence[Job]) -> list[str]:
    """Return the note that says which programs each of the jobs' arms is fine-tuned on."""
    programs = {job.results["arm"]: trained_on(job.results) for job in jobs if job.results["finetuned"]}
    said = "; ".join(f"{arm}: {what}" for arm, what in programs.items())
    notes = [f"Fine-tuned on, by arm: {said}."] if len(programs) > 1 else []
    scripted = scripted_note(programs, {job.results["annotator"] for job in jobs})
    return [*notes, *filter(None, [scripted])]


def examples(job: Job) -> int:
    """Return the number of examples that a job's policy was fine-tuned on."""
    return job.results["counts"]["training_examples"] or 0


def grouped(jobs: Sequence[Job], key: Callable[[Job], K]) -> dict[K, list[Job]]:
    """Return the jobs grouped by `key`, in order of first appearance."""
    found: dict[K, list[Job]] = defaultdict(list)
    for job in jobs:
        found[key(job)].append(job)
    return dict(found)


def names(jobs: Sequence[Job], part: Part) -> list[str]:
    """Return the metrics in a part of the results: pass@k, and the share of tasks with a correct program."""
    found = next((job.results[part] for job in jobs if job.results[part]), None)
    return [*found["ci95"], "one_correct"] if found else []


def by_seed(jobs: Sequence[Job], part: Part, name: str) -> dict[int, dict[int, float]]:
    """Return a metric by seed and task.

    Each seed counts once, as jobs with the same seed and the same base have the same zero-shot programs.

    Raises:
        Mixed: Jobs with the same seed have other programs.
    """
    known: dict[int, Any] = {}
    for job in jobs:
        if (found := job.results[part]) and known.setdefault(job.results["seed"], found) != found:
            raise Mixed(f"jobs with seed {job.results['seed']} have different results ({part}), such as {job.folder}")

    def metric(n: int, passed: int) -> float:
        return float(passed > 0) if name == "one_correct" else pass_at_k(n, passed, int(name.removeprefix("pass@")))

    return {
        seed: {int(task_id): metric(found["n_samples"], passed) for task_id, passed in found["per_task"].items()}
        for seed, found in known.items()
    }


def per_task(jobs: Sequence[Job], part: Part, name: str) -> dict[int, list[float]]:
    """Return the values of a metric for each task, one for each seed that has the task; for errors, see `by_seed`."""
    return dict(sorted(over_seeds(by_seed(jobs, part, name).values()).items()))


class Figure(TypedDict):
    """A mean over tasks, its 95% interval and the number of tasks."""

    mean: float
    low: float
    high: float
    tasks: int


def figure(values: PerSeed, rates: bool = True) -> Figure:
    """Return the mean over tasks of `values` and its 95% interval.

    Args:
        values: The values of each task.
        rates: Whether the values are rates from 0 to 1.
    """
    means, weights = task_means(values)
    low, high = rate_ci95(means, weights) if rates else bootstrap_ci95(means, weights)
    return {"mean": float(np.average(means, weights=weights)), "low": low, "high": high, "tasks": len(means)}


def cells(values: dict[str, dict[int, list[float]]]) -> Row:
    """Return a row's columns for several metrics on the same tasks: means, intervals and a text with both."""
    row: Row = {}
    for name, by_task in values.items():
        if by_task:
            found = figure(by_task)
            row |= {name: found["mean"], f"{name}_low": found["low"], f"{name}_high": found["high"]}
            row |= {f"{name}_text": percent(found["mean"], [found["low"], found["high"]]), "tasks": found["tasks"]}
        else:
            row |= dict.fromkeys((name, f"{name}_low", f"{name}_high", f"{name}_text", "tasks"))
    return row


def against(before: tuple[Sequence[Job], Part], after: tuple[Sequence[Job], Part], name: str) -> Row:
    """Return a row's columns for the paired difference between two groups of jobs.

    The difference is over the seeds and tasks that both groups have. The same seed gives both the same samples before
    fine-tuning.

    Args:
        before: The jobs of the baseline, and the part of their results to compare.
        after: The other jobs, and the part of their results.
        name: The metric.
    """
    x, y = (by_seed(jobs, part, name) for jobs, part in (before, after))
    return difference((x[seed], y[seed]) for seed in x if seed in y)


def difference(seeds: Iterable[tuple[Mapping[int, float], Mapping[int, float]]]) -> Row:
    """Return a row's columns for the paired difference over tasks; for the argument, see `statistics.paired`."""
    found = paired(seeds)
    if not found:
        return dict.fromkeys(("difference", "difference_low", "difference_high", "p", "difference_text"))
    low, high = found["ci95"]
    text = f"{percent(found['mean'], [low, high])}, p {p_text(found['p_value'])}"
    return {
        "difference": found["mean"],
        "difference_low": low,
        "difference_high": high,
        "p": found["p_value"],
        "difference_text": text,
    }


def paper_row(label: str, figures: dict[str, float], shown: Sequence[str]) -> Row:
    """Return a row with the paper's results, in the same columns as our own."""
    row: Row = {"row": label}
    for name in shown:
        row |= {name: figures.get(name), f"{name}_text": f"{100 * figures[name]:.1f}" if name in figures else None}
    return row


def points(rows: Sequence[Row], shown: Sequence[str]) -> dict[str, list[tuple[float, float, float] | None]]:
    """Return the series for `plots.bars`: for each metric, a point with its interval per row."""

    def point(row: Row, name: str) -> tuple[float, float, float] | None:
        value: float | None = row.get(name)
        return None if value is None else (value, row.get(f"{name}_low", value), row.get(f"{name}_high", value))

    return {name: [point(row, name) for row in rows] for name in shown}
