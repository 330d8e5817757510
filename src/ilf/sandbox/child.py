"""Runs one program and its tests. Started by executor.py as a script of its own, in a process group of its own.

Reads one JSON object from standard input and writes one JSON line for each event, as it happens, to the file
descriptor that its argument names, so that what is known before a kill is not lost. Imports only the standard library.
"""

import ast
import errno
import json
import math
import os
import resource
import signal
import sys
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


def main():
    """Apply the limits, run the program, its set-up code and each test, and report."""
    job = json.load(sys.stdin)
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
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


main()
sys.stdout.flush()
os._exit(0)
