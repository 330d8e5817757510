"""The zygote, from which programs are forked: it is warm, enters isolation once, and holds no tests in its memory.

It does the work that is needed only once, so that programs need not. It loads little, because the cost of a fork grows
with the memory of the process.
"""

import array
import contextlib
import fcntl
import gc
import json
import marshal
import os
import resource
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from . import program, script, seccomp, serialization
from .isolation import Isolation, die_with_parent, empty

START = struct.Struct("<I")  # seconds of processor time; sent with the standard input and output of a script
ENDED = struct.Struct("<id?")  # exit status, seconds used, whether the next program finds an empty folder
# The modules that programs import most; imported here, they cost each program nothing.
_PRELOADED = "bisect cmath collections copy datetime functools heapq itertools math operator random re string typing"
_OUTPUTS = (1, 2)  # descriptors of standard output and standard error
_CONTROL = 3  # descriptor of the control socket; 0 is empty, 1 and 2 are the program's output
_ROUNDS = 40  # warm-up rounds: the interpreter specializes code that has run often


def start(settings: dict[str, Any]) -> socket.socket:
    """Fork a zygote and return our end of its socket. Its first message reports how it is isolated.

    Args:
        settings: isolate, memory (bytes), output (bytes in one file), disk (bytes), packages (None, or what
            `packages.load` takes), environment (environment variables of programs).
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
    """Enter namespaces and fork the zygote, since a process namespace begins with a fork; then wait for the zygote."""
    die_with_parent()
    files = settings["packages"]["files"] if settings["packages"] else ()
    isolation = Isolation(settings["isolate"], settings["disk"], files)
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
    os.setsid()  # a program's signal to its process group must not reach the judge
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the first process of a namespace does not get it from inside
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    if control.fileno() != _CONTROL:
        os.dup2(control.fileno(), _CONTROL)
        control.detach()
        control = socket.socket(fileno=_CONTROL)
    os.closerange(_CONTROL + 1, 256)
    _preload()
    try:
        isolation.confine(settings["memory"], settings["output"])
        _open_output()
    except Exception:
        control.sendall(json.dumps({"error": traceback.format_exc()}).encode() + b"\n")
        raise
    alone = os.getpid() == 1  # all other processes of this namespace belong to the program
    report = {
        "entered": isolation.entered,
        "refused": isolation.refused,
        "folder": isolation.folder,
        "own_processes": alone,
    }
    control.sendall(json.dumps(report).encode() + b"\n")
    _warm_up()
    _look_ordinary(settings["environment"])
    # In a process namespace of their own, programs have no other process to signal.
    prepared = seccomp.for_program(None) if alone and "seccomp" in isolation.entered else None
    while True:
        request, given = _receive(control)
        if not request:
            return
        (channel,) = given
        child = os.fork()
        if child == 0:
            if "seccomp" in isolation.entered:
                (prepared or seccomp.for_program(os.getpid())).install()
            _become_program(channel, alone, settings["output"])
        os.close(channel)
        control.recv(1)  # the judge has finished with the program, or has died
        status, seconds = _end(child, alone)
        clean = empty(".")
        _rewind_output()
        control.sendall(ENDED.pack(status, seconds, clean))
        if not clean:
            return


def _preload() -> None:
    with without_hooks():
        for name in _PRELOADED.split():
            __import__(name)
    sys.modules["random"].seed(0)


@contextlib.contextmanager
def without_hooks() -> Iterator[None]:
    """Import modules without registering their hooks for forks.

    The hook of `random` would seed the random numbers anew at each fork. Without it, all programs start with the same
    random numbers, and forks cost less.
    """
    register, os.register_at_fork = os.register_at_fork, lambda **hooks: None
    try:
        yield
    finally:
        os.register_at_fork = register


def _warm_up() -> None:
    """Run our code that each program runs: warm code is not rewritten in a program, so its memory is not copied."""
    call = compile("f(1)", "<test>", "eval")
    request = marshal.dumps(("def f(x):\n    return [x, 'x']\n", "", [call] * 3, False))
    for _ in range(_ROUNDS):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            serialization.send(ours.fileno(), request)
            program.run(theirs.fileno(), 1)
    del sys.modules["program"]


def _open_output() -> None:
    """Redirect standard output and standard error to files without a name, which all programs use in turn."""
    for descriptor in _OUTPUTS:
        output = os.open(".output", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        os.unlink(".output")
        os.dup2(output, descriptor)
        os.close(output)


def _rewind_output() -> None:
    for descriptor in _OUTPUTS:
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)


def _look_ordinary(environment: dict[str, str]) -> None:
    """Make the interpreter look to programs like an ordinary one."""
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = [""]
    del sys.path[0]  # the folder of this package
    for name in [name for name in sys.modules if name.partition(".")[0] == "worker"]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()  # a garbage collection in a program must not copy our memory pages


def _receive(source: socket.socket) -> tuple[bytes, Sequence[int]]:
    """Return a request and the descriptors that came with it."""
    request, extra, _, _ = source.recvmsg(START.size, _SPACE)
    return request, array.array("i", extra[0][2] if extra else b"")


_SPACE = socket.CMSG_SPACE(2 * array.array("i").itemsize)


def _become_program(channel: int, alone: bool, full: int) -> None:
    """Wait for a job and run its program in this process."""
    try:
        if not alone:
            os.setsid()
            die_with_parent()
        os.close(_CONTROL)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, channel) as source:
            request, streams = _receive(source)
            source.detach()
        if not request:  # the judge has exited
            return
        (seconds,) = START.unpack(request)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        if streams:
            script.run(channel, full, *streams)
        program.run(channel, full)
    finally:
        os._exit(0)


def _end(child: int, alone: bool) -> tuple[int, float]:
    """Kill the program and all processes that it started; return its exit status and processor time."""
    for kill, process in ((os.kill, -1),) if alone else ((os.killpg, child), (os.kill, child)):
        try:
            kill(process, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
    _, status, used = os.wait4(child, 0)
    try:
        while alone:
            os.waitpid(-1, 0)
    except ChildProcessError:
        pass
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
