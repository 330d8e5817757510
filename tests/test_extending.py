"""What docs/extending.md shows, run as it stands there: parts from outside, through the whole of ILF on a few tasks."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, compose_settings

from ilf.analysis.studies import write_study
from ilf.build import build

PAGE = (ROOT / "docs" / "extending.md").read_text()
SECTIONS = {part.split("\n", 1)[0]: part for part in PAGE.split("\n## ")[1:]}
LIMIT = 15  # lines that an example may have


def blocks(section: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL)


def test_no_example_is_long():
    for title, section in SECTIONS.items():
        for block in blocks(section, "python") + blocks(section, "yaml"):
            lines = [line for line in block.splitlines() if line.strip() and not line.startswith("# m")]
            assert len(lines) <= LIMIT, title


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """The package and the folder of all examples, as a user has them."""
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


def run(outside: Path, title: str, name: str, *more: str):
    """Run a section's command in this process, with a small budget, and return the run's folder and results."""
    (command,) = blocks(SECTIONS[title], "bash")
    given = shlex.split(command)[2:]
    if given[:1] == ["--config-dir"]:
        given = [*given[2:], f"hydra.searchpath=[file://{outside / given[1]}]"]
    budget = ["data.limit.test=4", "data.limit.refine=16", "data.limit.train=16", "measure=[]", "evaluate.k=[1]"]
    own = [f"store.dir={outside / 'store'}", f"output_dir={outside / 'runs' / name}"]
    own += [] if any(one.startswith("logger=") for one in given) else ["logger=none"]
    stages = build(compose_settings(*SMALL, *budget, *own, *more, *given))
    try:
        results = stages.run()
    finally:
        stages.tracker.close()
    assert results["status"] == "complete" and results["finetuned"]["n_tasks"] == 4
    return stages, results


def key_of(stages, results, stage):
    return json.loads((stages.runner.store.root / stage / results["entries"][stage][0] / "key.json").read_text())


def rows(stages, results):
    path = stages.runner.store.root / "train_policy" / results["entries"]["train_policy"][0] / "metrics.jsonl"
    return [json.loads(line)["metrics"] for line in path.read_text().splitlines()]


def test_a_callback(outside):
    stages, results = run(outside, "A callback", "callback")
    assert any("steps" in row for row in rows(stages, results))
    _, plain = run(outside, "The Trainer", "plain", "trainer.max_steps=-1", "trainer.profiler=null")
    assert plain["entries"]["train_policy"] != results["entries"]["train_policy"]  # other limits of the Trainer


def test_a_logger_also_of_what_the_store_had(outside):
    stages, _ = run(outside, "A logger", "logger")
    first = (stages.folder / "lines.txt").read_text()
    again, results = run(outside, "A logger", "logger_again")
    assert "train_policy" in results["seconds"]["reused"] and "train_policy/loss" in first
    found = (again.folder / "lines.txt").read_text()
    assert found.count("train_policy/loss") == first.count("train_policy/loss") > 0


def test_arguments_of_the_trainer(outside):
    _, results = run(outside, "The Trainer", "trainer")
    assert results["counts"]["optimizer_steps"] == 3


def test_an_optimizer_and_a_schedule(outside):
    stages, results = run(outside, "An optimizer and a learning-rate schedule", "optimizer")
    key = key_of(stages, results, "train_policy")
    assert key["optimizer"]["target"] == "torch.optim.Rprop" and "OneCycleLR" in key["scheduler"]["target"]


def test_an_adapter(outside):
    stages, _ = run(outside, "An adapter", "adapter")
    saved = json.loads((stages.folder / "policy" / "adapter" / "adapter_config.json").read_text())
    assert saved["peft_type"] == "LOHA"


def test_a_sampler(outside):
    _, results = run(outside, "A sampler", "sampler")
    assert results["sampling"]["name"] == "greedy" and results["zero_shot"]["pass@1"] in (0, 0.25, 0.5, 0.75, 1)


def test_an_executor(outside):
    _, results = run(outside, "An executor", "executor")
    assert results["scoring"]["patience"] == 3


def test_an_objective(outside):
    stages, results = run(outside, "An objective", "objective")
    assert key_of(stages, results, "train_policy")["objective"]["arguments"] == {"factor": 0.5}


def test_a_module(outside):
    stages, results = run(outside, "A Lightning module", "module")
    assert key_of(stages, results, "train_policy")["module"]["target"] == "my_package.modules.Gentle"
    assert key_of(stages, results, "train_refiner")["module"]["target"] == "ilf.training.RefineModule"


def test_a_data_set(outside):
    stages, results = run(outside, "A data set", "data")
    assert results["data"] == "some" and all(i % 3 == 1 for i in stages.tasks.by_id)


def test_a_source_of_feedback(outside):
    stages, results = run(outside, "A source of feedback", "feedback")
    rows = [json.loads(line) for line in (stages.folder / "feedback.jsonl").read_text().splitlines()]
    assert results["feedback"] == "reviewer" and {row["text"] for row in rows} == {"Read the task again."}


def test_a_transform(outside):
    stages, _ = run(outside, "A transform of feedback", "transform")
    rows = [json.loads(line) for line in (stages.folder / "feedback.jsonl").read_text().splitlines()]
    assert rows and all(row["text"].endswith("!!") for row in rows)


def test_a_refiner(outside):
    stages, results = run(outside, "A refiner", "refiner")
    rows = [json.loads(line) for line in (stages.folder / "programs" / "refinements.jsonl").read_text().splitlines()]
    assert results["refiner_kind"] == "careful" and all(row["prompt"].startswith("Slowly.") for row in rows)


def test_an_arm(outside):
    stages, results = run(outside, "An arm", "arm")
    rows = [json.loads(line) for line in (stages.folder / "training.jsonl").read_text().splitlines()]
    assert results["arm"] == "shortest" and {row["source"] for row in rows} == {"shortest"}


def test_a_study(outside):
    stages, results = run(outside, "A study", "study")
    file = write_study(stages.folder, [stages.folder])
    assert results["study"] == "counts" and f"| {results['counts']['training_examples']} |" in file.read_text()
