"""The processes of one run: the first does everything, and what it divides by `call`, the others do with it.

torchrun or Slurm's srun starts them all; where neither did, the first starts the others on its machine.
These read no configuration, write no folder of a run and print only errors: they do what the first calls, and end with
it. Every other module but those that divide work may think that there is one process.
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
_FOLLOW = "import sys; sys.path.insert(0, sys.argv[1]); from ilf import ranks; ranks.follow_parent()"


@dataclass
class _Group:
    """What this process knows of the others."""

    control: Any = None  # the process group by which calls and results travel, once there is one
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)  # by this process, not by a launcher
    calling: bool = False  # the others are in a call, or were when it broke: no message would find them


_group = _Group()


def rank() -> int:
    """Return this process's number; the first's is 0."""
    return int(os.environ.get("RANK", 0))


def count() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_count() -> int:
    """Return how many of them are on this machine; as many are on every other."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def lead(program: Callable[[], object]) -> None:
    """Run a program in the first process; the others do what it calls, and all end with its exit code."""
    # srun says which of a step's processes this is. Without srun, a Slurm job is one process.
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
        _group.calling = True  # the others may be anywhere, and end as their connection to this process does
        raise
    finally:
        if count() > 1 and not _group.calling:
            _send(code)


def join(strategy: str, devices: int | None) -> None:
    """See to it that there are as many processes as settings ask for, before there is work to divide.

    Args:
        strategy: "auto" is one process; "ddp" and "fsdp" are those that were started, or one a device.
        devices: Processes on each machine; None is those that were started, or one a GPU.

    Raises:
        InputError: There are others, or none can be started.
    """
    if strategy == "auto" and not _group.started:
        if count() > 1:
            allowed = f"is one process, and {count()} were started"
            raise InputError("trainer.strategy", strategy, allowed, "Choose trainer=ddp or trainer=fsdp.")
        return
    if count() > 1 and not _group.started:
        if devices not in (None, local_count()):
            allowed = f"{local_count()} processes were started on each machine"
            raise InputError("trainer.devices", devices, allowed, "Leave it out, or start as many.")
        return
    if strategy == "auto":
        devices = 1
    if devices is None:
        import torch

        devices = torch.cuda.device_count()
        if not devices:
            allowed = "is one process a GPU, and this machine has no GPU that torch can use"
            raise InputError("trainer.devices", None, allowed, "Say how many: trainer.devices=2.")
    if devices != count():  # the job of a sweep may ask for others than the one before
        _dismiss()
        if devices > 1:
            _start(devices)


def call(function: Callable[..., T], *args: Any, **own: Any) -> T:
    """Call a function of a module in every process, and return what it returns in the first.

    Where it raises an InputError, it does so in every process, and the run may go on. Any other error ends all.

    Args:
        function: Divides work by Lightning's and `gather`'s means.
        args: What all take; they are sent to the others.
        own: What only the first takes.
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
        log.exception("this process or another one failed, which ends all %d", count())
        raise SystemExit(1) from error  # not the job alone: a sweep can't go on without the others
    _group.calling = False
    return result


def gather(values: list[T]) -> list[T]:
    """Return the values of all processes in one list, the first's first. All have to come here."""
    if count() == 1:
        return values
    from torch import distributed

    found: list[Any] = [None] * count()
    distributed.all_gather_object(found, values, group=_control())
    return [value for some in found for value in some]


def follow_parent() -> None:
    """Do what the process calls that has started this one; end with it, however it ends."""

    def wait() -> None:
        sys.stdin.read()  # its end is the parent's
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    sys.exit(_follow())


def _follow() -> int:
    """Do what the first process calls, and return the exit code that it sends at its end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # also while it waits for another one's message
        signal.signal(number, signal.SIG_DFL)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    while not isinstance(message := _send(None), int):
        function, args = message
        try:
            function(*args)
        except InputError:
            pass  # the first has raised it, too
        del function, args, message
        gc.collect()  # a Trainer and its model hold each other, and what they have of a GPU
    return message


def _send(message: Any) -> Any:
    """Return the first process's message in all of them."""
    from torch import distributed

    box = [message]
    distributed.broadcast_object_list(box, group=_control(), device=None)
    return box[0]


def _control() -> Any:
    """Return the process group of messages; connect with the others first where this was not done yet."""
    if _group.control is None:
        import torch
        from torch import distributed

        if "MASTER_ADDR" not in os.environ:
            from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

            slurm = SLURMEnvironment()
            os.environ.update(MASTER_ADDR=slurm.main_address, MASTER_PORT=str(slurm.main_port))
        torch.set_num_threads(max(1, torch.get_num_threads() // local_count()))  # they share the machine's cores
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        # The others wait here while the first works alone, or has more to sample than they.
        _group.control = distributed.new_group(backend="gloo", timeout=timedelta(days=30))
    return _group.control


def _start(processes: int) -> None:
    """Start the others on this machine."""
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
    """End the processes that this one has started."""
    if not _group.started:
        return
    from torch import distributed

    _send(0)
    for process in _group.started:
        process.wait()
    distributed.destroy_process_group()
    _group.started, _group.control = [], None
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        del os.environ[name]
