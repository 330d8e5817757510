"""Studies that the paper does not have. Each function makes the rows and the figure of a study from its jobs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ilf.analysis.plots import bars, curve
from ilf.analysis.report import ROWS
from ilf.analysis.statistics import over_seeds
from ilf.analysis.studies.job import (
    INTERVALS,
    PAIRED,
    Job,
    Row,
    Study,
    against,
    cells,
    difference,
    examples,
    figure,
    grouped,
    names,
    per_task,
    points,
    subject,
)


def objectives(jobs: Sequence[Job]) -> Study:
    """Compare all objectives on the same tasks, by arm."""
    shown = names(jobs, "finetuned")[:-1]
    title = "Objectives"
    if not shown:
        return Study(title, "", {}, [], lambda file, caption: None)
    rows: list[Row] = [{"row": "zero-shot", **cells({name: per_task(jobs, "zero_shot", name) for name in shown})}]
    done = [job for job in jobs if job.results["finetuned"]]
    groups = grouped(done, lambda job: (job.results["arm"], job.results["objective"]))
    for (arm, objective), group in groups.items():
        row: Row = {
            "row": f"{objective}, {arm}",
            "tasks trained on": f"{np.mean([len(job.results['training_task_ids'] or []) for job in group]):.0f}",
            "steps": f"{np.mean([job.results['counts']['optimizer_steps'] or 0 for job in group]):.0f}",
            **cells({name: per_task(group, "finetuned", name) for name in shown}),
        }
        sft = groups.get((arm, "sft"))
        if sft and objective != "sft":
            row |= against((sft, "finetuned"), (group, "finetuned"), shown[0])
        rows.append(row)
    columns = {
        "objective, arm": "row",
        "tasks": "tasks trained on",
        "optimizer steps": "steps",
        **{f"{name} (%)": f"{name}_text" for name in shown},
        f"{shown[0]} against sft": "difference_text",
    }

    def draw(file: Path, caption: str) -> None:
        bars(file, [row["row"] for row in rows], points(rows, shown), caption)

    return Study(title, subject(jobs), columns, rows, draw, [INTERVALS, PAIRED])


_Way = Literal["feedback", "fresh"]
_WAYS: tuple[_Way, _Way] = ("feedback", "fresh")


def _after(job: Job, part: str, way: _Way, number: int) -> dict[int, float]:
    """Return pass@1 of each task after `number` turns."""
    found = job.results["turns"][part][way][number]
    return {int(i): passed / found["n_samples"] for i, passed in found["per_task"].items()}


def turns(jobs: Sequence[Job]) -> Study:
    """Compare pass@1 after turns of feedback at test time with the same number of fresh samples."""
    rows: list[Row] = []
    lines: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)

    def reviser(job: Job) -> str:
        return job.results["reviser"]

    for part in ("zero_shot", "finetuned"):
        for who, group in grouped([job for job in jobs if part in job.results["turns"]], reviser).items():
            for number in range(len(group[0].results["turns"][part]["feedback"])):
                by_way = {way: [_after(job, part, way, number) for job in group] for way in _WAYS}
                after = {str(way): over_seeds(values) for way, values in by_way.items()}
                row: Row = {"row": f"{ROWS[part]}, revised by the {who}", "turns": number, **cells(after)}
                if number:
                    row |= difference(zip(by_way["fresh"], by_way["feedback"], strict=True))
                rows.append(row)
                lines[str(row["row"])].append(_point(number, after["feedback"]))
                fresh = f"{ROWS[part]}, fresh samples"
                if all(x != number for x, *_ in lines[fresh]):
                    lines[fresh].append(_point(number, after["fresh"]))
    columns = {
        "policy": "row",
        "turns": "turns",
        "pass@1 with feedback (%)": "feedback_text",
        "pass@1 with fresh draws (%)": "fresh_text",
        "difference": "difference_text",
    }

    def draw(file: Path, caption: str) -> None:
        curve(file, lines, caption, "turns of feedback, or of fresh samples", "pass@1 on Test (%)")

    notes = [
        INTERVALS,
        PAIRED,
        "Each turn samples every failing program once more, with feedback or, as a control, without.",
    ]
    return Study("Feedback at test time", subject(jobs), columns, rows, draw, notes)


def _point(x: float, values: dict[int, list[float]]) -> tuple[float, float, float, float]:
    found = figure(values)
    return x, found["mean"], found["low"], found["high"]


def several_a_task(jobs: Sequence[Job]) -> Study:
    """Relate pass@k on Test to the number of correct programs per task in the training set."""
    shown = names(jobs, "finetuned")[:-1]
    done = [job for job in jobs if job.results["finetuned"]]
    rows: list[Row] = []
    lines: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
    groups = grouped(done, lambda job: (job.results["arm"], job.results["per_task"]))
    for (arm, most), group in groups.items():
        tasks = np.mean([len(job.results["training_task_ids"] or []) for job in group])
        count = float(np.mean([examples(job) for job in group]))
        row: Row = {
            "row": arm,
            "most": "all" if most is None else most,
            "tasks trained on": f"{tasks:.0f}",
            "examples": f"{count:.0f}",
            **cells({name: per_task(group, "finetuned", name) for name in shown}),
        }
        one = groups.get((arm, 1))
        if one and most != 1:
            row |= against((one, "finetuned"), (group, "finetuned"), shown[0])
        rows.append(row)
        for name in shown:
            at = (round(count / float(tasks), 1), row[name], row[f"{name}_low"], row[f"{name}_high"])
            lines[f"{arm}, {name}"].append(at)
    columns = {
        "fine-tuned on": "row",
        "most a task": "most",
        "tasks": "tasks trained on",
        "programs": "examples",
        **{f"{name} (%)": f"{name}_text" for name in shown},
        f"{shown[0] if shown else ''} against one a task": "difference_text",
    }
    before = {name: per_task(jobs, "zero_shot", name) for name in shown}
    levels = {f"zero-shot, {name}": figure(values)["mean"] for name, values in before.items() if values}

    def draw(file: Path, caption: str) -> None:
        curve(file, lines, caption, "different correct programs per task", "pass@k on Test (%)", levels)

    return Study("Several programs a task", subject(jobs), columns, rows, draw, [INTERVALS, PAIRED])
