"""Tasks from any data set that the package `datasets` can load, from the Hugging Face Hub or from local files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

from ilf.paths import check_path
from ilf.tasks.rows import Row
from ilf.tasks.table import Table
from ilf.types import InputError


@dataclass
class HubColumns:
    """The data set's name for each of our columns; null if it has no such column."""

    task_id: str | None = None  # column of positive integers; null numbers the rows from 1 in their order
    text: str = "text"
    test_list: str | None = "test_list"
    inputs: str | None = None
    outputs: str | None = None
    compare_output: str | None = None
    code: str | None = "code"
    signature: str | None = None
    test_setup_code: str | None = None
    split: str | None = None


@dataclass
class Hub(Table):
    """A data set that `datasets.load_dataset` can load.

    Args:
        name: The name of a data set on the Hub, such as google-research-datasets/mbpp; a local folder; or parquet, json
            or csv with `data_files`.
        config: The configuration to load; null if the data set has only one.
        data_files: The files to load: a pattern, a list, or a mapping from split names; null loads all.
        splits: The data set's splits to load, in this order, such as "train" or "train[:500]"; null loads all.
        revision: The commit on the Hub; null uses the newest.
        columns: The data set's name for each of our columns.
        exclude_ids: The ids of tasks to exclude.
    """

    name: str | None = None
    config: str | None = None
    data_files: str | list[str] | dict[str, str | list[str]] | None = None
    splits: list[str] | None = None
    revision: str | None = None
    columns: HubColumns = field(default_factory=HubColumns)
    exclude_ids: list[int] = field(default_factory=list)

    mend_gold: ClassVar[str] = "Exclude these tasks with `exclude_ids`, or use no gold programs: columns.code=null."

    @property
    def source(self) -> tuple[str, Any]:
        """The data set's name."""
        return "name", self.name

    def same(self, other: Any) -> bool:
        """Return whether another data set has the same tasks."""
        return isinstance(other, Hub) and all(
            getattr(self, one) == getattr(other, one) for one in ("name", "config", "data_files", "splits")
        )

    def check(self, key: str = "data") -> None:
        """Raise InputError if no data set is named or a local folder does not exist."""
        super().check(key)
        if self.name is None:
            advice = f"Give {key}.name=OWNER/NAME, or a local folder."
            raise InputError(f"{key}.name", None, "must name a data set of the Hugging Face Hub, or a folder", advice)
        local = Path(self.name).exists()
        if local or self.name.startswith((".", "/", "~")) or self.name.count("/") > 1:
            check_path(f"{key}.name", self.name, "folder", "Give a folder with parquet, JSON or CSV files.")
        if local and self.revision is not None:
            raise InputError(
                f"{key}.revision", self.revision, "applies to the Hub, and a folder has no revisions", "Omit it."
            )
        if self.splits == []:
            raise InputError(f"{key}.splits", [], "must name at least one split", "Omit it to load all splits.")

    def rows(self, key: str) -> Iterator[Row]:
        """Yield (place, row) for each task, with our columns.

        Raises:
            InputError: The data can't be loaded or lack a column.
        """
        own = {ours: theirs for ours, theirs in asdict(self.columns).items() if theirs is not None}
        number = 0
        for split, part in self._parts(key).items():
            for ours, theirs in own.items():
                if theirs not in part.column_names:
                    near = get_close_matches(theirs, part.column_names, 1)
                    advice = f"Did you mean {near[0]}?" if near else "Name one of these, or use null for none."
                    allowed = f"is not a column of {self.name}, which has {', '.join(part.column_names)}"
                    raise InputError(f"{key}.columns.{ours}", theirs, allowed, advice)
            for i, row in enumerate(part.select_columns(list(dict.fromkeys(own.values())))):
                number += 1
                found = {"task_id": number} | {ours: row[theirs] for ours, theirs in own.items()}
                if found["task_id"] not in self.exclude_ids:
                    yield f"{self.name}:{split}[{i}]", found

    def _parts(self, key: str) -> dict[str, Any]:
        """Return the data set's splits by name."""
        from datasets import load_dataset

        files, name = self.data_files, str(self.name)
        try:
            found = load_dataset(name, self.config, data_files=files, split=self.splits, revision=self.revision)
        except Exception as error:  # the package, the formats and the network raise different classes
            said = str(error.__cause__ or error).partition("\n")[0]
            # Find the argument that the message is about.
            named = {
                "splits": "split|Instruction",
                "config": "BuilderConfig",
                "data_files": "Unable to find|data files found",
            }
            wrong = next((one for one, words in named.items() if getattr(self, one) and re.search(words, said)), "name")
            raise InputError(
                f"{key}.{wrong}",
                getattr(self, wrong),
                f"could not be loaded by the package datasets ({type(error).__name__}: {said})",
                "Check the value. Without a network, use a local folder.",
            ) from error
        return dict(zip(self.splits, found, strict=True)) if self.splits else dict(found)
