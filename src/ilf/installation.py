"""Whether this copy of the package was installed or lies in a clone: where its configuration is, and what starts it."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent
_INSTALLED = (_PACKAGE / "conf").is_dir()  # pyproject.toml puts it there; a clone has it at its top

CONF = _PACKAGE / "conf" if _INSTALLED else _PACKAGE.parent.parent / "conf"
COMMAND = "ilf" if _INSTALLED else "python run.py"  # as messages and pages name it
