"""Task prompts, training targets, and where a sampled program ends."""

import ast
import json
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ilf.tasks.data import split_tasks
from ilf.tasks.mbpp import SPLIT_IDS, read_rows, tasks_from
from ilf.tasks.prompts import completion_of, cut, function_end, normalise_newlines, task_prompt
from ilf.types import InputError

SHA256 = "e3f45af54c8923849d795cba78c5c94b88c09db89a5dcc9ac538696485b099cf"


def tasks_of(path: Path, style: str = "paper"):
    return tasks_from(read_rows(str(path), ""), SHA256, style)[0]


def test_every_mbpp_task_belongs_to_a_split(mbpp_file):
    tasks = tasks_of(mbpp_file)
    assert [t.task_id for t in tasks] == list(range(1, 975))
    splits = split_tasks(tasks, {})
    assert (len(splits.test), len(splits.refine), len(splits.train)) == (100, 200, 664)
    assert all(t.task_id in SPLIT_IDS[t.split] for t in tasks)


def test_prompts_match_the_papers_published_prompts(mbpp_file, annotations_file):
    prompts = {t.task_id: t.prompt for t in tasks_of(mbpp_file)}
    rows = [json.loads(line) for line in annotations_file.open()]
    assert len(rows) == 195
    differ = {r["task_id"] for r in rows if prompts[r["task_id"]] != normalise_newlines(r["prompt"])}
    # In these two, the published file has U+FFFD for each byte of a dash or an apostrophe.
    assert differ == {260, 679}
    damaged = {i: prompts[i].encode().decode("ascii", "replace") for i in differ}
    assert all(damaged[r["task_id"]] == normalise_newlines(r["prompt"]) for r in rows if r["task_id"] in differ)


def test_gold_programs_keep_their_syntax_trees_as_targets(mbpp_file):
    for task in tasks_of(mbpp_file):
        target = completion_of(task.prompt, task.code, task.entry_point)
        again, gold = ast.parse(task.prompt + target).body[1:], ast.parse(task.code).body
        assert list(map(ast.dump, again)) == list(map(ast.dump, gold)), task.task_id


def test_cut_stops_at_the_end_of_each_gold_function(mbpp_file):
    """Only three gold programs have code after their entry point."""
    tasks = tasks_of(mbpp_file)
    longer = {
        t.task_id for t in tasks if cut(c := completion_of(t.prompt, t.code, t.entry_point) + "\nprint(1)") != c[:-9]
    }
    assert longer == {223, 717, 940}


def test_no_leak_prompts_have_exactly_the_imports_above_the_entry_point(mbpp_file):
    paper, clean = tasks_of(mbpp_file), tasks_of(mbpp_file, "no_leak")
    assert any(p.prompt != c.prompt for p, c in zip(paper, clean, strict=True))
    for task in clean:
        body = ast.parse(task.prompt + "    pass").body
        assert isinstance(body[-1], ast.FunctionDef) and body[-1].name == task.entry_point
        gold = ast.parse(task.code).body
        last = max(i for i, node in enumerate(gold) if getattr(node, "name", "") == task.entry_point)
        imports = [node for node in gold[:last] if isinstance(node, ast.Import | ast.ImportFrom)]
        assert list(map(ast.dump, body[1:-1])) == list(map(ast.dump, imports)), task.task_id


PROMPT = '"""\nt\n\n>>> Example: f(1) = 1\n"""\n\ndef f(x):\n'


@pytest.mark.parametrize("indent", ["    ", "  ", " ", "\t"])
@pytest.mark.parametrize("header", ["def f(x):", "def f(x) :", "def f(x: dict = {1: 2}) -> int:  # why"])
def test_targets_work_with_any_indentation_and_header_style(indent, header):
    code = f"{header}\n{indent}if x:\n{indent * 2}return 1\n{indent}return x"
    scope: dict = {}
    exec(PROMPT + completion_of(PROMPT, code, "f"), scope)
    assert (scope["f"](0), scope["f"](5)) == (0, 1)


def test_imports_missing_from_the_prompt_move_into_the_body():
    target = completion_of(PROMPT, "import math\ndef f(x):\n\treturn math.floor(x)", "f")
    scope: dict = {}
    exec(PROMPT + target, scope)
    assert scope["f"](1.5) == 1
    for above in ("LIMIT = 3", "from math import *", "@cache"):
        with pytest.raises(ValueError, match="in the prompt"):
            completion_of(PROMPT, f"{above}\ndef f(x):\n    return 1", "f")


def test_targets_have_no_future_imports():
    assert completion_of(PROMPT, "from __future__ import annotations\ndef f(x):\n    return 1", "f") == "    return 1"


def test_no_leak_prompts_keep_decorators_that_need_no_helper():
    tests, text = ("assert f(1) == 1",), "t"
    for decorator, kept in (("functools.cache", True), ("staticmethod", True), ("memo", False)):
        code = f"import functools\ndef memo(g):\n    return g\n@{decorator}\ndef f(x):\n    return x"
        prompt = task_prompt(text, code, tests, "no_leak")
        assert prompt.endswith(f"\nimport functools\n{f'@{decorator}' * kept}{chr(10) * kept}def f(x):\n")
        if kept:
            assert completion_of(prompt, code.replace("def memo(g):\n    return g\n", ""), "f") == "    return x"


@pytest.mark.parametrize(
    "body",
    [
        "    return (1,\n2)",
        '    """text\nat the left\n"""\n    return 1',
        "    x = [\n1,\n]\n# a comment\n    return x",
        '    return """\n# Title\n# end"""',
        "    return 'abc\\\ndef'",
        "    return 1 + \\\n2",
        "\n\n    return 1",
    ],
)
def test_brackets_strings_and_comments_do_not_end_a_function(body):
    assert function_end(body) is None
    for rest in ("\n\nprint(f(1))", "\ndef g():\n    pass", "\n```\nText", "\nclass A: pass", "\n# note\nx = 1"):
        assert cut(body + rest) == body


@given(st.text(max_size=80))
def test_cut_returns_a_prefix_and_is_idempotent(text):
    assert text.startswith(cut(text))
    assert cut(cut(text)) == cut(text)


@pytest.mark.parametrize("line", ["# a \n", "#    \n", "\n \n", "# a #    \n \n"])
def test_many_comments_within_a_function_take_no_time(line):
    text = "    x = 1\n" + line * 2000 + "    return x"
    assert cut(text) == text and cut(text.removesuffix("    return x")) == "    x = 1"


def test_invalid_rows_are_input_errors(tmp_path):
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


# ---- arbitrary text in a prompt --------------------------------------------------------------------------------------

BLANKS = (
    "\f\v\x1c\x1d\x1e\x85\u2028\u2029\xa0"  # `str.splitlines` or `str.strip` treats these as line ends or whitespace
)
TEXTS = st.lists(
    st.sampled_from(["\\", '"', "'", "\n", "\r", "\0", "xi", "users", "N{DASH}", "N{", "08", "{}", " ", *BLANKS])
    | st.text(max_size=3),
    max_size=10,
).map("".join)


def docstring(prompt):
    return ast.literal_eval(ast.parse(prompt + "    pass").body[0].value)


@given(TEXTS)
@example("the root $\\xi$ of C:\\users\\new")
@example('a "quoted" """word"')
@example("ends in \\")
def test_any_description_is_kept_in_the_docstring_of_the_prompt(text):
    prompt = task_prompt(text, "def f(x):\n    return x", ("assert f(1) == 1",))
    assert docstring(prompt) == normalise_newlines(f"\n{text}\n\n>>> Example: f(1) = 1\n")


@given(TEXTS, st.sampled_from(['"', "'", '"""', "'''"]), st.sampled_from(["", "r"]))
@example("\\xi", "'", "r")
@example("C:\\\\users", "'", "")
@example("", '"""', "")
def test_any_assert_gives_a_prompt_that_parses(text, quote, prefix):
    test = f"assert f({prefix}{quote}{text}{quote}) == 1"
    try:
        assume(len(ast.parse(test).body) == 1)
        prompt = task_prompt("t", "def f(x):\n    return x", (test,))
    except (SyntaxError, ValueError):  # the test itself is invalid
        return
    value = docstring(prompt)
    assert [type(node) for node in ast.parse(prompt + "    pass").body] == [ast.Expr, ast.FunctionDef]
    assert value.startswith("\nt\n\n>>> Example: f(") and value.endswith(" = 1\n")
    shown = test.removeprefix("assert ").replace("==", "=")
    # The prompt contains the test unchanged, or escaped so that the docstring's value contains it.
    assert shown in prompt or normalise_newlines(shown) in value


def test_text_that_parses_is_not_escaped():
    code, test = "def f(x):\n    return x", r"assert f('a\nb\\c\d') == '\x41'"
    prompt = task_prompt(r"digits \d+ of " "y" "", code, (test,))
    assert "\ndigits \\d+ of y\n" in prompt and r">>> Example: f('a\nb\\c\d') = '\x41'" in prompt


def test_mbpp_descriptions_and_tests_are_not_escaped(mbpp_file):
    for task in tasks_of(mbpp_file):
        shown = task.tests[0].removeprefix("assert ").replace("==", "=")
        assert task.prompt.startswith(f'"""\n{task.text}\n\n>>> Example: {shown}\n"""\n\n'), task.task_id


# ---- line ends -------------------------------------------------------------------------------------------------------

CHARACTERS = st.text([*BLANKS, "\0", "\r", "\n", "x", "'", " ", "\t"], max_size=4)


@given(
    st.text("\f \t", max_size=2),
    CHARACTERS,
    CHARACTERS,
    CHARACTERS,
    st.sampled_from(["\n", "\r", "\r\n"]),
    st.booleans(),
)
@example("", "a\fb", "", "", "\n", False)
@example("\f", "\x1c", "\x1d", "\u2028", "\r\n", True)
def test_targets_keep_programs_with_any_valid_character(above, comment, string, below, newline, tabs):
    """The prompt ends after the colon of `def`. Prompt and target together behave like the program."""
    indent = "\t" if tabs else " \f  "
    lines = [
        f"# {comment}",
        "import math",
        above,
        f"def given(x, y='{string}'):  # {comment}",
        f"{indent}s = '''{string}{comment}'''  # {comment}",
        f"{indent}return math.floor(x), y, s, len(s)",
        f"# {below}",
    ]
    code = newline.join(lines)
    try:
        expected: dict = {}
        exec(compile(code, "<code>", "exec"), expected)
    except (SyntaxError, ValueError, NameError):  # a carriage return has ended a comment
        return
    for style in ("paper", "no_leak"):
        prompt = task_prompt("t", code, ("assert given(1) == 1",), style)
        function = ast.parse(prompt + "    pass").body[-1]
        assert isinstance(function, ast.FunctionDef) and function.name == "given"
        assert prompt.endswith("):\n")
        target = completion_of(prompt, code, "given")
        for end in ("", "\nprint(1)", "\rprint(1)", "\n\fprint(1)"):
            found: dict = {}
            exec(compile(prompt + cut(target + end), "<again>", "exec"), found)
            assert found["given"](1.5) == expected["given"](1.5)
        assert cut(target + "\rprint(1)") == cut(target + "\n\fprint(1)") == cut(target + "\nprint(1)")
