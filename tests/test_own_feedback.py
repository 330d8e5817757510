"""User-defined feedback sources, transforms, refiners and arms, in a package and YAML files outside of ilf."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ilf.components import Component
from ilf.executors import LocalExecutor, RayExecutor
from ilf.feedback import UnitTests
from ilf.stages import Stages
from ilf.training import UnitTestCallback
from ilf.training.trainer import changing_results
from ilf.types import InputError

FEW = ["data.limit.test=4", "data.limit.refine=16", "data.limit.train=16", "training.epochs=1", "measure=[]"]
FEW += ["training.validate_n=0"]
PACKAGE = '''
from dataclasses import dataclass, replace
from pathlib import Path

from ilf.feedback import Source, Transform
from ilf.refinements import Refinements
from ilf.refiners import FineTuned, Refiner
from ilf.types import Feedback


@dataclass
class Reviewer(Source):
    """Says the same of each first wrong program, and notes that it was asked."""

    words: str = "Look again."
    log: str | None = None

    def write(self, failing, run):
        if self.log:
            Path(self.log).open("a").write(f"{len(failing)} {run.seed}\\n")
        run.rejected.append("task 0 (reviewer): none")
        found = []
        for i, programs in sorted(failing.items()):
            task = run.tasks.by_id[i]
            (verdict,) = run.score([(task.code, task)])
            assert verdict.passed
            found.append(Feedback(i, task.split, programs[0].program, self.words, "reviewer", task.code))
        return found


def polite(feedback, seed, word="Please"):
    return [replace(f, text=f"{word}: {f.text}") for f in feedback]


@dataclass
class Louder(Transform):
    times: int = 1

    def __call__(self, feedback, seed):
        return [replace(f, text=f.text + "!" * self.times) for f in feedback]


@dataclass
class Silent(Source):
    pass


class Plain(Source):
    def __init__(self, words):
        self.words = words

    def write(self, failing, run):
        return []


@dataclass
class OnTest(Source):
    def write(self, failing, run):
        return [Feedback(11, "test", "x", "f", "mine")]


def quiet(feedback):
    return feedback


@dataclass
class Terse(Refiner):
    """The policy, told only what is wrong."""

    head: str = "# "

    def train(self, feedback, run):
        return run.base

    def prompt(self, feedback, task, run):
        return f"{self.head}{feedback.text}\\n{task.prompt}"


@dataclass
class Longer(FineTuned):
    """Fine-tuned on prompts of its own."""

    def prompt(self, feedback, task, run):
        return "MEND\\n" + super().prompt(feedback, task, run)


@dataclass
class NoFolder(Terse):
    def train(self, feedback, run):
        return Path("nowhere")


@dataclass
class Headless(Terse):
    def prompt(self, feedback, task, run):
        return feedback.text


@dataclass
class Untrained(Refiner):
    pass


@dataclass
class Shortest(Refinements):
    """The shortest of the refiner's correct programs."""

    refines = True
    source = "short"

    def program(self, found):
        return min((p.program for p in found.refined), key=len)


@dataclass
class Commented(Refinements):
    """Gold with a comment; of odd tasks, what is wrong."""

    note: str = "mine"

    def program(self, found):
        return found.task.code + f"\\n    # {self.note}" if found.task.task_id % 2 else "def wrong(:"


@dataclass
class Empty(Refinements):
    pass
'''
OPTIONS = {
    "feedback/reviewer": """
_target_: mine.Reviewer
words: Look again.
log: null
transform: []
apply: refine
path: null
""",
    "feedback/silent": "_target_: mine.Silent",
    "feedback/plain": "_target_: mine.Plain\nwords: x",
    "feedback/on_test": "_target_: mine.OnTest",
    "feedback/none_such": "_target_: mine.Reveiwer",
    "feedback/no_source": "_target_: pathlib.Path",
    "refiner/terse": "_target_: mine.Terse\nhead: '## '",
    "refiner/longer": "_target_: mine.Longer\nold_code_tokens: 300",
    "refiner/no_folder": "_target_: mine.NoFolder",
    "refiner/headless": "_target_: mine.Headless",
    "refiner/untrained": "_target_: mine.Untrained",
    "refinements/shortest": "_target_: mine.Shortest\ntasks: solved",
    "refinements/commented": "_target_: mine.Commented\nnote: mine\ntasks: annotated",
    "refinements/empty": "_target_: mine.Empty",
    "arm/brief": "# @package _global_\ndefaults:\n  - override /refinements: shortest\narm: brief",
}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a user's package on sys.path, and return the folder of its options."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    for option, text in OPTIONS.items():
        file = tmp_path / "conf" / f"{option}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "conf"


@pytest.fixture
def own_stages(mine: Path, small_stages: Callable[..., Stages]) -> Callable[..., Stages]:
    """Return a function that builds a run in this process with the user's options."""
    return lambda *overrides: small_stages(f"hydra.searchpath=[file://{mine}]", *FEW, *overrides)


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow  # the test of docs/extend.md covers similar code
def test_user_defined_feedback_reaches_all_stages_and_is_stored(own_stages, tmp_path, mine):
    log = tmp_path / "asked"
    own = ["feedback=reviewer", f"feedback.log={log}"]
    first = own_stages(*own)
    found = first.run()
    assert found["status"] == "complete" and (found["feedback"], found["annotator"]) == ("reviewer", "Reviewer")
    rows = lines(first.folder / "feedback.jsonl")
    assert rows and {(row["text"], row["source"]) for row in rows} == {("Look again.", "reviewer")}
    assert found["training_sources"] == {"reviewer": len(found["training_task_ids"])}
    assert found["feedback_cost"]["by_source"] == {"reviewer": len(rows)}
    assert "FEEDBACK:\nLook again." in lines(first.folder / "programs" / "refinements.jsonl")[0]["prompt"]
    again = own_stages(*own)
    again.run()
    assert log.read_text().count("\n") == 1, "what it wrote is in the store"
    assert (again.folder / "feedback.jsonl").read_bytes() == (first.folder / "feedback.jsonl").read_bytes()
    assert "task 0 (reviewer): none" in found["rejected"]
    own_stages(*own, "feedback.words=Think.", "stages=[sample,annotate]").run()
    assert log.read_text().count("\n") == 2, "its arguments are part of the key"
    # Its code is part of the key, too.
    file = tmp_path / "code" / "mine.py"
    file.write_text(file.read_text().replace("programs[0].program", "programs[-1].program"))
    del sys.modules["mine"]
    own_stages(*own, "stages=[sample,annotate]").run()
    assert log.read_text().count("\n") == 3


@pytest.mark.slow  # the test of docs/extend.md covers similar code
def test_user_defined_sources_and_transforms_mix_with_built_in_ones(own_stages):
    sources = "feedback.sources=[{_target_: mine.Reviewer, words: Hm.}, unit_tests]"
    changed = "feedback.transform=[{_target_: mine.polite, word: Pray}, one_bug, {_target_: mine.Louder, times: 2}]"
    stages = own_stages("feedback=mixed", sources, changed, "stages=[sample,annotate]")
    found = stages.run()
    rows = lines(stages.folder / "feedback.jsonl")
    assert {row["source"] for row in rows} == {"reviewer", "unit_tests"} and found["annotator"] == "mixed"
    assert all(row["text"].startswith("Pray: ") and row["text"].endswith("!!") for row in rows)
    assert {row["text"] for row in rows if row["source"] == "reviewer"} == {"Pray: Hm.!!"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["feedback=silent"], r"feedback\._target_='mine\.Silent': lacks what ilf.*write"),
        (["feedback=plain"], r"feedback\._target_='mine\.Plain': must be a dataclass"),
        (["feedback=none_such"], r"feedback\._target_='mine\.Reveiwer': can't be imported.*mine\.Reviewer\?"),
        (["feedback=no_source"], r"feedback\._target_='pathlib\.Path': must be a class that derives"),
        (["feedback=reviewer", "+feedback.wrods=x"], r"feedback\.wrods='x': is not an argument.*feedback\.words\?"),
        (["feedback=reviewer", "feedback.words=3"], r"feedback\.words=3: must be a valid string"),
        (["feedback=reviewer", "feedback.apply=refin"], r"feedback\.apply='refin': must be 'refine' or 'train_and"),
        (["feedback.transform=[louder]"], r"feedback\.transform='louder': must be one of shuffle, one_bug, no_code"),
        (["feedback.transform=[{_target_: mine.quiet}]"], r"feedback\.transform\[0\]\._target_=.*takes 1 pos"),
        (["feedback.transform=[{_target_: mine.polite, wrod: x}]"], r"feedback\.transform\[0\]\.wrod='x'.*word\?"),
        (["feedback.transform=[{_target_: mine.Louder, times: x}]"], r"feedback\.transform\[0\]\.times='x'"),
        (["feedback.transform=[{_target_: mine.Silent}]"], r"feedback\.transform\[0\]\._target_.*derives from"),
        (["feedback.transform=[{word: x}]"], r"feedback\.transform\[0\]\._target_=null"),
        (["refiner=untrained"], r"refiner\._target_='mine\.Untrained': lacks what ilf.*train"),
        (["refiner=terse", "+refiner.haed=x"], r"refiner\.haed='x': is not an argument.*refiner\.head\?"),
        (["refiner=longer", "refiner.old_code_tokens=0"], r"refiner\.old_code_tokens=0: must be greater"),
        (["refiner=longer", "refiner.old_code_tokens=x"], r"refiner\.old_code_tokens='x': must be a valid"),
        (["refinements=empty"], r"refinements\._target_='mine\.Empty': lacks what ilf.*program"),
        (["refinements=shortest", "refinements.tasks=all"], r"refinements\.tasks='all': must be 'solved' or"),
        (["refinements=commented", "+refinements.noet=x"], r"refinements\.noet='x': is not an .*refinements\.note\?"),
        (["feedback=mixed", "feedback.sources=[human,mine]"], r"feedback\.sources\[1\]='mine': must be one of human"),
        (["feedback=mixed", "feedback.sources=[unit_tests,{_target_: mine.Silent}]"], r"sources\[1\]\._target_"),
    ],
)  # fmt: skip
def test_invalid_user_defined_components_are_input_errors(overrides, message, mine):
    from conftest import compose_settings

    with pytest.raises(InputError, match=message):
        compose_settings(f"hydra.searchpath=[file://{mine}]", *overrides)


@pytest.mark.slow  # the test of docs/extend.md covers similar code
def test_a_user_defined_refiner_without_training_uses_its_prompts(own_stages):
    stages = own_stages("refiner=terse", "stages=[sample,annotate,train_refiner,refine]")
    found = stages.run()
    assert found["refiner_kind"] == "terse" and found["refiner"]["n_tasks"] > 0
    feedback = {row["task_id"]: row["text"] for row in lines(stages.folder / "feedback.jsonl")}
    rows = lines(stages.folder / "programs" / "refinements.jsonl")
    assert rows and all(row["prompt"].startswith(f"## {feedback[row['task_id']]}\n") for row in rows)
    assert not (stages.folder / "refiner").exists()


@pytest.mark.slow  # the test of docs/extend.md covers similar code
def test_a_user_defined_refiner_is_fine_tuned_on_its_own_prompts(own_stages):
    stages = own_stages("refiner=longer", "stages=[sample,annotate,train_refiner,refine]")
    found = stages.run()
    assert found["refiner_kind"] == "longer" and (stages.folder / "refiner" / "config.json").exists()
    assert all(row["prompt"].startswith("MEND\nOLD") for row in lines(stages.folder / "programs" / "refinements.jsonl"))
    ours = own_stages("refiner=finetuned", "stages=[sample,annotate,train_refiner]")
    ours.run()
    assert stages.runner.weights(stages.folder / "refiner") != ours.runner.weights(ours.folder / "refiner")


@pytest.mark.parametrize(
    ("refiner", "message"),
    [
        ("no_folder", r"refiner='nowhere': no such folder"),
        (
            "headless",
            r"refiner='headless': must return prompts that end with the task's prompt; that of task 3\d\d does not",
        ),
    ],
)
def test_invalid_results_of_a_user_defined_refiner_are_input_errors(refiner, message, own_stages):
    with pytest.raises(InputError, match=message):
        own_stages(f"refiner={refiner}", "stages=[sample,annotate,train_refiner,refine]").run()


@pytest.mark.slow  # the test of docs/extend.md covers similar code
def test_a_user_defined_arm_trains_on_its_chosen_programs(own_stages):
    stages = own_stages("refinements=shortest")
    found = stages.run()
    assert found["status"] == "complete" and (found["arm"], found["refinements"]) == ("shortest", "shortest")
    rows = lines(stages.folder / "training.jsonl")
    assert {row["source"] for row in rows} == {"short"} and found["matched"] is False
    refined = [row for row in lines(stages.folder / "programs" / "refinements.jsonl") if row["verdict"] == "passed"]
    for row in rows:
        own = [one["program"] for one in refined if one["task_id"] == row["task_id"]]
        assert row["prompt"] + row["target"] == min(own, key=len)
    assert "programs of refinements=shortest" in (stages.folder / "summary.md").read_text()
    gold = own_stages("refinements=gold").run()
    assert found["training_task_ids"] == gold["training_task_ids"], "the tasks are those of the other arms"


def test_incorrect_programs_of_a_user_defined_arm_are_rejected(own_stages):
    stages = own_stages("refinements=commented", "refinements.note=hm")
    found = stages.run()
    rows = lines(stages.folder / "training.jsonl")
    assert rows and {row["source"] for row in rows} == {"Commented"}
    assert all(row["task_id"] % 2 for row in rows)
    assert [line for line in found["rejected"] if re.match(r"task 3\d[02468] \(Commented\)", line)]
    assert found["refiner"] is None, "nothing asked for it"


@pytest.mark.parametrize(
    ("option", "arm"), [("refinements=shortest", "shortest"), ("arm=gold", "gold"), ("seed=1", "model")]
)
def test_arm_can_be_interpolated_in_other_settings(option, arm, mine):
    from conftest import compose_settings

    settings = compose_settings(f"hydra.searchpath=[file://{mine}]", "logger=csv", "logger.csv.version=${arm}", option)
    assert settings.arm == settings.logger["csv"].get("version") == settings.config["arm"] == arm


def test_feedback_on_the_test_split_is_an_input_error(own_stages):
    with pytest.raises(InputError, match=r"feedback='OnTest'.*on Prompt, Refine and Train, not Feedback\(task_id=11"):
        own_stages("feedback=on_test", "stages=[sample,annotate]").run()


@pytest.mark.slow  # the test of docs/extend.md covers similar code
def test_a_user_defined_source_runs_from_the_command_line(mine, cli, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    done = cli(
        *("--config-dir", str(mine), "feedback=reviewer", "stages=[sample,annotate]", "hydra.run.dir=run"),
        *("data.limit.prompt=2", "data.limit.refine=4", "data.limit.train=4", "logger=none", "store.dir=store"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r'"feedback": "reviewer"', (tmp_path / "run" / "results.json").read_text())


@pytest.mark.slow  # test_command.py has a shorter test
def test_a_user_defined_arm_option_fixes_its_refinements(mine, cli, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    few = ["--config-dir", str(mine), "stages=[zero_shot]", "data.limit.test=2", "logger=none", "store.dir=store"]
    done = cli("-m", *few, "arm=brief,gold", "hydra.sweep.dir=out")
    assert done.returncode == 0, done.stderr[-2000:]
    results = [json.loads(file.read_text()) for file in sorted((tmp_path / "out").glob("*_seed0/results.json"))]
    assert [(one["arm"], one["refinements"]) for one in results] == [("brief", "shortest"), ("gold", "gold")]
    assert (tmp_path / "out" / "0_brief_seed0").is_dir()
    done = cli(*few, "arm=brief", "refinements=gold")
    assert done.returncode == 1 and "refinements='gold': is set by arm=brief" in done.stderr


# ---- what the store's keys contain -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lenient(LocalExecutor):
    """An executor of the user's own."""


class Passing(UnitTestCallback):
    """A judge of the user's own."""


@dataclass
class Asking(UnitTests):
    """A source that asks the LLM, and whose feedback is reused from the store."""

    asks_llm, repeatable = True, False

    def write(self, failing, run):
        return []


def test_keys_of_verdicts_contain_the_users_executor_and_judge(small_stages):
    own = [], [f"executor._target_={__name__}.Lenient"], [f"callbacks.unit_tests._target_={__name__}.Passing"]
    assert len({small_stages(*overrides).runner.verdicts_of("sample", ()) for overrides in own}) == 3
    assert RayExecutor().rules == LocalExecutor().rules  # they execute programs in the same sandbox


def test_key_of_a_users_source_contains_what_the_llm_depends_on(small_stages, monkeypatch):
    def key(*overrides):
        words = [
            "feedback=unit_tests",
            f"feedback._target_={__name__}.Asking",
            "llm.url=http://127.0.0.1:1/v1",
            "llm.shots=0",
            *overrides,
        ]
        stages, found = small_stages(*words), []
        monkeypatch.setattr(stages.runner, "do", lambda stage, key, work: found.append(key) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stages.annotators.annotate({})
        return found[0]

    one, other = key("llm.model=a"), key("llm.model=b")
    assert one != other and {**one, "llm": 0} == {**other, "llm": 0}


def test_a_timer_changes_results():
    timer, monitor = (Component(f"pytorch_lightning.callbacks.{name}", {}) for name in ("Timer", "LearningRateMonitor"))
    assert changing_results({"a": timer, "b": monitor}) == [timer]
