"""MBPP's tasks (Austin et al. 2021) and the ILF paper's splits of them.

The rows come from a local JSON-lines file, or from the Hugging Face Hub at a pinned revision.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ilf.tasks.prompts import entry_point, normalise_newlines, task_prompt
from ilf.types import InputError, Splits, Task

HUB = ("google-research-datasets/mbpp", "full")
SPLIT_IDS = {"prompt": range(1, 11), "test": range(11, 111), "refine": range(111, 311), "train": range(311, 975)}
COLUMNS = {"task_id": int, "text": str, "code": str, "test_list": list, "test_setup_code": str}


def split_of(task_id: int) -> str:
    """Return the paper's split of an MBPP task id, from 1 to 974."""
    return next(name for name, ids in SPLIT_IDS.items() if task_id in ids)


def read_json_lines(path: Path, columns: dict[str, type]) -> list[tuple[str, dict[str, Any]]]:
    """Return (FILE:LINE, row) for each row of a JSON-lines file, its columns checked.

    Raises:
        InputError: A line is no JSON object, or a column is missing or of another type; names the file and line.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(where, line[:60], f"each line must be a JSON object ({error})", "Mend the line.") from None
        if not isinstance(row, dict):
            raise InputError(where, line[:60], "each line must be a JSON object", "Mend the line.")
        for name, kind in columns.items():
            if not isinstance(row.get(name), kind):
                given = row.get(name, "(missing)")
                raise InputError(f"{where}: {name}", given, f"must be of type {kind.__name__}", "Mend the row.")
        rows.append((where, row))
    return rows


def content_sha256(rows: Iterable[dict[str, Any]], columns: Iterable[str]) -> str:
    """Return the SHA-256 of the rows' `columns` in order of id: the same from a local file and from the Hub."""
    kept = sorted(({name: row[name] for name in columns} for row in rows), key=lambda row: row["task_id"])
    text = json.dumps(kept, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _hub_rows(revision: str) -> list[tuple[str, dict[str, Any]]]:
    from datasets import concatenate_datasets, load_dataset

    try:
        parts = load_dataset(*HUB, revision=revision)
    except Exception as error:  # the client has no one class for "not reachable": each layer raises its own
        raise InputError(
            "data.path",
            None,
            f"MBPP could not be loaded from the Hugging Face Hub ({HUB[0]} at {revision}: {type(error).__name__})",
            "Without a network, give a local copy: data.path=mbpp.jsonl.",
        ) from error
    return [(f"{HUB[0]}:{row['task_id']}", row) for row in concatenate_datasets(list(parts.values()))]


def _task(where: str, row: dict[str, Any], prompt_style: str) -> Task:
    text, code = normalise_newlines(row["text"]), normalise_newlines(row["code"])
    tests = tuple(normalise_newlines(test) for test in row["test_list"])
    if row["task_id"] not in range(1, 975):
        raise InputError(f"{where}: task_id", row["task_id"], "must be one of MBPP's ids, 1 to 974", "Mend the row.")
    try:
        prompt, name = task_prompt(text, code, tests, prompt_style), entry_point(code, tests)
    except (ValueError, SyntaxError) as error:
        raise InputError(
            f"{where}: code", code[:60], f"must parse and define what its tests call ({error})", "Mend the row."
        ) from None
    setup = normalise_newlines(row["test_setup_code"])
    return Task(row["task_id"], split_of(row["task_id"]), text, code, name, tests, setup, prompt)


def read_rows(path: str | None, revision: str) -> list[tuple[str, dict[str, Any]]]:
    """Return (place, row) for each of MBPP's rows.

    Args:
        path: A JSON-lines file in MBPP's columns; None loads the Hub.
        revision: The Hub's commit, used where `path` is None.

    Raises:
        InputError: The file is missing or a row is malformed, or the Hub can't be reached.
    """
    if path is not None and not Path(path).is_file():
        raise InputError("data.path", path, "no such file", "Give MBPP's mbpp.jsonl, or leave it out to use the Hub.")
    return read_json_lines(Path(path), COLUMNS) if path is not None else _hub_rows(revision)


def tasks_from(
    rows: Sequence[tuple[str, dict[str, Any]]], expected_sha256: str | None, prompt_style: str
) -> tuple[list[Task], str]:
    """Return all tasks in order of id, and the SHA-256 of their content.

    Args:
        rows: (place, row) for each, in MBPP's columns.
        expected_sha256: What the content must hash to, None for any.
        prompt_style: See `prompts.task_prompt`.

    Raises:
        InputError: A row is malformed or repeated, or the content is not what was expected.
    """
    tasks: dict[int, Task] = {}
    for where, row in rows:
        task = _task(where, row, prompt_style)
        if task.task_id in tasks:
            raise InputError(f"{where}: task_id", task.task_id, "stands in the file twice", "Remove one row.")
        tasks[task.task_id] = task
    sha256 = content_sha256((row for _, row in rows), COLUMNS)
    if expected_sha256 is not None and sha256 != expected_sha256:
        raise InputError(
            "data.sha256",
            expected_sha256,
            f"the rows hash to {sha256}",
            "Use the published file, or set data.sha256=null to run on other rows.",
        )
    return [tasks[i] for i in sorted(tasks)], sha256


def split_tasks(tasks: Iterable[Task], limit: dict[str, int | None], only: set[int] | None = None) -> Splits:
    """Return the splits, restricted and limited.

    Args:
        tasks: All tasks.
        limit: For "test", "refine" and "train": how many tasks to keep, the first ids; None for all.
        only: Ids that Refine and Train keep (the annotated ones when feedback comes from a file), before the limit.

    Raises:
        InputError: Test is left empty.
    """
    groups: dict[str, list[Task]] = {name: [] for name in SPLIT_IDS}
    for task in tasks:
        if only is None or task.split in ("prompt", "test") or task.task_id in only:
            groups[task.split].append(task)
    cut = {name: tuple(group[: limit.get(name)]) for name, group in groups.items()}
    if not cut["test"]:
        raise InputError(
            "data.path",
            "(its rows)",
            "hold no task with an id from 11 to 110, the Test split",
            "Add Test tasks: every figure is reported on them.",
        )
    return Splits(test=cut["test"], refine=cut["refine"], train=cut["train"], prompt=cut["prompt"])
