"""Programs that read standard input and write standard output: verdicts, rows of a file, and runs of ILF."""

import ast
import dataclasses
import json
import os
import time

import pytest
from conftest import ROOT, compose_settings
from fastapi.testclient import TestClient
from test_sandbox import LINUX, SMALL, command

from ilf.annotation.answers import Answers
from ilf.annotation.assignments import Work
from ilf.annotation.server import application
from ilf.build import build
from ilf.feedback.llm import plan_refinements
from ilf.feedback.llm_settings import Prompt
from ilf.feedback.unit_tests import in_words
from ilf.sandbox import Job, Limits, Sandbox
from ilf.scoring import score
from ilf.tasks import Data, Hub, Jsonl
from ilf.tasks.hub import HubColumns
from ilf.tasks.prompts import completion_of, cut, ended
from ilf.tasks.rows import content_sha256
from ilf.types import Feedback, InputError, NoTrainingExamples, Program, Task, Verdict


@pytest.fixture(scope="module")
def sandbox():
    made = Sandbox(SMALL)
    yield made
    made.close()


def verdict_of(sandbox: Sandbox, program: str, pairs: dict[str, str], **options: str) -> Verdict:
    return sandbox.run([Job(program, inputs=tuple(pairs), outputs=tuple(pairs.values()), **options)])[0]


SUMS = {"1 2\n": "3\n", "30 4\n": "34\n"}


# ---- ways to read input and to exit -----------------------------------------------------------------------------

READING = {
    "input": "a, b = map(int, input().split())\nprint(a + b)",
    "until the end": "try:\n    while True: print(sum(map(int, input().split())))\nexcept EOFError:\n    pass",
    "read": "import sys\nprint(sum(map(int, sys.stdin.read().split())))",
    "lines": "import sys\nfor line in sys.stdin:\n    print(sum(map(int, line.split())))",
    "readline": "import sys\ninput = sys.stdin.readline\nprint(sum(map(int, input().split())))",
    "bytes": "import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))",
    "descriptor 0": "print(sum(map(int, open(0).read().split())))",
    "system calls": "import os\nn = os.fstat(0).st_size\nos.write(1, b'%d' % sum(map(int, os.read(0, n).split())))",
    "twice": "import sys\nsys.stdin.read()\nsys.stdin.seek(0)\nprint(sum(map(int, sys.stdin.read().split())))",
}
ENDING = {
    "sys.exit": "import sys\nprint(sum(map(int, input().split())))\nsys.exit()",
    "sys.exit(0)": "import sys\nprint(sum(map(int, input().split())))\nsys.exit(0)",
    "exit": "print(sum(map(int, input().split())))\nexit()\nprint('more')",
    "quit": "print(sum(map(int, input().split())))\nquit()",
    "exit from within": "def main():\n    print(sum(map(int, input().split())))\n    raise SystemExit\nmain()\nx",
    "hard exit": "import os\nprint(sum(map(int, input().split())), flush=True)\nos._exit(0)",
    "at the end": "import atexit, io, sys\nsys.stdout = io.StringIO()\n"
    "atexit.register(lambda: sys.__stdout__.write(sys.stdout.getvalue()))\nprint(sum(map(int, input().split())))",
    "a thread": "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(2**26)\ndef f(n):\n"
    "    return n and 1 + f(n - 1)\ndef main():\n    f(50000)\n    print(sum(map(int, input().split())))\n"
    "threading.Thread(target=main).start()",
    "a file on standard output": "out = open(1, 'w')\nprint(sum(map(int, input().split())), file=out)",
    "another standard output": "import sys\nsys.stdout = open(1, 'w')\nprint(sum(map(int, input().split())))",
    "a closed output": "import sys\nprint(sum(map(int, input().split())))\nsys.stdout.close()",
    "a writer of its own": "import os, sys\nclass Writer:\n    def __init__(self): self.text = ''\n"
    "    def write(self, text): self.text += text\n    def flush(self):\n"
    "        os.write(1, self.text.encode())\n        self.text = ''\n"
    "sys.stdout = Writer()\nprint(sum(map(int, input().split())))",
    "main": "def main():\n    print(sum(map(int, input().split())))\nif __name__ == '__main__':\n    main()",
    "main as a module": "import __main__, pickle\nclass P: pass\n"
    "pickle.loads(pickle.dumps(P()))\nassert __main__.P is P\nprint(sum(map(int, input().split())))",
    "errors aside": "import sys\nprint('wrong', file=sys.stderr)\nprint(sum(map(int, input().split())))",
    "files": "open('a', 'w').write(input())\nprint(sum(map(int, open('a').read().split())))",
}


@LINUX
@pytest.mark.parametrize("name", [*READING, *ENDING])
def test_verdicts_do_not_depend_on_how_programs_read_input_or_exit(sandbox, name):
    found = verdict_of(sandbox, (READING | ENDING)[name], SUMS)
    assert found.passed and found.tests == (True, True), found
    wrong = verdict_of(sandbox, (READING | ENDING)[name], {"1 2\n": "4\n", "30 4\n": "34\n"})
    assert (wrong.verdict, wrong.tests) == ("failed", (False, True)), wrong


def test_text_is_utf8_with_universal_newlines_and_bytes_are_unchanged(sandbox):
    assert verdict_of(sandbox, "print(input()[::-1])", {"\u4e16\u00e9": "\u00e9\u4e16"}, compare_output="exact").passed
    assert verdict_of(sandbox, "print(len(input()), input())", {"ab\r\nc\r\n": "2 c"}).passed
    assert verdict_of(sandbox, "print(repr(open(0, 'rb').read()))", {"a\r\n": r"b'a\r\n'"}).passed
    assert verdict_of(sandbox, "print(open(0).read() == '')", {"": "True"}).passed


def test_large_inputs_and_outputs_are_not_truncated(sandbox):
    numbers = "\n".join(map(str, range(100_000)))
    limits = Limits(time_limit=5)
    big = Sandbox(limits)
    assert verdict_of(
        big, "import sys\nsys.stdout.write(sys.stdin.read())", {numbers: numbers}, compare_output="exact"
    ).passed
    diff = verdict_of(big, "import sys\nsys.stdout.write(sys.stdin.read().replace('77777', '0'))", {numbers: numbers})
    big.close()
    assert diff.detail == "input 1: word 77778 of the output is '0'"


# ---- comparison of outputs --------------------------------------------------------------------------------------


def outputs_match(sandbox: Sandbox, written: str, expected: str, how: str) -> bool:
    found = verdict_of(sandbox, f"import sys\nsys.stdout.write({written!r})", {"": expected}, compare_output=how)
    assert found.verdict in ("passed", "failed"), found
    return found.passed


@pytest.mark.parametrize(
    ("written", "expected", "tokens", "exact"),
    [
        ("1 2\n", "1 2\n", True, True),
        ("1 2", "1 2\n", True, True),
        ("1 2\n\n\n", "1 2", True, True),
        ("1  2\n", "1 2\n", True, False),
        ("1\n2\n", "1 2\n", True, False),
        ("\n1 2\n", "1 2\n", True, False),
        ("1 2 \n", "1 2\n", True, False),
        ("1\t2\n", "1 2\n", True, False),
        ("1\u00a02\n", "1 2\n", False, False),  # a no-break space does not separate words
        ("12\n", "1 2\n", False, False),
        ("1 2 3\n", "1 2\n", False, False),
        ("1\n", "1 2\n", False, False),
        ("2 1\n", "1 2\n", False, False),
        ("yes\n", "YES\n", False, False),
        ("1.0\n", "1\n", False, False),
        ("01\n", "1\n", False, False),
        ("", "", True, True),
        ("\n", "", True, True),
        ("", "1", False, False),
        ("1", "", False, False),
        (" ", "", True, False),
    ],
)
def test_outputs_are_compared_by_tokens_or_exactly(sandbox, written, expected, tokens, exact):
    assert outputs_match(sandbox, written, expected, "tokens") is tokens
    assert outputs_match(sandbox, written, expected, "exact") is exact


def test_compare_approx_applies_to_numeric_tokens_only():
    approx = Sandbox(Limits(compare="approx"))
    pairs = [
        ("0.30000000000000004 x", "0.3 x", True),
        ("1.0 2e0", "1 2", True),
        ("0.3001", "0.3", False),
        ("1e-13", "0", True),
        ("1e-11", "0", False),
        ("1_0", "10", False),
        ("nan", "1", False),
        ("inf", "1e999", False),
        ("nan", "nan", True),
        ("x1", "x1.0", False),
        ("9" * 5000, "9" * 4999 + "8", False),
        ("9" * 5000, "9" * 5000, True),
        ("9" * 400, "1e2", False),
        ("1 2", "1", False),
        ("1", "1.0 2", False),
    ]
    found = [(a, b, outputs_match(approx, a, b, "tokens")) for a, b, _ in pairs]
    exact = outputs_match(approx, "1.0", "1", "exact")
    approx.close()
    assert found == pairs and not exact


def test_the_detail_names_the_input_and_the_first_difference(sandbox):
    program = "n = int(input())\nprint(*range(n))"
    numbers = " ".join(map(str, range(200)))

    def detail(n, expected, **options):
        return verdict_of(sandbox, program, {f"{n}": expected}, **options).detail

    assert verdict_of(sandbox, program, {"1": "0", "3": "0 1 3"}).detail == "input 2: the output is '0 1 2\\n'"
    assert detail(200, numbers.replace(" 150 ", " x ")) == "input 1: word 151 of the output is '150'"
    assert detail(200, numbers + " 200") == "input 1: the output ends after word 200"
    assert detail(300, numbers) == "input 1: the output goes on after word 200"
    assert detail(200, "a\n" + numbers, compare_output="exact").startswith("input 1: line 1 of the output is '0 1 2")
    assert len(detail(200, "x" * 10**5)) <= 500


# ---- failures and limits ----------------------------------------------------------------------------------------


@LINUX
@pytest.mark.parametrize(
    ("program", "expected", "detail"),
    [
        ("print(3)\nraise KeyError(1)", "failed", "input 1: KeyError: 1 (line 2)"),
        ("import sys\nprint(3)\nsys.exit(1)", "failed", "input 1: SystemExit: 1 (line 3)"),
        ("import sys\nprint(3)\nsys.exit('no')", "failed", "input 1: SystemExit: no (line 3)"),
        ("import os\nprint(3, flush=True)\nos._exit(2)", "failed", "input 1: exit status 2"),
        ("def f(:", "failed", "input 1: SyntaxError: invalid syntax (line 1)"),
        ("input()\ninput()", "failed", "EOFError: EOF when reading a line (line 2)"),
        ("", "failed", "input 1: the output is ''"),
        ("x = '\0'", "failed", "null bytes"),
        ("while True: pass", "timed_out", "processor time"),
        ("import time\nprint(3, flush=True)\ntime.sleep(60)", "timed_out", "no end after 2 s"),
        ("import threading, time\nprint(3)\nthreading.Thread(target=time.sleep, args=(60,)).start()", "timed_out", ""),
        ("x = [0] * 10**9", "memory", "MemoryError"),
        ("while True: print('x' * 1000)", "output", "File too large"),
        ("import sys\nsys.stdout.write('x' * 2**20 + 'x')", "output", "File too large"),
        ("open('big', 'w').write('x' * 2**21)\nprint(3)", "disk", "File too large"),
        ("for i in range(9): open(str(i), 'w').write('x' * 10**6)", "disk", "No space left"),
        ("import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,)).start()", "processes", ""),
        ("import os\nos.abort()", "crashed", "signal 6"),
        ("import ctypes\nctypes.string_at(0)", "crashed", "signal 11"),
        ("print(f())\ndef f(): return 3", "failed", "NameError"),
        ("import numpy", "failed", "ModuleNotFoundError"),
    ],
)
def test_each_kind_of_failure_has_its_verdict(sandbox, program, expected, detail):
    found = verdict_of(sandbox, program, {"1": "3"})
    assert (found.verdict, detail in found.detail, found.tests) == (expected, True, (False,)), found


def test_each_input_has_its_own_outcome_and_time_limit(sandbox):
    divides = verdict_of(sandbox, "print(6 // int(input()))", {"1": "6", "0": "0", "2": "4", "3": "2"})
    assert (divides.verdict, divides.tests) == ("failed", (True, False, False, True))
    assert divides.detail.startswith("input 2: ZeroDivisionError")
    # Each run is within the time limit; together they exceed it.
    slow = "import time\nend = time.process_time() + .4\nwhile time.process_time() < end: pass\nprint(input())"
    three = verdict_of(sandbox, slow, {str(i): str(i) for i in range(3)})
    assert three.passed and 0.3 < three.seconds < 0.9
    hangs = verdict_of(sandbox, "n = int(input())\nwhile n == 2: pass\nprint(n)", {"1": "0", "2": "2", "3": "3"})
    assert (hangs.verdict, hangs.tests) == ("timed_out", (False, False, False)) and "input 2" in hangs.detail


def test_remaining_inputs_are_skipped_after_a_timeout():
    sandbox = Sandbox(Limits(time_limit=1, workers=1))
    start = time.monotonic()
    found = verdict_of(sandbox, "while True: pass", {str(i): "" for i in range(50)})
    took = time.monotonic() - start
    sandbox.close()
    assert (found.verdict, found.tests, took < 6) == ("timed_out", (False,) * 50, True)


def test_the_time_limit_scales_with_the_gold_programs_run_time():
    slow = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass\nprint(input())"
    own = {"inputs": ("1",), "outputs": ("1",)}
    sandbox = Sandbox(Limits(time_limit=1))
    jobs = [Job(slow.format(1.4), **own), Job(slow.format(1.4), **own, gold=slow.format(0.4))]
    assert [v.verdict for v in sandbox.run(jobs)] == ["timed_out", "passed"]
    sandbox.close()


@LINUX
def test_the_worker_survives_outputs_that_are_too_large_to_compare():
    sandbox = Sandbox(Limits(output_mb=1024, workers=1))
    assert verdict_of(sandbox, "print(1)", {"": "1"}).passed
    (worker,) = sandbox._workers
    huge = verdict_of(sandbox, "import os\nos.ftruncate(1, 900 << 20)", {"": "1"})
    assert (huge.verdict, huge.detail) == ("output", "input 1: wrote more than can be compared")
    words = verdict_of(sandbox, "print('ab ' * 2**25)", {"": "1"})
    assert words.detail == "input 1: word 1 of the output is 'ab'" and sandbox._workers == [worker]
    sandbox.close()


# ---- forged verdicts and isolation ------------------------------------------------------------------------------

FORGERIES = {
    "nothing": "",
    "exit": "import sys\nsys.exit(0)",
    "hard exit": "import os\nos._exit(0)",
    "exit at the end": "import atexit, os\natexit.register(os._exit, 0)\nprint(6)",
    "print at the end": "import atexit\natexit.register(print, 'passed')\nprint(6)",
    "other descriptors": "import os\nfor i in range(2, 99):\n    try: os.write(i, b'5')\n    except OSError: pass",
    "messages": "import os\nm = b'[\"value\", null]'\nfor i in range(2, 99):\n"
    "    try: os.write(i, len(m).to_bytes(4, 'little') + m)\n"
    "    except OSError: pass",
    "messages and an exit": "import os\nm = b'[\"error\", [\"\", null, null]]'\nfor i in range(2, 99):\n"
    "    try: os.write(i, len(m).to_bytes(4, 'little') + m)\n    except OSError: pass\nos._exit(0)",
    "closed descriptors": "import os\nos.closerange(2, 99)\nprint(6)",
    "all closed": "import os\nos.closerange(0, 99)",
    "standard input": "import os\nos.write(0, b'5')",
    "frames": "import sys\nf = sys._getframe()\nwhile f:\n    for v in list(f.f_locals.values()):\n"
    "        if isinstance(v, str) and len(v) < 9: print(v, end='')\n    f = f.f_back",
    "patched framework": "import os, sys\nfor m in list(sys.modules.values()):\n"
    "    if hasattr(m, 'described'): m.described = lambda *a: ['', None, None]\nos._exit = lambda s: None\nprint(6)",
    "everything": "print(*range(99))",
    "an output of everything": "class E(str):\n    def __eq__(s, o): return True\nprint(E(6))",
    "nothing but zeros": "import os\nos.ftruncate(1, 10)",
    "a child": "import os\nos.fork()\nprint(6)",
}  # fmt: skip


@LINUX
@pytest.mark.parametrize("isolation", ["best", "off"])
@pytest.mark.parametrize("how", ["tokens", "exact"])
def test_programs_cannot_forge_a_passing_verdict(isolation, how):
    sandbox = Sandbox(Limits(time_limit=1, isolation=isolation, compare="approx"))
    jobs = [
        Job(text, inputs=("2 3\n", "five"), outputs=("5\n", "5"), compare_output=how) for text in FORGERIES.values()
    ]
    found = dict(zip(FORGERIES, sandbox.run(jobs), strict=True))
    (honest,) = sandbox.run([Job("print(5)", inputs=("2 3\n", "five"), outputs=("5\n", "5"), compare_output=how)])
    sandbox.close()
    assert {name: v for name, v in found.items() if v.passed} == {} and honest.passed


def test_expected_outputs_are_not_in_the_programs_memory(sandbox):
    """Search all objects that the garbage collector knows for a word that only the expected output contains."""
    secret = "zygomorphic" + str(os.getpid())
    search = (
        "import gc\nword = input()[::{}].encode()\nfound = 0\n"
        "for o in gc.get_objects():\n    for v in gc.get_referents(o):\n"
        "        if isinstance(v, (str, bytes, bytearray)) and v is not word:\n"
        "            found += word in (v.encode('utf-8', 'replace') if isinstance(v, str) else bytes(v))\n"
        "print(found)"
    )
    texts = search.format(-1), "kept = [input(), 1]\n" + search.format(1)
    jobs = [Job(texts[0], inputs=(secret[::-1],), outputs=(secret,))]
    jobs += [Job(texts[1], inputs=(f"{secret}\n{secret}",), outputs=(secret,))]
    found, control = sandbox.run(jobs)
    assert found.detail == "input 1: the output is '0\\n'", found
    assert control.detail.startswith("input 1: the output is ") and "'0" not in control.detail, control


@LINUX
@pytest.mark.parametrize("isolation", ["best", "off"])
def test_runs_on_different_inputs_share_no_state(isolation):
    leave = (
        "import builtins, os, sys, json\nfound = sorted(os.listdir('.'))\n"
        "seen = found, hasattr(builtins, 'left'), hasattr(json, 'left')\n"
        "builtins.left = json.left = 1\nopen('left', 'w').write('x')\nos.mkdir('d')\nos.write(2, b'left')\n"
        "sys.stdout.flush()\nprint(input(), *seen, os.fstat(2).st_size, os.lseek(1, 0, 1), os.fstat(1).st_size)"
    )
    sandbox = Sandbox(Limits(time_limit=1, isolation=isolation, workers=1))
    pairs = {str(i): f"{i} [] False False 4 0 0" for i in range(4)}
    assert verdict_of(sandbox, leave, pairs).passed, verdict_of(sandbox, leave, pairs)
    assert verdict_of(sandbox, "def f(): return 1", {"": ""}).passed
    (called,) = sandbox.run([Job("def f(x): return x", ("assert f(1) == 1",))])
    sandbox.close()
    assert called.passed


@LINUX
def test_deeply_nested_folders_do_not_affect_the_next_program():
    deep = "import os\ntry:\n    for i in range(1500):\n        os.mkdir('d')\n        os.chdir('d')\n"
    deep += "except OSError: pass\nprint(input())"
    sandbox = Sandbox(Limits(workers=1, time_limit=2))
    nested, honest = sandbox.run(
        [Job(deep, inputs=("1", "2"), outputs=("1", "2")), Job(READING["input"], inputs=("1 2",), outputs=("3",))]
    )
    sandbox.close()
    assert honest.passed and (nested.passed or nested.verdict == "disk"), nested


@LINUX
def test_runs_do_not_leak_file_descriptors(sandbox):
    def state():
        (worker,) = sandbox._workers[:1]
        judge = worker._process.pid
        return len(os.listdir(f"/proc/{judge}/fd")), len(os.listdir("/proc/self/fd"))

    def run_programs(start):
        jobs = [Job(f"print({i})", inputs=("a", "b"), outputs=(str(i), str(i))) for i in range(start, start + 100)]
        assert all(v.passed for v in sandbox.run(jobs))

    run_programs(0)
    before = state()
    run_programs(100)
    assert state() == before


# ---- validation of jobs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "tests="),
        ({"inputs": ("1",)}, r"outputs=\(\): must be as many as inputs, but there are 0 for 1"),
        ({"outputs": ("1",)}, r"outputs=\('1',\): must be as many"),
        ({"inputs": ("1", "2"), "outputs": ("1",)}, "1 for 2"),
        ({"tests": ("assert f()",), "inputs": ("1",), "outputs": ("1",)}, "inputs=.*beside tests"),
        ({"tests": ("assert f()",), "outputs": ("1",)}, "beside tests"),
        ({"inputs": ("1",), "outputs": ("1",), "setup": "x = 1"}, "setup='x = 1'"),
        (
            {"inputs": ("1",), "outputs": ("1",), "compare_output": "words"},
            "compare_output='words': must be tokens or exact",
        ),
        ({"tests": ("assert f()",), "compare_output": "exact"}, "compare_output='exact'"),
    ],
)
def test_a_job_must_have_either_tests_or_inputs_with_outputs(given, said):
    with pytest.raises(InputError, match=said):
        Job("x", **given)


def test_the_command_line_accepts_rows_with_inputs_and_outputs():
    rows = [
        {"id": 1, "program": READING["input"], "inputs": list(SUMS), "outputs": list(SUMS.values())},
        {"id": 2, "program": "print(1,  2)", "inputs": [""], "outputs": ["1  2"], "compare_output": "exact"},
        {"id": 3, "program": "print(1,  2)", "inputs": [""], "outputs": ["1  2"], "compare_output": None},
        {"id": 4, "program": "def f(x): return x", "tests": ["assert f(1) == 1"], "inputs": []},
        {"id": 5, "program": "while 1: pass", "inputs": ["", ""], "outputs": ["", ""], "time_limit": 1},
    ]
    done = command("-", given="".join(json.dumps(row) + "\n" for row in rows))
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(f["id"], f["verdict"], f["tests"]) for f in found] == [
        (1, "passed", [True, True]),
        (2, "failed", [False]),
        (3, "passed", [True]),
        (4, "passed", [True]),
        (5, "timed_out", [False, False]),
    ], done.stderr


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"inputs": ["1"]}, "outputs"),
        ({"inputs": ["1"], "outputs": ["1", "2"]}, "2 for 1"),
        ({"inputs": "1", "outputs": "1"}, "lists of as many"),
        ({"inputs": [1], "outputs": [1]}, "lists of as many"),
        ({"inputs": ["1"], "outputs": ["1"], "tests": ["assert 1"]}, "inputs"),
        ({"inputs": ["1"], "outputs": ["1"], "compare_output": "x"}, "compare_output='x'"),
        ({"inputs": ["1"], "outputs": ["1"], "compare_output": ["x"]}, "compare_output"),
        ({"inputs": ["1"], "outputs": ["1"], "setup_code": "x = 1"}, "setup_code"),
    ],
)
def test_an_invalid_line_is_reported_before_any_program_runs(row, said):
    lines = [{"program": "x", "tests": ["assert 1"]}, {"program": "x", **row}]
    done = command("-", given="\n".join(map(json.dumps, lines)))
    assert (done.returncode, done.stdout) == (2, "") and "-:2" in done.stderr and said in done.stderr


# ---- rows of a file ---------------------------------------------------------------------------------------------

PROGRAMS = ROOT / "docs" / "programs" / "tasks.jsonl"
ROW = {"task_id": 1, "text": "Double n.", "inputs": ["1\n", "2\n"], "outputs": ["2\n", "4\n"]}
GOLD = "print(2 * int(input()))"


def written(file, *rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Jsonl(path=str(file))


BAD_ROWS = {
    "tests, too": ({"test_list": ["assert f(1) == 2"], "code": "def f(x): return x"}, "inputs=.*with test_list"),
    "outputs beside tests": (
        {"test_list": ["assert f(1)"], "inputs": None, "signature": "def f(x):"},
        "outputs=.*with test_list",
    ),
    "unequal numbers": ({"outputs": ["2\n"]}, "outputs=.*as many as the inputs, 2, not 1"),
    "no inputs": ({"inputs": None}, r"inputs=\[\].*one or more texts"),
    "no outputs": ({"outputs": []}, r"outputs=\[\].*one or more texts"),
    "neither": ({"inputs": [], "outputs": []}, r"test_list=.*or inputs and outputs in its place"),
    "one text": ({"inputs": "1\n"}, "inputs='1.*must be a list"),
    "numbers": ({"inputs": [1, 2]}, r"inputs=\[1, 2\].*texts"),
    "an unknown comparison": ({"compare_output": "words"}, "compare_output='words'.*tokens or exact"),
    "a comparison that is no text": ({"compare_output": 1}, "compare_output=1.*text"),
    "a signature": ({"signature": "def f(x):"}, "signature=.*test_list"),
    "set-up code": ({"test_setup_code": "x = 1"}, "test_setup_code=.*test_list"),
    "a program that does not parse": ({"code": "print("}, r"code=.*parse"),
    "a misspelt column": ({"inputs": None, "input": ["1"]}, "input.*Rename"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_an_invalid_row_is_reported_with_its_line_number(name, tmp_path):
    change, said = BAD_ROWS[name]
    row = {name: value for name, value in (ROW | {"task_id": 2} | change).items() if value is not None}
    with pytest.raises(InputError, match=r"tasks\.jsonl:2.*" + said):
        written(tmp_path / "tasks.jsonl", ROW, row).load()


def test_rows_are_read_as_tasks(tmp_path):
    rows = [
        {**ROW, "code": GOLD, "split": "test"},
        {**ROW, "task_id": 2, "split": "train", "inputs": ["1\r\n2"], "outputs": ["3"], "compare_output": "exact"},
        {
            "task_id": 3,
            "split": "train",
            "text": "t",
            "signature": "def f(x):",
            "test_list": ["assert f(1)"],
            "inputs": None,
        },
    ]
    (first, second, third), _ = written(tmp_path / "tasks.jsonl", *rows).load()
    assert (first.tests, first.entry_point, first.inputs, first.outputs) == ((), "", ("1\n", "2\n"), ("2\n", "4\n"))
    assert first.prompt == '"""\nDouble n.\n\n>>> Example input:\n1\n>>> Example output:\n2\n"""\n\n'
    assert (second.inputs, second.compare_output, second.code) == (("1\n2",), "exact", "")
    assert (third.inputs, third.compare_output) == ((), "tokens")


def test_the_digest_of_a_file_with_asserts_omits_the_io_columns(tmp_path):
    columns = ["task_id", "text", "test_list", "code", "signature", "test_setup_code", "split"]
    row = dict(zip(columns, (1, "t", ["assert f(1)"], "", "def f(x):", "", "test"), strict=True))
    _, sha256 = written(tmp_path / "tasks.jsonl", row).load()
    assert sha256 == content_sha256([row], columns)


def test_prompts_are_valid_python_for_any_text(tmp_path):
    odd = ['say """', "back\\slash \\", "a\0b", 'ends with "', '\'"""\'', ">>> x", "{braces} %s"]
    rows = [
        {**ROW, "task_id": i, "split": "test", "text": text, "inputs": [text], "outputs": [text]}
        for i, text in enumerate(odd, 1)
    ]
    tasks, _ = written(tmp_path / "tasks.jsonl", *rows).load()
    for task, text in zip(tasks, odd, strict=True):
        tree = ast.parse(task.prompt + GOLD)
        assert ast.get_docstring(tree, clean=False).count(text) == 3 and len(tree.body) == 2, text


def test_user_defined_tasks_must_have_exactly_one_kind_of_test():
    (task,), _ = UserData(tasks=[task_with()]).load()
    assert task.checks == 1
    for change in ({"tests": ("assert f()",)}, {"inputs": (), "outputs": ()}, {"outputs": ("1", "2")}):
        with pytest.raises(InputError, match="data: task 1=1: must have tests, or equally many inputs and outputs"):
            UserData(tasks=[task_with(**change)]).load()


def task_with(**change) -> Task:
    task = Task(1, "test", "t", GOLD, "", (), "", '"""\nt\n"""\n\n', 1, ("1",), ("2",))
    return dataclasses.replace(task, **change)


@dataclasses.dataclass
class UserData(Data):
    tasks: list = dataclasses.field(default_factory=list)

    def read(self, key):
        return self.tasks, "0" * 64


# ---- whole programs ---------------------------------------------------------------------------------------------

PROGRAM = (
    'def main():\n    text = """\nOLD CODE:\n"""\n    print(len(text))\n\n\nif __name__ == "__main__":\n    main()'
)


@pytest.mark.parametrize(
    "after", ["", "\n", "\n\n# done\n", '\n\n"""\nAnother task.\n"""\n', "\n\n\nOLD CODE:\nx", "\n```\nThat"]
)
def test_a_script_is_cut_where_other_text_begins(after):
    assert cut(PROGRAM + after, script=True) == PROGRAM
    # Stopping during generation gives the same program for every token length.
    for size in (1, 3, 1000):
        for end in range(size, len(PROGRAM + after) + size, size):
            if ended((PROGRAM + after)[:end], script=True):
                break
        assert cut((PROGRAM + after)[:end], script=True) == PROGRAM


@pytest.mark.parametrize("after", ["", "\n# note\n", "\n\n\n"])
def test_a_string_at_the_end_of_a_script_is_not_taken_for_comments(after):
    program = "print('''\n#####\n#   #\n#####''')"
    assert cut(program + after, script=True) == program == completion_of("", program + after, "")


def test_completion_of_returns_a_script_without_its_prompt():
    prompt = task_with().prompt
    assert (
        completion_of(prompt, f"{PROGRAM}\n# end\n", "") == completion_of(prompt, f"{prompt}\n{PROGRAM}", "") == PROGRAM
    )
    assert cut(completion_of(prompt, PROGRAM, ""), script=True) == PROGRAM
    with pytest.raises(SyntaxError):
        completion_of(prompt, "print(", "")
    with pytest.raises(ValueError, match='end the program before \'"""\''):
        completion_of(prompt, 'x = 1\n"""\na note\n"""\n', "")


def feedback_on(task: Task, text: str, sandbox: Sandbox, tests: str = "all") -> str:
    (found,) = score([(text, task)], sandbox, tests)
    return in_words(Program(1, "train", 0, 0, "", "", text, found), task)


def test_feedback_names_the_input_and_the_expected_and_actual_output(sandbox):
    task = task_with(inputs=("1\n", "2\n", "3\n"), outputs=("2\n", "4\n", "6\n"))
    assert feedback_on(task, "print(int(input()) ** 2)", sandbox) == (
        r"On the input '1', the program should print '2', but it prints '1\n'. It passes 1 of 3 inputs."
    )
    assert feedback_on(task, "n = int(input())\nprint(n + n // (n - 3))", sandbox, "unseen") == (
        r"On the input '2', the program should print '4', but it prints '0\n'."
    )
    assert feedback_on(task, "n = int(input())\nprint(2 * n + 0 // (n - 3))", sandbox) == (
        "On the input '3', the program should print '6', but line 2, `print(2 * n + 0 // (n - 3))`, raises "
        "ZeroDivisionError: integer division or modulo by zero. It passes 2 of 3 inputs."
    )
    assert feedback_on(task, "while True: pass", sandbox) == "On the input '1', the program does not come to an end."
    assert (
        feedback_on(task, "print(", sandbox)
        == "The program does not run: line 1, `print(`, raises SyntaxError: '(' was never closed."
    )
    assert feedback_on(task, "import os\nos._exit(3)", sandbox).endswith("but it ends with exit status 3.")
    assert feedback_on(task, "import os\nos.abort()", sandbox).endswith("but it ended early with signal 6.")
    assert "it takes more memory than it may have" in feedback_on(task, "x = [0] * 10**9", sandbox)
    long = task_with(inputs=("",), outputs=(" ".join(map(str, range(300))),))
    swapped = feedback_on(long, "print(*range(250), 'x', *range(251, 300))", sandbox)
    assert swapped == "On the input '', word 251 of the output should be '250', but is 'x'."
    short = feedback_on(long, "print(*range(250))", sandbox)
    assert short.endswith("..., but the output ends after word 250.")


# ---- runs of ILF ------------------------------------------------------------------------------------------------


def test_gold_programs_of_the_example_pass_and_hard_coded_ones_fail():
    data = Jsonl(path=str(PROGRAMS))
    tasks, _ = data.load()
    sandbox = Sandbox(Limits())
    data.check_gold(tasks, sandbox)
    assert len(tasks) == 10 and all(3 <= len(task.inputs) <= 5 for task in tasks)
    assert {task.split for task in tasks} == {"prompt", "test", "refine", "train"}
    # Programs that print the first expected output for every input fail.
    hard_coded = [(f"print({task.outputs[0]!r}, end='')", task) for task in tasks]
    assert not any(v.passed for v in score(hard_coded, sandbox, "all"))
    for task in tasks:
        ran = score([(task.prompt + completion_of(task.prompt, task.code, ""), task)], sandbox, "unseen")
        assert ran[0].passed and len(ran[0].tests) == task.checks - 1
    sandbox.close()


OVERRIDES = ["data=jsonl", f"data.path={PROGRAMS}", "sampler.n=2", "sampler.max_new_tokens=24", "evaluate.k=[1,2]"]
OVERRIDES += ["training.max_length=1024", "feedback=unit_tests"]


def test_ilf_runs_end_to_end_on_tasks_with_inputs_and_outputs(small_stages, tmp_path):
    stages = small_stages(*OVERRIDES, "refinements=gold", "refinements.tasks=annotated", "training.policy.epochs=1")
    results = stages.run()
    stages.sandbox.close()
    assert results["counts"]["training_examples"] == 3
    folder = stages.folder
    programs = [json.loads(line) for line in (folder / "programs" / "sample.jsonl").read_text().splitlines()]
    assert programs and all(len(p["tests"]) == len(stages.tasks.by_id[p["task_id"]].inputs) for p in programs)
    feedback = [json.loads(line) for line in (folder / "feedback.jsonl").read_text().splitlines()]
    assert feedback and all(f["text"].startswith(("On the input", "The program does not run")) for f in feedback)
    rows = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    assert [row["task_id"] for row in rows] == [8, 9, 10]
    for row in rows:
        assert row["target"] == stages.tasks.by_id[row["task_id"]].code

    with pytest.raises(NoTrainingExamples):  # mini's refiner is trained and sampled, but solves nothing
        small_stages(*OVERRIDES, "refiner.old_code_tokens=64", "training.refiner.epochs=1").run()
    (refined,) = tmp_path.glob("run1/programs/refinements.jsonl")
    programs = [json.loads(line) for line in refined.read_text().splitlines()]
    assert {p["task_id"] for p in programs} == {8, 9, 10}
    for p in programs:
        prompt = stages.tasks.by_id[p["task_id"]].prompt
        assert p["prompt"].startswith("OLD CODE:") and p["prompt"].endswith(f"REFINEMENT:\n{prompt}")
        assert p["program"] == prompt + p["completion"]


def test_llm_prompts_show_inputs_with_outputs_and_whole_programs():
    tasks = {task.task_id: task for task in Jsonl(path=str(PROGRAMS)).load()[0]}
    task, asked = tasks[1], Feedback(8, "train", tasks[8].prompt + "print(1)", "All of it is wrong.", "human")
    example = Feedback(1, "prompt", task.prompt + "print(0)", "It ignores the input.", "human")
    prompt = Prompt("", "{text}|{test}|{tests}|{program}", "{feedback}\n{refinement}")
    query, *_ = plan_refinements(prompt, [asked], tasks, [example], 1, 0)
    question, answer, last = (turn["content"] for turn in query["messages"])
    pairs = [f"Input:\n{a}\nOutput:\n{b}" for a, b in zip(task.inputs, task.outputs, strict=True)]
    assert question == "|".join([task.text, pairs[0], "\n".join(pairs), example.program])
    assert answer.endswith(task.code) and last.startswith(tasks[8].text)


def test_hub_data_sets_support_inputs_and_outputs(tmp_path):
    written(
        tmp_path / "rows.jsonl", {"question": "Double n.", "read": ["1", "2"], "write": ["2", "4"], "split": "test"}
    )
    columns = HubColumns(text="question", test_list=None, inputs="read", outputs="write", code=None, split="split")
    (task,), _ = Hub(name="json", data_files=str(tmp_path / "rows.jsonl"), columns=columns).load()
    assert (task.inputs, task.outputs, task.tests, task.code) == (("1", "2"), ("2", "4"), (), "")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["executor.scoring=paper"], r"executor\.scoring='paper': truncates.*task 2 are scripts.*as_written"),
        (["feedback=scripted"], "scripted"),
        (["data.annotator=scripted"], r"data\.annotator='scripted'"),
    ],
)
def test_options_for_functions_only_are_rejected_at_startup(overrides, said):
    with pytest.raises(InputError, match=said):
        build(compose_settings(*OVERRIDES, *overrides)).sandbox.close()


def test_scoring_unseen_inputs_requires_an_input_not_in_the_prompt(tmp_path):
    rows = [
        {**ROW, "task_id": i, "split": split, "code": GOLD} for i, split in enumerate(("test", "refine", "train"), 1)
    ]
    written(tmp_path / "tasks.jsonl", *rows, {**rows[0], "task_id": 4, "inputs": ["1"], "outputs": ["2"]})
    with pytest.raises(InputError, match=r"executor\.tests='unseen': leaves task 4 without an input"):
        build(compose_settings(*OVERRIDES, f"data.path={tmp_path}/tasks.jsonl", "executor.tests=unseen"))


def test_a_failing_gold_program_is_reported_with_its_line_number(tmp_path):
    data = written(
        tmp_path / "tasks.jsonl",
        {**ROW, "code": GOLD, "split": "test"},
        {**ROW, "task_id": 2, "code": "print(1)", "split": "test"},
    )
    tasks, _ = data.load()
    with pytest.raises(InputError, match=r"tasks\.jsonl:2: task 2: failed, input 1: the output is '1\\n'"):
        data.check_gold(tasks, Sandbox(Limits()))


def test_the_key_of_verdicts_depends_on_outputs_and_comparison(small_stages, tmp_path):
    rows = [json.loads(line) for line in PROGRAMS.read_text().splitlines()]
    keys = set()
    for change in ({}, {"outputs": [*rows[1]["outputs"][:-1], "0"]}, {"compare_output": "exact"}):
        written(
            tmp_path / "tasks.jsonl",
            *({k: v for k, v in row.items() if k != "code"} | (change if row["task_id"] == 2 else {}) for row in rows),
        )
        stages = small_stages("data=jsonl", f"data.path={tmp_path}/tasks.jsonl", "stages=[zero_shot]")
        keys.add(stages.runner.verdicts_of("zero_shot", stages.tasks.test))
        stages.sandbox.close()
    assert len(keys) == 3


def test_the_annotation_page_shows_inputs_with_outputs(sandbox, tmp_path):
    task = task_with(inputs=("1 2\n", "3\n"), outputs=("3\n", "3\n"), split="train")
    wrong = Program(1, "train", 0, 0, "", "", task.prompt + "print(1)", Verdict("failed", "", (False, False)))
    work = Work({1: [wrong]}, {1: task}, Answers(tmp_path / "answers.jsonl"), sandbox, "all")
    client = TestClient(application(work, "127.0.0.1"), base_url="http://127.0.0.1")
    found = client.post("/api/open", json={"session": "x" * 8, "annotator": "me"}).json()["task"]
    assert found["tests"] == [[["", "Input:\n1 2\n\nOutput:\n3\n"]], [["", "Input:\n3\n\nOutput:\n3\n"]]]
    assert work.execute(1, task.prompt + READING["bytes"]).passed
