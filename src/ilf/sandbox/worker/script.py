"""The process of a program that reads and writes: a whole script, run to its end as the interpreter runs one.

What it wrote is read by the judge once the process has ended. So nothing in here says that it came to a good end: the
exit status does, which only the kernel writes.
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
    """Run the program and end this process: with 0, or after an exception, which is sent to the judge, with 1.

    Args:
        channel: Descriptor of a socket to the judge.
        full: Bytes of output at which an EFBIG is about the output rather than another file.
        given: Descriptor of what is to be read on standard input.
        written: Descriptor of what becomes standard output.
    """
    status = 1
    try:
        text = marshal.loads(serialization.receive(channel))
        for descriptor, place in ((given, 0), (written, 1)):
            os.dup2(descriptor, place)
            os.close(descriptor)
        # Not the stream that was opened on another file, which could not seek.
        source = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
        vars(sys).update(stdin=source, __stdin__=source)
        vars(builtins).update(exit=sys.exit, quit=sys.exit)  # as `site` has them
        try:
            _run(text)
            status = 0
        except BaseException as error:
            serialization.send(channel, serialization.as_text(["error", described(error, full)]))
    finally:
        os._exit(status)


def _run(text: str) -> None:
    """Run a program as the interpreter does, with all that comes at its end.

    Raises:
        BaseException: Any that the program does not catch, but for an exit that says that all is well.
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
        threads._shutdown()  # waits for them
    atexit._run_exitfuncs()
    _flush()
    module.__dict__.clear()  # a file that was opened on standard output writes what it holds when it goes
    gc.collect()
    _flush()


def _flush() -> None:
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None and not getattr(stream, "closed", False):
            stream.flush()
