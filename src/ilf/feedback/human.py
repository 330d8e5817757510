"""Feedback that people wrote: annotations of wrong programs, in the columns of the paper's released file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ilf.tasks.mbpp import read_json_lines, split_of
from ilf.tasks.prompts import normalise_newlines
from ilf.types import Feedback, InputError, Program

COLUMNS = {"task_id": int, "Feedback": str, "original_model_completion": str, "unedited_annotator_completion": str}


def load_annotations(path: str) -> list[Feedback]:
    """Return the annotations of a JSON-lines file: x0, f and x1 of each row, newlines normalised.

    The columns `bugs` (how many mistakes f addresses) and `categories` (a list of words) may be there.

    Raises:
        InputError: The file is missing, or a row is malformed, empty or repeated; names the file and line.
    """
    if not Path(path).is_file():
        raise InputError(
            "feedback.path", path, "no such file", f"Give a JSON-lines file with the columns {', '.join(COLUMNS)}."
        )
    found: dict[int, Feedback] = {}
    for where, row in read_json_lines(Path(path), COLUMNS):
        task_id = row["task_id"]
        if task_id not in range(1, 975):
            raise InputError(f"{where}: task_id", task_id, "must be one of MBPP's ids, 1 to 974", "Mend the row.")
        if task_id in found:
            raise InputError(f"{where}: task_id", task_id, "is annotated twice", "Keep one annotation a task.")
        if empty := [name for name in COLUMNS if not str(row[name]).strip()]:
            raise InputError(f"{where}: {empty[0]}", row[empty[0]], "must not be empty", "Mend or remove the row.")
        text, x0, x1 = (normalise_newlines(row[name]) for name in list(COLUMNS)[1:])
        bugs, categories = _noted(where, row)
        found[task_id] = Feedback(task_id, split_of(task_id), x0, text, "human", x1, bugs, categories)
    return [found[i] for i in sorted(found)]


def _noted(where: str, row: dict[str, Any]) -> tuple[int | None, tuple[str, ...]]:
    """Return what the annotator noted of the mistakes: their number and categories, both optional columns."""
    bugs, categories = row.get("bugs"), row.get("categories") or []
    if bugs is not None and (not isinstance(bugs, int) or bugs < 1):
        raise InputError(f"{where}: bugs", bugs, "must be a whole number from 1, or left out", "Mend the row.")
    if not isinstance(categories, list) or not all(isinstance(one, str) for one in categories):
        raise InputError(f"{where}: categories", categories, "must be a list of words, or left out", "Mend the row.")
    return bugs, tuple(categories)


def select(
    annotations: Sequence[Feedback], failing: Mapping[int, Sequence[Program]], only_failed: bool
) -> list[Feedback]:
    """Return the annotations of all splits but Test: all, or those of tasks that the policy failed too."""
    return [a for a in annotations if a.split != "test" and (not only_failed or a.task_id in failing)]
