"""Tasks from rows with MBPP's columns, split by a column or by fractions."""

from __future__ import annotations

import ast
import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ilf.files import whole
from ilf.tasks.data import SPLITS, Data, Share
from ilf.tasks.prompts import normalise_newlines
from ilf.tasks.rows import Columns, Row, check_row, check_rows, script_of, task_of, tasks_from
from ilf.types import InputError, Task

COLUMNS = {"task_id": int, "text": str}
TESTS = ("test_list",)  # a list of tests; alternatively:
SCRIPT = (
    "inputs",
    "outputs",
    "compare_output",
)  # lists of what programs read and must write, and how outputs are compared
OPTIONAL = {"code": "", "signature": "", "test_setup_code": "", "split": ""}  # texts, with their defaults
FILE = Columns(COLUMNS, (*TESTS, *SCRIPT, *OPTIONAL), unread=("challenge_test_list",))  # the last is a column of MBPP
_BODY = "\n    pass"


@dataclass
class Fractions:
    """The fraction of the tasks in each split. The fractions add up to 1."""

    prompt: Share = 0.0
    test: Share = 0.3
    refine: Share = 0.3
    train: Share = 0.4


@dataclass
class Table(Data):
    """A data set with MBPP's columns, whose schema is in docs/how-to/own-tasks.md.

    For your own data set, derive from this class and implement `rows`.

    Args:
        split: The fraction of the tasks in each split, used if the rows name no split.
        sha256: The expected SHA-256 of the content; null accepts any content.
    """

    split: Fractions = field(default_factory=Fractions)
    sha256: str | None = None

    @abstractmethod
    def rows(self, key: str) -> Iterable[Row]:
        """Yield the place, for errors, and the columns of each task.

        The columns are `task_id` (from 1), `text`, `test_list` (tests), `code` (the gold program) or `signature`, and
        optionally `test_setup_code` and `split`. A task whose programs are scripts has `inputs` and `outputs` in place
        of `test_list`, and optionally `compare_output` and `code`.

        Args:
            key: The group of the setting, for errors: "data" or "transfer".
        """

    def check(self, key: str = "data") -> None:
        """Raise InputError if the fractions do not add up to 1."""
        super().check(key)
        shares = asdict(self.split)
        if min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-9:
            advice = f"Use '{key}.split={{prompt: 0, test: 0.3, refine: 0.3, train: 0.4}}'."
            raise InputError(
                f"{key}.split", shares, "must be non-negative fractions of the tasks that add up to 1", advice
            )

    def read(self, key: str) -> tuple[list[Task], str]:
        """Return all tasks in order of id, and the SHA-256 of their content.

        Raises:
            InputError: There is no row, a row is malformed or repeated, only some rows name a split, or no task is
                left for Test.
        """
        name, value = self.source
        found = list(self.rows(key))
        for where, row in found:
            check_row(where, row, FILE)
        check_rows(f"{key}.{name}", value, found, FILE)
        rows = [(where, _checked(where, row)) for where, row in found]
        named = [bool(row["split"]) for _, row in rows]
        if any(named) and not all(named):
            where, _ = rows[named.index(False)]
            advice = "Name one of prompt, test, refine and train in every row, or in none."
            raise InputError(f"{where}: split", "(missing)", "is required, as other rows name their split", advice)
        drawn = {} if any(named) else split_ids([row["task_id"] for _, row in rows], asdict(self.split))

        def task(where: str, row: dict[str, Any]) -> Task:
            split, stub = row["split"] or drawn[row["task_id"]], row["signature"] + _BODY if row["signature"] else None
            if not row["test_list"]:
                return script_of(where, row, split)
            return task_of(where, row, split, self.prompt, stub)

        # Leave out empty script columns, so that the hashes of files without scripts stay valid.
        more = SCRIPT if any(row["inputs"] for _, row in rows) else ()
        tasks, sha256 = tasks_from(rows, [*COLUMNS, *TESTS, *more, *OPTIONAL], self.sha256, task, key)
        if drawn and "test" not in drawn.values():
            allowed = f"assigns none of the {len(tasks)} tasks of {value} to Test, on which results are reported"
            raise InputError(f"{key}.split", asdict(self.split), allowed, f"Raise {key}.split.test, or add tasks.")
        return tasks, sha256

    def place_of(self, *splits: str) -> str:
        """Return what assigns a task to one of these splits, for errors."""
        return "column `split`, or the setting `split`"

    def places(self, key: str) -> Mapping[int, str]:
        """Return the place of each task, by id."""
        return {row["task_id"]: where for where, row in self.rows(key)}


def _checked(where: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return a checked row with every column, where missing columns are empty."""

    def wrong(column: str, allowed: str) -> InputError:
        return InputError(f"{where}: {column}", row.get(column, "(missing)"), allowed, "Fix the row.")

    found = {name: row[name] for name in COLUMNS}
    for name, default in (OPTIONAL | {"compare_output": ""}).items():
        found[name] = default if row.get(name) is None else row[name]
        if not isinstance(found[name], str):
            raise wrong(name, "must be a text, or omitted")
    for name in ("test_list", "inputs", "outputs"):
        found[name] = [] if row.get(name) is None else row[name]
        if not isinstance(found[name], list):
            raise wrong(name, "must be a list, or omitted")
    for name, value in found.items():
        if isinstance(value, str) and value != whole(value):
            raise wrong(name, "must be text that UTF-8 can encode, and it contains half of a surrogate pair")
    if row["task_id"] < 1:
        raise wrong("task_id", "must be a positive integer")
    if not row["text"].strip():
        raise wrong("text", "must describe what the program must do")
    if found["split"] not in ("", *SPLITS):
        raise wrong("split", f"must be one of {', '.join(SPLITS)}")
    script = [name for name in SCRIPT if found[name]]
    if script and found["test_list"]:
        raise wrong(script[0], "can't be used with test_list: a task has either tests, or inputs and outputs")
    if script and (other := [name for name in ("signature", "test_setup_code") if found[name].strip()]):
        raise wrong(other[0], "is only for tasks with a test_list, and this task has inputs and outputs")
    if not script and not found["test_list"]:
        raise wrong(
            "test_list", "must be a list of one or more tests (assert statements), or inputs and outputs in its place"
        )
    both = [name for name in ("code", "signature") if found[name].strip()]
    if not both and not script:
        raise wrong("code", "is required: each task needs a gold program or, if there is none, a signature")
    if len(both) == 2:
        raise wrong("signature", "is only for tasks without a gold program, and this task has one in the column code")
    found["signature"] = normalise_newlines(found["signature"]).rstrip()
    if found["signature"] and not _is_signature(found["signature"]):
        raise wrong("signature", "must end with the colon of a `def` line, such as 'def area(w, h):'")
    return found


def _is_signature(text: str) -> bool:
    """Return whether a text is a function that lacks only its body, optionally with code above it."""
    try:
        match ast.parse(text + _BODY).body:
            case [*_, ast.FunctionDef(body=[ast.Pass(lineno=line)])]:
                return line == text.count("\n") + 2
    except (SyntaxError, ValueError):
        pass
    return False


def split_ids(ids: Sequence[int], fractions: Mapping[str, float]) -> dict[int, str]:
    """Return the split of each task. The ids alone decide the order, and the largest-remainder method the sizes.

    A split with a fraction above 0 gets at least one task, taken from the largest split while that has more than one.

    Args:
        ids: The ids of the tasks.
        fractions: The fraction of the tasks in each split. They add up to 1.
    """
    shares = {name: share * len(ids) for name, share in fractions.items()}
    sizes = {
        name: int(share + 1e-9) for name, share in shares.items()
    }  # 0.3 x 10 may be just below 3 in floating point
    by_remainder = sorted(shares, key=lambda name: sizes[name] - shares[name])  # ties go to the first
    for name in by_remainder[: len(ids) - sum(sizes.values())]:
        sizes[name] += 1
    for name in fractions:
        largest = max(sizes, key=sizes.__getitem__)
        if fractions[name] > 0 and not sizes[name] and sizes[largest] > 1:
            sizes[name], sizes[largest] = 1, sizes[largest] - 1
    order = iter(sorted(ids, key=lambda i: hashlib.sha256(str(i).encode()).digest()))
    return {task_id: name for name, size in sizes.items() for _, task_id in zip(range(size), order, strict=False)}
