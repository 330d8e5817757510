"""Finds the files of the packages that programs may import, and of their dependencies, in this environment."""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.metadata as metadata
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ilf.types import InputError

_KEY = "executor.packages"
_SUFFIXES = importlib.machinery.all_suffixes()
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
_OF_AN_EXTRA = re.compile(r";.*\bextra\s*==")
# Values of these packages cross between programs and tests. They are imported wherever programs may import them.
_WITH_VALUES = ("numpy", "pandas")


@dataclass(frozen=True)
class Packages:
    """The packages that programs may import, and their files."""

    imported: tuple[str, ...]  # modules that are already imported when a program starts
    modules: dict[str, str]  # name, and file or folder, of each module besides those of the standard library
    files: tuple[str, ...]  # files and folders that programs may read for these modules
    versions: tuple[str, ...]  # "name version" of each distribution, sorted


@functools.lru_cache(maxsize=16)
def find(names: tuple[str, ...]) -> Packages:
    """Find packages, and the installed dependencies that their metadata name.

    Args:
        names: Names of modules (sklearn) or distributions (scikit-learn).

    Raises:
        InputError: A package is not installed in this environment, or its metadata do not list its files.
    """
    if isinstance(names, str):
        raise InputError(_KEY, names, "must be a list of packages", f"Give [{names}].")
    owners = metadata.packages_distributions() if names else {}
    wanted: dict[str, _Installed] = {}  # by normalized name
    imported: list[str] = []
    for name in names:
        if name in sys.stdlib_module_names:
            raise InputError(_KEY, name, "is in the standard library, which programs have anyway", "Leave it out.")
        found = [_add(_distribution(one), wanted) for one in dict.fromkeys(owners.get(name) or [name])]
        modules = [name] if name in owners else [one for own in found for one in own.modules if not one.startswith("_")]
        if not all(any(module in own.modules for own in found) for module in modules) or not modules:
            allowed = "does not list its files, for example because it was installed with pip install -e"
            raise InputError(_KEY, name, allowed, "Install it as a wheel: pip install NAME.")
        imported += modules
    all_modules = {name: path for one in wanted.values() for name, path in one.modules.items()}
    files = {path for one in wanted.values() for path in one.files}
    imported += [name for name in _WITH_VALUES if name in all_modules]
    versions = sorted(f"{name} {one.version}" for name, one in wanted.items())
    return Packages(tuple(dict.fromkeys(imported)), all_modules, tuple(sorted(files)), tuple(versions))


class _Installed(NamedTuple):
    """An installed distribution."""

    version: str
    files: list[str]  # files and folders, including shared libraries
    modules: dict[str, str]  # name, and file or folder, of each module that can be imported


def _distribution(name: str) -> metadata.Distribution:
    try:
        return metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError):
        allowed = "must be a package that is installed in the environment of ilf, by its module or distribution name"
        raise InputError(_KEY, name, allowed, f"Run pip install {name}, or leave it out.") from None


def _add(one: metadata.Distribution, wanted: dict[str, _Installed]) -> _Installed:
    """Add a distribution and its dependencies, except those of extras and those that are not installed."""
    name = re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower()
    if name in wanted:
        return wanted[name]
    files = list(_files(one))
    wanted[name] = _Installed(one.version, files, {module: path for path in files if (module := _module(path))})
    for requirement in one.requires or ():
        needed = _REQUIREMENT.match(requirement)
        if needed and not _OF_AN_EXTRA.search(requirement):
            try:
                _add(metadata.distribution(needed[1]), wanted)
            except metadata.PackageNotFoundError:
                pass
    return wanted[name]


def _module(path: str) -> str | None:
    """Return the name by which a file or folder is imported, or None if it cannot be imported."""
    name = os.path.basename(path)
    if os.path.isdir(path):
        return name if name.isidentifier() else None
    return next((name.removesuffix(end) for end in _SUFFIXES if name.endswith(end)), None)


def _files(one: metadata.Distribution) -> Iterator[str]:
    """Yield the top-level files and folders of a distribution, including its shared libraries."""
    root = os.path.realpath(str(one.locate_file("")))
    if one.files is None:  # not installed by pip
        names = set((one.read_text("top_level.txt") or "").split())
        names |= {f"{name}.py" for name in names}
    else:
        names = {file.parts[0] for file in one.files} - {"..", "__pycache__"}
    for name in sorted(names):
        path = Path(root, name)
        if path.exists() and not name.endswith(".pth"):
            yield str(path)
