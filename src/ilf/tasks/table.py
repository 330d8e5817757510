"""Tasks from rows in MBPP's columns, whose splits a column or fractions decide."""

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
TESTS = ("test_list",)  # a list of asserts, or
SCRIPT = ("inputs", "outputs", "compare_output")  # lists of texts that programs read and write, and how they compare
OPTIONAL = {"code": "", "signature": "", "test_setup_code": "", "split": ""}  # texts, with what stands for none
FILE = Columns(COLUMNS, (*TESTS, *SCRIPT, *OPTIONAL), unread=("challenge_test_list",))  # the last is in rows of MBPP
_BODY = "\n    pass"


@dataclass
class Fractions:
    """How many of one's own tasks go to each split, as shares of 1."""

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

        Columns are `task_id` (from 1), `text`, `test_list` (tests), `code` (the gold program) or
        `signature`, and maybe `test_setup_code` and `split`. Of a task whose programs read and write: in place of
        `test_list` `inputs` and `outputs`, maybe with `compare_output`, and maybe `code`.

        Args:
            key: The setting's group, for errors: "data" or "transfer".
        """

    def check(self, key: str = "data") -> None:
        """Raise InputError where the fractions are no whole."""
        super().check(key)
        shares = asdict(self.split)
        if min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-9:
            advice = f"Use '{key}.split={{prompt: 0, test: 0.3, refine: 0.3, train: 0.4}}'."
            raise InputError(f"{key}.split", shares, "must be shares of the tasks, together 1", advice)

    def read(self, key: str) -> tuple[list[Task], str]:
        """Return all tasks in order of id, and the SHA-256 of their content.

        Raises:
            InputError: There is no row, a row is malformed or repeated, some rows name a split and others do not, or
                none is left for Test.
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
            raise InputError(f"{where}: split", "(missing)", "other rows name theirs", advice)
        drawn = {} if any(named) else split_ids([row["task_id"] for _, row in rows], asdict(self.split))

        def task(where: str, row: dict[str, Any]) -> Task:
            split, stub = row["split"] or drawn[row["task_id"]], row["signature"] + _BODY if row["signature"] else None
            if not row["test_list"]:
                return script_of(where, row, split)
            return task_of(where, row, split, self.prompt, stub)

        # Files without any script hash to what they always did.
        more = SCRIPT if any(row["inputs"] for _, row in rows) else ()
        tasks, sha256 = tasks_from(rows, [*COLUMNS, *TESTS, *more, *OPTIONAL], self.sha256, task, key)
        if drawn and "test" not in drawn.values():
            allowed = f"gives none of the {len(tasks)} tasks of {value} to Test, on which figures are reported"
            raise InputError(f"{key}.split", asdict(self.split), allowed, f"Raise {key}.split.test, or add tasks.")
        return tasks, sha256

    def place_of(self, *splits: str) -> str:
        """Return what makes a task one of these splits, for errors."""
        return "column `split`, or the setting `split`"

    def places(self, key: str) -> Mapping[int, str]:
        """Return where each task stands, by id."""
        return {row["task_id"]: where for where, row in self.rows(key)}


def _checked(where: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with every column, those that it lacks empty."""

    def wrong(column: str, allowed: str) -> InputError:
        return InputError(f"{where}: {column}", row.get(column, "(missing)"), allowed, "Mend the row.")

    found = {name: row[name] for name in COLUMNS}
    for name, default in (OPTIONAL | {"compare_output": ""}).items():
        found[name] = default if row.get(name) is None else row[name]
        if not isinstance(found[name], str):
            raise wrong(name, "must be a text, or left out")
    for name in ("test_list", "inputs", "outputs"):
        found[name] = [] if row.get(name) is None else row[name]
        if not isinstance(found[name], list):
            raise wrong(name, "must be a list, or left out")
    for name, value in found.items():
        if isinstance(value, str) and value != whole(value):
            raise wrong(name, "must be text, and half of a surrogate pair in it is none")
    if row["task_id"] < 1:
        raise wrong("task_id", "must be a whole number from 1")
    if not row["text"].strip():
        raise wrong("text", "must say in words what the program is to do")
    if found["split"] not in ("", *SPLITS):
        raise wrong("split", f"must be one of {', '.join(SPLITS)}")
    script = [name for name in SCRIPT if found[name]]
    if script and found["test_list"]:
        raise wrong(script[0], "has no place beside test_list: a program is called by tests, or reads inputs")
    if script and (other := [name for name in ("signature", "test_setup_code") if found[name].strip()]):
        raise wrong(other[0], "is for tasks with a test_list, and this one has inputs and outputs")
    if not script and not found["test_list"]:
        raise wrong(
            "test_list", "must be a list of one or more tests (assert statements), or inputs and outputs in its place"
        )
    both = [name for name in ("code", "signature") if found[name].strip()]
    if not both and not script:
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
