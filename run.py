#!/usr/bin/env python3
"""Run an ILF experiment from a clone: `python run.py [group=option] [key=value]`; see README.md and `--help`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))
# Where the jobs of a launcher, which import what they do, find it too.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sys.path[0], os.environ.get("PYTHONPATH")]))

from ilf.cli.main import command

if __name__ == "__main__":
    command()
