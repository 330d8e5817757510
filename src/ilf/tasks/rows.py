"""Rows of a JSON-lines file, checked one by one, and the tasks that they make."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ilf.tasks.prompts import entry_point, normalise_newlines, task_prompt
from ilf.types import InputError, Task

log = logging.getLogger(__name__)

Row = tuple[str, dict[str, Any]]  # where it stands, such as FILE:LINE, and its columns


def read_json_lines(path: Path, columns: dict[str, type], growing: bool = False) -> list[Row]:
    """Return (FILE:LINE, row) for each row of a JSON-lines file, its columns checked.

    Args:
        path: The file.
        columns: What every row must have, and of what type; others may be there too.
        growing: Whether somebody may be writing it: a last line without its end is left out, with a warning.

    Raises:
        InputError: A line is no JSON object, or a column is missing or of another type; names the file and line.
    """
    rows = []
    lines = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
            json.dumps(row, ensure_ascii=False).encode()  # half of a surrogate pair, escaped, is no text
        except ValueError as error:  # no JSON, or not to be written in UTF-8
            if growing and number == len(lines):
                log.warning("%s: an unfinished line is left out", where)
                continue
            shown = line[:60].decode(errors="replace")
            raise InputError(where, shown, f"each line must be a JSON object ({error})", "Mend the line.") from None
        if not isinstance(row, dict):
            shown = line[:60].decode(errors="replace")
            raise InputError(where, shown, "each line must be a JSON object", "Mend the line.")
        for name, kind in columns.items():
            if not isinstance(row.get(name), kind) or isinstance(row[name], bool):
                given = row.get(name, "(missing)")
                raise InputError(f"{where}: {name}", given, f"must be of type {kind.__name__}", "Mend the row.")
        rows.append((where, row))
    return rows


def content_sha256(rows: Iterable[dict[str, Any]], columns: Iterable[str]) -> str:
    """Return the SHA-256 of the rows' `columns` in order of id: the same wherever they were read from."""
    kept = sorted(({name: row[name] for name in columns} for row in rows), key=lambda row: row["task_id"])
    text = json.dumps(kept, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def task_of(where: str, row: dict[str, Any], split: str, prompt_style: str, stub: str | None = None) -> Task:
    """Return the task of a row in MBPP's columns.

    Args:
        where: The row's place, for errors.
        row: Its columns, of the right types.
        split: Where the task belongs.
        prompt_style: See `prompts.task_prompt`.
        stub: A function without a body of its own, where nobody wrote the gold program.

    Raises:
        InputError: The program does not parse, or the tests do not call one function of it.
    """
    text, code = normalise_newlines(row["text"]), normalise_newlines(row["code"])
    tests = tuple(normalise_newlines(test) for test in row["test_list"])
    try:
        head = stub or code
        prompt, name = task_prompt(text, head, tests, prompt_style), entry_point(head, tests)
    except (ValueError, SyntaxError) as error:
        raise InputError(
            f"{where}: {'signature' if stub else 'code'}",
            head[:60],
            f"must parse and define what its tests call ({error})",
            "Mend the row.",
        ) from None
    setup = normalise_newlines(row["test_setup_code"])
    return Task(row["task_id"], split, text, code, name, tests, setup, prompt)


def tasks_from(
    rows: Sequence[Row],
    columns: Iterable[str],
    expected_sha256: str | None,
    task: Callable[[str, dict[str, Any]], Task],
) -> tuple[list[Task], str]:
    """Return all tasks in order of id, and the SHA-256 of their content.

    Args:
        rows: Of each task one.
        columns: What a task is made from.
        expected_sha256: What the content must hash to, None for any.
        task: Makes one from a place and a row.

    Raises:
        InputError: A row is malformed or repeated, or the content is not what was expected.
    """
    tasks: dict[int, Task] = {}
    for where, row in rows:
        one = task(where, row)
        if one.task_id in tasks:
            raise InputError(f"{where}: task_id", one.task_id, "stands in the file twice", "Remove one row.")
        tasks[one.task_id] = one
    sha256 = content_sha256((row for _, row in rows), columns)
    if expected_sha256 is not None and sha256 != expected_sha256:
        raise InputError(
            "data.sha256",
            expected_sha256,
            f"the rows hash to {sha256}",
            "Use the published file, or set data.sha256=null to run on other rows.",
        )
    return [tasks[i] for i in sorted(tasks)], sha256
