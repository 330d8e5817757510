"""Starts Python programs in forks of a process that has imported the slow modules, which saves most of their time."""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import matplotlib.pyplot  # noqa: F401
import peft  # noqa: F401
import torch._dynamo  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

import ilf.stages  # noqa: F401  # it imports the modules above lazily
from ilf.tasks import mini

mini.Mini().read("data")  # fills the cache
gc.collect()
gc.freeze()  # otherwise collections touch all imported objects, and each fork copies their memory
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["warm"])


def start(file: Path, arguments: Sequence[str], folder: Path, output: Path) -> BaseProcess:
    """Start `python file *arguments` in a folder, as the leader of a process group of its own.

    Args:
        file: A Python program.
        arguments: Its command-line arguments.
        folder: Its working directory.
        output: The files of its stdout and stderr, without their suffixes .out and .err.
    """
    process = _SERVER.Process(target=_main, args=(file, list(arguments), folder, output, dict(os.environ)))
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):  # lets the server import this module
        process.start()
    return process


def run(file: Path, arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `python file *arguments` in a folder, and wait until it ends."""
    output = folder / "printed"
    process = start(file, arguments, folder, output)
    process.join(400)
    if process.is_alive():  # otherwise pytest would wait for it at exit
        os.killpg(process.pid, signal.SIGKILL)
    assert process.exitcode is not None, f"no end after 400 s: {arguments}"
    out, err = (output.with_suffix(suffix) for suffix in (".out", ".err"))
    done = subprocess.CompletedProcess(list(arguments), process.exitcode, out.read_text(), err.read_text())
    out.unlink()
    err.unlink()
    return done


def _main(file: Path, arguments: list[str], folder: Path, output: Path, environment: dict[str, str]) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, suffix in ((1, ".out"), (2, ".err")):
        with output.with_suffix(suffix).open("w") as opened:
            os.dup2(opened.fileno(), number)
    sys.argv = [str(file), *arguments]
    try:
        runpy.run_path(str(file), run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing doesn't run them
