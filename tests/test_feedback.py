"""Feedback from unit tests and from several sources, its transforms, its limit and its cost."""

import hashlib
import json
from collections import Counter
from dataclasses import replace

import pytest
from conftest import compose_settings

from ilf.analysis.results import of_feedback
from ilf.feedback import transforms, unit_tests
from ilf.refinements import Gold, Model
from ilf.sandbox import Limits, Sandbox
from ilf.scoring import score
from ilf.settings import Settings
from ilf.training.fine_tuning import FineTuningModule
from ilf.types import Feedback, InputError, Outcome, Program, Round, Task

TASK = Task(
    311,
    "train",
    "Write a function to double.",
    "def double(x):\n    return 2 * x",
    "double",
    ("assert double(1) == 2", "assert double(2) == 4, 'twice'", "assert not double(0)"),
    "",
    "def double(x):\n",
)


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox(Limits(time_limit=0.5))


def feedback_on(body: str, sandbox: Sandbox, task: Task = TASK) -> str:
    text = body if body.startswith("def") else task.prompt + body
    (verdict,) = score([(text, task)], sandbox, "all")
    return unit_tests.in_words(Program(task.task_id, "train", 0, 0, task.prompt, body, text, verdict), task)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("    return x", "`double(1)` should return `2`, but it returns `1`. It passes 1 of 3 tests."),
        ("    return 2 if x == 1 else 0", "`double(2)` should return `4`, but it returns `0`. It passes 2 of 3 tests."),
        ("    y = 0\n    return x / y", "but line 3, `return x / y`, raises ZeroDivisionError: division by zero"),
        ("    return [x", "The program does not run: line 2, `return [x`, raises SyntaxError: '[' was never closed."),
        ("    return double(x)", "line 2, `return double(x)`, raises RecursionError"),
        ("    while True: pass", "The program does not come to an end."),
        ("    return 2 * x or 1", "This test should hold, and does not: `not double(0)`. It passes 2 of 3 tests."),
        ("def twice(x):\n    return 2 * x", "it raises NameError: name 'double' is not defined"),
        ("    import os\n    os._exit(3)", "The program does not run: ended early with exit status 3."),
        ("    return 'x' * 10**12", "It takes more memory than it may have: line 2, `return 'x' * 10**12`"),
    ],
)  # fmt: skip
def test_unit_test_feedback_describes_each_kind_of_failure(body, said, sandbox):
    assert said in feedback_on(body, sandbox)


def test_unit_test_feedback_names_the_test_that_failed(sandbox):
    long = f"assert double({'1' * 600}) == {'2' * 600}"  # details are cut
    assert feedback_on("    return 5", sandbox, replace(TASK, tests=(long,))).startswith("This test should hold")
    lines = "x = double(1)\nassert x == 2\nassert x == 20"
    text = feedback_on("    return 2 * x", sandbox, replace(TASK, tests=(lines,)))
    assert text.startswith("This test should hold, and does not: `x == 20`"), text


@pytest.mark.parametrize(
    ("setup", "said"),
    [
        ("def helper():\n    raise ValueError('no')", ", but it raises ValueError: no."),
        ("1 / 0", "The program does not run: it raises ZeroDivisionError: division by zero."),
        ("x = 1\nx = (", "The program does not run: it raises SyntaxError: '(' was never closed."),
        ("import json\njson.loads('?')", "it raises json.decoder.JSONDecodeError: Expecting value"),
    ],
)
def test_feedback_on_errors_in_setup_code_quotes_no_line_of_the_program(setup, said, sandbox):
    task = replace(TASK, setup=setup, tests=("assert double(helper()) == 2",))
    assert said in feedback_on("    return x", sandbox, task)


def annotation(text: str, bugs: int | None = None, task_id: int = 311) -> Feedback:
    return Feedback(task_id, "train", "def f(:", text, "human", None, bugs, ("logic", "regex"))


@pytest.mark.parametrize(
    ("text", "bugs", "first"),
    [
        ("Use `a`. The second mistake is `b`.", None, "Use `a`."),
        ('It says "no!" Secondly, it is slow.', None, 'It says "no!"'),
        ("1. Use `a`.\n2. Use `b`.", None, "1. Use `a`."),
        ("- Use `a`\n- Use `b`", 2, "- Use `a`"),
        ("Use `a`. That is faster. Use `b`. That is nicer.", 2, "Use `a`. That is faster."),
        ("Use `a`. That is faster.", None, "Use `a`. That is faster."),
        ("Use `a`. Also mind `a`'s sign.", 1, "Use `a`. Also mind `a`'s sign."),
        ("The other way round.", 3, "The other way round."),
    ],
)
def test_one_bug_keeps_only_the_feedback_on_the_first_bug(text, bugs, first):
    (found,) = transforms.one_bug([annotation(text, bugs)])
    assert (found.text, found.bugs, found.categories) == (first, bugs and 1, ("logic",))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Use `a`.\n\n```python\ndef f():\n    return 1\n```\nThat is all.", "Use `a`.\n\n\nThat is all."),
        ("Use `a`.\n~~~\ncode\n~~~", "Use `a`."),
        ("Use `a`. Here it is:\n```python\ndef f():\n    cut o", "Use `a`. Here it is:"),
        ("1. Do so:\n  ```\n  code\n  ```\n2. Or:\n```\ncode\n```", "1. Do so:\n\n2. Or:"),
        ("```python\nall of it\n```", ""),
        ("```a``` is\nbetter.", "```a``` is\nbetter."),
    ],
)
def test_no_code_keeps_only_the_words(text, words):
    (found,) = transforms.no_code([annotation(text, 2)])
    assert (found.text, found.bugs) == (words, 2)


def test_share_out_chooses_an_available_source_with_the_given_shares():
    sources = {i: ["a", "b", "c"] if i % 2 else ["b"] for i in range(2000)}
    chosen = transforms.share_out(sources, {"a": 1, "b": 3, "c": 0}, 0)
    assert all(chosen[i] in sources[i] for i in sources) and chosen.keys() == sources.keys()
    odd = Counter(chosen[i] for i in range(1, 2000, 2))
    assert odd["c"] == 0 and 200 < odd["a"] < 300
    fewer = {i: sources[i] for i in range(0, 2000, 7)}
    assert transforms.share_out(fewer, {"a": 1, "b": 3, "c": 0}, 0) == {i: chosen[i] for i in fewer}
    assert transforms.share_out(sources, {"a": 1, "b": 3, "c": 0}, 1) != chosen
    assert transforms.share_out({1: ["c"]}, {"c": 0}, 0) == {}


def test_results_are_broken_down_by_feedback_source(small_stages):
    mixed = ["feedback=mixed", "feedback.shares=[1,2]", "feedback.transform=[one_bug]"]
    stages = small_stages(*mixed, "stages=[sample,annotate,train_refiner,refine,train_policy]")
    found = stages.run()
    given = [json.loads(line) for line in (stages.folder / "feedback.jsonl").read_text().splitlines()]
    sources = {row["task_id"]: row["source"] for row in given}
    assert set(sources.values()) == {"scripted", "unit_tests"} and all(row["bugs"] in (1, None) for row in given)
    trained = [json.loads(line) for line in (stages.folder / "training.jsonl").read_text().splitlines()]
    assert all(row["feedback_source"] == sources[row["task_id"]] for row in trained)
    assert found["training_sources"] == dict(Counter(row["feedback_source"] for row in trained))
    by_source, whole = found["refiner"]["by_source"], found["refiner"]
    assert sum(part["n_tasks"] for part in by_source.values()) == whole["n_tasks"]
    assert whole["per_task"] == {i: n for part in by_source.values() for i, n in part["per_task"].items()}
    assert found["feedback_cost"]["by_source"] == dict(Counter(sources.values()))
    assert "## By source of feedback" in (stages.folder / "summary.md").read_text()


def annotated(stages):
    """Run some stages; return the results, and the feedback on each task of Refine and of Train."""
    result = stages.run()
    given = [json.loads(line) for line in (stages.folder / "feedback.jsonl").read_text().splitlines()]
    return result, *({row["task_id"]: row["text"] for row in given if row["split"] == s} for s in ("refine", "train"))


def test_feedback_limits_apply_to_train_and_select_nested_subsets(small_stages):
    own, found = ["training.epochs=1", "stages=[sample,annotate,train_refiner,refine]"], {}
    for limit in ("null", "7", "3", "1"):
        result, refine, train = annotated(small_stages(f"feedback.limit={limit}", *own))
        counts = result["counts"]
        assert counts["annotated_train"] == len(train) == result["refiner"]["n_tasks"]
        assert counts["annotated"] == len(refine) + len(train)
        assert result["feedback_limit"] == (None if limit == "null" else int(limit))
        found[limit] = (refine, train)
    assert [len(train) for _, train in found.values()][1:] == [7, 3, 1]
    assert found["1"][1].items() < found["3"][1].items() < found["7"][1].items() < found["null"][1].items()
    assert all(refine == found["null"][0] for refine, _ in found.values())  # Refine is not limited
    own = ["feedback.limit=3", "stages=[sample,annotate]"]
    _, _, shuffled = annotated(small_stages(*own, "feedback.transform=[shuffle]"))
    assert shuffled.keys() == found["3"][1].keys() and shuffled != found["3"][1]
    assert sorted(shuffled.values()) == sorted(found["3"][1].values())  # no feedback on a task that is left out
    assert annotated(small_stages(*own, "seed=1"))[2].keys() != found["3"][1].keys()


def test_an_unused_limit_is_an_error():
    inner = "{_target_: ilf.feedback.Scripted, limit: 3}"
    for own, message in (
        (["feedback=mixed", f"feedback.sources=[{inner},unit_tests]"], r"feedback\.sources\[0\]\.limit=3: applies to"),
        (["evaluate.turns=1", f"evaluate.feedback={inner}"], r"evaluate\.feedback\.limit=3: all programs that fail"),
        (["+refinements.limit=3"], r"refinements\.limit=3: is not an argument"),
    ):
        with pytest.raises(InputError, match=message):
            compose_settings(*own)


def test_feedback_cost_reports_minutes_and_points_per_100_annotations():
    given = [replace(annotation("f", task_id=i), seconds=90.0 if i < 30 else None) for i in range(40)]
    outcome = Outcome(
        rounds=[Round(feedback=given), Round(feedback=[replace(given[0], source="llm", seconds=None)] * 10)]
    )
    delta = {"pass@1": {"mean": 0.1, "ci95": [-0.05, 0.25]}}
    settings = Settings()
    settings.refinements = Model()
    found = of_feedback(settings, outcome, delta)
    assert found["annotations"] == 50 and found["by_source"] == {"human": 40, "llm": 10}
    assert (found["minutes"], found["timed"]) == (45.0, 30)
    assert found["pass@1_points_per_100"] == {
        "mean": pytest.approx(20),
        "ci95": [pytest.approx(-10), pytest.approx(50)],
    }
    settings.refinements = Gold()
    assert of_feedback(settings, outcome, delta)["pass@1_points_per_100"] is None
    assert of_feedback(settings, Outcome(), None)["minutes"] is None


def test_additional_annotations_reuse_unaffected_samples(small_stages, tmp_path, monkeypatch):
    drawn = []
    draw = FineTuningModule.sample
    monkeypatch.setattr(  # before any run, as the store's keys depend on the sampling code
        FineTuningModule,
        "sample",
        lambda self, draws: drawn.extend((type(self).__name__, d.split, d.task_id) for d in draws) or draw(self, draws),
    )
    script = small_stages("stages=[sample,annotate]")
    script.run()
    rows = [json.loads(line) for line in (script.folder / "feedback.jsonl").read_text().splitlines()]
    people = [
        {
            "task_id": row["task_id"],
            "Feedback": row["text"],
            "original_model_completion": row["program"],
            "unedited_annotator_completion": row["refinement"],
            "seconds": 30,
        }
        for row in rows
        if row["split"] != "prompt"
    ]
    last = [row["task_id"] for row in rows if row["split"] == "train"][-2:]
    file = tmp_path / "people.jsonl"

    def run(given):
        file.write_text("".join(json.dumps(row) + "\n" for row in given))
        drawn.clear()
        quick = ["training.epochs=1", "training.validate_n=0", "measure=[]"]
        return small_stages("feedback=human", f"feedback.path={file}", *quick).run()

    before = run([row for row in people if row["task_id"] not in last])
    found = run(people)
    assert found["feedback_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest() != before["feedback_sha256"]
    assert {"zero_shot", "train_refiner"} <= set(found["seconds"]["reused"])
    # Only refinements of the two new programs and the evaluation of the new policy are sampled.
    assert Counter(drawn) == Counter(
        {("ILFModule", "train", i): 4 for i in last} | {("ILFModule", "test", i): 4 for i in range(11, 19)}
    )
    assert found["feedback_on_policy"] is True and found["feedback_cost"]["minutes"] == len(people) / 2
    assert f"{len(people) / 2:.0f} minutes for the {len(people)}" in (tmp_path / "run2" / "summary.md").read_text()
