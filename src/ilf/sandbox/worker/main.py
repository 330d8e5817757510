"""A worker's main loop: jobs in on standard input, verdicts out on standard output, one JSON line each.

The first line out says how programs are isolated. A worker whose zygote has died ends; its starter starts another.
"""

import json
import os
import resource
import sys
from typing import IO, Any

from . import zygote
from .isolation import libraries, remove


def main(settings: dict[str, Any]) -> None:
    """Serve until standard input ends.

    Args:
        settings: approximately (numbers compare as in the paper's tests), trust (objects say what they equal), and
            those of `zygote.start`.
    """
    more = _load(settings) if settings["packages"] else 0
    control = zygote.start(settings)  # before anything is read: what is forked knows no tests
    hello = b""
    while not hello.endswith(b"\n"):
        part = control.recv(4096)
        if not part:
            sys.exit("the zygote ended before it began")
        hello += part
    report = json.loads(hello)
    if "error" in report:
        sys.exit(report["error"])
    folder = None if "root" in report["entered"] else report["folder"]  # else it goes with the zygote
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # tests may print
    _write(answers, report)
    from . import outputs  # what they need, no fork pays for
    from .judge import MEMORY, Judge

    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY + more, MEMORY + more))
    guard = _guard(settings["packages"]["files"]) if settings["packages"] else None
    judge = Judge(control, settings["approximately"], settings["trust"], folder, settings["disk"])
    try:
        while line := sys.stdin.buffer.readline():
            job = json.loads(line)
            reads = "inputs" in job
            if guard:
                guard.on = not reads  # no test runs then, and the judge makes files
            _write(answers, outputs.judge(judge, job) if reads else judge.judge(job))
    except EOFError:
        sys.exit("the zygote ended")
    finally:
        if guard:
            guard.on = False
        if folder:
            remove(folder)


def _load(settings: dict[str, Any]) -> int:
    """Import the packages that are allowed; return the bytes of address space that they take, of nobody's limit."""
    from . import packages

    try:
        with zygote.without_hooks():
            more = packages.load(**settings["packages"])
    except ImportError as error:
        print(json.dumps({"package": error.name, "reason": str(error)}), flush=True)
        sys.exit(1)
    settings["memory"] += more
    settings["environment"] = packages.THREADS
    return more


def _guard(files: list[str]) -> Any:
    from . import packages

    return packages.guard(libraries(files))


def _write(answers: IO[bytes], message: object) -> None:
    answers.write(json.dumps(message).encode() + b"\n")
    answers.flush()
