"""The embedded benchmark mini, its scripted annotator, and the pretraining of its model."""

import ast
import random

import pytest
from conftest import CPU, MINI, wrong_programs

from ilf.feedback import transforms
from ilf.feedback.scripted import annotate, differences, read, review
from ilf.sandbox import Job, Limits, Sandbox
from ilf.settings import Pretraining
from ilf.tasks import mini
from ilf.tasks.data import split_tasks
from ilf.tasks.mbpp import COLUMNS, tasks_from
from ilf.tasks.mini_grammar import draw_names, draw_specification
from ilf.training import mini_corpus
from ilf.training.pretraining import CorpusDataModule, pretrain
from ilf.types import Feedback, InputError

SPECIFICATIONS = mini.specifications()
SANDBOX = Sandbox(Limits(time_limit=2))


@pytest.fixture(scope="module")
def tasks():
    return tasks_from(mini.rows(), None, "paper")[0]


def test_mini_has_974_distinct_tasks_in_mbpps_columns_and_splits(tasks):
    rows = [row for _, row in mini.rows()]
    assert all(set(COLUMNS) <= set(row) and len(set(row["test_list"])) == 3 for row in rows)
    splits = split_tasks(tasks, {})
    assert [len(s) for s in (splits.prompt, splits.test, splits.refine, splits.train)] == [10, 100, 200, 664]
    for column in ("text", "test_list"):
        assert len({str(row[column]) for row in rows}) == 974
    assert len({s.key for s in SPECIFICATIONS.values()}) == 974
    assert len({s.source.name for s in SPECIFICATIONS.values()}) == 5


def test_benchmark_has_a_fixed_digest():
    assert (
        tasks_from(mini.rows(), None, "paper")[1] == "323f842a7257532f1fbcc63079bdf5c9ff4dfabbb7755c5367fff14ea7091b84"
    )


def test_gold_programs_and_equivalent_loops_pass(tasks):
    jobs = []
    for task in tasks:
        specification = SPECIFICATIONS[task.task_id]
        (arg,) = ast.parse(task.code).body[0].args.args
        names = draw_names(specification, arg.arg, random.Random(task.task_id))
        loop = task.prompt + specification.sketch(short=False).body(names)
        jobs += [Job(task.code, task.tests), Job(loop, task.tests)]
    assert [v.detail for v in SANDBOX.run(jobs) if not v.passed] == []


def test_tests_of_a_task_catch_most_mistakes(tasks):
    jobs = []
    for task in tasks[::5]:
        specification, sketch = SPECIFICATIONS[task.task_id], SPECIFICATIONS[task.task_id].sketch(short=False)
        (arg,) = ast.parse(task.code).body[0].args.args
        names = draw_names(specification, arg.arg, random.Random(0))
        for _, wrong in specification.mistakes(sketch):
            jobs += [Job(task.prompt + w.body(names), task.tests) for w in wrong]
    caught = sum(not v.passed for v in SANDBOX.run(jobs)) / len(jobs)
    assert caught > 0.85  # some mistakes do not change the result: the maximum of a range does not depend on its 0


def test_corpus_contains_no_specification_of_the_benchmark(monkeypatch):
    drawn = []
    original = mini_corpus._prompt
    monkeypatch.setattr(mini_corpus, "_prompt", lambda s, *a: (drawn.append(s.key), original(s, *a))[1])
    rng = random.Random(0)
    documents = ["".join(part.text for part in mini_corpus.draw_document(rng)) for _ in range(4000)]
    held_out = {s.key for s in SPECIFICATIONS.values()}
    assert not held_out & set(drawn) and len(set(drawn)) > 2000
    # Without the exclusion, the corpus would contain some of them.
    free = random.Random(0)
    assert held_out & {draw_specification(free).key for _ in range(4000)}
    assert 0.1 < sum("# Review" in d for d in documents) / 4000 < 0.2
    assert 0.5 < mini_corpus.wrong_share(0) < 0.75


def test_read_recovers_the_sketch_of_programs_of_the_grammar():
    for task_id, specification in list(SPECIFICATIONS.items())[::7]:
        names = draw_names(specification, None, random.Random(task_id))
        for short in (False, True):
            right = specification.sketch(short)
            for sketch in (right, *(w for _, wrong in specification.mistakes(right) for w in wrong)):
                found, own = read(f"def f({names.arg}):\n{sketch.body(names)}", "f")
                assert found == sketch and (own.arg, own.item) == (names.arg, names.item)
                assert bool(differences(sketch, right)) == (sketch != right)


@pytest.mark.parametrize(
    "program",
    [
        "def f(x:",
        "def g(x):\n    return x",
        "def f(x):\n    return x",
        "def f(x, y):\n    return [i for i in x]",
        "def f(x):\n    a = 0\n    for i in x:\n        a += i\n        a += 1\n    return a",
        "def f(x):\n    a = 0\n    for i in x:\n        b = i\n    return a",
        "def f(x):\n    a = 0\n    for i, j in x:\n        a += i\n    return a",
        "def f(x):\n    a = 0\n    while x:\n        a += 1\n    return a",
        "def f(x):\n    return [i for i in x for j in x]",
        "def f(x):\n    return [i for i in x if i if i > 2]",
    ],
)
def test_read_returns_none_for_other_programs(program):
    assert read(program, "f") is None


def test_annotations_correct_the_closest_program_with_few_edits(tasks):
    chosen = tasks[110:310]
    failing, by_id = wrong_programs(chosen), {t.task_id: t for t in tasks}
    found = annotate(failing, by_id, SPECIFICATIONS, 0)
    assert {f.task_id for f in found} == set(failing) and len(found) > 100
    assert annotate(failing, by_id, SPECIFICATIONS, 0) == found != annotate(failing, by_id, SPECIFICATIONS, 1)
    verdicts = SANDBOX.run([Job(f.refinement, by_id[f.task_id].tests) for f in found])
    assert all(v.passed for v in verdicts)
    for f in found:
        assert f.program in {p.program for p in failing[f.task_id]} and f.source == "scripted"
        old, new = f.program.splitlines(), f.refinement.splitlines()
        needed = [
            len(differences(s[0], SPECIFICATIONS[f.task_id].sketch(s[0].update is None)))
            for p in failing[f.task_id]
            if (s := read(p.program, by_id[f.task_id].entry_point))
        ]
        changed = {line.strip() for line in old} ^ {line.strip() for line in new}
        assert len(changed) <= 2 * min(needed) and f.text  # each difference removes and adds at most one line


def test_feedback_names_the_mistake_in_several_phrasings(tasks):
    specification = next(s for s in SPECIFICATIONS.values() if s.filter.name == "at_least" and s.source.name == "list")
    right = specification.sketch(short=False)
    names = draw_names(specification, "nums", random.Random(0))
    wrong = dict(specification.mistakes(right))[specification.filter][0]
    texts = {review(specification, wrong, right, names, random.Random(i)) for i in range(20)}
    assert len(texts) >= 3
    for text in texts:
        assert f"at least {specification.k}" in text or f"{names.item} >= {specification.k}" in text
        assert "item" not in text and "{" not in text
    assert review(specification, right, right, names, random.Random(0)) == ""


def test_shuffled_feedback_is_about_another_program_of_its_split():
    feedback = [
        Feedback(i, "refine" if i < 311 else "train", f"x{i}", f"words {i // 3}", "scripted", f"y{i}")
        for i in range(291, 351)
    ]
    found = transforms.shuffle(feedback, ["train"], 0)
    assert found[:20] == feedback[:20]
    assert all(a.text != b.text for a, b in zip(feedback[20:], found[20:], strict=True))
    assert sorted(f.text for f in found) == sorted(f.text for f in feedback)
    assert [(f.task_id, f.program, f.refinement) for f in found] == [
        (f.task_id, f.program, f.refinement) for f in feedback
    ]
    assert transforms.shuffle(feedback, ["train"], 1) != found
    with pytest.raises(InputError, match=r"feedback\.transform"):
        transforms.shuffle(feedback[:21], ["train"], 0)
    assert {(f.text, f.source) for f in transforms.drop(feedback)} == {("", "none")}


TINY = {
    "vocabulary": 400,
    "hidden": 32,
    "intermediate": 32,
    "layers": 1,
    "heads": 2,
    "key_value_heads": 1,
    "batch_size": 1,
}


def test_interrupted_pretraining_resumes_with_identical_weights(tmp_path, monkeypatch, caplog):
    settings, cpu = Pretraining(epochs=2, **TINY), CPU
    whole = pretrain(settings, cpu, 0, tmp_path / "whole")
    with monkeypatch.context() as patch:
        original = CorpusDataModule.train_dataloader

        def killed(self):
            if self.trainer.current_epoch == 1:
                raise RuntimeError("killed")
            return original(self)

        patch.setattr(CorpusDataModule, "train_dataloader", killed)
        with pytest.raises(RuntimeError, match="killed"):
            pretrain(settings, cpu, 0, tmp_path / "broken")
    assert not (tmp_path / "broken").exists()
    caplog.set_level("INFO")
    caplog.clear()  # an earlier test may have set the level too
    resumed = pretrain(settings, cpu, 0, tmp_path / "broken")
    assert "epoch 2 of 2" in caplog.text and "epoch 1 of 2" not in caplog.text
    assert resumed["loss"] == whole["loss"] < 6 and resumed["steps"] == 200
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "broken")]
    assert files[0] == files[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken", "whole"]


def test_pretraining_command_writes_a_model_card(cli, tmp_path):
    tiny = [f"pretrain.{name}={value}" for name, value in TINY.items()]
    few = ["sampler.n=1", "evaluate.k=[1]", "sampler.max_new_tokens=8", "data.limit.test=2", "data.limit.refine=2"]
    command = ["experiment=mini/pretrain", "pretrain.epochs=1", *tiny, *few, "data.limit.train=2", "logger=none"]
    done = cli(*command, "hydra.run.dir=out", "store.dir=store")
    assert done.returncode == 0, done.stderr[-2000:]
    card = (tmp_path / "out" / "mini" / "README.md").read_text()
    assert "python run.py experiment=mini/pretrain seed=0" in card and "4 of 4 Refine and Train tasks" in card
    assert str(tmp_path / "out" / "mini") in done.stdout or "out/mini/README.md" in done.stdout


def test_shipped_model_is_small_and_has_a_complete_card():
    assert sum(f.stat().st_size for f in MINI.iterdir() if f.suffix == ".safetensors") <= 8_000_000
    card = (MINI / "README.md").read_text()
    for words in ("Command", "Data", "Training", "Results", "nats per target token", "no evidence"):
        assert words in card
