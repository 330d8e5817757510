"""Finds out how well programs are isolated from this machine, by trying to break out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilf.sandbox.jobs import Job
from ilf.types import Verdict

_PROGRAM = """
import os, socket

def tried(action):
    try:
        action()
    except Exception:
        return False
    return True

def connects():
    return tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("127.0.0.1", 9)))

def reads(path):
    return tried(lambda: open(path).read())

def signals(process):
    return tried(lambda: os.kill(process, 0))

def forks():
    return tried(lambda: os.fork() or os._exit(0))
"""


@dataclass(frozen=True)
class Isolation:
    """The isolation mechanisms in force, and what they leave open."""

    mechanisms: tuple[str, ...]  # in the order in which they were entered: "user", "network", ..., "seccomp"
    refused: dict[str, str]  # mechanism: the reason why this machine refuses it
    open: tuple[str, ...]  # what programs can do although they should not: "network", "reading", ...

    def __str__(self) -> str:
        text = f"isolation by {', '.join(self.mechanisms) or 'limits only'}"
        if not self.open:
            return f"{text}; nothing is left open"
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.refused.items())
        return f"{text}; left open: {', '.join(self.open)}" + (f" ({reasons})" if reasons else "")


def probe(run: Callable[[Sequence[Job]], list[Verdict]], report: dict[str, Any]) -> Isolation:
    """Return the isolation of a sandbox, by running a program that tries what programs should not do.

    Args:
        run: The sandbox's method `run`.
        report: The report of the sandbox's worker on the mechanisms that it entered.
    """
    places = [Path(place) / f".ilf-probe-{os.getpid()}" for place in (os.getcwd(), os.path.expanduser("~"), "/var/tmp")]
    tests = {
        "network": "assert connects() == False",
        "reading": "assert reads('/etc/passwd') == False",
        "signals": f"assert signals({os.getpid()}) == False",
        "processes": "assert forks() == False",
    }
    # This process checks whether the files were written: inside the sandbox, the same path may be another folder.
    writing = f"for path in {[str(place) for place in places]}:\n    tried(lambda: open(path, 'w').close())\n"
    verdict = run([Job(_PROGRAM + writing, tuple(tests.values()))])[0]
    found = [name for name, stopped in zip(tests, verdict.tests, strict=True) if not stopped]
    written = [place for place in places if os.path.exists(place)]  # also False for a folder that we may not read
    for place in written:
        place.unlink()
    if written:
        found.append("writing")
    if "processes" in found and report["own_processes"]:
        found.remove("processes")  # processes that a program starts die with it
    if "RLIMIT_AS" in report["refused"]:
        found.append("memory")
    return Isolation(tuple(report["entered"]), dict(report["refused"]), tuple(found))
