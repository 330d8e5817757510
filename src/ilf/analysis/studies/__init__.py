"""Studies: tables and figures made from the folders of runs, written as NAME.csv, NAME.md and NAME.png.

`STUDIES` holds the built-in studies by the name that the key `study` gives. A study of your own is any function that
makes a `Study` of `Job`s, named by `study_table=package.module.function`; job.py has helpers for it.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from filelock import FileLock

from ilf.analysis.markdown import inline
from ilf.analysis.studies import beyond, feedback, figures, search, tables
from ilf.analysis.studies.job import Job, Mixed, Study, arm_notes, read_jobs
from ilf.files import replacing, to_csv, write_atomically
from ilf.types import InputError

__all__ = ["STUDIES", "Job", "Study", "Table", "check_table", "write_study"]

log = logging.getLogger(__name__)

Table = Callable[[Sequence[Job]], Study]

STUDIES: dict[str, Table] = {
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
    "beyond/objectives": beyond.objectives,
    "beyond/turns": beyond.turns,
    "beyond/per_task": beyond.several_a_task,
}
_TAKEN = ("summary", "checks", "comparison", "comparison_arms", "comparison_pairs")  # names of files that runs write
_NEEDED = "must be package.module.function: a function that makes an ilf.analysis.studies.Study of a list of its Jobs"


def check_table(study: str | None, path: str) -> None:
    """Check before a run that the function of `study_table` exists and that its files can be written.

    Args:
        study: The key `study`, which names the files.
        path: The key `study_table`.

    Raises:
        InputError: There is no such function, or the study's files would overwrite other files of a run.
    """
    _function_at(path)
    if _stem(study, path) in _TAKEN:
        key, value = ("study", study) if study else ("study_table", path)
        allowed = f"would overwrite {_stem(study, path)}.*, which runs and sweeps write themselves"
        raise InputError(key, value, allowed, "Give the study another name: study=NAME.")


def write_study(target: Path, folders: Sequence[Path]) -> Path | None:
    """Write the table and the figure of the study that the jobs in `folders` belong to.

    Args:
        target: The folder to write to.
        folders: Folders of sweeps or of runs.

    Returns:
        The Markdown file; None if the jobs belong to no study with a table, if none has the results it needs, or if the
        jobs differ in more than one of our studies compares, which is logged.

    Raises:
        InputError: The function that `study_table` names does not exist, or failed.
    """
    with FileLock(target / ".study.lock"):
        jobs, failed = read_jobs(folders)
        named = {(job.results.get("study"), job.results.get("study_table")) for job in jobs}
        named = {(name, path) for name, path in named if path or name in STUDIES}
        if len(named) != 1:
            return None
        ((name, path),) = named
        if not path:
            try:
                study = _study(str(name), jobs)
            except Mixed as error:
                log.warning("%s.md is not written: %s. Run a sweep for each", _stem(name, path), error)
                return None
            study.notes.extend(arm_notes(jobs))
            return _write(target, _stem(name, path), study, failed)
        make = _function_at(path)
        try:
            return _write(target, _stem(name, path), make(jobs), failed)
        except Exception as error:  # a user's function may raise anything
            log.exception("study_table=%s failed", path)
            allowed = f"failed on the {len(jobs)} finished jobs: {type(error).__name__}: {error}"
            advice = "Fix it, then make the table again from the results: mode=compare 'compare.folders=[FOLDER]'."
            raise InputError("study_table", path, allowed, advice) from error


def _study(name: str, jobs: Sequence[Job]) -> Study:
    bases = {(job.results["data_sha256"], job.results["weights_sha256"]) for job in jobs}
    if len(bases) > 1:
        raise Mixed(f"the jobs have {len(bases)} different models or data sets")
    return STUDIES[name](jobs)


def _write(target: Path, stem: str, study: Study, failed: Mapping[str, str]) -> Path | None:
    study.notes.extend(inline(f"Failed: {folder}: {error}") for folder, error in failed.items())
    if not study.rows:
        return None
    keys = dict.fromkeys(key for row in study.rows for key in row)  # rows with the paper's results have fewer keys
    columns = [key for key in keys if not key.endswith("_text")]
    write_atomically(target / f"{stem}.csv", to_csv(study.rows, columns))
    with replacing(target / f"{stem}.png") as scratch:
        study.draw(scratch, f"{study.title}\n{study.about}")
    file = target / f"{stem}.md"
    write_atomically(file, study.markdown(f"{stem}.png"))
    return file


def _stem(study: str | None, path: str | None) -> str:
    """Return the name of a study's files: the last part of the study's name, or of its function's path."""
    return Path(study).name if study else str(path).rpartition(".")[2]


def _function_at(path: str) -> Table:
    module, _, name = path.rpartition(".")
    advice = f"Correct the path, or put the folder that holds {module.partition('.')[0] or 'the module'} on PYTHONPATH."
    try:
        found: Table | None = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # a user's module may raise anything
        raise InputError(
            "study_table", path, f"{_NEEDED}; importing {module!r} fails: {type(error).__name__}: {error}", advice
        ) from error
    if not callable(found):
        raise InputError("study_table", path, f"{_NEEDED}; {module} has no function {name!r}", advice)
    return found
