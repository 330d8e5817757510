"""The process that programs are forked from: warm, isolated once, and without a test in its memory."""

import array
import gc
import json
import os
import random
import resource
import signal
import socket
import struct
import sys
import tempfile
import traceback
from typing import Any

from . import program, seccomp
from .isolation import Isolation, die_with_parent, empty

START = struct.Struct("<I")  # seconds of processor time
ENDED = struct.Struct("<id?")  # exit status, seconds used, whether the next program finds an empty folder
# What programs import most, at no cost to each.
_PRELOADED = "bisect cmath collections copy datetime functools heapq itertools math operator re string typing"


def start(settings: dict[str, Any]) -> socket.socket:
    """Fork a zygote and return our end of its socket; its first message says how it is isolated.

    Args:
        settings: isolate, memory (bytes), output (bytes in one file), disk (bytes).
    """
    ours, control = socket.socketpair()
    if os.fork() == 0:
        try:
            ours.close()
            _launch(control, settings)
        finally:
            os._exit(1)
    control.close()
    return ours


def _launch(control: socket.socket, settings: dict[str, Any]) -> None:
    """Enter namespaces, of which that of processes begins with a fork, and stay as the zygote's parent."""
    die_with_parent()
    isolation = Isolation(settings["isolate"], settings["disk"])
    isolation.leave_namespaces()
    zygote = os.fork()
    if zygote == 0:
        try:
            _serve(control, isolation, settings)
        finally:
            os._exit(1)
    control.close()
    os.waitpid(zygote, 0)


def _serve(control: socket.socket, isolation: Isolation, settings: dict[str, Any]) -> None:
    die_with_parent()
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    if control.fileno() != 3:
        os.dup2(control.fileno(), 3)
        control.detach()
        control = socket.socket(fileno=3)
    os.closerange(4, 256)
    for name in _PRELOADED.split():
        __import__(name)
    try:
        isolation.confine(settings["memory"], settings["output"])
    except Exception:
        control.sendall(json.dumps({"error": traceback.format_exc()}).encode() + b"\n")
        raise
    report = {
        "entered": isolation.entered,
        "refused": isolation.refused,
        "folder": isolation.folder,
        "own_processes": os.getpid() == 1,
    }
    control.sendall(json.dumps(report).encode() + b"\n")
    _look_ordinary()
    while True:
        request, channels = _receive(control)
        if not request:
            return
        child = os.fork()
        if child == 0:
            channel, (seconds,) = socket.socket(fileno=channels[0]), START.unpack(request)
            _become_program(channel, seconds, "seccomp" in isolation.entered, settings["output"])
        os.close(channels[0])
        control.recv(1)  # the judge is done with it, or has died
        status, seconds = _end(child)
        clean = empty(".")
        control.sendall(ENDED.pack(status, seconds, clean))
        if not clean:
            return


def _look_ordinary() -> None:
    """Leave programs the interpreter that they would have anywhere."""
    os.environ.clear()
    sys.argv[:] = [""]
    tempfile.tempdir = None  # ours is not theirs
    del sys.path[0]  # where this package lies
    for name in [name for name in sys.modules if name.partition(".")[0] == "worker"]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()  # a collection in a program must not copy our pages


def _receive(control: socket.socket) -> tuple[bytes, list[int]]:
    """Return a request and the descriptors that came with it."""
    descriptors = array.array("i")
    request, extra, _, _ = control.recvmsg(START.size, socket.CMSG_SPACE(descriptors.itemsize))
    for _, _, data in extra:
        descriptors.frombytes(data)
    return request, list(descriptors)


def _become_program(channel: socket.socket, seconds: int, filtered: bool, full: int) -> None:
    try:
        os.setsid()
        die_with_parent()
        os.close(3)
        output = os.open(".output", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.unlink(".output")
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        random.seed(0)
        if filtered:
            seccomp.for_program(os.getpid()).install()
        program.run(channel, full)
    finally:
        os._exit(0)


def _end(child: int) -> tuple[int, float]:
    """Kill the program with all that it started, and return its exit status and processor time."""
    if os.getpid() == 1:
        os.kill(-1, signal.SIGKILL)
    else:
        for kill in (os.killpg, os.kill):
            try:
                kill(child, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
    _, status, used = os.wait4(child, 0)
    try:
        while os.getpid() == 1:
            os.waitpid(-1, 0)
    except ChildProcessError:
        pass
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
