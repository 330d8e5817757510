"""Annotations in JSON Lines and CSV: checks of every column, which of several rows on a task is used, and export."""

import csv
import io
import json
import re

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ilf.feedback.human import FIELDS, export, load_annotations, read_annotations
from ilf.tasks.prompts import normalise_newlines
from ilf.types import InputError

TUTORIAL = ROOT / "docs" / "tutorial" / "annotations.jsonl"
ROW = {"task_id": 311, "Feedback": "f", "original_model_completion": "x0", "unedited_annotator_completion": "x1"}
SPLITS = {311: "train", 312: "train", 313: "refine"}


def write(file, rows, end="\n"):
    file.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + end)
    return file


def write_csv(file, rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    file.write_text(text.getvalue(), newline="")
    return file


BAD = {  # invalid values in JSON Lines; most are also invalid as CSV cells
    "task_id": [True, "x", 0, -1, 2.5, None],
    "Feedback": ["", " \n", 3, None],
    "original_model_completion": ["", "\t", None],
    "unedited_annotator_completion": [4, ["x"]],
    "refinement_edit_distance": ["far", -0.1, float("nan")],
    "bugs": [0, -1, 1.5, "many", True],
    "categories": ["loop", ["a;b"], [""], [" a"], [3], {"a": 1}],
    "annotator": [3],
    "seconds": [-1, "long", float("inf")],
    "saved": ["yesterday", 5],
}


@pytest.mark.parametrize("column", BAD)
def test_invalid_values_are_errors_that_name_the_line_and_column(column, tmp_path):
    for value in BAD[column]:
        file = write(tmp_path / "a.jsonl", [ROW, "", {**ROW, "task_id": 312, column: value}])
        with pytest.raises(InputError, match=rf"a\.jsonl:3: {column}="):
            read_annotations(file)


@pytest.mark.parametrize("column", [c for c in BAD if c not in ("categories", "annotator", *list(ROW)[3:])])
def test_invalid_csv_cells_are_errors_that_name_the_line_and_column(column, tmp_path):
    first = {**ROW, "Feedback": 'two\nlines, and a "quote"', "unedited_annotator_completion": "def f():\n  pass\n"}
    for value in BAD[column]:
        cell = "" if value is None else value
        if value is True or (value == 3 and column == "Feedback") or (value == 5 and column == "saved"):
            continue  # valid in CSV, where every cell is text
        file = write_csv(tmp_path / "a.csv", [first, {**ROW, "task_id": 312, column: cell}])
        line = file.read_bytes().count(b"\n") - str({**ROW, column: cell}[column]).count("\n")
        with pytest.raises(InputError, match=rf"a\.csv:{line}: {column}="):
            read_annotations(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task_id,Feedback\n311,f\n", r"a\.csv:1=.*original_model_completion"),
        ("task_id;Feedback;original_model_completion\n", r"a\.csv:1=.*task_id once. Separate the columns with commas"),
        ("task_id,task_id,Feedback,original_model_completion\n", r"a\.csv:1=.*task_id once"),
        ("task_id,Feedback,original_model_completion,bugs,bugs\n", r"a\.csv:1=.*bugs once"),
        ("task_id,Feedback,original_model_completion\n311,f,x\n312,a, b,x\n", r"a\.csv:3=.*4 cells.*Quote"),
        ('task_id,Feedback,original_model_completion\n311,f,x\n312,"f,x\n\n', r"a\.csv:3=.*CSV"),
        ("task_id,Feedback,original_model_completion\n311,f,\n", r"a\.csv:2: original_model_completion"),
    ],
)
def test_malformed_csv_is_an_error_that_names_the_problem(text, message, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_annotations(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes("task_id,Feedback\n311,ü".encode("latin-1"))
    with pytest.raises(InputError, match=r"must be UTF-8"):
        read_annotations(tmp_path / "a.csv")


def test_csv_as_saved_by_a_spreadsheet_is_read(tmp_path):
    head = "\ufefftask_id,seconds,Feedback,original_model_completion,notes,unedited_annotator_completion,,"
    text = f'{head}\r\n311,4.5,"a\r\nb",x0,mine\r\n,,,,\r\n'
    (tmp_path / "a.csv").write_text(text, newline="")
    ((where, row),) = read_annotations(tmp_path / "a.csv")
    assert where.endswith("a.csv:2") and list(row) == list(FIELDS)
    assert row["task_id"] == 311 and row["seconds"] == 4.5 and row["Feedback"] == "a\nb" and row["categories"] == []
    (one,) = load_annotations(str(tmp_path / "a.csv"), SPLITS)
    assert one.refinement is None and one.seconds == 4.5 and one.source == "human"


def test_the_last_row_that_the_page_saved_on_a_task_is_used(tmp_path):
    saved = [{**ROW, "Feedback": words, "saved": f"2024-01-0{i}T00:00:00Z"} for i, words in enumerate("abc", 1)]
    file = write(tmp_path / "a.jsonl", [{**ROW, "Feedback": "paper's"}, saved[0], {**ROW, "task_id": 312}, *saved[1:]])
    found = read_annotations(file)
    assert [(where[-2:], row["task_id"], row["Feedback"]) for where, row in found] == [
        (":5", 311, "c"),
        (":3", 312, "f"),
    ]
    file = write(file, [*saved, ROW])
    with pytest.raises(InputError, match=r"a\.jsonl:4: task_id=311.*twice.*saved"):
        read_annotations(file)


def test_an_incomplete_last_line_is_skipped_with_a_warning(tmp_path, caplog):
    whole = json.dumps({**ROW, "task_id": 312, "Feedback": "größer"}, ensure_ascii=False).encode()
    file = tmp_path / "a.jsonl"
    for cut in range(len(whole) + 1):
        file.write_bytes(json.dumps(ROW).encode() + b"\n" + whole[:cut])
        caplog.clear()
        assert len(read_annotations(file)) == 1 + (cut == len(whole))
        assert ("a.jsonl:2: skipped an incomplete line" in caplog.text) == (0 < cut < len(whole))
    file.write_bytes(whole[:-3] + b"\n" + json.dumps(ROW).encode())
    with pytest.raises(InputError, match=r"a\.jsonl:1="):  # only the last line may be incomplete
        read_annotations(file)


def test_a_lone_surrogate_is_an_error(tmp_path):
    file = write(tmp_path / "a.jsonl", [ROW, {**ROW, "task_id": 312, "Feedback": "a\ud83d"}])
    with pytest.raises(InputError, match=r"a\.jsonl:2=.*surrogates"):
        read_annotations(file)


def test_annotations_get_their_tasks_split_and_reject_unknown_tasks(tmp_path, caplog):
    file = write(tmp_path / "a.jsonl", [{**ROW, "task_id": i} for i in (313, 311, 400)])
    with pytest.raises(InputError, match=r"a\.jsonl:3: task_id=400.*data's tasks"):
        load_annotations(str(file), SPLITS)
    found = load_annotations(str(file), SPLITS, range(1, 975))
    assert [(f.task_id, f.split) for f in found] == [(311, "train"), (313, "refine")]
    assert "skipped 1 annotations on tasks that the data do not have" in caplog.text


TEXT = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(",;\"\n\r\t'\\ é\u2028\x0b")))
SOME = TEXT.filter(str.strip)
WORD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=";"), min_size=1).filter(
    lambda word: word.strip() == word == normalise_newlines(word)
)
NUMBER = st.none() | st.floats(0, 1e9)
ROWS = st.lists(
    st.fixed_dictionaries(
        {"task_id": st.integers(1, 10**6), "Feedback": SOME, "original_model_completion": SOME},
        optional={
            "prompt": TEXT,
            "unedited_annotator_completion": st.none() | TEXT,
            "refinement_edit_distance": NUMBER,
            "bugs": st.none() | st.integers(1, 99),
            "categories": st.lists(WORD, max_size=3),
            "annotator": st.none() | TEXT,
            "seconds": NUMBER | st.integers(0, 10**6),
            "saved": st.none() | st.datetimes().map(lambda t: t.isoformat() + "Z"),
            "another": TEXT,
        },
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda row: row["task_id"],
).map(lambda rows: [{"unedited_annotator_completion": None, **rows[0]}, *rows[1:]])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS)
def test_a_round_trip_through_csv_gives_the_same_rows(tmp_path, rows):
    first, table, back = (tmp_path / name for name in ("a.jsonl", "b.csv", "c.jsonl"))
    write(first, rows)
    assert export(str(first), str(table)) == export(str(table), str(back)) == len(rows)
    of_json, of_csv, again = ([row for _, row in read_annotations(file)] for file in (first, table, back))
    assert of_json == of_csv == again
    for row, given_row in zip(of_json, sorted(rows, key=lambda row: row["task_id"]), strict=True):
        assert list(row) == list(FIELDS)
        assert row["Feedback"] == normalise_newlines(given_row["Feedback"])
        assert row["categories"] == given_row.get("categories", [])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["export=a.csv"], r"feedback\.path=null"),
        ([f"feedback.path={TUTORIAL}"], r"export=null.*\.jsonl or \.csv"),
        ([f"feedback.path={TUTORIAL}", "export=a.xlsx"], r"export='a\.xlsx'"),
        ([f"feedback.path={TUTORIAL}", "export=nowhere/a.csv"], r"export='nowhere/a\.csv'.*folder"),
        ([f"feedback.path={TUTORIAL}", f"export={TUTORIAL}"], r"export=.*must not be the same file"),
        (["feedback.path=nowhere.csv", "export=a.csv"], r"feedback\.path='nowhere\.csv'.*no such file"),
    ],
)
def test_invalid_export_settings_are_errors(overrides, message):
    from conftest import compose_settings

    with pytest.raises(InputError, match=message):
        compose_settings("mode=export", *overrides)


def test_the_manual_documents_every_annotation_column():
    page = (ROOT / "docs" / "how-to" / "annotations.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(FIELDS)
    example = json.loads(re.search(r"```json\n(.*?)```", page, re.DOTALL).group(1))
    assert set(example) <= set(FIELDS)
