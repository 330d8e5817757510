"""Run a command that must not outlive its parent, however either stops: python supervisor.py LOG COMMAND...

When its standard input closes or its parent exits, it stops the command and all processes that the command has started.
Its exit status is the command's. It uses only the standard library, as it is run as a file.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time

_PATIENCE = 10.0  # seconds that the command has to exit after SIGTERM
_LOOK = 0.2  # seconds between checks of the command
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: orphaned processes of a child become children of this process


def main(log: str, command: list[str]) -> int:
    """Run the command until it exits or must be stopped; return its exit status."""
    parent = os.getppid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # the parent decides when to stop; the command does not inherit this
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    with open(log, "ab") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        while child.poll() is None and os.getppid() == parent:
            ready, _, _ = select.select([0], [], [], _LOOK)
            if ready and not os.read(0, 1):
                break
    finally:
        _end(child)
    return child.returncode


def _end(child: "subprocess.Popen[bytes]") -> None:
    """Stop the command, first with SIGTERM and then with SIGKILL, and all processes that it has started."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + _PATIENCE
        while child.poll() is None and time.monotonic() < deadline:
            time.sleep(_LOOK / 4)
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except (ProcessLookupError, PermissionError):
            pass
        for process in _descendants():
            try:
                os.kill(process, number)
            except ProcessLookupError:
                pass
        time.sleep(_LOOK / 4)
    child.wait()


def _descendants() -> list[int]:
    """Return the ids of all descendants of this process; none without /proc."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    children.setdefault(int(file.read().rpartition(")")[2].split()[1]), []).append(int(name))
            except OSError:
                pass
    found, left = [], [os.getpid()]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
