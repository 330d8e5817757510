"""The file of answers: append-only JSON lines, in the columns of the paper's annotations and a few more."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

from ilf.store import JsonLines
from ilf.types import InputError

_REQUIRED = {"task_id": int, "Feedback": str, "original_model_completion": str}


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
            whole, rest = self._split()
            self._rows = [self._row(i, line) for i, line in enumerate(whole.split(b"\n"), 1) if line.strip()]
            self._rows += [self._row(whole.count(b"\n") + 1, rest)] if _is_json(rest) else []
            self._state = stat.st_size, stat.st_mtime_ns  # as before reading: what came since is read next time
        return self._rows

    def append(self, row: dict[str, Any]) -> None:
        """Append a row, on disk when this returns."""
        with self.path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # of the servers; the system frees it where one dies
            whole, rest = self._split()
            if _is_json(rest):  # an editor left the last newline out
                file.write(b"\n")
                file.flush()
            elif rest:  # a kill cut this row off
                file.truncate(len(whole))
            JsonLines(self.path).append([row])

    def _split(self) -> tuple[bytes, bytes]:
        """Return the lines, and what follows the last newline."""
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1
        return data[:end], data[end:]

    def _row(self, number: int, line: bytes) -> dict[str, Any]:
        where, start = f"{self.path}:{number}", line[:60].decode(errors="replace")
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(
                where, start, f"each line must be a JSON object ({error})", "Mend the line, or choose another file."
            ) from None
        for name, kind in _REQUIRED.items():
            if not isinstance(row, dict) or not isinstance(row.get(name), kind):
                allowed = f"an annotation needs {name}, of type {kind.__name__}"
                raise InputError(where, start, allowed, "Mend the line, or choose another file.")
        return row  # type: ignore[no-any-return]


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
