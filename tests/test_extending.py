"""Run the examples of docs/extend.md as written: ILF on a few tasks with user-defined components."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, compose_settings

from ilf.analysis.studies import write_study
from ilf.build import build

PAGE = (ROOT / "docs" / "extend.md").read_text()
SECTIONS = {part.split("\n", 1)[0]: part for part in PAGE.split("\n## ")[1:]}
LIMIT = 15  # lines that an example may have


def blocks(section: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL)


def test_examples_stay_within_the_line_limit():
    for title, section in SECTIONS.items():
        for block in blocks(section, "python") + blocks(section, "yaml"):
            lines = [line for line in block.splitlines() if line.strip() and not line.startswith("# m")]
            assert len(lines) <= LIMIT, title


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """Write the package and the folder of options of all examples, like a user; return their parent folder."""
    folder = tmp_path_factory.mktemp("outside")
    for section in SECTIONS.values():
        for block in blocks(section, "python") + blocks(section, "yaml"):
            (name,) = re.findall(r"^# (m\S+\.\w+)$", block, re.MULTILINE)
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def overrides(outside: Path, title: str) -> list[str]:
    """Return the overrides of a section's command."""
    (command,) = blocks(SECTIONS[title], "bash")
    words = shlex.split(command)[2:]
    return words[2:] if words[:1] == ["--config-dir"] else words


def run(outside: Path, name: str, *titles: str):
    """Run the commands of several sections as one run in this process, with a small budget; return run and results."""
    words = [override for title in titles for override in overrides(outside, title)]
    budget = ["data.limit.test=4", "data.limit.refine=16", "data.limit.train=16", "measure=[]", "evaluate.k=[1]"]
    own = [f"store.dir={outside / 'store'}", f"output_dir={outside / 'runs' / name}"]
    own += [] if any(one.startswith("logger=") for one in words) else ["logger=none"]
    (outside / "runs" / name).mkdir(parents=True)  # as Hydra does
    own.append(f"hydra.searchpath=[file://{outside / 'mine'}]")
    stages = build(compose_settings(*SMALL, *budget, *own, *words))
    try:
        results = stages.run()
    finally:
        stages.close()
    assert results["status"] == "complete" and results["finetuned"]["n_tasks"] == 4
    return stages, results


@pytest.fixture(scope="module")
def training(outside):
    """Return a run in which all components of the fine-tuning are user-defined."""
    titles = ("Callback", "Logger", "Optimizer and learning-rate schedule", "Objective")
    return run(outside, "training", *titles, "Lightning module", "Executor")


@pytest.fixture(scope="module")
def learning(outside):
    """Return a run in which the feedback source, the refiner, the arm and the study are user-defined."""
    return run(outside, "learning", "Feedback source", "Refiner", "Arm", "Study")


@pytest.fixture(scope="module")
def drawing(outside):
    """Return a run with user-defined tasks, feedback transform and sampler, and with an adapter of peft."""
    return run(outside, "drawing", "Data set", "Feedback transform", "Sampler", "Adapter")


def test_every_section_of_the_page_is_run():
    source = Path(__file__).read_text()
    assert not [title for title in SECTIONS if f'"{title}"' not in source]


def key_of(stages, results, stage):
    return json.loads((stages.runner.store.root / stage / results["entries"][stage][0] / "key.json").read_text())


def rows(stages, results):
    path = stages.runner.store.root / "train_policy" / results["entries"]["train_policy"][0] / "metrics.jsonl"
    return [json.loads(line)["metrics"] for line in path.read_text().splitlines()]


def test_user_defined_callback_logs_its_metric(training):
    assert any("steps" in row for row in rows(*training))


def test_user_defined_logger_also_gets_metrics_of_reused_stages(outside, training):
    stages, _ = training
    first = (stages.folder / "lines.txt").read_text()
    titles = ("Callback", "Logger", "Optimizer and learning-rate schedule", "Objective")
    again, results = run(outside, "again", *titles, "Lightning module", "Executor")
    assert "train_policy" in results["seconds"]["reused"] and "train_policy/loss" in first
    found = (again.folder / "lines.txt").read_text()
    assert found.count("train_policy/loss") == first.count("train_policy/loss") > 0


def test_policy_training_uses_user_defined_optimizer_and_schedule(training):
    key = key_of(*training, "train_policy")
    assert key["optimizer"]["target"] == "torch.optim.Rprop" and "OneCycleLR" in key["scheduler"]["target"]


def test_user_defined_objective_trains_only_the_policy(training):
    assert key_of(*training, "train_policy")["objective"]["arguments"] == {"power": 0.5}
    assert key_of(*training, "train_refiner")["objective"]["target"] == "ilf.training.objectives.sft.SFT"


def test_user_defined_module_trains_only_the_policy(training):
    assert key_of(*training, "train_policy")["module"]["target"] == "my_package.modules.Gentle"
    assert key_of(*training, "train_refiner")["module"]["target"] == "ilf.training.RefineModule"


def test_results_record_the_user_defined_executor(training):
    assert training[1]["scoring"]["patience"] == 3


def test_trainer_arguments_set_the_number_of_optimizer_steps(outside, training):
    _, results = run(outside, "trainer", "Trainer")
    assert results["counts"]["optimizer_steps"] == 3


def test_policy_is_saved_with_the_chosen_adapter(drawing):
    saved = json.loads((drawing[0].folder / "policy" / "adapter" / "adapter_config.json").read_text())
    assert saved["peft_type"] == "LOHA"


def test_user_defined_sampler_samples_greedily(drawing):
    _, results = drawing
    assert results["sampling"]["name"] == "greedy" and results["zero_shot"]["pass@1"] in (0, 0.25, 0.5, 0.75, 1)


def test_user_defined_data_set_selects_its_tasks(drawing):
    stages, results = drawing
    assert results["data"] == "some" and all(i % 3 == 1 for i in stages.tasks.by_id)


def test_user_defined_feedback_source_writes_all_feedback(learning):
    stages, results = learning
    rows = [json.loads(line) for line in (stages.folder / "feedback.jsonl").read_text().splitlines()]
    assert results["feedback"] == "reviewer" and {row["text"] for row in rows} == {"Read the task again."}


def test_user_defined_transform_changes_all_feedback(drawing):
    rows = [json.loads(line) for line in (drawing[0].folder / "feedback.jsonl").read_text().splitlines()]
    assert rows and all(row["text"].endswith("!!") for row in rows)


def test_user_defined_refiner_uses_its_own_prompts(learning):
    stages, results = learning
    rows = [json.loads(line) for line in (stages.folder / "programs" / "refinements.jsonl").read_text().splitlines()]
    assert results["refiner_kind"] == "careful" and {row["prompt"].split("\n")[0] for row in rows} == {"Slowly."}


def test_user_defined_arm_chooses_the_training_programs(learning):
    stages, results = learning
    rows = [json.loads(line) for line in (stages.folder / "training.jsonl").read_text().splitlines()]
    assert results["arm"] == "shortest" and {row["source"] for row in rows} == {"shortest"}


def test_user_defined_study_writes_its_table(learning):
    stages, results = learning
    file = write_study(stages.folder, [stages.folder])
    assert results["study"] == "counts" and f"| {results['counts']['training_examples']} |" in file.read_text()
