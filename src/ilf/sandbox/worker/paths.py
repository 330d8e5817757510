"""The `pathlib.Path` of tests, which has no access to files: files exist only in the program's process."""

import pathlib
from typing import Any

from .remote import Unsupported


class Path(pathlib.PurePosixPath):
    """Replacement for `pathlib.Path` in tests. Methods that access files raise Unsupported."""

    def __getattr__(self, name: str) -> Any:
        if hasattr(pathlib.PosixPath, name) and not hasattr(type(self), name):
            raise Unsupported(f"uses Path.{name}")
        raise AttributeError(name)
