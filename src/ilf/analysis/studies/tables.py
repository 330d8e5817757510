"""Studies of the paper's tables, and of the scorer's effect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ilf.analysis.plots import bars
from ilf.analysis.studies import paper
from ilf.analysis.studies.job import (
    INTERVALS,
    PAIRED,
    Job,
    Row,
    Study,
    against,
    cells,
    examples,
    grouped,
    names,
    paper_row,
    per_task,
    points,
    subject,
)

_HEADS = {"one_correct": "1+ correct", "as_written": "as written", "as_paper": "as the authors' code scores"}


def _columns(first: str, shown: Sequence[str], *more: tuple[str, str]) -> dict[str, str]:
    heads = {f"{_HEADS.get(name, name)} (%)": f"{name}_text" for name in shown}
    return {first: "row", **heads, **dict(more)}


def _bars(rows: Sequence[Row], shown: Sequence[str]) -> Callable[[Path, str], None]:
    found = {_HEADS.get(name, name): column for name, column in points(rows, shown).items()}
    published = {name: [row.get(f"paper_{name}") for row in rows] for name in shown}
    published = {name: column for name, column in published.items() if any(column)}
    labels = [row["row"] for row in rows]
    return lambda file, caption: bars(file, labels, found, caption, published=published)


def table1(jobs: Sequence[Job]) -> Study:
    """Report zero-shot results on the whole benchmark, and by split."""
    shown = names(jobs, "samples") or names(jobs, "zero_shot")
    by_name = {name: per_task(jobs, "samples", name) | per_task(jobs, "zero_shot", name) for name in shown}
    files = ("programs/sample.jsonl", "programs/zero_shot.jsonl")
    splits = {row["task_id"]: row["split"] for job in jobs for file in files for row in job.rows(file)}
    rows = []
    for label, split in (("whole benchmark", None), ("Test", "test"), ("Refine", "refine"), ("Train", "train")):
        part = {
            name: {i: v for i, v in values.items() if split in (None, splits[i])} for name, values in by_name.items()
        }
        rows.append({"row": label, **cells(part)})
    rows.append(paper_row(f"whole benchmark, {paper.MODEL}", paper.ZERO_SHOT, shown))
    title = "Table 1: zero-shot"
    return Study(
        title,
        subject(jobs),
        _columns("tasks", shown, ("number of tasks", "tasks")),
        rows,
        _bars(rows, shown),
        [INTERVALS],
    )


def _of_refiner(
    jobs: Sequence[Job], labels: dict[str, list[Job]], reference: str, published: list[Row], title: str
) -> Study:
    """Return a study that compares the refinements of several refiners on Train.

    Args:
        jobs: All jobs of the study.
        labels: The jobs of each row, by the row's label.
        reference: The label of the row that the others are compared against.
        published: Rows with the paper's results.
        title: The study's title.
    """
    shown = names(jobs, "refiner")

    def compared(label: str) -> bool:
        return reference in labels and label != reference

    rows = [
        {
            "row": label,
            **cells({name: per_task(group, "refiner", name) for name in shown}),
            **(against((labels[reference], "refiner"), (group, "refiner"), shown[0]) if compared(label) else {}),
        }
        for label, group in labels.items()
        if any(job.results["refiner"] for job in group)
    ]
    rows += published if rows else []
    head = (f"{shown[0]} against {reference}" if shown else "", "difference_text")
    columns = _columns("refiner", shown, ("tasks", "tasks"), head)
    return Study(title, subject(jobs), columns, rows, _bars(rows, shown), [INTERVALS, PAIRED])


def table2(jobs: Sequence[Job]) -> Study:
    """Compare one-shot refinement before fine-tuning with the program's own feedback and with shuffled feedback."""
    shuffled = {True: "shuffled feedback", False: "own feedback"}
    labels = grouped(jobs, lambda job: shuffled[job.results["feedback"] == "shuffled"])
    shown = names(jobs, "refiner")
    published = [
        paper_row(f"{label}, {paper.MODEL}", found, shown) for label, found in paper.ONE_SHOT_REFINEMENT.items()
    ]
    title = "Table 2: one-shot refinement before fine-tuning"
    return _of_refiner(jobs, labels, "shuffled feedback", published, title)


def table3(jobs: Sequence[Job]) -> Study:
    """Compare the fine-tuned refiner on Train with one that gets no feedback, and with fresh samples of the policy."""
    labels = grouped(jobs, lambda job: job.results["arm"].replace("_", " "))
    published = [paper_row(f"refiner, {paper.MODEL}", paper.REFINER, names(jobs, "refiner"))]
    title = "Table 3: refinements on Train"
    study = _of_refiner(jobs, labels, "fresh samples", published, title)
    study.notes.append(
        "Zero-shot is 0 on these tasks by construction: they are the tasks on which all of the policy's samples "
        "failed. The same number of fresh samples shows the effect of this selection alone."
    )
    return study


def table4(jobs: Sequence[Job]) -> Study:
    """Compare the arms on Test after fine-tuning. An arm that was not run keeps its row."""
    groups = grouped(jobs, lambda job: job.results["arm"])
    shown = names(jobs, "finetuned")
    if not shown:
        return Study("Table 4", "", {}, [], lambda file, caption: None)
    zero = {name: per_task(jobs, "zero_shot", name) for name in shown}
    rows: list[Row] = [{"row": "zero-shot", **cells(zero), **_published("zero_shot", shown)}]
    arms = [arm for arm in paper.FINAL if arm != "zero_shot"]
    for arm in [*arms, *(arm for arm in groups if arm not in arms)]:
        group = [job for job in groups.get(arm, []) if job.results["finetuned"]]
        if not group:
            statuses = {job.results["status"] for job in groups.get(arm, [])}
            rows.append({"row": arm, "examples": ", ".join(sorted(statuses)) or "no result", **_published(arm, shown)})
            continue
        after = {name: per_task(group, "finetuned", name) for name in shown}
        counts = [examples(job) for job in group]
        rows.append(
            {
                "row": arm,
                "examples": f"{np.mean(counts):.0f}",
                **cells(after),
                **against((jobs, "zero_shot"), (group, "finetuned"), shown[0]),
                **_published(arm, shown),
            }
        )
    columns = _columns("fine-tuned on", shown, (f"{shown[0]} against zero-shot", "difference_text"))
    columns = {"fine-tuned on": "row", "examples": "examples", **columns}
    columns |= {f"paper {name} (%)": f"paper_{name}_text" for name in shown if f"paper_{name}" in rows[0]}
    title = "Table 4: after fine-tuning, on Test"
    drawn = [row for row in rows if row.get(shown[0]) is not None]
    notes = [INTERVALS, PAIRED, f"The paper's results are those of {paper.MODEL.removesuffix(' (paper)')} on MBPP."]
    return Study(title, subject(jobs), columns, rows, _bars(drawn, shown), notes)


def _published(arm: str, shown: Sequence[str]) -> dict[str, float | str]:
    found = {name: value for name, value in paper.FINAL.get(arm, {}).items() if name in shown}
    texts = {f"paper_{name}_text": f"{100 * value:.0f}" for name, value in found.items()}
    return {f"paper_{name}": value for name, value in found.items()} | texts


def scorer_effect(jobs: Sequence[Job]) -> Study:
    """Compare the scores of the same programs on Test, as they were written and as the authors' code scores them."""
    shown = names(jobs, "finetuned")[:1]
    if not shown:
        return Study("Scorer effect", "", {}, [], lambda file, caption: None)
    name, rows = shown[0], []
    for arm, group in grouped([j for j in jobs if j.results["finetuned"]], lambda job: job.results["arm"]).items():
        by = grouped(group, lambda job: job.results["scoring"]["scoring"])
        if by.keys() != {"as_written", "paper"}:
            continue
        ours, theirs = (per_task(by[scoring], "finetuned", name) for scoring in ("as_written", "paper"))
        row = {
            "row": arm,
            **cells({"as_written": ours, "as_paper": theirs}),
            **against((by["paper"], "finetuned"), (by["as_written"], "finetuned"), name),
        }
        rows.append(row)
    columns = {
        "fine-tuned on": "row",
        f"{name}, as written (%)": "as_written_text",
        f"{name}, as the authors' code scores (%)": "as_paper_text",
        "difference": "difference_text",
    }
    title = f"Effect of the scorer on {name}"
    notes = [
        INTERVALS,
        PAIRED,
        "The authors' code re-indents only the first line of a function's body, and cuts the program at the first line "
        "that starts in the first column. Only the programs reported on Test are scored this way; the training sets "
        "are the same.",
    ]
    return Study(title, subject(jobs), columns, rows, _bars(rows, ["as_written", "as_paper"]), notes)
