"""A worker's main loop: reads jobs from standard input and writes verdicts to standard output, one JSON line each.

The first line of output reports how programs are isolated. If the zygote dies, the worker exits, and the executor
starts another worker.
"""

import json
import os
import resource
import sys
from typing import IO, Any

from . import zygote
from .isolation import libraries, remove


def main(settings: dict[str, Any]) -> None:
    """Judge jobs until standard input ends.

    Args:
        settings: approximately (compare numbers as the paper's tests do), trust (objects of the program decide what
            they are equal to), and the settings of `zygote.start`.
    """
    more = _load(settings) if settings["packages"] else 0
    control = zygote.start(settings)  # before any job is read, so that forks hold no tests
    hello = b""
    while not hello.endswith(b"\n"):
        part = control.recv(4096)
        if not part:
            sys.exit("the zygote exited before it reported its isolation")
        hello += part
    report = json.loads(hello)
    if "error" in report:
        sys.exit(report["error"])
    folder = None if "root" in report["entered"] else report["folder"]  # a folder in a new root ends with the zygote
    answers = os.fdopen(os.dup(1), "wb")
    _write(answers, report)
    # What tests print must not mix with answers, and nobody reads standard error after the report.
    for descriptor in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    from . import outputs  # imported after the fork, which keeps programs' forks small
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
                guard.on = not reads  # with inputs, no test runs and the judge itself creates files
            _write(answers, outputs.judge(judge, job) if reads else judge.judge(job))
    except EOFError:
        sys.exit("the zygote has exited")
    finally:
        if guard:
            guard.on = False
        if folder:
            remove(folder)


def _load(settings: dict[str, Any]) -> int:
    """Import the allowed packages; return the bytes of address space that they take, which count against no limit."""
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
