"""The paper's tables and figures, made from the folders of runs: NAME.csv, NAME.md and NAME.png."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock

from ilf.analysis.markdown import inline
from ilf.analysis.studies import feedback, figures, search, tables
from ilf.analysis.studies.job import Job, Study, read_jobs
from ilf.files import to_csv, write_atomically

STUDIES: dict[str, Callable[[Sequence[Job]], Study]] = {
    "paper/table1": tables.table1,
    "paper/table2": tables.table2,
    "paper/table3": tables.table3,
    "paper/table4": tables.table4,
    "paper/tables5_6": feedback.tables5_6,
    "paper/scorer_effect": tables.scorer_effect,
    "paper/sweep_a1": search.sweep_a1,
    "mini/optuna": search.sweep_a1,
    "paper/figure3": figures.figure3,
    "paper/figure4": figures.figure4,
    "paper/figure5": figures.figure5,
    "paper/policy_change": figures.policy_change,
}


def write_study(target: Path, folders: Sequence[Path]) -> Path | None:
    """Write the table and the figure of the study that the jobs in `folders` belong to.

    Args:
        target: Folder to write to.
        folders: Sweeps, or runs.

    Returns:
        The Markdown file; None where the jobs belong to no study with a table, or none has come far enough.
    """
    with FileLock(target / ".study.lock"):
        jobs, failed = read_jobs(folders)
        names = {str(job.results.get("study")) for job in jobs} & STUDIES.keys()
        if len(names) != 1:
            return None
        name = names.pop()
        study = STUDIES[name](jobs)
        study.notes.extend(inline(f"Failed: {folder}: {error}") for folder, error in failed.items())
        if not study.rows:
            return None
        stem = name.split("/")[1]
        keys = dict.fromkeys(key for row in study.rows for key in row)  # the paper's rows have fewer
        columns = [key for key in keys if not key.endswith("_text")]
        write_atomically(target / f"{stem}.csv", to_csv(study.rows, columns))
        scratch = target / f".{stem}.{os.getpid()}.png"
        study.draw(scratch, f"{study.title}\n{study.about}")
        scratch.replace(target / f"{stem}.png")
        file = target / f"{stem}.md"
        write_atomically(file, study.markdown(f"{stem}.png"))
        return file
