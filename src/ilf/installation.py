"""Whether the package is installed or runs from a clone, which command starts it, and the versions it runs on."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

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


def command(*words: str) -> str:
    """Return a shell command that runs ILF with these words, and that finds the options that the current job found.

    The flags and overrides by which the user added folders of options are read from Hydra, as a launcher's jobs have
    other arguments than the command. Outside a job there are none.
    """
    if not HydraConfig.initialized():
        return shlex.join([*COMMAND.split(), *words])
    hydra: Any = HydraConfig.get()
    folders = {source.provider: source.path for source in hydra.runtime.config_sources}
    given = {"--config-path": folders["main"], "--config-name": hydra.job.config_name}
    given["--config-dir"] = folders.get("command-line")
    usual = {"--config-path": str(CONF), "--config-name": "config", "--config-dir": None}
    flags = [word for flag, value in given.items() if value != usual[flag] for word in (flag, value)]
    more = [override for override in hydra.overrides.hydra if override.startswith("hydra.searchpath=")]
    return shlex.join([*COMMAND.split(), *flags, *words, *more])  # argparse takes no flag after an override


def has_groups() -> bool:
    """Return whether the job's options can be overridden; those of a saved configuration cannot."""
    return not HydraConfig.initialized() or "refinements" in HydraConfig.get().runtime.choices


def versions() -> dict[str, str]:
    """Return the versions of the software that results may depend on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        found[package] = importlib.metadata.version(package)
    from ilf import __version__

    return found | {"ilf": __version__}
