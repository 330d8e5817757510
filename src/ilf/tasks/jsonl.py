"""A user's own tasks, from a JSON-lines file with MBPP's columns. The schema is in docs/how-to/own-tasks.md."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilf.paths import check_path
from ilf.tasks.rows import Row, read_json_lines
from ilf.tasks.table import FILE, Table
from ilf.types import InputError


@dataclass
class Jsonl(Table):
    """A data set in a JSON-lines file.

    Args:
        path: The path of the file.
    """

    path: str | None = None

    @property
    def source(self) -> tuple[str, Any]:
        """The path of the file."""
        return "path", self.path

    def check(self, key: str = "data") -> None:
        """Raise InputError if the file does not exist."""
        super().check(key)
        if self.path is None:
            advice = f"Give {key}.path=tasks.jsonl; docs/how-to/own-tasks.md has an example."
            raise InputError(f"{key}.path", None, "must be the path of a file of tasks", advice)
        check_path(f"{key}.path", self.path, "file", "Check the path.")

    def rows(self, key: str) -> list[Row]:
        """Return (FILE:LINE, row) for each task. Raise InputError for a line that is not a JSON object."""
        return read_json_lines(Path(str(self.path)), FILE)
