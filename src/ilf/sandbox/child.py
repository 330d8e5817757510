"""A warm interpreter that forks a process for each program: started by executor.py as a script of its own.

Reads one JSON object a line from standard input and answers each with one line: what the program's process reported,
event by event, and how it ended. That process has a group of its own, which is killed before the answer is given.
Imports only the standard library.
"""

import ast
import errno
import json
import math
import os
import resource
import select
import signal
import sys
import time
import traceback

PROGRAM = "<program>"


def almost_equal(a, b):
    """Compare as the paper's tests do: numbers to a relative 1e-6 or absolute 1e-12, also inside containers."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a == b
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a == b or math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12)
    if isinstance(a, (list, tuple)) and type(a) is type(b):
        return len(a) == len(b) and all(map(almost_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(almost_equal(a[k], b[k]) for k in b)
    return a == b


def with_approximate_equality(tree, name):
    """Replace the `==` of each `assert a == b` by a call of `name`."""
    for node in ast.walk(tree):
        test = getattr(node, "test", None) if isinstance(node, ast.Assert) else None
        if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
            call = ast.Call(ast.Name(name, ast.Load()), [test.left, test.comparators[0]], [])
            node.test = ast.copy_location(call, test)
    return ast.fix_missing_locations(tree)


def describe(error):
    """Return an exception in one line, with the last line of the program that it passed through."""
    text = "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()[-1]
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == PROGRAM]
    return f"{text} (line {lines[-1]})" if lines else text


def limit_named_by(error):
    """Return the verdict for an exception that one of our limits caused, else "failed"."""
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return "output"
    return "failed"


def run(job, descriptor):
    """In the program's process: apply the limits, run the program, its set-up code and each test, and report."""
    report = os.fdopen(descriptor, "w", buffering=1)

    def say(**event):
        report.write(json.dumps(event) + "\n")

    # Should our parent be killed, nobody else would end a program that sleeps.
    signal.setitimer(signal.ITIMER_REAL, job["wall_limit"] + 1)
    seconds = math.ceil(job["time_limit"])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (job["output_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        resource.setrlimit(resource.RLIMIT_AS, (job["memory_bytes"],) * 2)
    except (ValueError, OSError):  # macOS refuses an address-space limit
        pass
    module = type(sys)("program")
    sys.modules["program"] = module
    scope = module.__dict__
    try:
        exec(compile(job["program"], PROGRAM, "exec"), scope)
        exec(compile(job["setup"], "<setup>", "exec"), scope)
    except BaseException as error:
        say(verdict=limit_named_by(error), detail=describe(error))
        return
    for test in job["tests"]:
        try:
            tree = ast.parse(test)
            if job["compare"] == "approx":
                scope["__almost_equal__"] = almost_equal
                tree = with_approximate_equality(tree, "__almost_equal__")
            exec(compile(tree, "<test>", "exec"), scope)
            say(test=True)
        except AssertionError as error:
            say(test=False, verdict="failed", detail=test if not str(error) else f"{test}: {error}")
        except BaseException as error:
            say(test=False, verdict=limit_named_by(error), detail=f"{test}: {describe(error)}")
    say(done=True)


def enter(job, descriptor):
    """Turn a fresh fork into the program's process: a group, a folder and files of its own. Does not return."""
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        os.chdir(job["folder"])
        output = os.open(".output", os.O_WRONLY | os.O_CREAT)
        own = [os.open(os.devnull, os.O_RDONLY), output, output, descriptor]
        for target, copy in enumerate([os.dup(i) for i in own]):
            os.dup2(copy, target)
        os.closerange(4, 4096)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
        run(job, 3)
        sys.stdout.flush()
    finally:
        os._exit(0)


def wait(child, descriptor, wakeup, seconds):
    """Return what the program's process wrote, and its exit status, None where `seconds` of wall time went by."""
    deadline, text, status = time.monotonic() + seconds, b"", None
    open_ends = [descriptor, wakeup]
    while status is None and (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select(open_ends, [], [], left)
        if descriptor in ready:
            part = os.read(descriptor, 65536)
            text += part
            if not part:  # closed, maybe by a process that goes on
                open_ends.remove(descriptor)
        if wakeup in ready:
            os.read(wakeup, 512)
        pid, found = os.waitpid(child, os.WNOHANG)
        status = os.waitstatus_to_exitcode(found) if pid else None
    try:
        os.killpg(child, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    if status is None:
        os.waitpid(child, 0)
    os.set_blocking(descriptor, False)  # a process that left the group may hold it open
    try:
        while part := os.read(descriptor, 65536):
            text += part
    except BlockingIOError:
        pass
    return text, status


def serve(requests, answers):
    """Answer each line of `requests` until there are no more."""
    wakeup, signalled = os.pipe()
    os.set_blocking(signalled, False)
    signal.set_wakeup_fd(signalled, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for line in requests:
        job = json.loads(line)
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            enter(job, write_end)
        os.close(write_end)
        text, status = wait(child, read_end, wakeup, job["wall_limit"])
        os.close(read_end)
        answers.write(json.dumps({"text": text.decode(errors="replace"), "status": status}) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout)
