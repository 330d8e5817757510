"""Feedback at test time, and the export of a run's training pairs."""

from collections import Counter
from dataclasses import dataclass

import pytest
from conftest import compose_settings
from datasets import load_from_disk

from ilf.analysis.pairs import COLUMNS, export_pairs
from ilf.feedback import Source
from ilf.scoring import score
from ilf.turns import take_turns
from ilf.types import Feedback, InputError

FEW = ["measure=[]", "data.limit.test=4", "data.limit.train=16", "training.epochs=1", "training.validate_n=0"]


@dataclass
class Silent(Source):
    """Gives feedback on every second program."""

    def write(self, failing, run):
        assert all(len(programs) == 1 and not programs[0].verdict.passed for programs in failing.values())
        assert not set(failing) & {task.task_id for task in (*run.tasks.refine, *run.tasks.train)}
        run.rejected.extend(f"task {i} (feedback): nothing to say" for i in list(failing)[::2])
        found = [programs[0] for programs in list(failing.values())[1::2]]
        return [Feedback(p.task_id, p.split, p.program, f"Mend {p.sample}.", "silent") for p in found]


def test_only_programs_with_feedback_are_rewritten_at_test_time(small_stages, monkeypatch):
    own, turns = "evaluate.feedback={_target_: test_turns.Silent}", []
    monkeypatch.setattr("ilf.stages.take_turns", lambda *what: turns.append(take_turns(*what)) or turns[-1])
    stages = small_stages(*FEW, "evaluate.turns=1", own, "evaluate.reviser=refiner", "logger=wandb")
    results = stages.run()
    names = {f"{part}-turn1{way}" for part in ("zero-shot", "finetuned") for way in ("", "-fresh")}
    assert names <= set(stages.tracker._attached)  # logged as artifacts of the run
    by_name = {file.stem: file.read_text() for file in (stages.folder / "programs").glob("*turn1*.jsonl")}
    assert set(by_name) == {f"{p}_turn1{way}" for p in ("zero_shot", "finetuned") for way in ("", "_fresh")}
    for part, found in zip(("zero_shot", "finetuned"), turns, strict=True):
        failing = [p for p in found.feedback[0] if not p.verdict.passed]
        assert len(failing) == sum(4 - passed for passed in results[part]["per_task"].values()) > 1
        assert by_name[f"{part}_turn1"].count("Mend ") == len(failing) // 2
        for (before, after), drawn in ((found.feedback, failing[1::2]), (found.fresh, failing)):
            assert [p for p, newer in zip(before, after, strict=True) if p is not newer] == drawn
            assert [(p.task_id, p.sample) for p in before] == [(p.task_id, p.sample) for p in after]
        silent = [f"task {p.task_id} at test time (feedback): nothing to say" for p in failing[::2]]
        assert len(silent) > 1 and not Counter(silent) - Counter(results["rejected"])
    monkeypatch.setattr(Silent, "write", lambda *_: pytest.fail("written again"))
    again = small_stages(*FEW, "evaluate.turns=1", own, "evaluate.reviser=refiner").run()
    assert again["turns"] == results["turns"]  # everything was reused from the store


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluate.reviser=human"], "evaluate.reviser='human': must be policy or refiner"),
        (
            ["evaluate.reviser=refiner", "refinements=none"],
            "evaluate.reviser='refiner': refinements=none has no refiner",
        ),
        (["evaluate.feedback=human"], "evaluate.feedback='human': people can't have annotated"),
        (["evaluate.feedback=tests"], "evaluate.feedback='tests': must be one of human, scripted"),
        (["evaluate.feedback=llm", "llm.model=m"], "llm.shots=.*llm.shots=0"),
        (["evaluate.turns=-1"], "evaluate.turns=-1: must be 0 or more"),
    ],
)
def test_invalid_settings_of_turns_are_errors(overrides, message):
    with pytest.raises(InputError, match=message):
        compose_settings("evaluate.turns=2", *overrides)


def test_exported_pairs_have_a_passing_and_a_failing_program(small_stages, tmp_path):
    stages = small_stages(*FEW, "refinements.per_task=2", "stages=[sample,annotate,train_refiner,refine,train_policy]")
    stages.run()
    count, left_out = export_pairs(str(stages.folder), str(tmp_path / "pairs"))
    rows = list(load_from_disk(str(tmp_path / "pairs")))
    assert left_out == 0 and len(rows) == count == len((stages.folder / "training.jsonl").read_text().splitlines())
    for row in rows:
        assert tuple(row) == COLUMNS
        task = stages.tasks.by_id[row["task_id"]]
        chosen, rejected = score([(row["prompt"] + row[key], task) for key in COLUMNS[2:4]], stages.sandbox, "all")
        assert chosen.passed and not rejected.passed and row["prompt"] == task.prompt
        assert row["privileged_context"].endswith(row["feedback"]) and row["rejected"] in row["privileged_context"]
    with pytest.raises(InputError, match=r"export=.*does not exist yet"):
        compose_settings("mode=export", f"run={stages.folder}", f"export={tmp_path / 'pairs'}")
    with pytest.raises(InputError, match=r"run=.*holds no training.jsonl"):
        compose_settings("mode=export", f"run={tmp_path}", "export=new")


def test_stored_programs_take_no_turns_unless_their_stage_is_requested(small_stages):
    small_stages(*FEW, "stages=[zero_shot]").run()
    results = small_stages(*FEW, "evaluate.turns=1", "stages=[sample]").run()
    assert results["zero_shot"] and results["turns"] == {}
