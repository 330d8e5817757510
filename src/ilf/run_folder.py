"""Lock a run's folder, so that it has one writer at a time and contains the files of one configuration only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ilf.files import read_json, to_json, write_atomically
from ilf.settings import NO_EFFECT, Settings
from ilf.types import InputError

_SETTINGS = "settings.json"
# Settings in which another run in the same folder may differ. What `memory` changes is in the other settings.
_FREE = {*NO_EFFECT, "overrides", "memory"}
_ADVICE = "Choose another folder (hydra.run.dir=..., in a sweep hydra.sweep.dir=... and hydra.sweep.subdir=...)"


class FolderTaken(InputError):
    """The folder belongs to another run. Nothing was written into it."""


@contextmanager
def claimed(settings: Settings) -> Iterator[None]:
    """Lock the folder of a run inside the context, and write the settings to settings.json in it.

    Raises:
        FolderTaken: Another run is writing into the folder, or it has the results of other settings.
    """
    folder = Path(settings.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FolderTaken(
            "output_dir",
            str(folder),
            "another run is writing into this folder",
            f"{_ADVICE}, or wait until that run is finished.",
        ) from None
    with lock:
        check_settled(settings)
        write_atomically(folder / _SETTINGS, to_json(settings.config, indent=1))
        yield
    (folder / ".lock").unlink(missing_ok=True)


def check_settled(settings: Settings) -> None:
    """Raise FolderTaken if a run's folder has the results of other settings."""
    file = Path(settings.output_dir) / _SETTINGS
    if not file.exists():
        return
    before, now = (dict(_flat(one)) for one in (read_json(file), json.loads(to_json(settings.config))))
    other = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if other:
        changed = "; ".join(f"{key} was {before.get(key)!r} and is {now.get(key)!r}" for key in other[:3])
        more = f"; and {len(other) - 3} more" if len(other) > 3 else ""
        allowed = f"holds the results of other settings ({changed}{more}), which this run would mix with its own"
        raise FolderTaken("output_dir", settings.output_dir, allowed, f"{_ADVICE}, or move this one away.")


def _flat(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings by their full names, except those in `_FREE`."""
    if key in _FREE:
        return
    if isinstance(node, dict) and node:
        for name, value in node.items():
            yield from _flat(value, f"{key}.{name}".lstrip("."))
    else:
        yield key, node
