import ast
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ilf.tasks.load import split_tasks
from ilf.tasks.mbpp import SPLIT_IDS, read_rows, tasks_from
from ilf.tasks.prompts import completion_of, cut, function_end, normalise_newlines, task_prompt
from ilf.types import InputError

SHA256 = "e3f45af54c8923849d795cba78c5c94b88c09db89a5dcc9ac538696485b099cf"


def tasks_of(path: Path, style: str = "paper"):
    return tasks_from(read_rows(str(path), ""), SHA256, style)[0]


def test_every_task_gets_a_prompt_and_a_split(mbpp_file):
    tasks = tasks_of(mbpp_file)
    assert [t.task_id for t in tasks] == list(range(1, 975))
    splits = split_tasks(tasks, {})
    assert (len(splits.test), len(splits.refine), len(splits.train)) == (100, 200, 664)
    assert all(t.task_id in SPLIT_IDS[t.split] for t in tasks)


def test_prompts_are_the_papers_byte_for_byte(mbpp_file, annotations_file):
    prompts = {t.task_id: t.prompt for t in tasks_of(mbpp_file)}
    rows = [json.loads(line) for line in annotations_file.open()]
    assert len(rows) == 195
    differ = {r["task_id"] for r in rows if prompts[r["task_id"]] != normalise_newlines(r["prompt"])}
    # In these two the published file holds U+FFFD for each byte of a dash and of an apostrophe.
    assert differ == {260, 679}
    damaged = {i: prompts[i].encode().decode("ascii", "replace") for i in differ}
    assert all(damaged[r["task_id"]] == normalise_newlines(r["prompt"]) for r in rows if r["task_id"] in differ)


def test_gold_programs_survive_the_way_into_a_target_and_back(mbpp_file):
    for task in tasks_of(mbpp_file):
        target = completion_of(task.prompt, task.code, task.entry_point)
        again, gold = ast.parse(task.prompt + target).body[1:], ast.parse(task.code).body
        assert list(map(ast.dump, again)) == list(map(ast.dump, gold)), task.task_id


def test_sampling_would_stop_at_the_end_of_each_gold_function(mbpp_file):
    """Only three gold programs have code after their entry point."""
    tasks = tasks_of(mbpp_file)
    longer = {
        t.task_id for t in tasks if cut(c := completion_of(t.prompt, t.code, t.entry_point) + "\nprint(1)") != c[:-9]
    }
    assert longer == {223, 717, 940}


def test_no_leak_shows_no_helper_and_keeps_imports(mbpp_file):
    paper, clean = tasks_of(mbpp_file), tasks_of(mbpp_file, "no_leak")
    changed = [c for p, c in zip(paper, clean, strict=True) if p.prompt != c.prompt]
    assert changed
    for task in clean:
        body = ast.parse(task.prompt + "    pass").body
        kinds = {type(node) for node in body[1:-1]}
        assert kinds <= {ast.Import, ast.ImportFrom}
        assert isinstance(body[-1], ast.FunctionDef) and body[-1].name == task.entry_point


HEAD = '"""\nt\n\n>>> Example: f(1) = 1\n"""\n\ndef f(x):\n'


@pytest.mark.parametrize("indent", ["    ", "  ", " ", "\t"])
@pytest.mark.parametrize("header", ["def f(x):", "def f(x) :", "def f(x: dict = {1: 2}) -> int:  # why"])
def test_targets_do_not_depend_on_indentation_or_header_style(indent, header):
    code = f"{header}\n{indent}if x:\n{indent * 2}return 1\n{indent}return x"
    scope: dict = {}
    exec(HEAD + completion_of(HEAD, code, "f"), scope)
    assert (scope["f"](0), scope["f"](5)) == (0, 1)


def test_an_import_that_the_prompt_lacks_moves_into_the_body():
    target = completion_of(HEAD, "import math\ndef f(x):\n\treturn math.floor(x)", "f")
    scope: dict = {}
    exec(HEAD + target, scope)
    assert scope["f"](1.5) == 1
    with pytest.raises(ValueError, match="not in the prompt"):
        completion_of(HEAD, "LIMIT = 3\ndef f(x):\n    return LIMIT", "f")


@pytest.mark.parametrize(
    "body",
    [
        "    return (1,\n2)",
        '    """text\nat the left\n"""\n    return 1',
        "    x = [\n1,\n]\n# a comment\n    return x",
        "\n\n    return 1",
    ],
)
def test_a_function_goes_on_through_brackets_strings_and_comments(body):
    assert function_end(body) is None
    for rest in ("\n\nprint(f(1))", "\ndef g():\n    pass", "\n```\nText", "\nclass A: pass", "\n# note\nx = 1"):
        assert cut(body + rest) == body


@given(st.text(max_size=80))
def test_cut_never_fails_and_only_cuts(text):
    assert text.startswith(cut(text))
    assert cut(cut(text)) == cut(text)


def test_the_rows_are_checked(tmp_path):
    row = {"task_id": 11, "text": "t", "code": "def f(x):\n  return x", "test_list": ["assert f(1) == 1"]}
    row["test_setup_code"] = ""

    def load(*rows):
        file = tmp_path / "tasks.jsonl"
        file.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
        return tasks_from(read_rows(str(file), ""), None, "paper")

    assert load(row)[0][0].entry_point == "f"
    for bad in ("{", "3", {**row, "text": 1}, {**row, "task_id": 2000}, {**row, "code": "def g(: pass"}, row):
        with pytest.raises(InputError, match=r"tasks.jsonl:2"):
            load(row, bad)
    load(row)
    with pytest.raises(InputError, match=r"data\.sha256.*hash"):
        tasks_from(read_rows(str(tmp_path / "tasks.jsonl"), ""), "x", "paper")


def test_a_prompt_needs_exactly_one_entry_point():
    with pytest.raises(ValueError, match="exactly one"):
        task_prompt("t", "def f(x):\n  return x\ndef g(x):\n  return x", ("assert f(1) == g(1)",))
