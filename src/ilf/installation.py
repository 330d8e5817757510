"""Whether the package is installed or runs from a clone, which command starts it, and the versions it runs on."""

from __future__ import annotations

import importlib.metadata
import platform
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


def versions() -> dict[str, str]:
    """Return the versions of the software that results may depend on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        found[package] = importlib.metadata.version(package)
    from ilf import __version__

    return found | {"ilf": __version__}
