"""From the settings of a data set to its tasks."""

from __future__ import annotations

from ilf.settings import Data
from ilf.tasks import humaneval, mbpp, mini
from ilf.types import Task


def load(data: Data) -> tuple[list[Task], str]:
    """Return all tasks in order of id, and the SHA-256 of their content.

    Raises:
        InputError: The data can't be found, or a row is malformed.
    """
    if data.name == "humaneval":
        return humaneval.load()
    rows = mini.rows() if data.name == "mini" else mbpp.read_rows(data.path, data.revision)
    return mbpp.tasks_from(rows, data.sha256, data.prompt)
