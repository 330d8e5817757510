import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from ilf.feedback.human import load_annotations
from ilf.sandbox import Job, Limits, Sandbox
from ilf.tasks.mbpp import read_rows, tasks_from

SMALL = Limits(time_limit=1, memory_mb=256, output_kb=64)


def verdict(program: str, *tests: str, limits: Limits = SMALL, setup: str = ""):
    return Sandbox(limits).run([Job(program, tests or ("assert f(1) == 1",), setup)])[0]


F = "def f(x):\n    return x"


@pytest.mark.parametrize(
    ("program", "expected", "detail"),
    [
        (F, "passed", ""),
        (F + " + 1", "failed", "assert f(1) == 1"),
        ("def f(x):\n    y = 0\n    return x / y", "failed", "ZeroDivisionError: division by zero (line 3)"),
        ("def f(x:", "failed", "SyntaxError"),
        ("raise SystemExit(0)", "failed", "SystemExit"),
        ("def f(x):\n    while True: pass", "timed_out", ""),
        ("while True: pass", "timed_out", ""),
        ("import time\ntime.sleep(60)", "timed_out", ""),
        ("x = [0] * 10**9", "memory", "MemoryError"),
        ("while True: print('x' * 1000)", "output", "File too large"),
        ("open('big', 'w').write('x' * 10**6)\n" + F, "output", "File too large"),
        ("import os\nos._exit(0)", "crashed", "exit status 0"),
        ("import ctypes\nctypes.string_at(0)", "crashed", "-11"),
        ("def f(x):\n    return f(x)", "failed", "RecursionError"),
        ("import numpy\n" + F, "failed", "ModuleNotFoundError"),
        ("assert __name__ != '__main__'\n" + F, "passed", ""),
        ("print('passed')\nprint('{\"done\": true}')\n" + F + " + 1", "failed", ""),
    ],
)
def test_each_way_to_end_has_its_verdict(program, expected, detail):
    found = verdict(program)
    assert (found.verdict, detail in found.detail) == (expected, True), found


def test_each_assert_has_its_outcome():
    found = verdict("def f(x):\n    return 10 // x", "assert f(5) == 2", "assert f(0) == 0", "assert f(2) == 5")
    assert (found.verdict, found.tests) == ("failed", (True, False, True))
    hung = verdict("def f(x):\n    while x: pass", "assert f(0) is None", "assert f(1) is None", "assert True")
    assert (hung.verdict, hung.tests) == ("timed_out", (True, False, False))


def test_set_up_code_runs_after_the_program_and_before_the_tests():
    assert verdict("def f(x):\n    return x", "assert f(one) == 1", setup="one = f(1)").passed


def test_numbers_compare_exactly_or_approximately_as_asked():
    tests = ("assert f(1) == 0.3", "assert f(2) == [0.3, {'a': 0.3}]", "assert f(3) == 'x'")
    program = "def f(x):\n    y = 0.1 + 0.2\n    return {1: y, 2: [y, {'a': y}], 3: 'x'}[x]"
    assert verdict(program, *tests).tests == (False, False, True)
    approx = Limits(compare="approx")
    assert verdict(program, *tests, limits=approx).passed
    assert not verdict("def f(x):\n    return True", "assert f(1) == 2", limits=approx).passed
    assert not verdict("def f(x):\n    return (1.0,)", "assert f(1) == [1.0]", limits=approx).passed
    assert verdict("def f(x):\n    return float('nan')", "assert f(1) != f(1)", limits=approx).passed


def test_a_program_sees_no_environment_and_an_empty_folder_of_its_own(monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    program = "import os\ndef f(x):\n    return [dict(os.environ).get('SECRET'), os.listdir('.'), os.getcwd()]"
    found = verdict(program, "assert f(1)[:2] == [None, ['.output']]", f"assert f(1)[2] != {os.getcwd()!r}")
    assert found.passed, found


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    marker = f"sleep 61.{os.getpid()}"
    child = f"import subprocess\nsubprocess.Popen({marker.split()!r})\nopen('left', 'w').write('x')\n"
    before = len(os.listdir("/proc/self/fd"))
    assert verdict(child + F).passed
    verdict(child + "while True: pass")
    time.sleep(0.2)
    commands = [
        p.read_bytes().replace(b"\0", b" ") for p in Path("/proc").glob("[0-9]*/cmdline") if os.access(p, os.R_OK)
    ]
    assert not [c for c in commands if marker.encode() in c]
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_program_ends_though_the_judge_was_killed():
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r})\nfrom ilf.sandbox import *\n"
    code += "Sandbox(Limits(time_limit=1)).run([Job('import time; time.sleep(99)', ())])"
    judge = subprocess.Popen([sys.executable, "-c", code])
    threads = Path(f"/proc/{judge.pid}/task")
    found: set[str] = set()
    deadline = time.monotonic() + 20
    while not found and time.monotonic() < deadline:
        found = {pid for t in threads.glob("*/children") for pid in t.read_text().split()}
        time.sleep(0.02)
    assert found
    time.sleep(0.5)
    judge.kill()
    judge.wait()
    while (alive := [pid for pid in found if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive == []


def test_verdicts_come_in_order_and_identical_jobs_run_once():
    jobs = [Job(f"def f(x):\n    return x + {i % 3}", ("assert f(1) == 1",)) for i in range(12)]
    found = Sandbox(SMALL).run(jobs)
    assert [v.passed for v in found] == [i % 3 == 0 for i in range(12)]
    assert found[0] is found[3]


def test_endless_programs_do_not_hold_up_the_others():
    jobs = [Job("while True: pass", ("assert True",)), *[Job(f"x = {i}", ("assert True",)) for i in range(20)]]
    start = time.monotonic()
    assert [v.verdict for v in Sandbox(SMALL).run(jobs)] == ["timed_out"] + ["passed"] * 20
    assert time.monotonic() - start < 20


def test_a_program_that_kills_what_it_was_forked_from_costs_only_its_own_verdict():
    killer = Job("import os\nos.kill(os.getppid(), 9)\nimport time\ntime.sleep(9)", ("assert True",))
    stopper = Job("import os\nos.kill(os.getppid(), 19)", ("assert True",))
    honest = [Job(f"x = {i}", ("assert True",)) for i in range(6)]
    start = time.monotonic()
    found = Sandbox(Limits(time_limit=1, workers=1)).run([killer, *honest[:3], stopper, *honest[3:]])
    assert [v.verdict for v in found] == ["crashed", *["passed"] * 3, "crashed", *["passed"] * 3]
    assert time.monotonic() - start < 30


def test_what_a_program_does_to_its_interpreter_is_not_seen_by_the_next():
    spoil = "import builtins, json, sys\nbuiltins.len = json.loads = None\nsys.path.append('spoilt')\n"
    jobs = [Job(spoil + F, ("assert f(1) == 1",)), Job("import sys\n" + F, ("assert len(sys.argv) and f(1) == 1",))]
    jobs.append(Job("import sys\n" + F, ("assert 'spoilt' not in sys.path",)))
    assert [v.verdict for v in Sandbox(Limits(workers=1)).run(jobs)] == ["passed"] * 3


def test_the_room_is_usable_alone_without_torch():
    code = "import sys; sys.path.insert(0, 'src'); import ilf.sandbox; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0


def test_all_gold_programs_pass(mbpp_file):
    tasks, _ = tasks_from(read_rows(str(mbpp_file), ""), None, "paper")
    found = Sandbox(Limits()).run([Job(t.code, t.tests, t.setup) for t in tasks])
    assert [t.task_id for t, v in zip(tasks, found, strict=True) if not v.passed] == []


def test_every_annotated_program_fails_and_every_refinement_passes(mbpp_file, annotations_file):
    tasks = {t.task_id: t for t in tasks_from(read_rows(str(mbpp_file), ""), None, "paper")[0]}
    annotations = load_annotations(str(annotations_file))
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
    # 163 gives 400.0 where the test has 400.00000000000006: it passes the paper's comparison only.
    assert failed([a.refinement for a in annotations], "exact") == {163}


def test_annotations_are_checked_row_by_row(tmp_path):
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
        file.write_text(json.dumps(row) + "\n" + (bad if isinstance(bad, str) else json.dumps(bad)))
        with pytest.raises(InputError, match=r"annotations\.jsonl:2"):
            load_annotations(str(file))
