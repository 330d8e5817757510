"""A user's own tasks, from a JSON-lines file in MBPP's columns; docs/how-to/own-tasks.md has the schema."""

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
    """Tasks of a JSON-lines file.

    Args:
        path: The file.
    """

    path: str | None = None

    @property
    def source(self) -> tuple[str, Any]:
        """The file."""
        return "path", self.path

    def check(self, key: str = "data") -> None:
        """Raise InputError where there is no such file."""
        super().check(key)
        if self.path is None:
            advice = f"Give {key}.path=tasks.jsonl; docs/how-to/own-tasks.md has an example."
            raise InputError(f"{key}.path", None, "must name a file of tasks", advice)
        check_path(f"{key}.path", self.path, "file", "Check the path.")

    def rows(self, key: str) -> list[Row]:
        """Return (FILE:LINE, row) for each task. Raises InputError for a line that is no JSON object."""
        return read_json_lines(Path(str(self.path)), FILE)
