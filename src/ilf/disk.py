"""What the disk says: whether a folder can be written, how much space there is, and which file an error is about."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ilf.types import InputError


def nearest(folder: Path) -> Path:
    """Return the folder itself where there is something of its name, else the nearest of its parents that is there.

    Raises:
        OSError: A part of the path is a file, may not be read, or its name is too long.
    """
    while True:
        try:
            os.lstat(folder)
            return folder
        except FileNotFoundError:
            folder = folder.parent


def check_writable(key: str, folder: Path) -> None:
    """Check that a folder, which need not be there yet, can be made and written. It leaves no trace.

    Args:
        key: The setting that names it.
        folder: What it names.

    Raises:
        InputError: It can't; with the reason that the system gives.
    """
    try:
        with tempfile.TemporaryDirectory(dir=nearest(folder)):
            pass
    except OSError as error:
        raise InputError(
            key,
            str(folder),
            f"must be a folder that can be written, and the system says: {error.strerror} ({error.filename})",
            f"Free the path, or give another folder: {key}=FOLDER.",
        ) from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an error of the disk, such as that it is full, the file's path, which a failed write itself does not know.

    Args:
        path: What is written.

    Raises:
        OSError: With `path`, whatever the library that writes makes of the system's error.
    """
    try:
        yield
    except Exception as error:
        found: BaseException | None = error
        while found is not None and not isinstance(found, OSError):  # torch raises another while it handles one
            found = found.__context__
        rust = re.search(r"\(os error (\d+)\)", str(error))  # safetensors and tokenizers only say so
        number = found.errno if found is not None else int(rust[1]) if rust else None
        if number is None or (found is not None and found.filename is not None):
            raise
        raise OSError(number, os.strerror(number), str(path)) from error
