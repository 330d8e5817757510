"""Results on disk, keyed by their inputs. A stage that was finished once, in any run, is not repeated.

A stage's folder is `STORE/STAGE/HASH`, where HASH is the hash of the canonical JSON of everything the stage read. The
folder has this JSON as key.json. `done.json` marks it as finished. Files are only appended to or replaced
atomically, so that a killed stage resumes where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ilf.files import JsonLines, digests, link_or_copy, read_json, sha256, to_json, write_atomically
from ilf.types import InputError

log = logging.getLogger(__name__)

# Files that are not results: metadata of the entry, and unfinished work.
_ABOUT = re.compile(r"(.*/)?\..*|key\.json|done.*\.json|verdicts.*|checkpoints/.*")
_OF_A_PART = re.compile(r"programs(-.*)\.jsonl")  # the verdicts of one scoring
_DRAWN = ("samples*.jsonl", "answers.jsonl")  # the most expensive files, which depend on no other file of the entry
_HIDDEN = shutil.ignore_patterns(".*")


@dataclass
class Entry:
    """The folder of one stage, locked by its only writer."""

    path: Path
    mark: str  # name of the file that marks the stage as finished
    cache: Path  # file that caches the digests of files

    @property
    def done(self) -> dict[str, Any] | None:
        """The facts that were passed to `finish`, or None while the stage is unfinished."""
        file = self.path / self.mark
        return {k: v for k, v in read_json(file).items() if k != "files"} if file.exists() else None

    def finish(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Mark the stage as finished, and save `facts` and the digests of its files."""
        files = {
            file.relative_to(self.path).as_posix(): one for file, one in digests(self._files(), self.cache).items()
        }
        write_atomically(self.path / self.mark, to_json(facts | {"files": files}, indent=1))
        return facts

    def _files(self) -> Iterator[Path]:
        """Yield the files of this part of the stage. Other parts may still be writing theirs."""
        own = self.mark.removeprefix("done").removesuffix(".json")
        for file in self.path.rglob("*"):
            name = file.relative_to(self.path).as_posix()
            of_a_part = _OF_A_PART.fullmatch(name)
            if file.is_file() and not _ABOUT.fullmatch(name) and (not of_a_part or of_a_part[1] == own):
                yield file

    def finished_with(self) -> dict[Path, str]:
        """Return the digests of the files that the stage had when it, or a part of it, was finished.

        Raises:
            InputError: A file that marks the stage as finished is damaged.
        """
        found: dict[Path, str] = {}
        for mark in self.path.glob("done*.json"):
            try:
                found |= {self.path / name: digest for name, digest in read_json(mark)["files"].items()}
            except (KeyError, TypeError, AttributeError):
                raise InputError("file", str(mark), "is damaged: it names no files", "Remove the entry.") from None
        return found

    def problem(self) -> str | None:
        """Return what is damaged, or None if the entry is intact.

        Finished parts must have the same files as when they were finished. In an unfinished part, all rows must be
        readable.
        """
        try:
            expected = self.finished_with()
            there = digests(filter(Path.is_file, expected), self.cache)
            for file in [] if expected else self.path.glob("*.jsonl"):
                JsonLines(file).read()
        except InputError as error:
            return str(error)
        wrong = [file for file, digest in expected.items() if there.get(file) != digest]
        return "; ".join(f"{f} {'has changed' if f in there else 'is missing'}" for f in wrong) or None


class Store:
    """The folder of the results of all stages.

    A finished stage is reused only if its files are unchanged. If it is damaged, the damage is reported, the entry is
    moved to `damaged/`, and the stage runs again from those of its samples and answers that are intact.

    Args:
        root: The folder, which is created on the first write.
        reuse: False removes the stored result of a key and runs the stage again.
        ignore_code_changes: True reuses results of another version of the code, if everything else is the same.
    """

    def __init__(self, root: Path, reuse: bool = True, ignore_code_changes: bool = False) -> None:
        self.root, self.reuse, self.ignore_code_changes = root, reuse, ignore_code_changes
        self.cache = root / "digests.json"

    def _path(self, stage: str, key: dict[str, Any]) -> Path:
        return self.root / stage / sha256(key)[:24]

    def is_done(self, stage: str, key: dict[str, Any], mark: str = "done.json") -> bool:
        """Return whether the store has a finished and intact result for `key` that may be reused."""
        if not self.reuse:
            return False
        entry = Entry(self._path(stage, key), mark, self.cache)
        return _is_whole(entry) or self._of_other_code(entry, key) is not None

    @contextlib.contextmanager
    def entry(self, stage: str, key: dict[str, Any], mark: str = "done.json") -> Iterator[Entry]:
        """Lock a stage's folder for one writer. The system releases the lock if the process dies.

        Args:
            stage: Name of the stage.
            key: Everything that the result depends on. Its item `code` is the digest of the code.
            mark: Name of the file that `finish` writes. A stage that finishes in parts has one per part.
        """
        path = self._path(stage, key)
        path.mkdir(parents=True, exist_ok=True)
        entry = Entry(path, mark, self.cache)
        with FileLock(path / ".lock"):
            if not self.reuse:
                for item in path.iterdir():
                    if item.name != ".lock":
                        shutil.rmtree(item) if item.is_dir() else item.unlink()
            elif problem := entry.problem():
                self._set_aside(entry, problem)
            elif not (path / mark).exists() and (other := self._of_other_code(entry, key)):
                said = "%s: reused from %s, which another version of the code wrote (store.ignore_code_changes=true)"
                log.warning(said, stage, other)
                shutil.copytree(other, path, copy_function=link_or_copy, ignore=_HIDDEN, dirs_exist_ok=True)
            write_atomically(path / "key.json", to_json(key, indent=1, sort_keys=True))
            yield entry

    def _of_other_code(self, entry: Entry, key: dict[str, Any]) -> Path | None:
        if self.ignore_code_changes:
            for other in self._like(entry.path, key, "code"):
                if _is_whole(Entry(other, entry.mark, self.cache)):
                    return other
        return None

    def _set_aside(self, entry: Entry, problem: str) -> None:
        """Move a damaged result away, except intact samples and answers, which nothing else can replace."""
        target = self.root / "damaged" / f"{entry.path.parent.name}-{entry.path.name}-{time.time_ns()}"
        log.warning("%s. The entry is damaged: it is moved to %s and computed again", problem, target)
        drawn = [file for pattern in _DRAWN for file in entry.path.glob(pattern)]
        try:
            expected = entry.finished_with()
            kept = {file for file, now in digests(drawn, self.cache).items() if expected.get(file) == now}
        except InputError:
            kept = set()
        target.mkdir(parents=True)
        for item in list(entry.path.iterdir()):
            if item.name != ".lock" and item not in kept:
                item.rename(target / item.name)

    def like(self, entry: Entry, but: str) -> Iterator[Path]:
        """Yield the folders of other finished, intact results whose key differs only in the item `but`."""
        key = read_json(entry.path / "key.json")
        for other in self._like(entry.path, key, but) if self.reuse else ():
            if any(_is_whole(Entry(other, mark.name, self.cache)) for mark in other.glob("done*.json")):
                yield other

    def _like(self, path: Path, key: dict[str, Any], but: str) -> Iterator[Path]:
        """Yield the folders of other results whose key differs only in the item `but`, newest first."""

        def rest(key: Any, top: bool = True) -> Any:
            """Return a key without the item. Without `code`, the code of components in it is left out, too."""
            if not isinstance(key, dict):
                return key
            left_out = but if top or (but == "code" and "target" in key) else None
            return {name: rest(part, top=False) for name, part in key.items() if name != left_out}

        own, found = rest(json.loads(to_json(key))), sorted(path.parent.glob("*/key.json"))
        for file in sorted(found, key=lambda file: -file.stat().st_mtime):
            try:
                if file.parent != path and rest(read_json(file)) == own:
                    yield file.parent
            except (InputError, AttributeError) as error:
                log.warning("%s: %s; this entry is ignored", file.parent, error)

    def describe(self) -> list[dict[str, Any]]:
        """Return stage, folder, MiB, days since the last use, and whether it is finished, for every entry."""
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
        """Remove entries that were not used for `days`, except those in use now, and return how many."""
        removed = 0
        for key in sorted(self.root.glob("*/*/key.json")):
            with contextlib.suppress(TimeoutError, FileNotFoundError), FileLock(key.parent / ".lock", timeout=0):
                if (time.time() - key.stat().st_mtime) / 86400 >= days:
                    shutil.rmtree(key.parent)
                    removed += 1
        return removed


def _is_whole(entry: Entry) -> bool:
    """Return whether a result is finished and intact. Damage is logged."""
    if not (entry.path / entry.mark).exists():
        return False
    if problem := entry.problem():
        log.warning("%s. This entry is not used", problem)
    return problem is None
