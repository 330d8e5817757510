"""Paths as tests see them: which files there are, and what is in them, only the program's process can say."""

import pathlib
from typing import Any

from .remote import Unsupported


class Path(pathlib.PurePosixPath):
    """What tests get as `pathlib.Path`."""

    def __getattr__(self, name: str) -> Any:
        if hasattr(pathlib.PosixPath, name) and not hasattr(type(self), name):
            raise Unsupported(f"uses Path.{name}")
        raise AttributeError(name)
