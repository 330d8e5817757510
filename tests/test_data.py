"""Data sets: the options, near duplicates, folders in the Hub's layout, and user-defined classes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any

import datasets
import pytest
import yaml
from conftest import ROOT, SMALL, compose_settings
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ilf import components, tasks
from ilf.cli.config import register
from ilf.files import sha256
from ilf.sandbox import Limits, Sandbox
from ilf.tasks import MBPP, Data, Hub, HumanEval, Jsonl, Mini, Table, mini
from ilf.tasks.hub import HubColumns
from ilf.tasks.near_duplicates import near_duplicates
from ilf.tasks.rows import check_row
from ilf.tasks.table import FILE
from ilf.types import InputError, Task

OPTIONS = sorted((ROOT / "conf" / "data").glob("*.yaml"))
ROW = {"task_id": 7, "text": "t", "code": "def f(x):\n  return x", "test_list": ["assert f(1) == 1"]}
COLUMNS = {"text": "question", "test_list": "asserts", "code": "answer", "split": "part"}
COLUMN_OVERRIDES = [f"data.columns.{ours}={theirs}" for ours, theirs in COLUMNS.items()]
DATA = Annotated[Data, components.Needs()]


@pytest.fixture(autouse=True)
def _no_cache_at_home(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("file", OPTIONS, ids=lambda file: file.stem)
def test_option_file_lists_every_argument_with_its_default(file):
    node = yaml.safe_load(file.read_text())
    part = components.read(DATA, node, "data")
    assert part == type(part)() and set(node) == {"_target_", *(one.name for one in fields(part))}
    assert part == components.read(DATA, {"_target_": node["_target_"]}, "data")


def test_every_class_has_an_option_with_its_lowercase_name():
    """results.json uses this name if Hydra has not recorded the chosen option."""
    made = [one for one in map(tasks.__dict__.get, tasks.__all__) if isinstance(one, type) and issubclass(one, Data)]
    own = {one.__name__.lower() for one in made if not one.__abstractmethods__}
    assert own == {file.stem for file in OPTIONS}
    settings = compose_settings("data@transfer=humaneval")
    assert (settings.option("data"), settings.option("data@transfer")) == ("mini", "humaneval")
    settings.chosen = {}
    assert (settings.option("data"), settings.option("data@transfer")) == ("mini", "humaneval")


@pytest.mark.parametrize("file", OPTIONS, ids=lambda file: file.stem)
@pytest.mark.parametrize("feedback", sorted(file.stem for file in (ROOT / "conf" / "feedback").glob("*.yaml")))
def test_feedback_options_interpolate_for_every_data_set(feedback, file):
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", [f"data={file.stem}", f"feedback={feedback}"])
    option = yaml.safe_load((ROOT / "conf" / "feedback" / f"{feedback}.yaml").read_text())
    found = OmegaConf.to_container(config.feedback, resolve=True)  # an error if the data set lacks a key
    for key, value in option.items():
        if isinstance(value, str) and (own := re.fullmatch(r"\$\{data\.(\w+)\}", value)):
            assert found[key] == config.data[own[1]]
    assert "${" not in str(found)


@pytest.mark.parametrize("group", ["data", "transfer"])
@pytest.mark.parametrize("split", ["prompt", "test", "refine", "train"])
def test_limits_have_a_minimum(group, split):
    least = 0 if split == "prompt" else 1
    own = [] if group == "data" else ["data@transfer=humaneval"]
    assert getattr(getattr(compose_settings(*own, f"{group}.limit.{split}={least}"), group).limit, split) == least
    with pytest.raises(InputError, match=rf"^{group}\.limit\.{split}={least - 1}: must be"):
        compose_settings(*own, f"{group}.limit.{split}={least - 1}")


# ---- near duplicates of Test -----------------------------------------------------------------------------------------


def make_task(i: int, code: str, text: str = "", split: str = "train") -> Task:
    return replace(GOOD, task_id=i, split=split, text=text or f"text {i}", code=code)


GOLD = 'import re\ndef f(x, ys):\n    """Doc."""\n    return [re.sub(x, "", y) for y in ys]'
REPEATS = {
    "names": 'import re\ndef g(a, bs):\n  return [re.sub(a, "", b) for b in bs]',
    "imports": 'def f(x, ys):\n\timport re\n\treturn [re.sub(x, "", y) for y in ys]',
    "layout": "import re\ndef f( x,ys ):\n    # so\n    return ([\n      re.sub(x, '', y) for y in ys])",
}
DIFFERS = {
    "a constant": GOLD.replace('(x, "",', '(x, "a",'),
    "parameters the other way round": GOLD.replace("(x, ys)", "(ys, x)"),
    "another function of a library": GOLD.replace("re.sub", "re.match"),
    "one name for two": GOLD.replace("(x, ys)", "(x, y)").replace("in ys", "in y"),
}


def test_near_duplicates_share_words_or_a_program_up_to_renaming():
    test_task = make_task(1, GOLD, "Strip, then join.", "test")
    for name, code in REPEATS.items():
        assert near_duplicates([test_task, make_task(2, code)]) == {2: 1}, name
    for name, code in DIFFERS.items():
        assert near_duplicates([test_task, make_task(2, code)]) == {}, name
    sizes = [make_task(1, "def f(x):\n  return len(x)", split="test"), make_task(2, "def f(x):\n  return sum(x)")]
    assert near_duplicates(sizes) == {}  # only names that a program binds are numbered
    # Without a gold program, the words decide.
    assert near_duplicates([make_task(2, "", "strip then JOIN"), test_task]) == {2: 1}
    assert near_duplicates([replace(test_task, code=""), make_task(2, "")]) == {}
    others = [make_task(2, GOLD, split="refine"), make_task(3, GOLD, split="prompt"), make_task(4, GOLD, split="test")]
    assert near_duplicates([test_task, *others]) == {2: 1}  # tasks of Test and Prompt are never duplicates


def test_near_duplicates_of_mbpp_match_the_manual(mbpp_file):
    found = near_duplicates(MBPP(path=str(mbpp_file)).load()[0])
    differences, results = (
        (ROOT / "docs" / name).read_text() for name in ("differences.md", "results/near_duplicates.md")
    )
    table = differences.partition("| task | duplicates Test task |")[2].partition("\n\n")[0]
    assert len(found) == 11
    assert {int(i): int(repeated) for i, repeated in re.findall(r"\| (\d+) \| (\d+) (?=\|)", table)} == found
    rows = results.partition("| Test and Refine |")[2].partition("| Refine and Train |")[0]
    assert {int(i): int(repeated) for repeated, i in re.findall(r"(\d+) = (\d+)", rows)} == found


def test_near_duplicates_are_dropped_before_limits_and_reported(mbpp_file, small_stages, tmp_path, caplog):
    rows = [json.loads(line) for line in mbpp_file.read_text().splitlines()]
    (tmp_path / "tasks.jsonl").write_text("\n".join(json.dumps(r) for r in rows if r["task_id"] in (76, 154, 347, 350)))
    own = ["data=mbpp", f"data.path={tmp_path}/tasks.jsonl", "data.sha256=null", "feedback=unit_tests", "sampler.n=1"]
    own += ["evaluate.k=[1]", "stages=[zero_shot]", "sampler.max_new_tokens=4", "data.limit.train=1"]
    caplog.set_level("INFO")
    kept = small_stages(*own)
    assert [t.task_id for t in kept.tasks.train] == [347] and "near_duplicates" not in caplog.text
    left = small_stages(*own, "data.near_duplicates=drop")
    assert [t.task_id for t in left.tasks.train] == [
        350
    ] and "1 tasks of Refine and Train: 347 repeats 76" in caplog.text
    assert [t.task_id for t in left.tasks.refine] == [154]  # task 49, which it duplicates, is not in this file
    (old, new) = (stages.run() for stages in (kept, left))
    assert (old["counts"]["near_duplicates"], old["near_duplicates"]) == (None, {})
    assert (new["counts"]["near_duplicates"], new["near_duplicates"]) == (1, {"347": 76})
    assert new["data_sha256"] == old["data_sha256"] and new["seconds"]["reused"] == ["zero_shot"]


@pytest.mark.parametrize("own", [["data=humaneval", "data."], ["data@transfer=humaneval", "transfer."]])
def test_near_duplicates_cannot_be_dropped_from_evaluation_only_data(own):
    option, group = own
    with pytest.raises(
        InputError, match=rf"^{group}near_duplicates='drop': excludes training tasks".replace(".", r"\.", 1)
    ):
        compose_settings(option, f"{group}near_duplicates=drop", "stages=[zero_shot]")


# ---- tasks in folders ------------------------------------------------------------------------------------------------


def rows_of(ids: range) -> list[dict[str, Any]]:
    """Return mini's rows with these ids, and their splits. The mini model solves some of them."""
    by_id = {task.task_id: task for task in Mini().load()[0]}
    return [{**row, "split": by_id[row["task_id"]].split} for _, row in mini.rows() if row["task_id"] in ids]


def write_folder(folder, kind: str, rows: list[dict[str, Any]], files=("train",)):
    """Write rows with other column names, divided among files in the Hub's layout, and return the folder's path."""
    names = {**COLUMNS, "task_id": "n"}
    own = [{theirs: row[ours] for ours, theirs in names.items() if ours in row} for row in rows]
    (folder / "data").mkdir(parents=True)
    for i, name in enumerate(files):
        table, file = datasets.Dataset.from_list(own[i :: len(files)]), f"{folder}/data/{name}-0.{kind}"
        table.to_parquet(file) if kind == "parquet" else table.to_json(file)
    return str(folder)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_folder_in_hub_layout_loads_the_same_tasks_as_a_jsonl_file(kind, tmp_path):
    rows = rows_of(range(9, 13))
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    expected = Jsonl(path=str(tmp_path / "tasks.jsonl")).load()
    name = write_folder(tmp_path / "set", kind, rows, ("train", "test"))
    assert Hub(name=name, columns=HubColumns("n", **COLUMNS)).load() == expected
    tests = Hub(name=name, splits=["test"], columns=HubColumns("n", **COLUMNS)).load()[0]
    assert [task.task_id for task in tests] == [10, 12]  # every second row
    files = {"data_files": f"{name}/data/test*", "columns": HubColumns("n", **COLUMNS)}
    assert Hub(name=kind.replace("jsonl", "json"), **files).load()[0] == tests
    numbered = Hub(name=name, splits=["test", "train[:1]"], exclude_ids=[1], columns=HubColumns(**COLUMNS)).load()[0]
    assert [(task.task_id, task.text) for task in numbered] == [(2, rows[3]["text"]), (3, rows[0]["text"])]


@pytest.mark.parametrize("kind", ["parquet", pytest.param("jsonl", marks=pytest.mark.slow)])
def test_ilf_runs_on_a_folder_in_hub_layout(kind, small_stages, tmp_path):
    name = write_folder(tmp_path / "set", kind, rows_of(range(105, 340)))
    own = [f"data.name={name}", *COLUMN_OVERRIDES, "data.columns.task_id=n"]
    if kind == "jsonl":  # without the columns of ids and splits
        own = [f"data.name={name}", *COLUMN_OVERRIDES[:-1], "data.splits=['train[:80]']"]
    stages = small_stages("data=hub", *own, "feedback=unit_tests", "training.epochs=1", "measure=[]")
    found = stages.run()
    assert found["status"] == "complete" and found["data"] == "hub" and found["finetuned"]["pass@1"] > 0
    # Without the column of splits, 24 of 80 rows are Test tasks, and the limit is 8. With it, ids 105 to 110 are.
    assert found["zero_shot"]["n_tasks"] == (8 if kind == "jsonl" else 6)
    assert (min(found["training_task_ids"]) > 310) == (kind == "parquet")


def two_rows(**changes: Any):
    """Return a valid row, and a second one with `changes`."""
    return [{**ROW, "task_id": 1, "split": "test"}, {**ROW, "task_id": 2, "split": "train", **changes}]


BAD = {  # overrides, rows, error message
    "no name": (["data.name=null"], two_rows(), r"^data\.name=null: must name a data set"),
    "no folder": (["data.name=./nowhere"], two_rows(), r"^data\.name='\./nowhere': no such folder"),
    "a file": ([f"data.name={ROOT}/README.md"], two_rows(), r"^data\.name='.*README\.md': is a file"),
    "a revision of a folder": (["data.revision=abc"], two_rows(), r"^data\.revision='abc'.*folder has no revisions"),
    "no split": (["data.splits=[]"], two_rows(), r"^data\.splits=\[\].*at least one"),
    "an unknown split": (["data.splits=[trian]"], two_rows(), r"^data\.splits=\['trian'\].*\['train'\]"),
    "an unknown configuration": (["data.config=full"], two_rows(), r"^data\.config='full'.*'default'"),
    "no such file": (["data.data_files=x*.json"], two_rows(), r"^data\.data_files='x\*\.json'.*data files found"),
    "an unknown column": (["data.columns.code=anser"], two_rows(), r"^data\.columns\.code='anser'.*mean answer\?"),
    "a column that is none of ours": (["+data.columns.tests=x"], two_rows(), r"^data\.columns\.tests='x'.*test_list"),
    "shares that are no whole": (["data.split.test=0.5"], two_rows(), r"^data\.split=.*add up to 1"),
    "no row": (["data.splits=['train[:0]']"], two_rows(), r"^data\.splits=\['train\[:0\]'\].*no data"),
    "all left out": (["data.exclude_ids=[1,2]"], two_rows(), r"^data\.name='.*': has no row"),
    "no Test task": (
        ["data.exclude_ids=[1]"],
        two_rows(),
        r"^data\.name='.*': has no task of the Test split .*`split`",
    ),
    "ids that are text": (["data.columns.task_id=question"], two_rows(), r"set:train\[0\]: task_id='t'.*type int"),
    "an id twice": (["data.columns.task_id=n"], two_rows(task_id=1), r"set:train\[1\]: task_id=1.*twice"),
    "a text that is none": ([], two_rows(text=None), r"set:train\[1\]: text=null: must be of type str"),
    "no test": ([], two_rows(test_list=[]), r"set:train\[1\]: test_list=\[\].*assert"),
    "neither program nor signature": ([], two_rows(code=None), r"set:train\[1\]: code=null.*signature"),
    "another name for a split": ([], two_rows(split="validation"), r"set:train\[1\]: split='validation'.*prompt, test"),
    "other content": (["data.sha256=abc"], two_rows(), r"^data\.sha256='abc'.*hash to"),
}


@pytest.mark.parametrize("name", BAD)
def test_invalid_data_set_is_an_error_that_names_the_location(name, tmp_path):
    overrides, rows, message = BAD[name]
    write_folder(tmp_path / "set", "parquet", rows)
    own = ["data=hub", f"data.name={tmp_path}/set", *COLUMN_OVERRIDES, "feedback=unit_tests"]
    with pytest.raises(InputError, match=message):
        compose_settings(*own, *overrides).data.load()


def test_failing_gold_programs_are_named_and_can_be_excluded(tmp_path):
    name = write_folder(tmp_path / "set", "parquet", two_rows(code="def f(x):\n  return 2"))
    data = Hub(name=name, columns=HubColumns(**COLUMNS))
    message = r"data\.name=.*1 of 2 do not: .*set:train\[1\]: task 2: failed.*`exclude_ids`"
    with pytest.raises(InputError, match=message):
        data.check_gold(data.load()[0], Sandbox(Limits()))
    data = replace(data, exclude_ids=[2])
    data.check_gold(data.load()[0], Sandbox(Limits()))


SAME = [
    (Mini(), Mini(prompt="no_leak"), True),
    (MBPP(), MBPP(path="mbpp.jsonl"), True),
    (Jsonl(path="a"), Jsonl(path="a"), True),
    (Jsonl(path="a"), Jsonl(path="b"), False),
    (Hub(name="a"), Hub(name="a", revision="b"), True),
    (Hub(name="a"), Hub(name="a", splits=["test"]), False),
    (Jsonl(path="a"), Hub(name="a"), False),
    (HumanEval(), Mini(), False),
]


@pytest.mark.parametrize(("one", "other", "same"), SAME)
def test_same_tells_whether_two_data_sets_have_the_same_tasks(one, other, same):
    assert one.same(other) is other.same(one) is same


# ---- user-defined classes --------------------------------------------------------------------------------------------

CODE = '''
from dataclasses import dataclass, replace

from ilf.files import sha256
from ilf.tasks import Data, Mini, Table, mini


@dataclass
class Mine(Table):
    """The first tasks of mini, in a table of one's own."""

    count: int = 60

    def rows(self, key):
        return mini.rows()[: self.count]


@dataclass
class Whole(Data):
    """The same as tasks, whose splits are made here."""

    def read(self, key):
        tasks = [replace(t, split=("test", "refine", "train")[t.task_id % 3]) for t in Mini().load()[0][:60]]
        return tasks, sha256([t.prompt for t in tasks])
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Write a user's package and configuration folder, and return the folder."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "my_tasks.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path / "lib")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    (tmp_path / "conf" / "data").mkdir(parents=True)
    for name in ("mine", "whole"):
        (tmp_path / "conf" / "data" / f"{name}.yaml").write_text(f"_target_: my_tasks.{name.title()}\n")
    yield tmp_path / "conf"
    sys.modules.pop("my_tasks", None)


@pytest.mark.slow  # test_extending.py has a shorter one
def test_ilf_runs_on_a_user_defined_table_from_the_command_line(mine, tmp_path):
    own = [word for word in SMALL if "limit" not in word] + ["training.epochs=1", "logger=none", "measure=[]"]
    words = ["--config-dir", str(mine), "data=mine", "+data.count=50", "feedback=unit_tests", *own]
    command = [sys.executable, str(ROOT / "run.py"), *words, "hydra.run.dir=run"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found["status"] == "complete" and found["data"] == "mine" and found["zero_shot"]["n_tasks"] == 15
    assert found["training_task_ids"]


@pytest.mark.slow
def test_ilf_runs_on_user_defined_data_sets_for_training_and_transfer(mine, small_stages):
    path, small = f"hydra.searchpath=[file://{mine}]", ["feedback=unit_tests", "training.epochs=1", "measure=[]"]
    found = small_stages(path, "data=whole", "data@transfer=mine", *small).run()
    assert found["status"] == "complete" and (found["data"], found["transfer"]["data"]) == ("whole", "mine")
    assert found["zero_shot"]["n_tasks"] == 8 and found["transfer"]["zero_shot"]["n_tasks"] == 18
    with pytest.raises(InputError, match=r"^transfer='whole': is the data set that the policy is trained on"):
        compose_settings(path, "data=whole", "data@transfer=whole", "feedback=unit_tests")
    with pytest.raises(InputError, match=r"^feedback='scripted'.*data=mini, not whole"):
        compose_settings(path, "data=whole", "feedback=scripted")
    with pytest.raises(InputError, match=r"^data\.annotator='scripted': needs a script"):
        compose_settings(path, "data=whole", "data.annotator=scripted")
    with pytest.raises(InputError, match=r"^data\.count='many': must be"):
        compose_settings(path, "data=mine", "+data.count=many", "feedback=unit_tests")


GOOD = Task(1, "test", "t", "def f(x):\n  return x", "f", ("assert f(1)",), "", "def f(x):\n")


@dataclass
class Given(Data):
    """A data set of the tasks in its argument."""

    tasks: list[Any] = field(default_factory=list)

    def read(self, key: str) -> tuple[list[Any], str]:
        """Return the tasks."""
        return self.tasks, sha256([])


MADE = {
    "nothing": ([], r"^data\._target_='test_data\.Given': has no task of the Test split"),
    "rows": ([ROW], r"^data\._target_='test_data\.Given': returned \{'task_id'.*ilf\.types\.Task"),
    "no Test task": ([replace(GOOD, split="train")], "has no task of the Test split"),
    "an unknown split": ([replace(GOOD, split="validation")], "^data: task 1: split='validation'.*prompt, test"),
    "an id twice": ([GOOD, GOOD], "^data: task 1=1: is the id of two tasks"),
    **{
        f"{name} of another type": ([replace(GOOD, **{name: 1.5})], rf"^data: task .*: {name}=1\.5: must be of type")
        for name in (one.name for one in fields(Task))
    },
}


@pytest.mark.parametrize("name", MADE)
def test_tasks_of_a_user_defined_class_are_checked(name):
    made, message = MADE[name]
    with pytest.raises(InputError, match=message):
        Given(tasks=made).load()
    assert Given(tasks=[replace(GOOD, task_id=2), GOOD]).load()[0] == [GOOD, replace(GOOD, task_id=2)]


def test_gold_programs_of_a_user_defined_class_are_executed():
    data = Given(tasks=[GOOD, replace(GOOD, task_id=2, code="def f(x):\n  return 0")])
    with pytest.raises(InputError, match=r"1 of 2 do not: transfer: task 2: failed"):
        data.check_gold(data.tasks, Sandbox(Limits()), "transfer")


@pytest.mark.parametrize("column", ["text", "code", "signature", "test_setup_code", "split"])
def test_lone_surrogate_in_a_row_is_an_error(column):
    row = {**ROW, column: "\ud800"}
    check_row("row 1", row, FILE)

    @dataclass
    class Odd(Table):
        def rows(self, key: str) -> list[tuple[str, dict[str, Any]]]:
            return [("row 1", row)]

    with pytest.raises(InputError, match=rf"^row 1: {column}="):
        Odd().load()


def test_tutorial_class_makes_tasks_whose_gold_programs_pass(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "how-to" / "own-tasks.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "tasks_of_the_tutorial.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    data = components.read(DATA, {"_target_": "tasks_of_the_tutorial.Doubles", "count": 10}, "data")
    made, _ = data.load()
    assert [sum(task.split == split for task in made) for split in ("test", "refine", "train")] == [3, 3, 4]
    data.check_gold(made, Sandbox(Limits()))
