"""How a command exits: normally, with a short error message, or by a signal.

SIGTERM, SIGINT (Ctrl-C) and SIGHUP stop a run within seconds. Finished results are in the store, the run's files are
written from them, and no child process is left. The exit code is 128 + the signal's number, so that no supervisor
mistakes this for success. In a Slurm job, SIGUSR1 does the same and requeues the job
(`#SBATCH --requeue --signal=B:USR1@120`). The same command then resumes the run.
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
_before: dict[int, Any] = {}  # the previous handlers, while this module's are installed
_pending: list[Interrupted] = []  # at most one
_PATIENCE = 8.0  # seconds for a run to write its files; Docker kills after 10, Slurm after 30


class Interrupted(BaseException):
    """A signal asks this process to exit. It is not an `Exception`, so that nothing treats it as an error of a job."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def code(self) -> int:
        """The exit code that a shell reports for a process killed by this signal."""
        return 128 + self.number


def listen() -> None:
    """Make signals raise `Interrupted` in the main thread, and exit if that does not stop the process in time.

    A signal that is ignored stays ignored: `nohup` ignores SIGHUP, and a shell ignores SIGINT for background jobs. The
    function does nothing if it was called before, or outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread() or listening():
        return
    for number in (*_ENDS, *([_REQUEUES] if "SLURM_JOB_ID" in os.environ else [])):
        if signal.getsignal(number) is not signal.SIG_IGN:
            _before[number] = signal.signal(number, _interrupt)
    # The handler runs between two Python instructions. It does not run during a long library call, such as one that
    # waits for other processes. In that case, the thread started here receives the signal.
    hears, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=_insist, args=(hears,), name="signals", daemon=True).start()
    os.register_at_fork(after_in_child=_forget)


def _forget() -> None:
    """Restore the previous handlers: after the command, and in a child, which must not stop its parent."""
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
        # Python drops all exceptions in these functions.
        if code.co_name == "__del__" or code.co_filename == weakref.__file__:
            main = threading.main_thread().ident
            assert main is not None
            threading.Timer(0.05, signal.pthread_kill, (main, number)).start()
            return
        frame = frame.f_back
    for other in _before:  # a second signal must not interrupt the shutdown that the first has started
        signal.signal(other, _again)
    _pending.append(Interrupted(number))
    raise _pending[0]


def pending() -> Interrupted | None:
    """Return the signal that stops this process, or None if there was none.

    The signal may interrupt work halfway, and the cleanup may raise another error in its place.
    """
    return _pending[0] if _pending else None


def dismiss() -> None:
    """Treat the received signal as a normal exit, such as Ctrl-C for a server."""
    _pending.clear()


def _again(number: int, frame: FrameType | None) -> None:
    """Do nothing, because the shutdown has started. SIG_IGN is not used, because children would inherit it."""


def _insist(hears: int) -> None:
    """Exit the process if a signal has not stopped it in time."""
    while number := os.read(hears, 1)[0]:
        if number in _ENDS or (number == _REQUEUES and "SLURM_JOB_ID" in os.environ):
            time.sleep(_PATIENCE)
            _leave(Interrupted(number))


def command(program: Callable[[], object], explain: Callable[[Exception], str | None]) -> None:
    """Run a program, and exit with an exit code and a short message if an error or a signal stops it.

    Args:
        program: The program, which may raise SystemExit.
        explain: Returns a short message that explains an error to a user, or None if only the traceback helps.
    """
    try:
        listen()
        program()
        if (stop := pending()) is not None:  # something dropped the exception that the signal raised
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
    """Return a message for the user about an input or file error, or None for other errors."""
    if isinstance(error, InputError | NoTrainingExamples):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}. Finished results are saved; run the same command again to resume."
    return None


def _leave(stop: Interrupted) -> NoReturn:
    """Exit immediately, without waiting for threads, and kill all child processes."""
    name = signal.Signals(stop.number).name
    try:
        sys.stdout.flush()
        print(
            f"\nstopped by {name}: finished results are saved; run the same command again to resume",
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
    """Requeue this Slurm job. Only its first process does so."""
    if int(os.environ.get("SLURM_PROCID", 0)) == 0:
        job = os.environ.get("SLURM_ARRAY_JOB_ID")
        job = f"{job}_{os.environ['SLURM_ARRAY_TASK_ID']}" if job else os.environ["SLURM_JOB_ID"]
        assert re.fullmatch(r"\d+(_\d+)?", job)
        subprocess.run(["scontrol", "requeue", job], check=True)
