#!/usr/bin/env python3
"""Run an ILF experiment from a clone: `python run.py [group=option] [key=value]`. See README.md and `--help`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))
# The jobs that a Hydra launcher starts in other processes find the package through PYTHONPATH.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sys.path[0], os.environ.get("PYTHONPATH")]))

from ilf.cli.main import command

if __name__ == "__main__":
    command()
