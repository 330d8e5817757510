"""What docs/extending.md shows, run as it stands there: parts from outside, through the whole of ILF on a few tasks."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, compose_settings

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
            name, _, text = block.partition("\n")
            file = folder / name.removeprefix("# ")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
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
