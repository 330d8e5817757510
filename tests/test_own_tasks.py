"""User-defined tasks: checks of rows, splits, tasks with and without gold programs; and the tutorial's commands."""

import json
import math
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import warm
from conftest import ROOT, compose_settings
from hypothesis import given
from hypothesis import strategies as st

from ilf.build import build
from ilf.feedback.human import read_annotations
from ilf.feedback.unit_tests import in_words
from ilf.sandbox import Limits, Sandbox
from ilf.tasks import MBPP, Jsonl
from ilf.tasks.data import SPLITS, job_of
from ilf.tasks.table import split_ids
from ilf.types import InputError, Program

PAGE = (ROOT / "docs" / "how-to" / "own-tasks.md").read_text()
TUTORIAL = ROOT / "docs" / "tutorial"
ROW = {"task_id": 1, "text": "t", "code": "def f(x):\n  return x", "test_list": ["assert f(1) == 1"]}
SIGNATURE_ROW = {"task_id": 3, "text": "t", "signature": "def f(x):", "test_list": ["assert f(1) == 1"]}


def write(file, *rows):
    file.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n")
    return Jsonl(path=str(file))


BAD_ROWS = {
    "a broken line": ("{", "tasks.jsonl:2=.*JSON"),
    "no object": ("[]", "tasks.jsonl:2=.*JSON object"),
    "an id that is no number": ({**SIGNATURE_ROW, "task_id": "3"}, "task_id='3'"),
    "no id": ({**SIGNATURE_ROW, "task_id": 0}, "task_id=0.*positive integer"),
    "an id twice": ({**SIGNATURE_ROW, "task_id": 1}, "task_id=1.*twice"),
    "no words": ({**SIGNATURE_ROW, "text": " "}, "text=' '.*describe what"),
    "no tests": ({**SIGNATURE_ROW, "test_list": []}, r"test_list=\[\].*assert"),
    "a test that is no text": ({**SIGNATURE_ROW, "test_list": [1]}, r"test_list=\[1\].*assert"),
    "a test that asserts nothing": ({**SIGNATURE_ROW, "test_list": ["f(1)"]}, r"test_list=.*assert"),
    "a test that does not parse": ({**SIGNATURE_ROW, "test_list": ["assert f(1) ="]}, r"test_list=.*assert"),
    "a test that is indented": ({**SIGNATURE_ROW, "test_list": [" assert f(1)"]}, r"test_list=.*assert"),
    "a test after a blank of no code": ({**SIGNATURE_ROW, "test_list": ["\u2003assert f(1)"]}, r"test_list=.*assert"),
    "a test with a null character": ({**SIGNATURE_ROW, "test_list": ["assert f('\0')"]}, r"test_list=.*assert"),
    "a program with a null character": ({**ROW, "task_id": 3, "code": "def f(x):\n  return '\0'"}, "code=.*parse"),
    "a test of another function": ({**SIGNATURE_ROW, "test_list": ["assert g(1)"]}, "signature=.*none"),
    "a program that does not parse": ({**ROW, "task_id": 3, "code": "def f(: pass"}, "code=.*parse"),
    "a program without the function": ({**ROW, "task_id": 3, "code": "g = 1"}, "code=.*define"),
    "neither program nor signature": ({**ROW, "task_id": 3, "code": None}, "code=null.*signature"),
    "both": ({**ROW, "task_id": 3, "signature": "def f(x):"}, "signature='def f.*without a gold program.*code"),
    "a signature with a body": ({**SIGNATURE_ROW, "signature": "def f(x):\n  return x"}, "signature=.*colon"),
    "a signature without a colon": ({**SIGNATURE_ROW, "signature": "def f(x)"}, "signature=.*colon"),
    "a signature of nothing": ({**SIGNATURE_ROW, "signature": "import math"}, "signature=.*colon"),
    "setup that is no text": ({**SIGNATURE_ROW, "test_setup_code": 1}, "test_setup_code=1"),
    "an unknown split": ({**SIGNATURE_ROW, "split": "validation"}, "split='validation'.*prompt, test, refine, train"),
    "a split in one row only": ({**SIGNATURE_ROW, "split": "test"}, r":1: split='\(missing\)'"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_row_is_an_error_with_its_line(name, tmp_path):
    row, message = BAD_ROWS[name]
    line = "" if message.startswith(("tasks", ":")) else ":2: "
    with pytest.raises(InputError, match=f"{line}{message}"):
        write(tmp_path / "tasks.jsonl", ROW, row).load()


def test_signature_gives_the_same_prompt_as_the_gold_program(tmp_path):
    head = "from math import (\n    pi)\n\ndef f(x: dict[str, int] = {':': 1},\n      y=2):"
    whole = {**ROW, "code": f"{head}\n    return x", "task_id": 1}
    for style in ("paper", "no_leak"):
        data = write(tmp_path / "tasks.jsonl", whole, {**SIGNATURE_ROW, "signature": f"{head}  \n"})
        data.prompt = style
        (one, other), _ = data.load()
        assert one.prompt == other.prompt and other.code == "" != one.code
        assert one.entry_point == other.entry_point == "f"


@given(
    st.sets(st.integers(1, 10**6), max_size=60),
    st.lists(st.integers(0, 20), min_size=4, max_size=4).filter(any),
)
def test_splits_follow_largest_remainders_and_ignore_file_order(ids, weights):
    shares = dict(zip(SPLITS, [w / sum(weights) for w in weights], strict=True))
    found = split_ids(sorted(ids), shares)
    assert found == split_ids(sorted(ids, reverse=True), shares) and found.keys() == ids
    sizes = {name: sum(split == name for split in found.values()) for name in SPLITS}
    wanted = [name for name in SPLITS if shares[name] > 0]
    raised = sum(shares[name] * len(ids) < 1 for name in wanted)  # upper bound on the splits raised to one task
    for name in SPLITS:
        exact = shares[name] * len(ids)
        assert math.floor(exact + 1e-6) - raised <= sizes[name] <= math.ceil(exact - 1e-6) or sizes[name] == 1
        assert shares[name] or not sizes[name]
        if shares[name] and len(ids) >= len(wanted):
            assert sizes[name] >= 1
    # The largest remainders are rounded up, so no other sizes are closer to the shares.
    if not raised:
        up = [shares[n] * len(ids) % 1 for n in SPLITS if sizes[n] > shares[n] * len(ids) + 1e-6]
        down = [shares[n] * len(ids) % 1 for n in SPLITS if sizes[n] < shares[n] * len(ids) - 1e-6]
        assert not up or not down or min(up) >= max(down) - 1e-6


def test_split_column_assigns_splits_and_digest_ignores_extra_columns(tmp_path):
    rows = [{**SIGNATURE_ROW, "task_id": i, "split": SPLITS[i % 4]} for i in range(1, 9)]
    tasks, sha256 = write(tmp_path / "tasks.jsonl", *rows).load()
    assert {t.task_id: t.split for t in tasks} == {row["task_id"]: row["split"] for row in rows}
    # Extra columns and the order of rows do not change the digest; a changed test does.
    again = [{**row, "mine": 1} for row in reversed(rows)]
    assert write(tmp_path / "tasks.jsonl", *again).load()[1] == sha256
    rows[3]["test_list"] = ["assert f(2) == 2"]
    assert write(tmp_path / "tasks.jsonl", *rows).load()[1] != sha256


def test_failing_gold_programs_are_an_error_with_their_verdicts(tmp_path):
    wrong = [{**ROW, "task_id": i, "code": "def f(x):\n  return 1 / (x - 1)"} for i in range(2, 9)]
    none = {**SIGNATURE_ROW, "task_id": 20}
    file = tmp_path / "tasks.jsonl"
    data = write(file, ROW, none, *wrong)
    with pytest.raises(
        InputError, match=r"7 of 8 do not: .*jsonl:3: task 2: failed, .*ZeroDivision.*; and 2 more"
    ) as e:
        data.check_gold(data.load()[0], Sandbox(Limits()))
    assert "task 1:" not in str(e.value) and "task 20" not in str(e.value) and str(e.value).count("ZeroDivision") == 5
    data = write(file, ROW, none)
    data.check_gold(data.load()[0], Sandbox(Limits()))


SELECTING = "stages=[sample,annotate,train_refiner,refine,train_policy]"
INVALID = {  # overrides, changes to the tutorial's tasks and annotations, pattern of the error
    "no file": (["data.path=null"], None, None, r"data\.path=null.*must be the path of a file"),
    "shares that are no whole": (["data.split.test=0.5"], None, None, r"data\.split=.*add up to 1"),
    "a share below 0": (["data.split.test=-0.5"], None, None, r"data\.split\.test=-0.5.*must be"),
    "a script": (["feedback=scripted"], None, None, r"feedback='scripted'.*data=mini"),
    "no Test task": ([], {"split": {"test": "train"}}, None, r"data\.path='.*tasks\.jsonl'.*Test split.*`split`"),
    "no Train task": ([], {"split": {"train": "test"}}, None, r"data\.path=.*Train split.*`split`.*refinements=model"),
    "no Refine task": ([], {"split": {"refine": "test"}}, None, r"data\.path=.*Refine split.*refiner=finetuned"),
    "no Refine task to choose by": (
        [
            "select=1",
            "select_min_programs=1",
            "feedback=unit_tests",
            "refinements=gold",
            "refinements.tasks=annotated",
            SELECTING,
        ],
        {"split": {"refine": "test"}},
        None,
        r"data\.path=.*Refine split.*select scores settings",
    ),
    "nothing to sample": (
        ["stages=[sample]", "feedback=unit_tests"],
        {"split": {"refine": "test", "train": "test"}},
        None,
        r"data\.path=.*Prompt or Refine or Train split.*stage sample",
    ),
    "no gold program": (["refinements=gold"], {"code": None}, None, "refinements='gold'.*column `code`"),
    "nothing to teach a refiner": (["feedback=unit_tests"], {"code": None}, None, "refiner='finetuned'.*Refine"),
    "no refinement to teach a refiner": (
        [],
        {"code": None},
        {"refine": "no refinement"},
        r"refiner='finetuned'.*Refine.*annotations\.jsonl",
    ),
    "people without refinements": (
        ["refinements=human"],
        {},
        {"train": "no refinement"},
        r"refinements='human'.*Train.*annotations\.jsonl",
    ),
    "no worked example": (["refiner=few_shot"], {}, {}, r"refiner\.shots=1.*there are 0 in .*annotations\.jsonl"),
    "no annotation of Train": ([], {}, {"train": "no row"}, r"feedback\.path='.*annotations\.jsonl'.*Train split"),
    "no annotation of Refine": ([], {}, {"refine": "no row"}, r"feedback\.path='.*annotations\.jsonl'.*Refine split"),
    "a task that is not there": ([], {"task_id": {7: 70}}, {}, r"annotations\.jsonl:4: task_id=7.*data's tasks"),
}


def write_changed(folder, tasks, annotations):
    """Write the tutorial's files with changes, and return the overrides for a run on them.

    Args:
        folder: Where the files are written.
        tasks: The new values of a column, by their old values. "code" replaces all gold programs by signatures.
        annotations: What is removed from the annotations of a split: "no refinement" or "no row".
    """
    rows = [json.loads(line) for line in (TUTORIAL / "tasks.jsonl").read_text().splitlines()]
    splits = {row["task_id"]: row["split"] for row in rows}
    for column, new in (tasks or {}).items():
        for row in rows:
            if column == "code" and "code" in row:
                row["signature"] = row.pop("code").partition("\n")[0]
            elif isinstance(new, dict):
                row[column] = new.get(row[column], row[column])
    lacks = {i: (annotations or {}).get(split) for i, split in splits.items()}
    feedback = [json.loads(line) for line in (TUTORIAL / "annotations.jsonl").read_text().splitlines()]
    feedback = [row for row in feedback if lacks[row["task_id"]] != "no row"]
    for row in feedback:
        if lacks[row["task_id"]] == "no refinement":
            del row["unedited_annotator_completion"]
    write(folder / "tasks.jsonl", *rows)
    write(folder / "annotations.jsonl", *feedback)
    people = ["feedback=human", f"feedback.path={folder}/annotations.jsonl"]
    return ["data=jsonl", f"data.path={folder}/tasks.jsonl", "logger=none", f"output_dir={folder}/run", *people]


@pytest.mark.parametrize("name", INVALID)
def test_unusable_tasks_or_annotations_are_an_error_at_the_start(name, tmp_path):
    overrides, tasks, annotations, message = INVALID[name]
    given = write_changed(tmp_path, tasks, annotations)
    if "feedback=unit_tests" in overrides:  # reads no annotations
        given.pop()
    with pytest.raises(InputError, match=message):
        build(compose_settings(*given, *overrides, f"store.dir={tmp_path}/store"))


# ---- the tutorial --------------------------------------------------------------------------------------------------

COMMANDS = [
    line.removeprefix("python run.py ")
    for block in re.findall(r"```(?:bash|sh)\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]
NOT_RUN = {
    "mode=annotate": "a server; started by the tests of the page",
    "model=qwen_coder_0_5b": "lies on the Hub; test_readme.py composes and checks it",
}
RUN = [command for command in COMMANDS if not any(word in command for word in NOT_RUN)]


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory) -> tuple[Path, dict[str, dict]]:
    """Run the tutorial's commands in order; return the folder, and the results of each command, if it has any."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "docs").mkdir()
    shutil.copytree(TUTORIAL, folder / "docs" / "tutorial")
    found: dict[str, dict] = {}
    for command in RUN:
        words = [word.replace("FOLDER", f"{folder}/run2/refiner") for word in shlex.split(command)]
        own = folder / f"run{len(found)}"
        done = warm.run(ROOT / "run.py", [*words, "logger=none", f"hydra.run.dir={own}"], folder)
        assert done.returncode == 0, (command, done.stderr[-2000:])
        found[command] = json.loads((own / "results.json").read_text()) if (own / "results.json").exists() else {}
    return folder, found


def table(results: dict) -> list[str]:
    from ilf.analysis.report import table as table_of

    return [line for line in table_of(results).splitlines() if "(T" in line]


def test_tutorial_commands_run_and_reproduce_the_page(tutorial):
    folder, found = tutorial
    assert len(COMMANDS) == len(RUN) + len(NOT_RUN) == 7
    first, people, ilf, other, _ = found.values()
    assert first["status"] == "partial" and first["zero_shot"]["n_tasks"] == 3
    assert people["status"] == ilf["status"] == other["status"] == "complete"
    assert people["counts"]["training_examples"] == 4 and people["rejected"] == ilf["rejected"] == []
    assert {"sample", "zero_shot"} <= set(people["seconds"]["reused"]) <= set(ilf["seconds"]["reused"])
    assert "annotate" in ilf["seconds"]["reused"] and other["seconds"]["train_refiner"] is None
    assert people["feedback_on_policy"] is True and ilf["annotated_policy"] is None
    for line in table(ilf):
        assert line in PAGE
    exported = read_annotations(folder / "annotations.csv")
    assert [r for _, r in exported] == [r for _, r in read_annotations(TUTORIAL / "annotations.jsonl")]


def test_tutorial_feedback_is_about_programs_that_its_command_samples(tutorial):
    drawn = [json.loads(line) for line in (tutorial[0] / "run0/programs/sample.jsonl").read_text().splitlines()]
    wrong = {(row["task_id"], row["program"]) for row in drawn if row["verdict"] != "passed"}
    assert len(wrong) > 20 and all(row["verdict"] != "passed" for row in drawn)
    for _, row in read_annotations(TUTORIAL / "annotations.jsonl"):
        assert (row["task_id"], row["original_model_completion"]) in wrong
        assert row["unedited_annotator_completion"].startswith(row["prompt"])


@pytest.fixture
def again(tutorial, tmp_path):
    """Return a function that runs ILF on the tutorial's files with changes, with the tutorial's store."""

    def run(tasks, annotations, *overrides: str, edit=lambda folder: None) -> dict:
        own = write_changed(tmp_path, tasks, annotations)
        edit(tmp_path)
        training = ["training.refiner.epochs=10", "training.policy.epochs=10", f"store.dir={tutorial[0]}/.ilf"]
        stages = build(compose_settings(*own, *training, *overrides))
        return stages.run()

    return run


def test_ilf_trains_the_same_policy_without_gold_programs(again, tutorial):
    found = again({"code": None}, {})
    assert found["status"] == "complete" and found["training_task_ids"] == [7, 8, 9, 10] and not found["rejected"]
    assert "train_policy" in found["seconds"]["reused"]  # the training set is the same


def test_task_without_a_refinement_is_left_out_of_the_training_set(again):
    def drop_one(folder):
        rows = [json.loads(line) for line in (folder / "annotations.jsonl").read_text().splitlines()]
        rows[4] |= {"unedited_annotator_completion": "", "refinement_edit_distance": None}
        write(folder / "annotations.jsonl", *rows)

    found = again({}, {}, edit=drop_one)
    assert found["training_task_ids"] == [7, 9, 10] and found["matched"]
    assert len(found["rejected"]) == 1 and "task 8 (human): this source has no program" in found["rejected"][0]


def test_edited_tests_rescore_the_stored_samples(again, tutorial, caplog):
    caplog.set_level("INFO")

    def edit(folder):
        rows = [json.loads(line) for line in (folder / "tasks.jsonl").read_text().splitlines()]
        for row in rows[:3]:  # Test
            row["test_list"] = [row["test_list"][0], row["test_list"][0] + " + 1"]
            row["signature"] = row.get("signature") or row.pop("code").partition("\n")[0]
        write(folder / "tasks.jsonl", *rows)

    before = tutorial[1][RUN[0]]["zero_shot"]
    found = again({}, {}, "stages=[sample,zero_shot]", edit=edit)
    assert found["zero_shot"]["pass@1"] == 0 < before["pass@1"]
    assert "sample" in found["seconds"]["reused"] and "zero_shot" not in found["seconds"]["reused"]
    assert "stored samples are reused" in caplog.text


def test_policy_is_evaluated_on_own_tasks_as_transfer_data(small_stages):
    own = ["data@transfer=jsonl", f"transfer.path={TUTORIAL}/tasks.jsonl", "stages=[zero_shot]", "data.limit.test=2"]
    found = small_stages(*own).run()
    assert found["transfer"]["zero_shot"]["n_tasks"] == 3 and found["transfer"]["data"] == "jsonl"


def test_unseen_tests_are_an_error_if_a_task_has_only_one_test(tmp_path):
    """Without the test that the prompt shows, the task would have no test."""
    rows = [{**ROW, "task_id": i, "split": split} for i, split in enumerate(SPLITS, 1)]
    write(tmp_path / "tasks.jsonl", *rows)
    own = [
        "data=jsonl",
        f"data.path={tmp_path}/tasks.jsonl",
        f"store.dir={tmp_path}/store",
        "logger=none",
        "feedback=unit_tests",
    ]
    with pytest.raises(InputError, match=r"executor\.tests='unseen': leaves task 1 without a test"):
        build(compose_settings(*own, "executor.tests=unseen"))
    write(tmp_path / "tasks.jsonl", *({**row, "test_list": [*row["test_list"], "assert f(2) == 2"]} for row in rows))
    build(compose_settings(*own, "executor.tests=unseen")).sandbox.close()


@pytest.mark.parametrize("name", ["MBPP", "own tasks"])
@pytest.mark.parametrize("tests", [[], [1], ["f(1)"], ["assert f(1)", ""]])
def test_row_without_asserts_is_an_error_in_mbpp_and_own_files(name, tests, tmp_path):
    row = {**ROW, "task_id": 11, "test_list": tests, "test_setup_code": ""}
    data = write(tmp_path / "tasks.jsonl", row)
    with pytest.raises(InputError, match=r"tasks\.jsonl:1: test_list=.*assert"):
        (MBPP if name == "MBPP" else Jsonl)(path=data.path).load()


def test_task_text_may_contain_backslashes_and_quotes(tmp_path):
    row = {**ROW, "text": 'the file C:\\users\\x of "$\\xi$" or """', "split": "test"}
    row["test_list"] = [r"assert f(r'\xi') == '\\xi'", 'assert f("""a""") == "a"']
    data = write(tmp_path / "tasks.jsonl", row)
    ((task,), _) = data.load()
    data.check_gold([replace(task, code=task.prompt + "    return x")], Sandbox(Limits()))


def test_tests_may_be_pytest_functions_or_unittest_classes(tmp_path):
    tests = [
        "import pytest\n\n@pytest.mark.parametrize('n', [1, 2])\ndef test_double(n):\n    assert double(n) == 2 * n",
        "import unittest\nclass TestDouble(unittest.TestCase):\n    def test_text(self):\n"
        "        self.assertEqual(double('a'), 'aa')",
    ]
    code = "def double(n):\n    return 2 * n"
    row = {"task_id": 1, "split": "test", "text": "Double n.", "code": code, "test_list": tests}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(row))
    ((task,), _) = Jsonl(path=str(tmp_path / "tasks.jsonl")).load()
    assert task.entry_point == "double" and tests[0] in task.prompt
    wrong = "def double(n):\n    return 2"
    sandbox = Sandbox(Limits())
    passed, verdict = sandbox.run([job_of(program, task) for program in (code, wrong)])
    sandbox.close()
    failed = Program(1, "test", 0, 0, "", "", wrong, verdict)
    assert passed.passed and verdict.tests == (False, False)
    assert failed.verdict.detail == "assert double(n) == 2 * n"
    assert in_words(failed, task) == "This test should hold, and does not: `double(n) == 2 * n`."
