"""MBPP's tasks (Austin et al. 2021) and the ILF paper's splits of them.

The rows come from a local JSON-lines file, or from the Hugging Face Hub at a pinned revision.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le

from ilf.paths import check_path
from ilf.tasks import rows as rows_of
from ilf.tasks.data import Data
from ilf.tasks.indentation import reindented
from ilf.tasks.rows import Columns, Row, check_rows, read_json_lines, task_of
from ilf.types import InputError, Task

HUB = ("google-research-datasets/mbpp", "full")
REVISION = "4bb6404fdc6cacfda99d4ac4205087b89d32030c"
SHA256 = "e3f45af54c8923849d795cba78c5c94b88c09db89a5dcc9ac538696485b099cf"
SPLIT_IDS = {"prompt": range(1, 11), "test": range(11, 111), "refine": range(111, 311), "train": range(311, 975)}
IDS = range(1, 975)
COLUMNS = {"task_id": int, "text": str, "code": str, "test_list": list, "test_setup_code": str}
FILE = Columns(COLUMNS, optional=("challenge_test_list",))  # not included in the SHA-256
_ADVICE = "Give the path of MBPP's mbpp.jsonl, or omit it to use the Hub."


@dataclass
class MBPP(Data):
    """MBPP with the paper's splits.

    Args:
        path: A JSON-lines file with MBPP's columns and all or some of its rows; null loads MBPP from the Hub.
        revision: The commit on the Hub, used if there is no path.
        sha256: The expected SHA-256 of the content; null accepts any content.
        last_train_id: The last id of Train, 974 in the paper. Tasks with higher ids are added to Test.
        newlines: The newlines of the gold programs to train on: normalized, or published, which is CRLF in 972 of 974.
        reindent: Whether to re-indent the gold programs to train on with four spaces per level.
    """

    annotated_policy: str | None = "Salesforce/codegen-6B-mono"
    path: str | None = None
    revision: str = REVISION
    sha256: str | None = SHA256
    last_train_id: Annotated[int, Ge(311), Le(974)] = 974
    newlines: Literal["normalized", "published"] = "normalized"
    reindent: bool = False

    gold_passes: ClassVar[bool] = True
    may_lack: ClassVar[Container[int]] = IDS

    @property
    def source(self) -> tuple[str, Any]:
        """The path of the file, if there is one."""
        return "path", self.path

    def same(self, other: Data) -> bool:
        """Return whether another data set is MBPP, wherever its rows come from."""
        return isinstance(other, MBPP)

    def place_of(self, *splits: str) -> str:
        """Return the ids of these splits, for errors."""
        return ids_of(*splits, last_train_id=self.last_train_id)

    def check(self, key: str = "data") -> None:
        """Raise InputError if the file does not exist."""
        super().check(key)
        if self.path is not None:
            check_path(f"{key}.path", self.path, "file", _ADVICE)

    def read(self, key: str) -> tuple[list[Task], str]:
        """Return all tasks in order of id, and the SHA-256 of their content. Raise InputError as `read_rows` does."""
        rows = read_rows(self.path, self.revision, key)
        tasks, sha256 = tasks_from(rows, self.sha256, self.prompt, key)
        published = {row["task_id"]: row["code"] for _, row in rows}
        tasks = [replace(task, gold=self._gold(task, published[task.task_id])) for task in tasks]
        return [replace(t, split="test") if t.task_id > self.last_train_id else t for t in tasks], sha256

    def _gold(self, task: Task, published: str) -> str:
        """Return the gold program to train on, or an empty string if it equals the task's own."""
        code = published if self.newlines == "published" else task.code
        code = reindented(code) if self.reindent else code
        return "" if code == task.code else code


def ids_of(*splits: str, last_train_id: int = 974) -> str:
    """Return a description of the ids of splits, such as "ids 1 to 10"."""
    ids = {name: [(own[0], own[-1])] for name, own in SPLIT_IDS.items()} | {"train": [(311, last_train_id)]}
    if last_train_id < 974:
        ids["test"].append((last_train_id + 1, 974))
    return f"ids {', '.join(f'{first} to {last}' for name in splits for first, last in ids[name])}"


def split_of(task_id: int) -> str:
    """Return the paper's split of an MBPP task id, from 1 to 974."""
    return next(name for name, ids in SPLIT_IDS.items() if task_id in ids)


def read_rows(path: str | None, revision: str, key: str = "data") -> list[Row]:
    """Return (place, row) for each of MBPP's rows.

    Args:
        path: A JSON-lines file with MBPP's columns; None loads MBPP from the Hub.
        revision: The commit on the Hub, used if `path` is None.
        key: The group of the setting, for errors: "data" or "transfer".

    Raises:
        InputError: The file is missing or empty, a row is malformed, or the Hub can't be reached.
    """
    if path is None:
        return _hub_rows(revision, key)
    check_path(f"{key}.path", path, "file", _ADVICE)
    rows = read_json_lines(Path(path), FILE)
    check_rows(f"{key}.path", path, rows, FILE)
    return rows


def _hub_rows(revision: str, key: str) -> list[Row]:
    from datasets import concatenate_datasets, load_dataset

    try:
        parts = load_dataset(*HUB, revision=revision)
    except Exception as error:  # the client has no common class for connection errors
        raise InputError(
            f"{key}.path",
            None,
            f"MBPP could not be loaded from the Hugging Face Hub ({HUB[0]} at {revision}: {type(error).__name__})",
            f"Without a network, use a local copy: {key}.path=mbpp.jsonl.",
        ) from error
    return [(f"{HUB[0]}:{row['task_id']}", row) for row in concatenate_datasets(list(parts.values()))]


def tasks_from(
    rows: Sequence[Row], expected_sha256: str | None, prompt_style: str, key: str = "data"
) -> tuple[list[Task], str]:
    """Return all tasks in order of id, and the SHA-256 of their content.

    Args:
        rows: (place, row) for each task, with MBPP's columns.
        expected_sha256: The expected SHA-256 of the content; None accepts any.
        prompt_style: The style of the prompt; see `prompts.task_prompt`.
        key: The group of the setting, for errors: "data" or "transfer".

    Raises:
        InputError: A row is malformed or repeated, or the content does not have the expected hash.
    """

    def task(where: str, row: dict[str, Any]) -> Task:
        if row["task_id"] not in IDS:
            allowed = "must be one of MBPP's ids, 1 to 974"
            raise InputError(f"{where}: task_id", row["task_id"], allowed, "Fix the row.")
        return task_of(where, row, split_of(row["task_id"]), prompt_style)

    return rows_of.tasks_from(rows, COLUMNS, expected_sha256, task, key)
