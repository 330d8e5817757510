"""A program that returns an equal value of a standard library type passes its test, or the test is unsupported."""

import json
import subprocess
import sys

import pytest

from ilf.sandbox import Job, Limits, Sandbox

# Finds expressions that make equal values twice, for every public type of the standard library, and the plain values
# that they equal. Runs in its own process, because importing modules has side effects.
WALK = """
import collections.abc, contextlib, importlib, io, json, os, signal, sys, warnings
warnings.simplefilter("ignore")
def late(*args): raise TimeoutError
signal.signal(signal.SIGALRM, late)
NOT = {"antigravity", "this", "idlelib", "lib2to3", "turtle", "turtledemo", "tkinter", "test",
    "ensurepip", "pydoc_data"}
ARGUMENTS = ["", "1", "'a'", "[1, 2]", "{'a': 1}", "b'a'", "1, 2", "'a', 'b'", "1, 2, 3", "2020, 1, 2", "'i', [1]",
    "'127.0.0.1'", "int=5", "[(1, 2)]", "'UTC'", "a=1", "iter([1, 2])", "int", "'abc', 'b'", "(1, 2)",
    "'a', {'a': 1}", "[1, 2], 1", "None", "1.5", "'1.5'", "[3], 'x'", "range(9)"]
PLAIN = ["1", "'a'", "[1, 2]", "{'a': 1}", "b'a'", "(1, 2)", "1.5", "{1, 2}", "[1]", "5", "{1: 2}"]
found = []
def make(text, scope):
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return eval(text, scope)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
for name in sorted(sys.stdlib_module_names):
    if name.startswith("_") or name in NOT:
        continue
    try:
        modules = [importlib.import_module(name)]
    except BaseException:
        continue
    if name == "collections":
        modules.append(collections.abc)
    for module in modules:
        for key in sorted(vars(module)):
            kind = getattr(module, key)
            if key.startswith("_") or not isinstance(kind, type) or kind.__module__.partition(".")[0] != name:
                continue
            for arguments in ARGUMENTS:
                text = f"{module.__name__}.{key}({arguments})"
                scope = {name: sys.modules[name]}
                try:
                    first, second = make(text, scope), make(text, scope)
                    if first is second and key in ("Connection",):
                        continue
                    if bool(first == second):
                        found.append((module.__name__, text, text))
                    for plain in PLAIN:
                        if bool(first == eval(plain)):
                            found.append((module.__name__, text, plain))
                except BaseException:
                    pass
with open("found.json", "w") as file:  # a standard stream may have been closed
    json.dump(found, file)
os._exit(0)
"""


# Types whose equal values must pass.
EQUAL = """
array.array builtins.bool builtins.bytearray builtins.bytes builtins.complex builtins.dict builtins.float
builtins.frozenset builtins.int builtins.list builtins.memoryview builtins.range builtins.set builtins.slice
builtins.str builtins.tuple builtins.type collections.ChainMap collections.Counter collections.OrderedDict
collections.UserDict collections.UserList collections.UserString collections.defaultdict collections.deque
datetime.date datetime.datetime datetime.time datetime.timedelta decimal.Decimal fractions.Fraction
ipaddress.IPv4Address ipaddress.IPv4Interface ipaddress.IPv4Network ipaddress.IPv6Address ipaddress.IPv6Interface
ipaddress.IPv6Network pathlib.Path pathlib.PosixPath pathlib.PurePath pathlib.PurePosixPath pathlib.PureWindowsPath
re.RegexFlag socket.SocketKind statistics.NormalDist time.struct_time types.GenericAlias types.SimpleNamespace
uuid.UUID zoneinfo.ZoneInfo
"""


@pytest.fixture(scope="module")
def sandbox():
    made = Sandbox(Limits(time_limit=3))
    yield made
    made.close()


def test_equal_standard_library_values_never_fail_a_test(sandbox, tmp_path):
    done = subprocess.run(
        [sys.executable, "-I", "-c", WALK], cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    found = json.loads((tmp_path / "found.json").read_text())
    assert len({module for module, _, _ in found}) > 30 and len(found) > 300, done.stderr[-2000:]
    jobs = []
    for module, text, expected in found:
        own = f"import {module}\n" if expected == text and module != "builtins" else ""
        test = f"{own}assert f() == {expected.removeprefix('builtins.')}"
        jobs.append(Job(f"import {module}\ndef f(): return {text}", ("f()", test)))
    wrong, passed = [], set()
    for (_, text, expected), verdict in zip(found, sandbox.run(jobs), strict=True):
        if verdict.tests[0] and verdict.verdict not in ("passed", "unsupported_test"):
            wrong.append((text, expected, verdict))
        elif verdict.passed:
            passed.add(text.partition("(")[0])
    assert wrong == []
    assert passed >= set(EQUAL.split()), set(EQUAL.split()) - passed
