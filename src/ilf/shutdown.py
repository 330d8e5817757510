"""How a command ends: by itself, by an error that is one line, or by a signal.

SIGTERM, SIGINT (Ctrl-C) and SIGHUP end a run within seconds: what is finished is in the store, the run's files are
written from it, no child process is left, and the exit code is 128 + the signal's number, so that no supervisor takes
the run for a success. In a Slurm job SIGUSR1 does the same and puts the job back into the queue
(`#SBATCH --requeue --signal=USR1@120`); the same command then goes on from there.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from ilf.types import InputError, NoTrainingExamples

log = logging.getLogger(__name__)

_ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_REQUEUES = signal.SIGUSR1
_before: dict[int, Any] = {}  # the handlers that were there, while this module's are
_pending: list[Interrupted] = []  # one at most
_PATIENCE = 8.0  # seconds for a run to write its files; Docker kills after 10, Slurm after 30


class Interrupted(BaseException):
    """A signal has asked this process to end. Not an `Exception`, so that nothing takes it for an error of a job."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def code(self) -> int:
        """The exit code, as a shell gives it for a process that a signal has ended."""
        return 128 + self.number


def listen() -> None:
    """Have signals raise `Interrupted` in the main thread, and end the process where that leads to nothing in time.

    A signal that is ignored stays so: `nohup` does that with SIGHUP, and a shell with SIGINT for background jobs. Does
    nothing where it was called before, or in another thread than the main one.
    """
    if threading.current_thread() is not threading.main_thread() or listening():
        return
    for number in (*_ENDS, *([_REQUEUES] if "SLURM_JOB_ID" in os.environ else [])):
        if signal.getsignal(number) is not signal.SIG_IGN:
            _before[number] = signal.signal(number, _interrupt)
    # The handler runs between two Python instructions. In a long call of a library, such as one that waits for other
    # processes, it does not: there this thread hears of the signal.
    hears, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=_insist, args=(hears,), name="signals", daemon=True).start()
    os.register_at_fork(after_in_child=_forget)


def _forget() -> None:
    """Give signals back to whoever had them: after the command, and in a child, whose end must not be its parent's."""
    if _before:
        signal.set_wakeup_fd(-1)
    for number, handler in _before.items():
        signal.signal(number, handler)
    _before.clear()


def listening() -> bool:
    """Return whether `listen` was called in this process."""
    return bool(_before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__del__" or code.co_filename == weakref.__file__:  # where Python drops every exception
            main = threading.main_thread().ident
            assert main is not None
            threading.Timer(0.05, signal.pthread_kill, (main, number)).start()
            return
        frame = frame.f_back
    for other in _before:  # one is enough: a second one would break off what the first has begun
        signal.signal(other, _again)
    _pending.append(Interrupted(number))
    raise _pending[0]


def pending() -> Interrupted | None:
    """Return the signal that this process ends by, once it has come.

    What it breaks off may be half done, and cleaning that up may raise an error in its place.
    """
    return _pending[0] if _pending else None


def dismiss() -> None:
    """Take the signal that has come for the normal end of what it ended, as Ctrl-C is of a server."""
    _pending.clear()


def _again(number: int, frame: FrameType | None) -> None:
    """Do nothing: the end has begun. Not SIG_IGN, which children would inherit."""


def _insist(hears: int) -> None:
    """End the process where a signal has not done so in time."""
    while number := os.read(hears, 1)[0]:
        if number in _ENDS or (number == _REQUEUES and "SLURM_JOB_ID" in os.environ):
            time.sleep(_PATIENCE)
            _leave(Interrupted(number))


def command(program: Callable[[], object], explain: Callable[[Exception], str | None]) -> None:
    """Run a program to its end, and exit with a code and a line where an error or a signal ends it.

    Args:
        program: What to run; it may raise SystemExit.
        explain: Says in a line or a few what an error means to a user, None where only a traceback tells.
    """
    try:
        listen()
        program()
        if (stop := pending()) is not None:  # what the signal raised was dropped on the way
            raise stop
    except BaseException as error:
        if (stop := pending()) is not None:
            atexit._run_exitfuncs()
            _leave(stop)
        if not isinstance(error, Exception) or (said := explain(error)) is None:
            raise
        sys.exit(f"error: {said}")
    finally:
        _forget()


def explain(error: Exception) -> str | None:
    """Return what an error of input, or of the system on a file, means to a user; None for others."""
    if isinstance(error, InputError | NoTrainingExamples):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}. What is finished is kept; the same command goes on from here."
    return None


def _leave(stop: Interrupted) -> NoReturn:
    """Exit at once, without waiting for threads, and leave no child process behind."""
    name = signal.Signals(stop.number).name
    try:
        sys.stdout.flush()
        print(
            f"\nended by {name}: what is finished is kept, and the same command goes on from here",
            file=sys.stderr,
            flush=True,
        )
        _end_children()
        if stop.number == _REQUEUES:
            _requeue()
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(stop.code)


def _end_children() -> None:
    import psutil

    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.NoSuchProcess:
            pass


def _requeue() -> None:
    """Put this Slurm job back into the queue; of its processes the first does it."""
    if int(os.environ.get("SLURM_PROCID", 0)) == 0:
        job = os.environ.get("SLURM_ARRAY_JOB_ID")
        job = f"{job}_{os.environ['SLURM_ARRAY_TASK_ID']}" if job else os.environ["SLURM_JOB_ID"]
        assert re.fullmatch(r"\d+(_\d+)?", job)
        subprocess.run(["scontrol", "requeue", job], check=True)
