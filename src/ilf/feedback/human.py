"""Human feedback: annotations of incorrect programs, with the columns of the paper's released file and some of ours.

A file is a .jsonl file with one object per line, or a .csv file. The schema is in docs/how-to/annotations.md.
"""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from ilf.feedback.source import Failing, Source, Writing, is_heard
from ilf.feedback.transforms import Drop
from ilf.feedback.unit_tests import UnitTests
from ilf.files import to_csv, to_json, write_atomically
from ilf.paths import check_path
from ilf.tasks.prompts import normalise_newlines
from ilf.tasks.rows import Columns, Row, check_rows, check_spelling, read_json_lines
from ilf.types import Feedback, InputError, Program

log = logging.getLogger(__name__)

COLUMNS = {"task_id": int, "Feedback": str, "original_model_completion": str}
# Optional columns, with the value that stands for a missing one.
_TEXTS = {"prompt": "", "unedited_annotator_completion": "", "annotator": None, "saved": None}
_NUMBERS = {"refinement_edit_distance": 0, "bugs": 1, "seconds": 0}  # with the minimum
FIELDS = (
    "task_id",
    "prompt",
    "Feedback",
    "original_model_completion",
    "unedited_annotator_completion",
    "refinement_edit_distance",
    "bugs",
    "categories",
    "annotator",
    "seconds",
    "saved",
)
FILE = Columns(
    COLUMNS,
    tuple(name for name in FIELDS if name not in COLUMNS),
    unread=("worker_id", "test", "completion", "result", "passed"),  # columns of the paper's file
    expected=("unedited_annotator_completion",),
)


def read_annotations(path: Path) -> list[Row]:
    """Return (FILE:LINE, row) for each valid annotation, in order of task id, each row with all of `FIELDS`.

    If the annotation page saved several rows on one task, the last one is used.

    Raises:
        InputError: The file is empty or of another kind, no row has a column for refinements, or a row is malformed,
            empty or repeated. The error names the file and line.
    """
    rows = _read_csv(path) if path.suffix == ".csv" else read_json_lines(path, FILE, growing=True)
    check_rows("feedback.path", str(path), rows, FILE)
    found: dict[int, Row] = {}
    for where, row in rows:
        row = _checked(where, row)
        if row["task_id"] in found and row["saved"] is None:
            advice = (
                "Keep one annotation per task; only rows that the page saved (column `saved`) replace earlier ones."
            )
            raise InputError(f"{where}: task_id", row["task_id"], "is annotated twice", advice)
        found[row["task_id"]] = where, row
    return [found[i] for i in sorted(found)]


def load_annotations(path: str, splits: Mapping[int, str], others: Container[int] = ()) -> list[Feedback]:
    """Return the valid annotations: x0, f and, if there is one, x1, with normalized newlines.

    Args:
        path: A .jsonl or .csv file.
        splits: The split of each task in the data, by task id.
        others: Ids that may be annotated although the data lack them. Their annotations are skipped with a warning.

    Raises:
        InputError: The file is missing, or a row is malformed or on an unknown task. The error names the file and line.
    """
    check_path("feedback.path", path, "file", f"Give a .jsonl or .csv file with the columns {', '.join(COLUMNS)}.")
    found, left_out = [], 0
    for where, row in read_annotations(Path(path)):
        task_id = row["task_id"]
        if task_id in splits:
            one = Feedback(
                task_id,
                splits[task_id],
                program=row["original_model_completion"],
                text=row["Feedback"],
                source="human",
                refinement=row["unedited_annotator_completion"] or None,
                bugs=row["bugs"],
                categories=tuple(row["categories"]),
                annotator=row["annotator"],
                seconds=row["seconds"],
            )
            found.append(one)
        elif task_id in others:
            left_out += 1
        else:
            advice = "Fix the id, or use the data set that was annotated."
            raise InputError(f"{where}: task_id", task_id, "must be the id of one of the data's tasks", advice)
    if left_out:
        log.warning("%s: skipped %d annotations on tasks that the data do not have", path, left_out)
    return found


def select(
    annotations: Sequence[Feedback], failing: Mapping[int, Sequence[Program]], only_failed: bool
) -> list[Feedback]:
    """Return the annotations of all splits except Test, or only those of tasks that the policy also failed."""
    return [a for a in annotations if a.split != "test" and (not only_failed or a.task_id in failing)]


def export(path: str, target: str) -> int:
    """Write the valid annotations of a file to another file, and return their number.

    Args:
        path: A .jsonl or .csv file.
        target: The .jsonl or .csv file to write. An existing file is replaced.

    Raises:
        InputError: A row is malformed. Nothing is written then.
    """
    rows = [row for _, row in read_annotations(Path(path))]
    if target.endswith(".csv"):
        table = [row | {"categories": ";".join(row["categories"])} for row in rows]
        write_atomically(Path(target), to_csv(table, FIELDS))
    else:
        write_atomically(Path(target), "".join(to_json(row) + "\n" for row in rows))
    return len(rows)


def _read_csv(path: Path) -> list[Row]:
    """Return (FILE:LINE, row) for each row of a CSV file. LINE is the row's first line, and empty cells are None."""
    try:
        text = normalise_newlines(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError("feedback.path", str(path), f"must be UTF-8 ({error})", "Save it as CSV UTF-8.") from None
    rows, head, line = [], list[str](), 1
    csv.field_size_limit(
        max(csv.field_size_limit(), len(text))
    )  # the library's default is less than the maximum length of a program
    reader = csv.reader(io.StringIO(text, newline="\n"), strict=True)
    try:
        for cells in reader:
            where, line = f"{path}:{line}", reader.line_num + 1
            if not head:
                head = _checked_head(where, cells)
            elif len(cells) > len(head):
                allowed = f"is in a row of {len(cells)} cells, and the first line names {len(head)} columns"
                raise InputError(where, cells[-1], allowed, "Quote cells that contain commas.")
            elif any(cells):
                filled = {name: cell for name, cell in zip(head, cells, strict=False) if cell}
                rows.append((where, dict.fromkeys(head) | _typed(where, filled)))
    except csv.Error as error:
        raise InputError(f"{path}:{line}", "(a row)", f"must be CSV ({error})", "Fix the row.") from None
    return rows


def _checked_head(where: str, head: list[str]) -> list[str]:
    """Return the columns that a table's first line names. Columns without a name may be repeated."""
    check_spelling(where, head, FILE)
    if wrong := [name for name in (*COLUMNS, *filter(None, head)) if head.count(name) != 1]:
        allowed = f"the first line must name the column {wrong[0]} once"
        raise InputError(where, ",".join(head), allowed, "Separate the columns with commas.")
    return head


def _typed(where: str, cells: dict[str, str]) -> dict[str, Any]:
    """Return the filled cells of a row, converted to the types of their columns."""
    row: dict[str, Any] = dict(cells)
    for name in ("task_id", *_NUMBERS):
        if name in cells:
            kind = int if name == "task_id" else float
            try:
                row[name] = kind(cells[name])
            except ValueError:
                allowed = "must be an integer" if kind is int else "must be a number, or omitted"
                raise InputError(f"{where}: {name}", cells[name], allowed, "Fix the row.") from None
    if "categories" in cells:
        row["categories"] = [word.strip() for word in cells["categories"].split(";") if word.strip()]
    for name in COLUMNS:
        if name not in cells:
            raise InputError(f"{where}: {name}", "", "must not be empty", "Fix or remove the row.")
    return row


def _checked(where: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return an annotation with all of `FIELDS` and normalized newlines."""

    def require(right: bool, name: str, allowed: str) -> None:
        if not right:
            raise InputError(f"{where}: {name}", row[name], f"must be {allowed}", "Fix or remove the row.")

    require(row["task_id"] > 0, "task_id", "a positive integer")
    found: dict[str, Any] = {"task_id": row["task_id"]}
    for name in ("Feedback", "original_model_completion"):
        require(row[name].strip() != "", name, "a non-empty text")
        found[name] = normalise_newlines(row[name])
    for name, none in _TEXTS.items():
        value = row.get(name)
        require(value is None or isinstance(value, str), name, "a text, or omitted")
        found[name] = normalise_newlines(value) if value and value.strip() else none
    for name, least in _NUMBERS.items():
        value = row.get(name)
        number = isinstance(value, int | float) and not isinstance(value, bool) and least <= value < math.inf
        require(value is None or number, name, f"a number of at least {least}, or omitted")
        found[name] = None if value is None else float(value)
    if found["bugs"] is not None:
        require(found["bugs"].is_integer(), "bugs", "an integer, or omitted")
        found["bugs"] = int(found["bugs"])
    words = row.get("categories") or []
    right = isinstance(words, list) and all(isinstance(one, str) and one.strip() == one != "" for one in words)
    found["categories"] = [normalise_newlines(one) for one in words] if right else []
    require(right and ";" not in "".join(words), "categories", "a list of words without semicolons, or omitted")
    require(found["saved"] is None or _is_time(found["saved"]), "saved", "a time such as 2024-05-01T09:30:00+00:00")
    return {name: found[name] for name in FIELDS}


def _is_time(text: str) -> bool:
    try:
        return bool(datetime.fromisoformat(text))
    except ValueError:
        return False


@dataclass
class Human(Source):
    """Human feedback from the annotation file `path`.

    Args:
        annotated_policy: The policy whose incorrect programs were annotated; null if it is not known.
        select: annotated: all annotated tasks; annotated_and_failed: only those that the policy also fails.
    """

    annotated_policy: str | None = None
    select: Literal["annotated", "annotated_and_failed"] = "annotated"

    name = "human"
    people = True
    repeatable = True

    def check(self, settings: Any) -> None:
        """Raise InputError if the file is missing and a requested stage needs it."""
        super().check(settings)
        if self.path is not None:
            check_path("feedback.path", self.path, "file", "Give a .jsonl or .csv file of annotations.")
        elif is_heard(settings.stages) and not self._wordless:
            allowed = f"feedback={settings.option('feedback')} needs an annotation file"
            advice = "Give feedback.path=FILE, or choose feedback=unit_tests."
            raise InputError("feedback.path", None, allowed, advice)

    def known(self, splits: Mapping[int, str], absent: Container[int]) -> list[Feedback] | None:
        """Return the annotations in the file."""
        if self.path is None:
            return None
        return [replace(one, source=self.name) for one in load_annotations(self.path, splits, absent)]

    def write(self, failing: Failing, run: Writing) -> list[Feedback]:
        """Return the annotations of this run's tasks.

        If there is no file and the feedback is dropped, return feedback on the policy's own programs.
        """
        if self.path is None:
            return UnitTests().write(failing, run) if self._wordless else []
        known = [a for a in run.known if a.task_id in run.tasks.by_id]
        return select(known, failing, self.select == "annotated_and_failed")

    @property
    def _wordless(self) -> bool:
        return any(isinstance(one, Drop) for one in self.transforms)
