"""The file of answers: append-only JSON lines, in the columns of the paper's annotations and a few more."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

from ilf.feedback.human import FILE
from ilf.files import JsonLines
from ilf.tasks.rows import read_json_lines


class Answers:
    """A file that several servers may append to; each sees the others' rows.

    Args:
        path: The file; made by the first answer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state: tuple[int, int] | None = None  # of the file, when it was last read
        self._rows: list[dict[str, Any]] = []

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows in the file's order, read again where it has changed.

        What a kill left of a row, or another server is about to finish, is no row.

        Raises:
            InputError: A line is no annotation; names the file and line.
        """
        if not self.path.exists():
            return []
        stat = self.path.stat()
        if (stat.st_size, stat.st_mtime_ns) != self._state:
            self._rows = [row for _, row in read_json_lines(self.path, FILE, growing=True)]
            self._state = stat.st_size, stat.st_mtime_ns  # as before reading: what came since is read next time
        return self._rows

    def append(self, row: dict[str, Any]) -> None:
        """Append a row, on disk when this returns."""
        with self.path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # of the servers; the system frees it where one dies
            data = self.path.read_bytes()
            end = data.rfind(b"\n") + 1
            rest = data[end:]
            if _is_json(rest):  # an editor left the last newline out
                file.write(b"\n")
                file.flush()
            elif rest:  # a kill cut this row off
                file.truncate(end)
            JsonLines(self.path).append([row])


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
