"""Reads and checks the rows of JSON-lines files, and builds tasks from them."""

from __future__ import annotations

import ast
import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ilf.files import whole
from ilf.sandbox.jobs import COMPARE_OUTPUT
from ilf.tasks.prompts import entry_point, normalise_newlines, script_prompt, task_prompt
from ilf.types import InputError, Task

log = logging.getLogger(__name__)

Row = tuple[str, dict[str, Any]]  # its place, such as FILE:LINE, and its columns


@dataclass(frozen=True)
class Columns:
    """The columns of one kind of file."""

    required: Mapping[str, type]  # must be in every row and have this type
    optional: Collection[str] = ()  # may be missing from a row
    unread: Collection[str] = ()  # known columns of published files and of runs' files that are ignored
    expected: Collection[str] = ()  # optional columns that at least one row must have, possibly null or empty

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Return the names that are not known columns."""
        return [name for name in names if name not in {*self.required, *self.optional, *self.unread}]


def read_json_lines(path: Path, columns: Columns, growing: bool = False) -> list[Row]:
    """Return (FILE:LINE, row) for each row of a JSON-lines file, and check its columns.

    Args:
        path: The path of the file.
        columns: The columns of this kind of file. The file may have other columns too; see `check_rows`.
        growing: Whether the file may still be written to. An incomplete last line is then skipped with a warning.

    Raises:
        InputError: A line is not a JSON object, or a column is missing, misspelled, repeated or of the wrong type. The
            error names the file and line.
    """
    rows = []
    lines = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        row = _parsed(where, line, growing and number == len(lines))
        if row is None:
            log.warning("%s: skipped an incomplete line", where)
            continue
        check_row(where, row, columns)
        rows.append((where, row))
    return rows


def check_row(where: str, row: Mapping[str, Any], columns: Columns) -> None:
    """Check the columns of a row.

    Raises:
        InputError: A column is missing, misspelled or of the wrong type.
    """
    check_spelling(where, row, columns)
    for name, kind in columns.required.items():
        if name not in row:
            allowed = f"every row must have this column, and this one has {', '.join(row) or 'none'}"
            raise InputError(f"{where}: {name}", "(missing)", allowed, "Fix the row.")
        if not isinstance(row[name], kind) or isinstance(row[name], bool):
            raise InputError(f"{where}: {name}", row[name], f"must be of type {kind.__name__}", "Fix the row.")


def _parsed(where: str, line: bytes, last: bool) -> dict[str, Any] | None:
    """Return a line's JSON object, or None if it is the `last` line and incomplete."""
    shown = line[:60].decode(errors="replace")
    if b"\0" in line:  # UTF-16 has null bytes between letters; an incomplete line has none
        raise InputError(
            where, shown, "each line must be UTF-8, and this one has null bytes", "Save the file as UTF-8."
        )
    try:
        row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_each_once)
        json.dumps(row, ensure_ascii=False).encode()  # raises an error for an escaped lone surrogate
    except UnicodeDecodeError as error:
        if last and error.reason == "unexpected end of data":
            return None
        raise InputError(where, shown, f"each line must be UTF-8 ({error})", "Save the file as UTF-8.") from None
    except (ValueError, RecursionError) as error:  # not JSON, or not encodable in UTF-8
        if last and isinstance(error, json.JSONDecodeError):
            return None
        raise InputError(where, shown, f"each line must be a JSON object ({error})", "Fix the line.") from None
    if not isinstance(row, dict):
        raise InputError(where, shown, "each line must be a JSON object", "Fix the line.")
    for name, value in row.items():
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            allowed = "must be finite: JSON has neither NaN nor Infinity"
            raise InputError(f"{where}: {name}", value, allowed, "Fix the row; null means no value.") from None
    return row


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, and reject repeated names, of which the last would silently be used."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is repeated")
    return found


def check_spelling(where: str, names: Collection[str], columns: Columns) -> None:
    """Check that no unknown column looks like a misspelling of a known column that is missing.

    Args:
        where: The place of the row, or of the header line of a table.
        names: The names of the columns that the row or table has.
        columns: The columns of this kind of file.

    Raises:
        InputError: A column is misspelled. The error names it and the known column.
    """
    absent = {name.casefold(): name for name in (*columns.required, *columns.optional) if name not in names}
    for name in columns.unknown(names):
        # With 0.77, `category` matches `categories`, but `mode` does not match `code`.
        if close := get_close_matches(name.casefold(), absent, 1, 0.77):
            meant = absent[close[0]]
            own = "" if meant in columns.required else f", or add an empty column {meant} if you mean both"
            allowed = f"is not a known column, and {meant}, which has a similar name, is missing"
            raise InputError(where, name, allowed, f"Rename it{own}.")


def check_rows(key: str, path: str, rows: Sequence[Row], columns: Columns) -> None:
    """Check a file as a whole, and warn about columns that are not read.

    Args:
        key: The setting that names the file.
        path: The path of the file.
        rows: All rows of the file.
        columns: The columns of this kind of file.

    Raises:
        InputError: There is no row, or no row has an expected column.
    """
    if not rows:
        advice = "Check that this is the correct file."
        raise InputError(key, path, f"has no rows, and each row must have {', '.join(columns.required)}", advice)
    for name in columns.expected:
        if not any(name in row for _, row in rows):
            advice = f"Rename the column if it has another name; otherwise add {name} with null or empty values."
            raise InputError(key, path, f"has no row with the column {name}", advice)
    filled = dict.fromkeys(name for _, row in rows for name, value in row.items() if value not in (None, ""))
    if unknown := columns.unknown(filled):
        log.warning("%s: these columns are not read: %s", path, ", ".join(map(repr, unknown)))


def content_sha256(rows: Iterable[dict[str, Any]], columns: Iterable[str]) -> str:
    """Return the SHA-256 of the rows' `columns` in order of id, which does not depend on the source of the rows."""
    kept = sorted(({name: row[name] for name in columns} for row in rows), key=lambda row: row["task_id"])
    text = json.dumps(kept, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def task_of(where: str, row: dict[str, Any], split: str, prompt_style: str, stub: str | None = None) -> Task:
    """Return the task of a row with MBPP's columns.

    Args:
        where: The place of the row, for errors.
        row: The columns of the row, with the correct types.
        split: The split of the task.
        prompt_style: The style of the prompt; see `prompts.task_prompt`.
        stub: A function without a body, used if there is no gold program.

    Raises:
        InputError: There is no test, a test checks nothing, the program does not parse, or not exactly one of its
            functions is called by every test.
    """
    text, code = normalise_newlines(row["text"]), normalise_newlines(row["code"])
    tests = _tests(where, "test_list", row["test_list"])
    challenge = (
        _tests(where, "challenge_test_list", row["challenge_test_list"]) if row.get("challenge_test_list") else ()
    )
    try:
        head = stub or code
        prompt, name = task_prompt(text, head, tests, prompt_style), entry_point(head, tests)
    except (ValueError, SyntaxError) as error:
        raise InputError(
            f"{where}: {'signature' if stub else 'code'}",
            head[:60],
            f"must parse and define the function that its tests call ({error})",
            "Fix the row.",
        ) from None
    setup = normalise_newlines(row["test_setup_code"])
    return Task(row["task_id"], split, text, code, name, tests, setup, prompt, challenge=challenge)


def _tests(where: str, column: str, tests: Any) -> tuple[str, ...]:
    """Return a row's tests. Raise InputError if there is none or one checks nothing."""
    if not tests or not isinstance(tests, list) or not all(map(_is_test, tests)):
        allowed = (
            "must be a list of one or more tests (assert statements, or functions and classes as pytest finds them)"
        )
        allowed += ", each a text that Python can parse on its own"
        raise InputError(f"{where}: {column}", tests, allowed, "Fix the row.")
    return tuple(map(normalise_newlines, tests))


def script_of(where: str, row: dict[str, Any], split: str) -> Task:
    """Return the task of a row with inputs and outputs, whose programs are scripts.

    Args:
        where: The place of the row, for errors.
        row: The columns of the row. `inputs` and `outputs` are lists.
        split: The split of the task.

    Raises:
        InputError: Inputs and outputs are not texts or differ in number, or the program does not parse.
    """

    def wrong(column: str, allowed: str) -> InputError:
        return InputError(f"{where}: {column}", row[column], allowed, "Fix the row.")

    for name in ("inputs", "outputs"):
        if not row[name] or not all(isinstance(text, str) and text == whole(text) for text in row[name]):
            raise wrong(name, "must be a list of one or more texts, which programs read or must write")
    if len(row["inputs"]) != len(row["outputs"]):
        raise wrong("outputs", f"must be as many as the inputs, {len(row['inputs'])}, not {len(row['outputs'])}")
    how = row["compare_output"] or COMPARE_OUTPUT[0]
    if how not in COMPARE_OUTPUT:
        raise wrong("compare_output", f"must be {' or '.join(COMPARE_OUTPUT)}, or omitted for {COMPARE_OUTPUT[0]}")
    text, code = normalise_newlines(row["text"]), normalise_newlines(row["code"])
    try:
        ast.parse(code)
    except (ValueError, SyntaxError) as error:
        raise wrong("code", f"must parse ({error})") from None
    given, expected = (tuple(map(normalise_newlines, row[name])) for name in ("inputs", "outputs"))
    prompt = script_prompt(text, given[0], expected[0])
    return Task(row["task_id"], split, text, code, "", (), "", prompt, 1, given, expected, how)


def _is_test(test: Any) -> bool:
    """Return whether a text is Python code that checks something."""
    try:
        return isinstance(test, str) and any(map(_checks, ast.walk(ast.parse(test))))
    except (SyntaxError, ValueError):
        return False


def _checks(node: ast.AST) -> bool:
    """Return whether this is an assert or raise statement, or a call such as assertEqual, raises or fail."""
    if not isinstance(node, ast.Call):
        return isinstance(node, ast.Assert | ast.Raise)
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    return name.startswith("assert") or name in ("raises", "fail")


def tasks_from(
    rows: Sequence[Row],
    columns: Iterable[str],
    expected_sha256: str | None,
    task: Callable[[str, dict[str, Any]], Task],
    key: str = "data",
) -> tuple[list[Task], str]:
    """Return all tasks in order of id, and the SHA-256 of their content.

    Args:
        rows: The rows, one for each task.
        columns: The columns that the hash covers.
        expected_sha256: The expected SHA-256 of the content; None accepts any.
        task: A function that makes a task from a place and a row.
        key: The group of the setting, for errors: "data" or "transfer".

    Raises:
        InputError: A row is malformed or repeated, or the content does not have the expected hash.
    """
    tasks: dict[int, Task] = {}
    for where, row in rows:
        one = task(where, row)
        if one.task_id in tasks:
            raise InputError(f"{where}: task_id", one.task_id, "is in the file twice", "Remove one row.")
        tasks[one.task_id] = one
    sha256 = content_sha256((row for _, row in rows), columns)
    if expected_sha256 is not None and sha256 != expected_sha256:
        raise InputError(
            f"{key}.sha256",
            expected_sha256,
            f"the rows hash to {sha256}",
            f"Use the published file, or set {key}.sha256=null to run on other rows.",
        )
    return [tasks[i] for i in sorted(tasks)], sha256
