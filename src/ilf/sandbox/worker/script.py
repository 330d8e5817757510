"""The process of a program that reads and writes: runs a whole script as the interpreter does.

The judge reads the script's output after the process has exited. This process does not report success itself, because
a program could forge the report. The exit status, which only the kernel writes, shows success.
"""

import atexit
import builtins
import gc
import marshal
import os
import sys

from . import serialization
from .program import PROGRAM, described


def run(channel: int, full: int, given: int, written: int) -> None:
    """Run the program and exit with status 0, or send its exception to the judge and exit with status 1.

    Args:
        channel: Descriptor of a socket to the judge.
        full: Bytes of output from which an EFBIG is attributed to the output rather than to another file.
        given: Descriptor of the file that becomes standard input.
        written: Descriptor of the file that becomes standard output.
    """
    status = 1
    try:
        text = marshal.loads(serialization.receive(channel))
        for descriptor, place in ((given, 0), (written, 1)):
            os.dup2(descriptor, place)
            os.close(descriptor)
        # The existing sys.stdin was opened on another file and cannot seek, so a new stream is opened.
        source = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
        vars(sys).update(stdin=source, __stdin__=source)
        vars(builtins).update(exit=sys.exit, quit=sys.exit)  # as the module `site` defines them
        try:
            _run(text)
            status = 0
        except BaseException as error:
            serialization.send(channel, serialization.as_text(["error", described(error, full)]))
    finally:
        os._exit(status)


def _run(text: str) -> None:
    """Run a program as the interpreter does, including the steps of the interpreter's exit.

    Raises:
        BaseException: Any exception that the program does not catch, except an exit with status 0.
    """
    module = sys.modules["__main__"] = type(sys)("__main__")
    failure: BaseException | None = None
    try:
        exec(compile(text, PROGRAM, "exec"), module.__dict__)
    except SystemExit as end:
        failure = end if end.code not in (None, 0) else None
    except BaseException as error:
        failure = error
    if failure is not None:
        raise failure
    if threads := sys.modules.get("threading"):  # not imported here: every fork would run its hook
        threads._shutdown()  # waits for the program's threads
    atexit._run_exitfuncs()
    _flush()
    vars(sys).update(stdin=sys.__stdin__, stdout=sys.__stdout__, stderr=sys.__stderr__)  # as the interpreter does
    module.__dict__.clear()  # a file object that is open on standard output flushes its buffer when it is freed
    gc.collect()
    _flush()


def _flush() -> None:
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None and not getattr(stream, "closed", False):
            stream.flush()
