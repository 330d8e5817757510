"""The answer file: append-only JSON lines with the columns of the paper's annotations and a few more."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

from ilf.feedback.human import FILE
from ilf.files import JsonLines
from ilf.tasks.rows import read_json_lines


class Answers:
    """A file to which several servers may append. Each server also reads the rows that the others append.

    Args:
        path: The file. The first answer creates it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state: tuple[int, int] | None = None  # size and modification time of the file at the last read
        self._rows: list[dict[str, Any]] = []

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows in the order of the file, which is read again if it has changed.

        An incomplete last row, which a killed server left or another server is still writing, is skipped.

        Raises:
            InputError: A line is not an annotation. The error names the file and line.
        """
        if not self.path.exists():
            return []
        stat = self.path.stat()
        if (stat.st_size, stat.st_mtime_ns) != self._state:
            self._rows = [row for _, row in read_json_lines(self.path, FILE, growing=True)]
            self._state = stat.st_size, stat.st_mtime_ns  # taken before reading, so that later rows are read next time
        return self._rows

    def append(self, row: dict[str, Any]) -> None:
        """Append a row. The row is on disk when this method returns."""
        with self.path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # excludes other servers; the system releases it if one dies
            data = self.path.read_bytes()
            end = data.rfind(b"\n") + 1
            rest = data[end:]
            if _is_json(rest):  # an editor omitted the last newline
                file.write(b"\n")
                file.flush()
            elif rest:  # a killed server left this row incomplete
                file.truncate(end)
            JsonLines(self.path).append([row])


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
