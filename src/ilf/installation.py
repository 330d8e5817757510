"""Whether this copy of the package was installed or lies in a clone, what starts it, and what it runs on."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

_PACKAGE = Path(__file__).parent
_INSTALLED = (_PACKAGE / "conf").is_dir()  # pyproject.toml puts it there; a clone has it at its top

CONF = _PACKAGE / "conf" if _INSTALLED else _PACKAGE.parent.parent / "conf"
COMMAND = "ilf" if _INSTALLED else "python run.py"  # as messages and pages name it
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
    """Return the versions that a figure may depend on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        found[package] = importlib.metadata.version(package)
    from ilf import __version__

    return found | {"ilf": __version__}
