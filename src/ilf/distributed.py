"""The processes of one run. The first process runs everything, and all processes run what it divides with `call`.

torchrun or Slurm's srun starts all processes. Otherwise, the first process starts the others on its machine. The others
read no configuration, write no run folder and print only errors. They run what the first process calls, and exit
with it. Only modules that divide work need to know that there are several processes.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from ilf.shutdown import Interrupted
from ilf.types import InputError

T = TypeVar("T")
log = logging.getLogger(__name__)
_FOLLOW = "import sys; sys.path.insert(0, sys.argv[1]); from ilf import distributed; distributed.follow_parent()"


@dataclass
class _Group:
    """The state that this process has about the other processes."""

    control: Any = None  # the process group that carries calls and results, once it exists
    # the processes that this one started; empty under a launcher
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    threads: int = 0  # of this process before it shared the machine's cores with others; 0 if it never did
    calling: bool = False  # the others are in a call, or were when it failed, and don't wait for messages


_group = _Group()


def rank() -> int:
    """Return the rank of this process; the first process has rank 0."""
    return int(os.environ.get("RANK", 0))


def count() -> int:
    """Return the world size, which is the number of processes."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_count() -> int:
    """Return the number of processes on this machine. Every other machine has the same number."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def lead(program: Callable[[], object]) -> None:
    """Run a program in the first process. The others run what it calls, and all exit with its exit code."""
    # srun sets the rank of each process in a step. Without srun, a Slurm job is one process.
    if "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        slurm, nodes = os.environ, int(os.environ["SLURM_STEP_NUM_NODES"])
        os.environ.update(RANK=slurm["SLURM_PROCID"], WORLD_SIZE=slurm["SLURM_STEP_NUM_TASKS"])
        os.environ.update(LOCAL_RANK=slurm["SLURM_LOCALID"], GROUP_RANK=slurm["SLURM_NODEID"])
        os.environ["LOCAL_WORLD_SIZE"] = str(count() // nodes)
    if rank() > 0:
        sys.exit(_follow())
    code = 1
    try:
        program()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    except Interrupted:
        _group.calling = True  # the others may be in any state, and exit when their connection to this process breaks
        raise
    finally:
        if count() > 1 and not _group.calling:
            _send(code)


def join(strategy: str, devices: int | None) -> None:
    """Ensure that there are as many processes as the settings require, before any work is divided.

    Args:
        strategy: "auto" is one process; "ddp" and "fsdp" use the started processes, or one per device.
        devices: Processes per machine; None for the started processes, or one per GPU.

    Raises:
        InputError: The number of processes differs, or no GPU determines it.
    """
    if strategy == "auto" and not _group.started:
        if count() > 1:
            allowed = f"is one process, but {count()} were started"
            raise InputError("trainer.strategy", strategy, allowed, "Choose trainer=ddp or trainer=fsdp.")
        return
    if count() > 1 and not _group.started:
        if devices not in (None, local_count()):
            allowed = f"{local_count()} processes were started on each machine"
            raise InputError(
                "trainer.devices", devices, allowed, "Leave it out, or start that many processes per machine."
            )
        return
    if strategy == "auto":
        devices = 1
    if devices is None:
        import torch

        devices = torch.cuda.device_count()
        if not devices:
            allowed = "is one process per GPU, and this machine has no GPU that PyTorch can use"
            raise InputError(
                "trainer.devices", None, allowed, "Set the number of processes, such as trainer.devices=2."
            )
    if devices != count():  # a job of a sweep may need another number than the previous one
        _dismiss()
        if devices > 1:
            _start(devices)


def call(function: Callable[..., T], *args: Any, **own: Any) -> T:
    """Call a module-level function in every process, and return its result in the first process.

    If the function raises an InputError, it does so in every process, and the run can go on. Any other error stops all
    processes.

    Args:
        function: A function that divides work by means of Lightning and `gather`.
        args: Arguments for all processes; they are sent to the others.
        own: Arguments for the first process only.
    """
    if count() == 1:
        return function(*args, **own)
    _send((function, args))
    _group.calling = True
    try:
        result = function(*args, **own)
    except InputError:
        _group.calling = False
        raise
    except Exception as error:
        log.exception("this process or another one failed, which stops all %d processes", count())
        raise SystemExit(1) from error  # exit instead of failing one job: a sweep can't go on without the others
    _group.calling = False
    return result


def gather(values: list[T]) -> list[T]:
    """Return the values of all processes in one list, in rank order. All processes must call this."""
    if count() == 1:
        return values
    from torch import distributed

    found: list[Any] = [None] * count()
    distributed.all_gather_object(found, values, group=_control())
    return [value for some in found for value in some]


def free_memory() -> None:
    """Free the memory of objects that refer to each other, such as a Trainer and its model, on the GPU too.

    An engine may be started next, and needs the GPU's memory.
    """
    gc.collect()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()  # does nothing without a GPU


def follow_parent() -> None:
    """Run what the parent process calls, and exit when the parent exits for any reason."""

    def wait() -> None:
        sys.stdin.read()  # returns when the parent exits
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    sys.exit(_follow())


def _follow() -> int:
    """Run what the first process calls, and return the exit code that it sends at the end."""
    # The default handlers also work while this process waits for a message.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    while not isinstance(message := _send(None), int):
        function, args = message
        try:
            function(*args)
        except InputError:
            pass  # the first process has raised it, too
        del function, args, message
        free_memory()
    return message


def _send(message: Any) -> Any:
    """Broadcast the first process's message, and return it in every process."""
    from torch import distributed

    box = [message]
    distributed.broadcast_object_list(box, group=_control(), device=None)
    return box[0]


def _control() -> Any:
    """Return the process group for messages. The first call connects the processes."""
    if _group.control is None:
        import torch
        from torch import distributed

        if "MASTER_ADDR" not in os.environ:
            from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

            slurm = SLURMEnvironment()
            os.environ.update(MASTER_ADDR=slurm.main_address, MASTER_PORT=str(slurm.main_port))
        _group.threads = torch.get_num_threads()
        torch.set_num_threads(max(1, _group.threads // local_count()))  # the processes of this machine share its cores
        connected = threading.Event()
        threading.Thread(target=_watch, args=[connected], daemon=True).start()
        try:
            distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        finally:
            connected.set()
        # The others wait here while the first process works alone or samples for longer than they do.
        _group.control = distributed.new_group(backend="gloo", timeout=timedelta(days=30))
    return _group.control


def _watch(connected: threading.Event) -> None:
    """Exit if a process that this one started exits before all are connected, which this one would wait for."""
    while not connected.wait(0.5):
        if codes := [process.returncode for process in _group.started if process.poll() is not None]:
            log.error("a process of this run exited with code %d before it connected; its error is above", codes[0])
            logging.shutdown()
            os._exit(1)


def _start(processes: int) -> None:
    """Start the other processes on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0"}
    shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    os.environ.update(shared, RANK="0", LOCAL_RANK="0")
    command = [sys.executable, "-c", _FOLLOW, str(Path(__file__).parent.parent)]
    for number in map(str, range(1, processes)):
        environment = os.environ | {"RANK": number, "LOCAL_RANK": number}
        _group.started.append(subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True))


def _dismiss() -> None:
    """Stop the processes that this one has started."""
    if not _group.started:
        return
    import torch
    from torch import distributed

    _send(0)
    for process in _group.started:
        process.wait()
    distributed.destroy_process_group()
    torch.set_num_threads(_group.threads)  # for later jobs of a sweep
    _group.started, _group.control = [], None
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        del os.environ[name]
