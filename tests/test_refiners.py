"""The programs that the refiner is trained on, and the incorrect programs that get feedback."""

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import MINI, compose_settings
from conftest import wrong_programs as wrong_ones

from ilf.feedback import UnitTests
from ilf.files import JsonLines
from ilf.models.load import load_tokenizer
from ilf.protocols import Refining
from ilf.refiners import FewShot, FineTuned
from ilf.tasks import mini
from ilf.tasks.mbpp import tasks_from
from ilf.tasks.prompts import completion_of
from ilf.training import RefineModule
from ilf.types import Feedback, InputError, Program, Splits, Verdict

TASKS = [task for task in tasks_from(mini.rows(), None, "paper")[0] if task.split == "refine"][:20]
TOKENIZER = load_tokenizer(MINI)


def refining(worked=(), samples=(), fine_tune=None):
    return Refining(
        tasks=Splits((), tuple(TASKS), ()),
        seed=0,
        base=MINI,
        policy=MINI,
        tokenizer=TOKENIZER,
        module=RefineModule,
        max_length=1024,
        worked=worked,
        samples=samples,
        rejected=[],
        fine_tune=fine_tune,
    )


def trained(refiner, feedback, samples=()):
    """Return the training and the held-out examples, as the text of their targets by task."""
    found = []

    def fine_tune(training, held_out, prompts):
        found.extend({e.task_id: TOKENIZER.decode(e.target_ids[:-1]) for e in part} for part in (training, held_out))
        assert {task.task_id for task, _ in prompts} == {e.task_id for e in held_out}
        return Path()

    run = refining(samples=samples, fine_tune=fine_tune)
    refiner.train(feedback, run)
    assert not run.rejected
    return found


def test_worked_examples_that_cannot_follow_their_prompts_are_left_out(caplog):
    first, second, third = TASKS[:3]
    bad = feedback_on(first, "LIMIT = 3\n" + first.code)
    run = refining(worked=[bad, feedback_on(second)])
    refiner = FewShot(shots=1)
    refiner.train([], run)
    (message,) = caplog.messages
    assert f"task {first.task_id} is left out" in message
    assert "LIMIT" not in refiner.prompt(feedback_on(third), third, run)
    with pytest.raises(InputError, match=r"refiner\.shots=2.*there are 1"):
        FewShot(shots=2).prompt(feedback_on(third), third, run)


def feedback_on(task, refinement=None):
    return Feedback(task.task_id, "refine", task.prompt + "    return 12345", "Return another number.", "a", refinement)


def sample(task, body, number=0, passed=True):
    verdict = Verdict("passed" if passed else "failed", "", (True, passed))
    return Program(task.task_id, "refine", number, 0, task.prompt, body, task.prompt + body, verdict)


@pytest.mark.parametrize(("targets", "expected"), [("annotator", "    return 2"), ("gold", None)])
def test_the_refiner_is_trained_on_annotator_or_gold_programs(targets, expected):
    task = TASKS[0]
    found, _ = trained(FineTuned(targets=targets, held_out=0.0), [feedback_on(task, task.prompt + "    return 2")])
    body = expected or completion_of(task.prompt, task.code, task.entry_point)
    assert found == {task.task_id: task.prompt + body}


def test_the_refiner_is_trained_on_gold_programs_as_published():
    task = replace(TASKS[0], gold=TASKS[0].prompt + "      return 77")
    feedback = feedback_on(task)
    example = RefineModule.example(TOKENIZER, feedback, task, 512, 1024)
    assert TOKENIZER.decode(example.target_ids[:-1]).endswith("      return 77")


def test_own_samples_needs_feedback_on_sometimes_solved_refine_tasks(small_stages):
    stages = small_stages("refiner=own_samples", "feedback=unit_tests", "sampler.n=8", "evaluate.k=[1]")
    failing, samples = stages.to_annotate(), stages.samples[0]
    solved = {p.task_id for p in samples if p.verdict.passed}
    refine = {i for i in failing if stages.tasks.by_id[i].split == "refine"}
    assert refine and refine <= solved and all(not p.verdict.passed for i in refine for p in failing[i])


@pytest.mark.parametrize("rule", ["all", "any"])
def test_a_task_fails_if_all_or_any_of_its_samples_are_incorrect(rule, small_stages):
    stages = small_stages(f"failing={rule}", "feedback=unit_tests", "sampler.n=8", "evaluate.k=[1]")
    found, passed = stages.to_annotate(), {}
    for p in stages.samples[0]:
        passed.setdefault(p.task_id, []).append(p.verdict.passed)
    fails = {i for i, each in passed.items() if (not any(each) if rule == "all" else not all(each))}
    assert set(found) == fails and any(any(passed[i]) for i in fails) == (rule == "any")
    assert all(not p.verdict.passed for programs in found.values() for p in programs)


def test_own_targets_are_the_nearest_correct_samples_of_the_policy():
    one, other, never = TASKS[:3]
    samples = [
        sample(one, "    x = list(range(7))\n    return sum(x)"),
        sample(one, "    return 1234", 1),
        sample(one, "    return 12346", 2, passed=False),  # nearer, but incorrect
        sample(other, "    return 0"),
        sample(never, "    return 3", passed=False),
    ]
    feedback = [feedback_on(task, task.prompt + "    return 2") for task in (one, other, never)]
    training, held_out = trained(FineTuned(targets="own", held_out=0.0), feedback, samples)
    assert training == {one.task_id: one.prompt + "    return 1234", other.task_id: other.prompt + "    return 0"}
    assert not held_out


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.1, 2), (0.2, 4), (0.49, 9)])
def test_the_held_out_fraction_is_not_trained_on(share, count):
    training, held_out = trained(FineTuned(held_out=share), [feedback_on(task) for task in TASKS])
    assert len(held_out) == count and len(training) == 20 - count and not training.keys() & held_out.keys()


def test_choose_selects_by_passed_tests_or_at_random():
    task = TASKS[0]
    tests = [(True, False, False), (False, False, False), (True, True, False), (True, False, True)]
    programs = [replace(sample(task, f"    return {i}"), verdict=Verdict("failed", "", t)) for i, t in enumerate(tests)]
    chosen = {
        choose: {UnitTests(choose=choose).chosen({task.task_id: programs}, seed)[0].completion for seed in range(60)}
        for choose in ("most_passed", "random")
    }
    assert chosen["most_passed"] == {"    return 2", "    return 3"}  # the seed breaks the tie
    assert len(chosen["random"]) == 4


def test_programs_that_crash_before_the_first_test_can_be_chosen():
    failing = wrong_ones(TASKS)
    bare = {i: [replace(p, verdict=Verdict("crashed")) for p in found] for i, found in failing.items()}
    assert [p.task_id for p in UnitTests().chosen(bare, 0)] == sorted(failing)


def test_own_samples_run_annotates_solved_refine_and_failed_train_tasks(small_stages):
    own = ("refiner=own_samples", "feedback=unit_tests", "sampler.n=8", "evaluate.k=[1]", "stages=[sample,annotate]")
    stages = small_stages(*own)
    found = stages.run()
    samples = stages.samples[0]
    solved = {p.task_id for p in samples if p.verdict.passed}
    wrong = {p.task_id for p in samples if not p.verdict.passed}
    split = {i: task.split for i, task in stages.tasks.by_id.items()}
    taught = {i for i in solved & wrong if split[i] == "refine"}
    refined = {i for i in wrong - solved if split[i] == "train"}
    rows = JsonLines(stages.folder / "feedback.jsonl").read()
    assert taught and refined and {row["task_id"] for row in rows if row["split"] != "prompt"} == taught | refined
    assert found["counts"]["annotated"] == len(taught | refined)


def test_invalid_values_of_held_out_and_targets_are_errors():
    for share in (0.5, -0.1):
        with pytest.raises(ValueError, match=rf"refiner\.held_out={share}: must be"):
            compose_settings(f"refiner.held_out={share}")
    with pytest.raises(ValueError, match=r"refiner\.targets='others'"):
        compose_settings("refiner.targets=others")
