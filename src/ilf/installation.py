"""Whether the package is installed or runs from a clone, which command starts it, and the versions it runs on."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import shlex
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = Path(__file__).parent
# pyproject.toml puts conf there in the wheel; a clone has it at the top level
_INSTALLED = (_PACKAGE / "conf").is_dir()

CONF = _PACKAGE / "conf" if _INSTALLED else _PACKAGE.parent.parent / "conf"
COMMAND = "ilf" if _INSTALLED else "python run.py"  # the command in messages and pages
_PACKAGES = (
    "torch",
    "pytorch-lightning",
    "hydra-core",
    "transformers",
    "datasets",
    "peft",
    "bitsandbytes",
    "wandb",
    "numpy",
)


@dataclass(frozen=True)
class Sources:
    """Where the current job's options came from, so that a suggested command finds them again."""

    flags: tuple[str, ...] = ()  # such as --config-dir and a folder
    overrides: tuple[str, ...] = ()  # such as hydra.searchpath=[file:///folder]
    groups: bool = True  # whether options can be chosen by group; not in a saved configuration


sources = Sources()  # `ilf.cli` replaces it for each job


def command(*words: str) -> str:
    """Return a shell command that runs ILF with these words, and that finds the same options as the current job."""
    # argparse takes no flag after an override, and `words` may begin with a flag.
    return shlex.join([*COMMAND.split(), *sources.flags, *words, *sources.overrides])


def versions() -> dict[str, str]:
    """Return the versions of the installed software that results may depend on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # such as wandb, without its logger
            found[package] = importlib.metadata.version(package)
    from ilf import __version__

    return found | {"ilf": __version__}
