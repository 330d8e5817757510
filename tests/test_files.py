"""Input files of every kind: misspelled columns, invalid text, and paths that are not usable files or folders."""

import csv
import io
import json
import os
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import MINI, ROOT, compose_settings
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ilf.analysis import markdown
from ilf.analysis.plots import bars, curve, plain
from ilf.annotation.answers import Answers
from ilf.build import build
from ilf.feedback import human, llm_client
from ilf.feedback.human import read_annotations
from ilf.feedback.llm_client import OtherModel, check_stored
from ilf.files import (
    JsonLines,
    digests,
    file_sha256,
    link_or_copy,
    read_json,
    replacing,
    sha256,
    to_csv,
    to_json,
    whole,
    write_atomically,
)
from ilf.settings import LLM
from ilf.store import Store
from ilf.tasks import MBPP, Jsonl, mbpp, table
from ilf.types import InputError

TUTORIAL = ROOT / "docs" / "tutorial"
ANNOTATION = dict.fromkeys(human.FIELDS) | {
    "task_id": 311,
    "Feedback": "f",
    "original_model_completion": "x0",
    "unedited_annotator_completion": "x1",
}
TASK = {"task_id": 11, "text": "t", "code": "def f(x):\n  return x", "test_list": ["assert f(1) == 1"]}
ANSWER = {"task_id": 311, "sample": 0, "parent": "p", "answer": "a", "use": "feedback", "finish_reason": "stop"}


def write_csv(file, rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    file.write_text(text.getvalue(), newline="")


def write_jsonl(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


# For each kind of file: its name, a valid row with all columns, the columns, functions that write and read the file,
# and the setting that names it (None if there is none).
KINDS = {
    "annotations": ("a.jsonl", ANNOTATION, human.FILE, write_jsonl, read_annotations, "feedback.path"),
    "a table of annotations": ("a.csv", ANNOTATION, human.FILE, write_csv, read_annotations, "feedback.path"),
    "answers of the page": ("a.jsonl", ANNOTATION, human.FILE, write_jsonl, lambda f: Answers(f).rows(), None),
    "own tasks": (
        "a.jsonl",
        {**TASK, **dict.fromkeys(table.SCRIPT), "signature": "", "test_setup_code": "", "split": "test"},
        table.FILE,
        write_jsonl,
        lambda file: Jsonl(path=str(file)).load(),
        "data.path",
    ),
    "MBPP": (
        "a.jsonl",
        {**TASK, "test_setup_code": "", "challenge_test_list": []},
        mbpp.FILE,
        write_jsonl,
        lambda file: MBPP(path=str(file), sha256=None).load(),
        "data.path",
    ),
    "another model's answers": (
        "a.jsonl",
        {**ANSWER, "usage": None},
        llm_client.FILE,
        write_jsonl,
        lambda file: check_stored(str(file), ["feedback"]),
        "llm.path",
    ),
}


@pytest.fixture(params=KINDS)
def kind(request, tmp_path):
    name, row, columns, write, read, key = KINDS[request.param]
    return tmp_path / name, row, columns, write, read, key


# ---- columns ---------------------------------------------------------------------------------------------------------


def misspellings(name):
    """Return misspellings of a column name that a user or a spreadsheet may produce."""
    middle = len(name) // 2
    found = [
        name.upper(),
        name.swapcase(),
        name.title(),
        f" {name}",
        name[:middle] + name[middle + 1 :],
        name[:middle] + name[middle] + name[middle:],
        name + ("" if name.endswith("s") else "s"),
        name.replace("_", " "),
        name.replace("_", "-"),
        name.replace("_", ""),
        name[: middle - 1] + name[middle] + name[middle - 1] + name[middle + 1 :] if len(name) > 5 else name.upper(),
    ]
    return sorted({one for one in found if one != name})


def test_a_misspelled_column_is_an_error_that_names_both_spellings(kind):
    file, row, columns, write, read, _ = kind
    write(file, [row])
    read(file)
    line = 1 if file.suffix == ".csv" else 2
    for name in (*columns.required, *columns.optional):
        for wrong in misspellings(name):
            renamed = {wrong if key == name else key: value for key, value in row.items()}
            rows = [renamed] if file.suffix == ".csv" else [row, renamed]
            write(file, rows)
            where = re.escape(f"{file}:{line}={wrong!r}: ")
            with pytest.raises(InputError, match=rf"{where}.* {name}, which has a similar name"):
                read(file)


def test_a_similar_name_is_no_misspelling_if_the_column_exists(kind, caplog):
    file, row, columns, write, read, key = kind
    for name in (*columns.required, *columns.optional):
        wrong = name + "x"
        write(file, [{**row, wrong: "mine"}])
        caplog.clear()
        read(file)
        reported = [one.getMessage() for one in caplog.records]
        # The annotation page only appends and does not warn. A run that reads the file does.
        assert reported == ([] if key is None else [f"{file}: these columns are not read: {wrong!r}"])


def test_a_missing_column_error_names_it_and_the_existing_columns(kind):
    file, row, columns, write, read, _ = kind
    for name in columns.required:
        write(file, [{key if key != name else "wholly_other": value for key, value in row.items()}])
        with pytest.raises(InputError, match=rf"{name}\b.*wholly_other|wholly_other.*{name}\b"):
            read(file)


@pytest.mark.parametrize("kind", [name for name, (*_, key) in KINDS.items() if key is not None], indirect=True)
def test_nonempty_unknown_columns_are_warned_about_once_per_file(kind, caplog):
    file, row, _, write, read, _ = kind
    other = {"task_id": row["task_id"] + 1, **({"code": "def f(y):\n  return y"} if "code" in row else {})}
    write(file, [{**row, "mine": "a", "blank": None}, {**row, **other, "mine": "b", "blank": None}])
    read(file)
    assert [one.getMessage() for one in caplog.records] == [f"{file}: these columns are not read: 'mine'"]


def test_published_and_exported_files_cause_no_warnings(mbpp_file, annotations_file, tmp_path, caplog):
    MBPP(path=str(mbpp_file)).load()
    Jsonl(path=str(mbpp_file)).load()
    Jsonl(path=str(TUTORIAL / "tasks.jsonl")).load()
    read_annotations(annotations_file)
    read_annotations(TUTORIAL / "annotations.jsonl")
    for name in ("a.csv", "a.jsonl"):
        human.export(str(annotations_file), str(tmp_path / name))
        read_annotations(tmp_path / name)
    query = {"task_id": 1, "sample": 0, "parent": "p", "seed": 1, "messages": [{"role": "user", "content": "q"}]}
    reply = {"answer": "a", "finish_reason": "stop", "usage": None, "model": "m"}
    JsonLines(tmp_path / "b.jsonl").append([OtherModel(LLM(), 1.0)._row("feedback", query, reply)])
    check_stored(str(tmp_path / "b.jsonl"), ["feedback"])
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_annotations_must_have_a_refinement_column_even_if_empty(name, tmp_path):
    file, write = tmp_path / name, write_csv if name.endswith("csv") else write_jsonl
    column = "unedited_annotator_completion"
    whole = [{**ANNOTATION, "task_id": i} for i in (311, 312)]
    write(file, [{key: value for key, value in row.items() if key != column} for row in whole])
    with pytest.raises(
        InputError, match=rf"feedback\.path='{file}'.*no row with the column {column}.*add {column} with null or empty"
    ):
        read_annotations(file)
    for none in (None, ""):
        write(file, [{**row, column: none} for row in whole])
        assert [row[column] for _, row in read_annotations(file)] == ["", ""]


# ---- rows ------------------------------------------------------------------------------------------------------------

JSON_KINDS = [name for name, kind in KINDS.items() if kind[0].endswith("jsonl")]


@pytest.mark.parametrize("name", JSON_KINDS)
def test_repeated_keys_nonfinite_numbers_and_deep_nesting_are_errors(name, tmp_path):
    _, row, _, _, read, _ = KINDS[name]
    file, text = tmp_path / "a.jsonl", json.dumps(row)
    for end in ("", "\n"):
        for own, message in (
            ('"task_id": 2', "'task_id' is repeated"),
            ('"mine": {"a": 1, "a": 2}', "'a' is repeated"),
            ('"mine": NaN', "mine=nan: must be finite"),
            ('"mine": [1, -Infinity]', "mine=.*must be finite"),
            ('"mine": 1e999', "mine=inf: must be finite"),
            ('"mine": ' + "[" * 100_000, "JSON object"),
        ):
            file.write_text(f"{text}\n{text[:-1]}, {own}}}{end}")
            with pytest.raises(InputError, match=rf"^{file}:2.*{message}"):
                read(file)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_text_that_is_not_utf_8_is_an_error_that_names_the_file(kind, encoding):
    file, row, _, write, read, _ = kind
    for letters in ("größer", "plain"):
        if (letters, encoding) == ("plain", "latin-1"):
            continue  # the bytes are the same as in UTF-8
        write(file, [{**row, "mine": letters}])
        text = file.read_text().replace("\\u00f6", "ö").replace("\\u00df", "ß").rstrip()
        for end in ("", "\n", "\r\n"):  # without a newline, it must not be skipped as an incomplete line either
            file.write_bytes((text + end).encode(encoding))
            with pytest.raises(InputError, match=re.escape(str(file))) as error:
                read(file)
            assert "UTF-8" in str(error.value) or (letters == "plain" and file.suffix == ".csv")


WITHOUT_ROWS = {"no byte": "", "blank lines": "\n \n\n", "a byte-order mark": "\ufeff", "a broken line": '{"task_id": '}


@pytest.mark.parametrize("content", WITHOUT_ROWS)
def test_a_file_without_rows_is_an_error_that_names_the_file(kind, content):
    file, row, _, write, read, key = kind
    file.write_text(WITHOUT_ROWS[content])
    if key is None:
        assert read(file) == []  # valid: there are no answers yet
        return
    with pytest.raises(InputError) as error:
        read(file)
    assert str(file) in str(error.value) and "limit" not in str(error.value)
    if file.suffix == ".csv":
        write(file, [row])
        file.write_text(file.read_text().splitlines()[0] + "\n")
        with pytest.raises(InputError, match=rf"^{key}='{file}': has no row"):
            read(file)


def test_stored_answers_with_an_unknown_use_or_duplicates_are_errors(tmp_path):
    file = tmp_path / "a.jsonl"
    write_jsonl(file, [ANSWER, {**ANSWER, "sample": 1, "use": "feedbck"}])
    with pytest.raises(InputError, match=rf"^{file}:2: use='feedbck'.*feedback, refinement"):
        check_stored(str(file), ["feedback"])
    write_jsonl(file, [ANSWER, {**ANSWER, "use": "refinement"}, {**ANSWER, "answer": "b"}])
    with pytest.raises(InputError, match=rf"^{file}:3: task_id=311.*already answered by {file}:1"):
        check_stored(str(file), ["feedback"])


# ---- paths -----------------------------------------------------------------------------------------------------------

FILES = {
    "data.path": ["data=jsonl", "stages=[zero_shot]"],
    "data.path of MBPP": ["data=mbpp", "stages=[zero_shot]"],
    "transfer.path": ["data@transfer=jsonl"],
    "transfer.path of MBPP": ["data@transfer=mbpp"],
    "feedback.path": ["feedback=human"],
    "feedback.path of worked examples": ["feedback=llm", "llm.model=m"],
    "feedback.path to export": ["mode=export", "export=b.csv"],
    "llm.path": ["refinements=llm"],
    "annotate.path": ["mode=annotate"],
    "export": ["mode=export", f"feedback.path={TUTORIAL}/annotations.jsonl"],
}
FOLDERS = {
    "model.path": ["model=local"],
    "refiner.path": ["refiner=local"],
    "llm.model": ["feedback=llm"],
    "compare.folders": ["mode=compare"],
}


def path_error(key, path, overrides):
    key = key.partition(" ")[0]
    value = f"{key}=[{path}]" if key == "compare.folders" else f"{key}={path}"
    with pytest.raises(InputError, match=rf"^{re.escape(key)}=") as error:
        compose_settings(*overrides, value)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("key", FILES)
def test_unusable_file_paths_are_errors_that_state_the_reason(key, tmp_path):
    target = key in ("annotate.path", "export")
    own = FILES[key]
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "file.jsonl").write_text("x")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    absent = "there is no folder" if target else "no such file"
    assert "is a folder, but must be a file" in path_error(key, tmp_path / "folder.jsonl", own)
    assert "is a device or pipe, but must be a file" in path_error(key, tmp_path / "pipe.jsonl", own)
    assert absent in path_error(key, tmp_path / "none" / "a.jsonl", own)
    assert absent in path_error(key, tmp_path / "file.jsonl" / "a.jsonl", own)
    if not target:
        assert "no such file" in path_error(key, tmp_path / "a.jsonl", own)
        assert "can't be read (" in path_error(key, tmp_path / "loop.jsonl", own)
        assert "can't be read (" in path_error(key, tmp_path / ("a" * 300 + ".jsonl"), own)
    (tmp_path / "file.jsonl").chmod(0)
    if not os.access(tmp_path / "file.jsonl", os.R_OK):  # root can read every file
        reported = path_error(key, tmp_path / "file.jsonl", own)
        assert ("can't be written (" if target else "can't be read (Permission denied)") in reported
        tmp_path.chmod(0o500)
        if target:
            assert "can't be written (" in path_error(key, tmp_path / "new.jsonl", own)
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("key", FOLDERS)
def test_unusable_folder_paths_are_errors_that_state_the_reason(key, tmp_path):
    (tmp_path / "file").write_text("x")
    assert "is a file, but must be a folder" in path_error(key, tmp_path / "file", FOLDERS[key])
    assert "is a file, but must be a folder" in path_error(key, MINI / "config.json", FOLDERS[key])
    assert "no such folder" in path_error(key, tmp_path / "none", FOLDERS[key])
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert key == "llm.model" or "can't be read (" in path_error(key, tmp_path / "loop", FOLDERS[key])
    (tmp_path / "shut").mkdir(0)
    if not os.access(tmp_path / "shut", os.R_OK):
        assert "can't be read (Permission denied)" in path_error(key, tmp_path / "shut", FOLDERS[key])


# ---- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["data", "transfer"])
@pytest.mark.parametrize(
    ("name", "rows", "key", "message"),
    [
        ("jsonl", [{**TASK, "split": "train"}], "path", "Test split.*column `split`"),
        ("jsonl", [TASK], "split", r"none of the 1 tasks of .*a\.jsonl to Test"),
        ("mbpp", [{**TASK, "task_id": 311, "test_setup_code": ""}], "path", "Test split.*ids 11 to 110"),
        ("jsonl", [], "path", "has no row"),
        ("mbpp", [], "path", "has no row"),
    ],
)
def test_an_empty_test_split_is_an_error_that_names_the_setting(group, name, rows, key, message, tmp_path):
    file = tmp_path / "a.jsonl"
    write_jsonl(file, rows)
    option = f"data={name}" if group == "data" else f"data@transfer={name}"
    own = [option, f"{group}.path={file}", "stages=[zero_shot]", f"output_dir={tmp_path}/run", "logger=none"]
    if name == "mbpp" and rows:
        own.append(f"{group}.sha256=null")
    with pytest.raises(InputError, match=rf"^{group}\.{key}=") as error:
        build(compose_settings(*own, f"store.dir={tmp_path}/store"))
    assert re.search(message, str(error.value)) and str(file) in str(error.value)


def test_split_shares_that_leave_test_empty_are_an_error(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{**TASK, "task_id": i} for i in range(1, 9)])
    data = Jsonl(path=str(tmp_path / "a.jsonl"))
    data.split.test, data.split.train = 0.0, 0.7
    with pytest.raises(InputError, match=r"^data\.split=.*none of the 8 tasks.*Raise data\.split\.test") as error:
        data.load()
    assert str(asdict(data.split)) in str(error.value)


def test_a_stage_without_tasks_is_an_error_that_names_the_cause(small_stages):
    """The error names a limit only if it leaves out tasks."""
    for limit, key in (("2", r"^data\.limit\.train=2.*Raise the limit"), ("null", r"^feedback='scripted'.*Add tasks")):
        stages = small_stages("stages=[refine]", f"data.limit.train={limit}")
        with pytest.raises(InputError, match=key):
            stages.refine(Path(MINI), [])


# ---- any text --------------------------------------------------------------------------------------------------------

ODD = [
    "\0",
    "\r",
    "\r\n",
    "\n",
    "\f",
    "\v",
    "\x1c",
    "\x85",
    "\u2028",
    "\ufeff",
    "\ufffe",
    "\ud800",
    "\udfff",
    "\U0001f600",
]
MARKUP = [
    "|",
    "`",
    "```",
    "~~~",
    "<script>",
    "</p>",
    "&lt;",
    "$",
    "$x$",
    "\\",
    "\\|",
    '"',
    "'",
    ",",
    ";",
    "# ",
    "- ",
    "[a](b)",
]
TEXTS = st.lists(st.sampled_from([*ODD, *MARKUP, "a", " "]) | st.text(max_size=3), max_size=8).map("".join)
FUZZ = settings(max_examples=150, deadline=None)
LONG = "x" * 200_000  # longer than the default field size limit of the csv module


def split_by_fences(page):
    """Return the lines of a Markdown page inside and outside of code fences."""
    inside, outside, fence = [], [], None
    for line in re.split(r"\r\n?|\n", page):
        ticks = re.match("`{3,}", line)
        if fence is None and ticks:
            fence = ticks[0]
        elif fence is not None and line == fence:
            fence = None
        else:
            (outside if fence is None else inside).append(line)
    assert fence is None
    return inside, outside


@FUZZ
@given(TEXTS, st.lists(TEXTS, max_size=3))
@example("a\ud83db", [LONG])
def test_json_files_round_trip_any_text(tmp_path_factory, text, words):
    folder = tmp_path_factory.mktemp("json")
    row = {"text": text, "words": words, f"key {text}": 1}
    row = json.loads(json.dumps(row))  # JSON joins two adjacent surrogates into one character
    rows = JsonLines(folder / "rows.jsonl")
    for _ in range(2):
        rows.append([row])
    assert rows.read() == [row, row]
    write_atomically(folder / "results.json", to_json(row, indent=1))
    assert read_json(folder / "results.json") == row
    assert len(sha256(row)) == 64
    with Store(folder).entry("stage", row):  # key.json
        assert read_json(next(folder.glob("stage/*/key.json"))) == row


@FUZZ
@given(st.lists(st.lists(TEXTS, min_size=2, max_size=2), max_size=3))
@example([["a\rb", ""], ["", LONG]])
def test_csv_files_preserve_text_and_escape_lone_surrogates(tmp_path_factory, cells):
    file = tmp_path_factory.mktemp("csv") / "table.csv"
    write_atomically(file, to_csv([{"a": a, "b": b, "c": 1} for a, b in cells], ["a", "b"]))
    csv.field_size_limit(10**6)
    with file.open(newline="", encoding="utf-8") as lines:
        found = list(csv.reader(lines))
    escaped = [[cell.encode("utf-8", "backslashreplace").decode() for cell in row] for row in cells]
    assert found == [["a", "b"], *escaped]


@FUZZ
@given(TEXTS, TEXTS, TEXTS)
@example(LONG, LONG, "a\rb")
def test_annotations_with_any_text_survive_conversion_to_csv_and_back(tmp_path_factory, program, words, category):
    folder = tmp_path_factory.mktemp("annotations")
    program, words, category = json.loads(json.dumps([program, words, category]))  # joins adjacent surrogates
    csv.field_size_limit(131_072)
    row = {**ANNOTATION, "Feedback": f"f{words}", "original_model_completion": f"x{program}"}
    row |= {"unedited_annotator_completion": f"y{program}", "annotator": words, "categories": [f"c{category}c"]}
    row = json.loads(json.dumps(row))
    (folder / "a.jsonl").write_text(json.dumps(row) + "\n")
    if any(whole(text) != text for text in (program, words, category)) or ";" in category:
        with pytest.raises(InputError, match=re.escape(f"{folder}/a.jsonl:1")):
            read_annotations(folder / "a.jsonl")
        return
    kept = [one for _, one in read_annotations(folder / "a.jsonl")]
    for before, after in (("a.jsonl", "b.csv"), ("b.csv", "c.jsonl")):
        human.export(str(folder / before), str(folder / after))
    assert [one for _, one in read_annotations(folder / "c.jsonl")] == kept


@FUZZ
@given(TEXTS, TEXTS)
@example("a|b", "<script>alert(1)</script>\n\n# x")
def test_no_text_breaks_a_markdown_table_or_code_fence(a, b):
    lines = markdown.table(["name", a], [[b, "1"], ["2", a]])
    page = "\n".join([*lines, "", *markdown.fence(a.split("\n"), "text"), "", f"- {markdown.inline(b)}", ""])
    page.encode()
    inside, outside = split_by_fences(page)
    assert len(inside) == a.count("\n") + 1 and len(outside) == 4 + 1 + 1 + 1 + 1
    for line in lines:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3, line
    assert not re.search(r"(?<!\\)(?:\\\\)*(<[a-zA-Z/!?]|`)", "\n".join(outside))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", page)


@settings(max_examples=8, deadline=None)
@given(TEXTS)
@example("".join([*ODD, *MARKUP]))
@example("$\\frac{$ and $")
def test_plots_accept_any_text(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("plots")
    bars(folder / "a.png", [f"a{text}"], {"pass@1": [(0.5, 0.4, 0.6)]}, text)
    curve(folder / "b.png", {f"a{text}": [(1, 0.5, 0.4, 0.6)]}, text, text, text, {f"b{text}": 0.5})
    assert plain("a_{b}").count("$") == 0 and (folder / "a.png").stat().st_size > 0 < (folder / "b.png").stat().st_size


def test_a_setting_with_a_lone_surrogate_is_an_error():
    with pytest.raises(InputError, match=r"group='a\\udcff': must be text"):
        compose_settings("logger=none", "group='a\udcff'")


@pytest.mark.parametrize("same_disk", [True, False])
def test_linking_writes_to_no_other_file(same_disk, tmp_path, monkeypatch):
    if not same_disk:
        monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(OSError("another file system")))
    first, second, shared = tmp_path / "first", tmp_path / "second", tmp_path / "shared"
    first.write_text("old")
    second.write_text("new")
    shared.hardlink_to(first) if same_disk else shared.write_text("old")
    for _ in range(2):  # the second time, the target is already a link to the source
        link_or_copy(str(second), str(shared))
        assert (first.read_text(), second.read_text(), shared.read_text()) == ("old", "new", "new")


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(ValueError, match="no"), replacing(tmp_path / "a.txt") as scratch:
        scratch.write_text("half")
        raise ValueError("no")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


def test_digests_of_removed_and_changed_files_are_forgotten(tmp_path):
    files, cache = [tmp_path / name for name in ("kept", "changed", "removed", "added")], tmp_path / "digests.json"
    for file in files:
        file.write_text(file.name)
    digests(files[:3], cache)
    files[1].write_text("other text")
    files[2].unlink()
    assert digests([files[1], files[3]], cache)[files[1]] == file_sha256(files[1])
    known = {Path(name.split("|")[0]).name: digest for name, digest in read_json(cache)["files"].items()}
    assert known == {file.name: file_sha256(file) for file in (files[0], files[1], files[3])}
