"""Rows of a JSON-lines file, checked one by one, and the tasks that they make."""

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

Row = tuple[str, dict[str, Any]]  # where it stands, such as FILE:LINE, and its columns


@dataclass(frozen=True)
class Columns:
    """The columns of one kind of file."""

    required: Mapping[str, type]  # in every row, of this type
    optional: Collection[str] = ()  # may be left out of a row
    unread: Collection[str] = ()  # of published files, or of those that runs write: known, and nobody reads them
    expected: Collection[str] = ()  # of the optional ones: in one row at least, null or empty where there is nothing

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Return those of `names` that no reader knows."""
        return [name for name in names if name not in {*self.required, *self.optional, *self.unread}]


def read_json_lines(path: Path, columns: Columns, growing: bool = False) -> list[Row]:
    """Return (FILE:LINE, row) for each row of a JSON-lines file, its columns checked.

    Args:
        path: The file.
        columns: Those of its kind; others may be there too, see `check_rows`.
        growing: Whether somebody may be writing it: a last line without its end is left out, with a warning.

    Raises:
        InputError: A line is no JSON object, or a column is missing, misspelt, given twice or of another type; names
            the file and line.
    """
    rows = []
    lines = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        row = _parsed(where, line, growing and number == len(lines))
        if row is None:
            log.warning("%s: an unfinished line is left out", where)
            continue
        check_row(where, row, columns)
        rows.append((where, row))
    return rows


def check_row(where: str, row: Mapping[str, Any], columns: Columns) -> None:
    """Check the columns of a row.

    Raises:
        InputError: One is missing, misspelt or of another type.
    """
    check_spelling(where, row, columns)
    for name, kind in columns.required.items():
        if name not in row:
            allowed = f"every row must have this column, and this one has {', '.join(row) or 'none'}"
            raise InputError(f"{where}: {name}", "(missing)", allowed, "Mend the row.")
        if not isinstance(row[name], kind) or isinstance(row[name], bool):
            raise InputError(f"{where}: {name}", row[name], f"must be of type {kind.__name__}", "Mend the row.")


def _parsed(where: str, line: bytes, last: bool) -> dict[str, Any] | None:
    """Return a line's JSON object; None where it is the `last` one and has no end yet."""
    shown = line[:60].decode(errors="replace")
    if b"\0" in line:  # what UTF-16 has between the letters: no line that is only unfinished
        raise InputError(
            where, shown, "each line must be UTF-8, and this one has null bytes", "Save the file as UTF-8."
        )
    try:
        row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_each_once)
        json.dumps(row, ensure_ascii=False).encode()  # half of a surrogate pair, escaped, is no text
    except UnicodeDecodeError as error:
        if last and error.reason == "unexpected end of data":
            return None
        raise InputError(where, shown, f"each line must be UTF-8 ({error})", "Save the file as UTF-8.") from None
    except (ValueError, RecursionError) as error:  # no JSON, or not to be written in UTF-8
        if last and isinstance(error, json.JSONDecodeError):
            return None
        raise InputError(where, shown, f"each line must be a JSON object ({error})", "Mend the line.") from None
    if not isinstance(row, dict):
        raise InputError(where, shown, "each line must be a JSON object", "Mend the line.")
    for name, value in row.items():
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            allowed = "must be finite: JSON has neither NaN nor Infinity"
            raise InputError(f"{where}: {name}", value, allowed, "Mend the row; null stands for none.") from None
    return row


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object of which no name stands twice: the last one would win without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands in it twice")
    return found


def check_spelling(where: str, names: Collection[str], columns: Columns) -> None:
    """Check that no unknown column is spelt like one that is read and that is not there.

    Args:
        where: The row's place, or that of the line that names a table's columns.
        names: The columns that are there.
        columns: Those of the file's kind.

    Raises:
        InputError: Names the column and the one that is read.
    """
    absent = {name.casefold(): name for name in (*columns.required, *columns.optional) if name not in names}
    for name in columns.unknown(names):
        # 0.77 takes `category` for `categories`, and leaves alone `mode` beside `code`.
        if close := get_close_matches(name.casefold(), absent, 1, 0.77):
            meant = absent[close[0]]
            own = "" if meant in columns.required else f", or add {meant}, empty, where both are meant"
            allowed = f"is no column that is read, and {meant}, which is spelt like it, is missing"
            raise InputError(where, name, allowed, f"Rename it{own}.")


def check_rows(key: str, path: str, rows: Sequence[Row], columns: Columns) -> None:
    """Check a file as a whole, and name the columns that nothing reads in a warning.

    Args:
        key: The setting that names the file.
        path: The file.
        rows: All of its rows.
        columns: Those of its kind.

    Raises:
        InputError: There is no row, or no row has a column that is expected.
    """
    if not rows:
        advice = "Check that it is the right file."
        raise InputError(key, path, f"has no row, and each is to have {', '.join(columns.required)}", advice)
    for name in columns.expected:
        if not any(name in row for _, row in rows):
            advice = f"Rename the column that is meant; where there is none, add {name}, null or empty, to say so."
            raise InputError(key, path, f"has the column {name} in no row", advice)
    filled = dict.fromkeys(name for _, row in rows for name, value in row.items() if value not in (None, ""))
    if unknown := columns.unknown(filled):
        log.warning("%s: nothing reads these columns: %s", path, ", ".join(map(repr, unknown)))


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
        InputError: There is no test or one that checks nothing, the program does not parse, or the tests do
            not call one function of it.
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
            f"must parse and define what its tests call ({error})",
            "Mend the row.",
        ) from None
    setup = normalise_newlines(row["test_setup_code"])
    return Task(row["task_id"], split, text, code, name, tests, setup, prompt, challenge=challenge)


def _tests(where: str, column: str, tests: Any) -> tuple[str, ...]:
    """Return a row's tests. Raises InputError where there is none, or one that checks nothing."""
    if not tests or not isinstance(tests, list) or not all(map(_is_test, tests)):
        allowed = (
            "must be a list of one or more tests (assert statements, or functions and classes as pytest finds them)"
        )
        allowed += ", each a text that Python can parse as it stands"
        raise InputError(f"{where}: {column}", tests, allowed, "Mend the row.")
    return tuple(map(normalise_newlines, tests))


def script_of(where: str, row: dict[str, Any], split: str) -> Task:
    """Return the task of a row whose programs read and write.

    Args:
        where: The row's place, for errors.
        row: Its columns; `inputs` and `outputs` are lists.
        split: Where the task belongs.

    Raises:
        InputError: Inputs and outputs are no texts or not as many, or the program does not parse.
    """

    def wrong(column: str, allowed: str) -> InputError:
        return InputError(f"{where}: {column}", row[column], allowed, "Mend the row.")

    for name in ("inputs", "outputs"):
        if not row[name] or not all(isinstance(text, str) and text == whole(text) for text in row[name]):
            raise wrong(name, "must be a list of one or more texts: inputs what is read, outputs what is to be written")
    if len(row["inputs"]) != len(row["outputs"]):
        raise wrong("outputs", f"must be as many as inputs, {len(row['inputs'])}, and are {len(row['outputs'])}")
    how = row["compare_output"] or COMPARE_OUTPUT[0]
    if how not in COMPARE_OUTPUT:
        raise wrong("compare_output", f"must be {' or '.join(COMPARE_OUTPUT)}, or left out for {COMPARE_OUTPUT[0]}")
    text, code = normalise_newlines(row["text"]), normalise_newlines(row["code"])
    try:
        ast.parse(code)
    except (ValueError, SyntaxError) as error:
        raise wrong("code", f"must parse ({error})") from None
    given, expected = (tuple(map(normalise_newlines, row[name])) for name in ("inputs", "outputs"))
    prompt = script_prompt(text, given[0], expected[0])
    return Task(row["task_id"], split, text, code, "", (), "", prompt, 1, given, expected, how)


def _is_test(test: Any) -> bool:
    """Return whether a text is Python that checks something."""
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
        rows: Of each task one.
        columns: What a task is made from.
        expected_sha256: What the content must hash to, None for any.
        task: Makes one from a place and a row.
        key: The setting's group, for errors: "data" or "transfer".

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
            f"{key}.sha256",
            expected_sha256,
            f"the rows hash to {sha256}",
            f"Use the published file, or set {key}.sha256=null to run on other rows.",
        )
    return [tasks[i] for i in sorted(tasks)], sha256
