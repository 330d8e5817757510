"""Read and write files: strict JSON, append-only rows that survive a kill, and digests."""

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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ilf.disk import naming
from ilf.types import InputError

log = logging.getLogger(__name__)


def to_json(value: Any, **layout: Any) -> str:
    """Return `value` as JSON text, never with NaN or Infinity, which are not valid JSON.

    Args:
        value: Consists of dictionaries, lists, strings, finite numbers, booleans and None.
        **layout: Arguments `indent`, `separators` and `sort_keys` of `json.dumps`.

    Raises:
        ValueError: A number is not finite. The message names its place.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, **layout)
        text.encode()
        return text
    except UnicodeEncodeError:  # half of a surrogate pair, which can only be written as an escape
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
    """Return the contents of a JSON file that the project wrote.

    Raises:
        InputError: The file is damaged. The message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # raised for both invalid JSON and invalid UTF-8
        raise _damaged(path, f"is not valid JSON ({error})") from None


def _damaged(where: object, problem: str) -> InputError:
    return InputError("file", str(where), f"is damaged: it {problem}", "Restore it, or remove it and run again.")


def canonical(value: Any) -> str:
    """Return the canonical JSON of `value`, with sorted keys and without spaces."""
    return to_json(value, sort_keys=True, separators=(",", ":"))


def sha256(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of `value`, in hexadecimal."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def whole(text: str) -> str:
    r"""Return `text` with U+FFFD for each half of a surrogate pair, which neither UTF-8 nor a tokenizer accepts.

    >>> whole("a\ud83db") == "a\ufffdb"
    True
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def to_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Return a table as CSV.

    Args:
        rows: The cells of each row by column name. Other names are ignored.
        columns: The column names, in order.
    """
    text = io.StringIO()
    written, quoted = (
        csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore", quoting=quoting)
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )
    written.writeheader()
    for row in rows:  # readers end a row at a carriage return, but this writer quotes no cell for it
        (quoted if any("\r" in str(cell) for cell in row.values()) else written).writerow(row)
    return text.getvalue()


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` atomically: after a kill, and for any reader, the file has the old or the new text.

    Half of a surrogate pair, which UTF-8 can't represent, is written as its escape.
    """
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path with the same suffix to write to, and move that file to `path` at the end, unless there is an error.

    After a kill, and for any reader, `path` is therefore the old or the new file.
    """
    # includes the host name because process ids repeat on other machines
    scratch = path.with_name(f".{path.stem}.{platform.node()}.{os.getpid()}{path.suffix}")
    try:
        with naming(path):
            yield scratch
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


class JsonLines:
    """An append-only file of JSON objects that survives a kill in the middle of a write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append `rows` in one write. They are on disk when this returns."""
        with naming(self.path), self.path.open("ab") as file:
            file.write("".join(to_json(row) + "\n" for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """Return the complete rows, and remove an incomplete last row that a kill left.

        Raises:
            InputError: A row is damaged. The message names the file and line.
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
                raise _damaged(f"{self.path}:{number}", f"is not valid JSON ({error})") from None
        return rows


def link_or_copy(source: str, target: str) -> None:
    """Hard-link a file, so that large weights take disk space once. Pruning the store keeps the other link.

    A file that exists at `target` is replaced. It is not written to, because it may have links elsewhere.
    """
    Path(target).unlink(missing_ok=True)
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

    They are cached in `cache` by the file's size and modification time, so that large files are read only once. The
    cache has a digest of its own.
    """
    known: dict[str, str] = {}
    try:
        if cache.exists():
            kept = read_json(cache)
            if not isinstance(kept, dict) or sha256(kept.get("files")) != kept.get("sha256"):
                raise _damaged(cache, "does not match its own digest")
            known = kept["files"]
    except InputError as error:
        log.warning("%s Its digests are computed again.", error)
    found: dict[Path, str] = {}
    new: dict[str, str] = {}
    for file in files:
        name = _state(file)
        found[file] = known.get(name) or new.setdefault(name, file_sha256(file))
    if new:
        cache.parent.mkdir(parents=True, exist_ok=True)
        current = new | {name: digest for name, digest in known.items() if _is_current(name)}
        write_atomically(cache, to_json({"sha256": sha256(current), "files": current}))
    return found


def _state(file: Path) -> str:
    """Return a file's path, size and modification time."""
    state = file.stat()
    return f"{file.resolve()}|{state.st_size}|{state.st_mtime_ns}"


def _is_current(state: str) -> bool:
    """Return whether the file of a cached state still exists unchanged."""
    try:
        return _state(Path(state.rsplit("|", 2)[0])) == state
    except OSError:
        return False


def weights_sha256(folder: Path, cache: Path) -> str:
    """Return one SHA-256 over a model folder's weights, config, tokenizer files and chat templates.

    Args:
        folder: The model's folder.
        cache: As in `digests`.
    """
    kinds = {".safetensors", ".bin", ".json", ".txt", ".model", ".jinja"}
    files = sorted(f for f in (*folder.iterdir(), *folder.glob("additional_chat_templates/*")) if f.suffix in kinds)
    return sha256({str(file.relative_to(folder)): digest for file, digest in digests(files, cache).items()})
