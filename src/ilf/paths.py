"""Check files and folders that settings name: whether they exist, are of the right kind, and are accessible."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

from ilf.types import InputError


def check_path(key: str, path: str, kind: Literal["file", "folder"], advice: str) -> None:
    """Check that a setting names a file that can be read, or a folder that can be listed.

    Args:
        key: The name of the setting.
        path: Its value.
        kind: The required kind.
        advice: What to do if the check fails.

    Raises:
        InputError: The path does not exist, is of another kind, or can't be opened.
    """
    try:
        mode = Path(path).stat().st_mode
        found = "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "device or pipe"
        reason = f"is a {found}, but must be a {kind}"
        if found == kind:
            os.close(os.open(path, os.O_RDONLY))
            return
    except (FileNotFoundError, NotADirectoryError):  # NotADirectoryError: a part of the path is a file
        reason = f"no such {kind}"
    except OSError as error:
        reason = f"can't be read ({error.strerror})"
    raise InputError(key, path, reason, advice)


def check_target(key: str, path: str, advice: str) -> None:
    """Check that a setting names a file that can be written, whether or not it exists.

    Raises:
        InputError: The path is a folder, its parent folder does not exist, or one of them is not writable.
    """
    there, folder = os.path.exists(path), Path(path).parent
    reason = None
    if there and not Path(path).is_file():
        reason = f"is a {'folder' if Path(path).is_dir() else 'device or pipe'}, but must be a file"
    elif not os.path.isdir(folder):
        reason = f"there is no folder {folder}"
    elif not os.access(path if there else folder, os.W_OK):
        reason = "can't be written (Permission denied)"
    if reason is not None:
        raise InputError(key, path, reason, advice)


def check_model_folder(key: str, path: str | None) -> None:
    """Raise InputError if a folder is given but contains no model. `key` is the setting that names it."""
    if path is None:
        return
    advice = "Check the path; `save_pretrained` writes such a folder."
    check_path(key, path, "folder", advice)
    if not (Path(path) / "config.json").is_file():
        raise InputError(key, path, "must be a folder with a config.json, in Hugging Face's layout", advice)
