"""Query the disk: whether a folder is writable, how much space is free, and which file an error is about."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ilf.types import InputError


def nearest(folder: Path) -> Path:
    """Return the path itself if it exists, or else its nearest existing parent.

    Raises:
        OSError: A part of the path is a file or can't be accessed, or its name is too long.
    """
    while True:
        try:
            os.lstat(folder)
            return folder
        except FileNotFoundError:
            folder = folder.parent


def check_writable(key: str, folder: Path) -> None:
    """Check that a folder can be created and written to. It need not exist yet, and nothing is left behind.

    Args:
        key: The setting that names the folder.
        folder: The folder.

    Raises:
        InputError: The folder can't be written to. The message has the operating system's reason.
    """
    try:
        with tempfile.TemporaryDirectory(dir=nearest(folder)):
            pass
    except OSError as error:
        raise InputError(
            key,
            str(folder),
            f"must be a folder that can be written to, and the system says: {error.strerror} ({error.filename})",
            f"Make the path writable, or choose another folder: {key}=FOLDER.",
        ) from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's path to a disk error, such as a full disk. A failed write itself does not report the path.

    Args:
        path: The file being written.

    Raises:
        OSError: The system's error with `path`, even if the writing library raised another exception for it.
    """
    try:
        yield
    except Exception as error:
        found: BaseException | None = error
        while found is not None and not isinstance(found, OSError):  # torch raises another error while handling it
            found = found.__context__
        rust = re.search(r"\(os error (\d+)\)", str(error))  # safetensors and tokenizers report it only as text
        number = found.errno if found is not None else int(rust[1]) if rust else None
        if number is None or (found is not None and found.filename is not None):
            raise
        raise OSError(number, os.strerror(number), str(path)) from error
