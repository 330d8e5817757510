"""A user's own tasks, from a JSON-lines file in MBPP's columns; docs/tutorial.md has the schema."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ilf.executors import Judge
from ilf.sandbox import Job
from ilf.settings import Data
from ilf.tasks.prompts import normalise_newlines
from ilf.tasks.rows import Columns, check_rows, read_json_lines, task_of, tasks_from
from ilf.types import InputError, Task

COLUMNS = {"task_id": int, "text": str, "test_list": list}
OPTIONAL = {"code": "", "signature": "", "test_setup_code": "", "split": ""}  # texts, with what stands for none
FILE = Columns(COLUMNS, tuple(OPTIONAL), unread=("challenge_test_list",))  # the last is in rows of MBPP
SPLITS = ("prompt", "test", "refine", "train")
_BODY = "\n    pass"


def load(data: Data, key: str = "data") -> tuple[list[Task], str]:
    """Return all tasks in order of id, and the SHA-256 of their content.

    Args:
        data: Its settings.
        key: Their group, for errors: "data" or "transfer".

    Raises:
        InputError: There is no row, a row is malformed or repeated, some rows name a split and others do not, or none
            is left for Test.
    """
    assert data.path is not None  # checked with the other settings
    found = read_json_lines(Path(data.path), FILE)
    check_rows(f"{key}.path", data.path, found, FILE)
    rows = [(where, _checked(where, row)) for where, row in found]
    named = [bool(row["split"]) for _, row in rows]
    if any(named) and not all(named):
        where, _ = rows[named.index(False)]
        advice = "Name one of prompt, test, refine and train in every row, or in none."
        raise InputError(f"{where}: split", "(missing)", "other rows of the file name theirs", advice)
    drawn = {} if any(named) else split_ids([row["task_id"] for _, row in rows], asdict(data.split))

    def task(where: str, row: dict[str, Any]) -> Task:
        split, stub = row["split"] or drawn[row["task_id"]], row["signature"] + _BODY if row["signature"] else None
        return task_of(where, row, split, data.prompt, stub)

    tasks, sha256 = tasks_from(rows, [*COLUMNS, *OPTIONAL], data.sha256, task, key)
    if drawn and "test" not in drawn.values():
        allowed = f"gives none of the {len(tasks)} tasks of {data.path} to Test, on which figures are reported"
        raise InputError(f"{key}.split", asdict(data.split), allowed, f"Raise {key}.split.test, or add tasks.")
    return tasks, sha256


def _checked(where: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with every column, those that it lacks empty."""

    def wrong(column: str, allowed: str) -> InputError:
        return InputError(f"{where}: {column}", row.get(column, "(missing)"), allowed, "Mend the row.")

    found = {name: row[name] for name in COLUMNS}
    for name, default in OPTIONAL.items():
        found[name] = default if row.get(name) is None else row[name]
        if not isinstance(found[name], str):
            raise wrong(name, "must be a text, or left out")
    if row["task_id"] < 1:
        raise wrong("task_id", "must be a whole number from 1")
    if not row["text"].strip():
        raise wrong("text", "must say in words what the program is to do")
    if found["split"] not in ("", *SPLITS):
        raise wrong("split", f"must be one of {', '.join(SPLITS)}")
    both = [name for name in ("code", "signature") if found[name].strip()]
    if not both:
        raise wrong("code", "each task needs its gold program or, where nobody has one, a signature")
    if len(both) == 2:
        raise wrong("signature", "is for tasks without a gold program, and this one has its own in the column code")
    found["signature"] = normalise_newlines(found["signature"]).rstrip()
    if found["signature"] and not _is_signature(found["signature"]):
        raise wrong("signature", "must end with the colon of a `def` line, such as 'def area(w, h):'")
    return found


def _is_signature(text: str) -> bool:
    """Return whether a text is a function that lacks only its body, maybe with code above it."""
    try:
        match ast.parse(text + _BODY).body:
            case [*_, ast.FunctionDef(body=[ast.Pass(lineno=line)])]:
                return line == text.count("\n") + 2
    except (SyntaxError, ValueError):
        pass
    return False


def split_ids(ids: Sequence[int], fractions: Mapping[str, float]) -> dict[int, str]:
    """Return the split of each task: in an order that only the ids decide, cut by largest remainder.

    A split with a fraction above 0 has one task at least, from the largest split, while that has more than one.

    Args:
        ids: Of the tasks.
        fractions: Of them for each split; together 1.
    """
    shares = {name: share * len(ids) for name, share in fractions.items()}
    sizes = {name: int(share + 1e-9) for name, share in shares.items()}  # 0.3 x 10 is just below 3 for a computer
    by_remainder = sorted(shares, key=lambda name: sizes[name] - shares[name])  # of equals the first
    for name in by_remainder[: len(ids) - sum(sizes.values())]:
        sizes[name] += 1
    for name in fractions:
        largest = max(sizes, key=sizes.__getitem__)
        if fractions[name] > 0 and not sizes[name] and sizes[largest] > 1:
            sizes[name], sizes[largest] = 1, sizes[largest] - 1
    order = iter(sorted(ids, key=lambda i: hashlib.sha256(str(i).encode()).digest()))
    return {task_id: name for name, size in sizes.items() for _, task_id in zip(range(size), order, strict=False)}


def check_gold(path: str, tasks: Iterable[Task], sandbox: Judge, key: str = "data") -> None:
    """Execute every gold program on its tests.

    Args:
        path: The tasks' file.
        tasks: Those without a gold program are passed over.
        sandbox: Executes them.
        key: The group of the setting that names the file, for errors: "data" or "transfer".

    Raises:
        InputError: Names the line of each that does not pass, the first five of them, with what came of it.
    """
    golds = [task for task in tasks if task.code]
    verdicts = sandbox.run([Job(task.code, task.tests, task.setup) for task in golds])
    failed = {task.task_id: v for task, v in zip(golds, verdicts, strict=True) if not v.passed}
    if failed:
        places = {row["task_id"]: where for where, row in read_json_lines(Path(path), FILE)}
        said = [f"{places[i]}: task {i}: {v.verdict}, {v.detail}" for i, v in failed.items()]
        more = f"; and {len(said) - 5} more" if len(said) > 5 else ""
        raise InputError(
            f"{key}.path",
            path,
            f"gold programs (column code) must pass their tests, and {len(said)} of {len(golds)} do not: "
            f"{'; '.join(said[:5])}{more}",
            "Mend the program or its tests, or give a signature in place of the program.",
        )
