"""Results on disk, keyed by what made them: a stage that was finished once, anywhere, is not repeated.

A stage's folder is `STORE/STAGE/HASH`, where HASH is of the canonical JSON of everything the stage read; the JSON lies
in it as key.json. `done.json` marks it as finished. Work inside is append-only or replaced atomically, so that a killed
stage goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ilf.disk import naming


def canonical(value: Any) -> str:
    """Return the one JSON text of `value`: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def sha256(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of `value`, in hexadecimal."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader, or a kill, sees the old text or the new one."""
    scratch = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}")  # another machine may have such a process
    with naming(path):
        scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


class JsonLines:
    """An append-only file of JSON objects that survives a kill in the middle of a write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append `rows` in one write, on disk when this returns."""
        with naming(self.path), self.path.open("ab") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """Return the whole rows, and remove what a kill left of an unfinished one."""
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        return [json.loads(line) for line in whole.decode().split("\n") if line]


@dataclass
class Entry:
    """One stage's folder, held by its only writer."""

    path: Path
    mark: str  # name of the file that marks it as finished

    @property
    def done(self) -> dict[str, Any] | None:
        """What `finish` was given, None while the stage is unfinished."""
        file = self.path / self.mark
        return json.loads(file.read_text()) if file.exists() else None

    def finish(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Mark the stage as finished and keep `facts` with it."""
        write_atomically(self.path / self.mark, json.dumps(facts, indent=1))
        return facts


class Store:
    """The folder of all stages.

    Args:
        root: The folder; made when first written.
        reuse: False removes what a key has and does the stage again.
    """

    def __init__(self, root: Path, reuse: bool = True) -> None:
        self.root = root
        self.reuse = reuse

    def _path(self, stage: str, key: dict[str, Any]) -> Path:
        return self.root / stage / sha256(key)[:24]

    def is_done(self, stage: str, key: dict[str, Any], mark: str = "done.json") -> bool:
        """Return whether a finished result lies under `key` and may be used."""
        return self.reuse and (self._path(stage, key) / mark).exists()

    @contextlib.contextmanager
    def entry(self, stage: str, key: dict[str, Any], mark: str = "done.json") -> Iterator[Entry]:
        """Hold the only writer's lock on a stage's folder. The system frees the lock of a process that dies.

        Args:
            stage: Its name.
            key: Everything that decides its result.
            mark: Name of the file that `finish` writes. A stage that finishes in parts has one for each.
        """
        path = self._path(stage, key)
        path.mkdir(parents=True, exist_ok=True)
        with FileLock(path / ".lock"):
            if not self.reuse:
                for item in path.iterdir():
                    if item.name != ".lock":
                        shutil.rmtree(item) if item.is_dir() else item.unlink()
            write_atomically(path / "key.json", json.dumps(key, indent=1, sort_keys=True, ensure_ascii=False))
            yield Entry(path, mark)

    def like(self, entry: Entry, but: str) -> Iterator[Path]:
        """Yield the folders of other finished results whose key differs from that of `entry` only in the part `but`."""

        def rest(folder: Path) -> dict[str, Any]:
            key = json.loads((folder / "key.json").read_text(encoding="utf-8"))
            return {name: part for name, part in key.items() if name != but}

        own = rest(entry.path)
        for file in sorted(entry.path.parent.glob("*/key.json")) if self.reuse else ():
            other = file.parent
            if other != entry.path and any(other.glob("done*.json")) and rest(other) == own:
                yield other

    def describe(self) -> list[dict[str, Any]]:
        """Return stage, folder, MiB, days since last use and whether finished, for every entry."""
        rows = []
        for key in sorted(self.root.glob("*/*/key.json")):
            size = sum(f.stat().st_size for f in key.parent.rglob("*") if f.is_file())
            rows.append(
                {
                    "stage": key.parent.parent.name,
                    "folder": key.parent.name,
                    "mib": size / 2**20,
                    "days": (time.time() - key.stat().st_mtime) / 86400,
                    "done": any(key.parent.glob("done*.json")),
                }
            )
        return rows

    def prune(self, days: float) -> int:
        """Remove entries that were not used for `days`; return how many. An entry in use is left."""
        removed = 0
        for key in sorted(self.root.glob("*/*/key.json")):
            with contextlib.suppress(TimeoutError, FileNotFoundError), FileLock(key.parent / ".lock", timeout=0):
                if (time.time() - key.stat().st_mtime) / 86400 >= days:
                    shutil.rmtree(key.parent)
                    removed += 1
        return removed


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(folder: Path, cache: Path) -> str:
    """Return one SHA-256 over a model folder's weights, config and tokenizer files.

    Hashes of large files are kept in `cache` under the file's size and time of change.
    """
    known: dict[str, str] = json.loads(cache.read_text()) if cache.exists() else {}
    files = sorted(f for f in folder.iterdir() if f.suffix in {".safetensors", ".bin", ".json", ".txt", ".model"})
    parts = {}
    for file in files:
        state = file.stat()
        name = f"{file.resolve()}|{state.st_size}|{state.st_mtime_ns}"
        known[name] = known.get(name) or file_sha256(file)
        parts[file.name] = known[name]
    cache.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(cache, json.dumps(known))
    return sha256(parts)
