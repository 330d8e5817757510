"""Files on disk: strict JSON, rows that survive a kill, digests."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import math
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ilf.disk import naming
from ilf.types import InputError

log = logging.getLogger(__name__)


def to_json(value: Any, **layout: Any) -> str:
    """Return the JSON text of `value`, and never the words NaN and Infinity, which are none.

    Args:
        value: Of dictionaries, lists, texts, finite numbers, booleans and None.
        **layout: `indent`, `separators` and `sort_keys` of `json.dumps`.

    Raises:
        ValueError: A number is not finite; names its place.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, **layout)
        text.encode()
        return text
    except UnicodeEncodeError:  # half of a surrogate pair, which only its escape can stand for
        return json.dumps(value, allow_nan=False, **layout)
    except ValueError:
        raise ValueError(f"{'; '.join(_not_finite(value))} can't be written as JSON") from None


def _not_finite(value: Any, place: str = "") -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{place.lstrip('.')} = {value}"
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, one in items:
        yield from _not_finite(one, f"{place}.{name}")


def read_json(path: Path) -> Any:
    """Return what a JSON file of ours holds.

    Raises:
        InputError: It is damaged; names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSON's and Unicode's
        raise _damaged(path, f"is no JSON ({error})") from None


def _damaged(where: object, problem: str) -> InputError:
    return InputError("file", str(where), f"is damaged: it {problem}", "Restore it, or remove it and run again.")


def canonical(value: Any) -> str:
    """Return the one JSON text of `value`: sorted keys, no spaces."""
    return to_json(value, sort_keys=True, separators=(",", ":"))


def sha256(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of `value`, in hexadecimal."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def whole(text: str) -> str:
    r"""Return `text` with U+FFFD for each half of a surrogate pair: neither UTF-8 nor a tokenizer takes one.

    >>> whole("a\ud83db") == "a\ufffdb"
    True
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def to_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Return a table as CSV.

    Args:
        rows: The cell of each column; those of other names are left out.
        columns: Their names, in order.
    """
    text = io.StringIO()
    written, quoted = (
        csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore", quoting=quoting)
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )
    written.writeheader()
    for row in rows:  # readers end a row at a carriage return, for which this writer quotes no cell
        (quoted if any("\r" in str(cell) for cell in row.values()) else written).writerow(row)
    return text.getvalue()


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader, or a kill, sees the old text or the new one.

    What UTF-8 can't hold, half of a surrogate pair, is written as its escape.
    """
    scratch = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}")  # another machine may have such a process
    with naming(path):
        scratch.write_text(text, encoding="utf-8", errors="backslashreplace")
    scratch.replace(path)


class JsonLines:
    """An append-only file of JSON objects that survives a kill in the middle of a write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append `rows` in one write, on disk when this returns."""
        with naming(self.path), self.path.open("ab") as file:
            file.write("".join(to_json(row) + "\n" for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """Return the whole rows, and remove what a kill left of an unfinished one.

        Raises:
            InputError: A row is damaged; names the file and line.
        """
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        rows = []
        for number, line in enumerate(whole.split(b"\n"), 1):
            try:
                if line:
                    rows.append(json.loads(line))
            except ValueError as error:
                raise _damaged(f"{self.path}:{number}", f"is no JSON ({error})") from None
        return rows


def link_or_copy(source: str, target: str) -> None:
    """Hard-link a file: large weights lie on the disk once, and pruning the store leaves the other copy."""
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(files: Iterable[Path], cache: Path) -> dict[Path, str]:
    """Return the SHA-256 of each file.

    They are kept in `cache` under the file's size and time of change, so that large files are read once, with a digest
    of their own.
    """
    known: dict[str, str] = {}
    try:
        if cache.exists():
            kept = read_json(cache)
            if not isinstance(kept, dict) or sha256(kept.get("files")) != kept.get("sha256"):
                raise _damaged(cache, "is not what was written")
            known = kept["files"]
    except InputError as error:
        log.warning("%s The digests in it are computed anew.", error)
    found: dict[Path, str] = {}
    new: dict[str, str] = {}
    for file in files:
        state = file.stat()
        name = f"{file.resolve()}|{state.st_size}|{state.st_mtime_ns}"
        found[file] = known.get(name) or new.setdefault(name, file_sha256(file))
    if new:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cache, to_json({"sha256": sha256(known | new), "files": known | new}))
    return found


def weights_sha256(folder: Path, cache: Path) -> str:
    """Return one SHA-256 over a model folder's weights, config and tokenizer files; `cache` as of `digests`."""
    files = sorted(f for f in folder.iterdir() if f.suffix in {".safetensors", ".bin", ".json", ".txt", ".model"})
    return sha256({file.name: digest for file, digest in digests(files, cache).items()})
