"""Algorithm 1 over plain dictionaries, and who may import whom."""

from collections import Counter
from dataclasses import dataclass, replace

import pytest

from ilf import algorithm
from ilf.refinements import COMPARED, LLM, Gold, Human, Model, Nothing, Refinements, Self
from ilf.types import Feedback, Outcome, Program, Refinement, Splits, Task, Turns, Verdict, different, pick


def task(i: int, split: str) -> Task:
    return Task(i, split, "t", f"gold {i}", "f", ("assert f(1) == 1",), "", f"prompt {i}")


TASKS = Splits(
    prompt=(task(1, "prompt"),),
    test=tuple(task(i, "test") for i in (11, 12)),
    refine=tuple(task(i, "refine") for i in (111, 112)),
    train=tuple(task(i, "train") for i in (311, 312, 313, 314)),
    transfer=(task(11, "test"),),
)
ALONE = replace(TASKS, transfer=())


ARMS = {one.name: one for one in (Model, Human, Gold, LLM, Self, Nothing)}


class Steps:
    """Collaborators that look everything up, and note the order in which they are called."""

    def __init__(self, correct: dict[str, set[int]], unusable: set[tuple[int, str]] = frozenset()):
        self.correct, self.unusable, self.calls, self.seen = correct, unusable, [], {}
        self.round, self.trained = 0, []

    def _programs(self, stage, ids, n=3):
        self.calls.append(stage)
        self.seen[stage] = list(ids)
        good = self.correct.get(f"{stage} {self.round}", self.correct.get(stage, set()))
        # Only the last sample of a solved task is correct.
        return [
            Program(
                i,
                TASKS.by_id[i].split,
                s,
                0,
                "",
                "",
                f"{stage} {i} {s}",
                Verdict("passed" if i in good and s == n - 1 else "failed"),
            )
            for i in ids
            for s in range(n)
        ]

    def begin_round(self, number):
        self.round = number

    def zero_shot(self, tasks):
        return self._programs("zero_shot", [t.task_id for t in tasks])

    def sample(self, policy, tasks):
        self.sampled_from = policy
        return self._programs("sample", [t.task_id for t in tasks])

    def failing(self, samples):
        return algorithm.unsolved(samples)

    def annotate(self, failing):
        self.calls.append("annotate")
        return [Feedback(i, TASKS.by_id[i].split, p[0].program, "f", "human", f"human {i}") for i, p in failing.items()]

    def train_refiner(self, feedback):
        self.calls.append("train_refiner")
        self.seen["train_refiner"] = [f.task_id for f in feedback]
        return "refiner"

    def refine(self, refiner, feedback):
        assert refiner == "refiner" and feedback  # of none, the real one makes an error
        return self._programs("refine", [f.task_id for f in feedback])

    def ask_llm(self, feedback):
        return self._programs("llm", [f.task_id for f in feedback])

    def express(self, candidates):
        return [
            None
            if c.program is None or (c.task.task_id, c.source) in self.unusable
            else Refinement(c.task.task_id, c.task.prompt, c.program, c.source)
            for c in candidates
        ]

    def train_policy(self, policy, examples, rounds):
        self.rounds = list(rounds)
        self.calls.append("train_policy")
        self.trained.append((policy, [e.target for e in examples]))
        return f"policy {self.round}"

    def evaluate(self, policy, tasks):
        self.policy = policy
        return self._programs("evaluate", [t.task_id for t in tasks])

    def take_turns(self, part, policy, programs):
        self.turned = [*getattr(self, "turned", []), (part, policy, len(programs))]
        return Turns([list(programs)], [list(programs)])


def whole(steps, arm="model", solved_only=True, tasks=ALONE, **more):
    outcome = Outcome()
    if isinstance(arm, str):
        arm = ARMS[arm]("solved" if solved_only else "annotated")
    algorithm.run(steps, tasks, outcome, arm=arm, others=COMPARED, seed=0, **more)
    return outcome


def run(steps, arm="model", solved_only=True, **more):
    return whole(steps, arm, solved_only, **more).last


def test_the_lines_come_in_the_papers_order_on_the_right_splits():
    steps = Steps({"sample": {111, 314}, "refine": {311, 313}})
    outcome = run(steps)
    assert steps.calls == ["zero_shot", "sample", "annotate", "train_refiner", "refine", "train_policy", "evaluate"]
    assert set(outcome.failing) == {1, 112, 311, 312, 313}  # what the policy never solved
    assert steps.seen["train_refiner"] == [1, 112]  # never Train, never Test; 1 only for worked examples
    assert steps.seen["refine"] == [311, 312, 313]
    assert [(e.task_id, e.target) for e in outcome.examples] == [(311, "refine 311 2"), (313, "refine 313 2")]
    assert steps.seen["evaluate"] == steps.seen["zero_shot"] == [11, 12]


@pytest.mark.parametrize("unusable", [set(), {(311, "gold")}, {(313, "human")}, {(311, "model"), (312, "gold")}])
def test_all_arms_train_on_the_same_tasks(unusable):
    made = {}
    for arm in ("model", "human", "gold"):
        outcome = run(Steps({"refine": {311, 312, 313}}, unusable), arm)
        made[arm] = [e.task_id for e in outcome.examples]
        assert {e.source for e in outcome.examples} == {arm}
    assert (
        made["model"]
        == made["human"]
        == made["gold"]
        == [i for i in (311, 312, 313) if i not in {t for t, _ in unusable}]
    )


class Partial(Steps):
    """People wrote no refinement for task 312, and nobody a gold program for 313; tests speak on 314."""

    def annotate(self, failing):
        found = {f.task_id: f for f in super().annotate(failing)}
        found[312] = replace(found[312], refinement=None)
        found[314] = replace(found[314], refinement=None, source="unit_tests")
        return list(found.values())


@pytest.mark.parametrize(
    ("solved_only", "ids"),
    [
        (True, {"model": [311, 314], "gold": [311, 314], "human": [311]}),
        (False, {"model": [311, 312, 313, 314], "gold": [311, 312, 314], "human": [311, 313]}),
    ],
)
def test_tasks_that_lack_an_arms_program_are_left_out_where_arms_are_to_match(solved_only, ids):
    train = tuple(replace(t, code="" if t.task_id == 313 else t.code) for t in TASKS.train)
    tasks = replace(ALONE, train=train)
    for arm, expected in ids.items():
        steps = Partial({"refine": {311, 312, 313, 314}})
        assert [e.task_id for e in whole(steps, arm, solved_only, tasks).last.examples] == expected, arm


def test_programs_that_no_task_has_are_no_arms():
    tasks = replace(ALONE, train=tuple(replace(t, code="") for t in TASKS.train))
    steps = Steps({"refine": {311, 313}})
    steps.annotate = lambda failing: [replace(f, refinement=None) for f in Steps.annotate(steps, failing)]
    found = whole(steps, "model", True, tasks).last
    assert [(e.task_id, e.source) for e in found.expressed] == [(311, "model"), (313, "model")]


def test_unmatched_arms_need_no_refiner():
    steps = Steps({})
    outcome = run(steps, "gold", solved_only=False)
    assert "refine" not in steps.calls and len(outcome.examples) == 4


def test_without_a_solved_task_nothing_is_trained():
    steps = Steps({})
    outcome = run(steps)
    assert outcome.examples == [] and outcome.finetuned is None and "train_policy" not in steps.calls


def test_self_training_has_as_many_examples_from_tasks_that_the_policy_solves():
    outcome = run(Steps({"sample": {111, 313, 314}, "refine": {311}}), "self")
    assert outcome.failing.keys() == {1, 112, 311, 312}
    assert [e.source for e in outcome.examples] == ["self"] and outcome.examples[0].task_id in (313, 314)
    assert outcome.examples[0].target.startswith("sample ") and outcome.examples[0].target.endswith(" 2")
    few = run(Steps({"sample": {314}, "refine": {311, 312, 313}}), "self")
    assert [e.task_id for e in few.examples] == [314] * 3  # as many, though it is the same sample
    unusable = run(Steps({"sample": {313, 314}, "refine": {311, 312}}, {(313, "self"), (312, "gold")}), "self")
    assert [e.task_id for e in unusable.examples] == [314]


def test_self_training_uses_no_task_of_the_other_arms_though_the_policy_solves_some_of_these():
    class Annotated(Steps):
        """People chose the tasks of which they wrote, whatever this policy makes of them."""

        def annotate(self, failing):
            return super().annotate({i: self._programs("sample", [i]) for i in (311, 312, 313)})

    correct = {"sample": {312, 313, 314}, "refine": {311, 312}}
    assert [e.task_id for e in run(Annotated(correct), "model").examples] == [311, 312]
    own = run(Annotated(correct), "self").examples
    assert len(own) == 2 and not {e.task_id for e in own} & {311, 312}
    assert [e.task_id for e in run(Annotated({**correct, "sample": {312, 314}}), "self").examples] == [314, 314]


@pytest.mark.parametrize(("matching", "counts"), [({311}, [1]), ({311, 312}, [1, 1]), ({311, 312, 313}, [1, 2])])
def test_self_training_on_too_few_tasks_takes_their_other_samples_before_any_again(matching, counts):
    own = run(Several({"sample": {314}, "refine": matching}), "self").examples
    assert sorted(Counter(e.target for e in own).values()) == counts and {e.task_id for e in own} == {314}


@pytest.mark.parametrize("solvable", [{314}, {312, 313, 314}])
@pytest.mark.parametrize("most", [1, 2, None])
def test_self_training_has_as_many_examples_also_with_several_of_a_task(solvable, most):
    correct = {"sample": solvable, "refine": {311, 313} - solvable}
    other = run(Several(correct), Model(per_task=most)).examples
    own = run(Several(correct), Self(per_task=most)).examples
    assert len(own) == len(other) and {e.task_id for e in own} <= solvable


def test_tasks_that_are_sometimes_solved_are_those_with_right_and_wrong_programs():
    programs = Steps({"sample": {311}})._programs("sample", [311, 312])
    always = [replace(p, task_id=313, verdict=Verdict("passed")) for p in programs[:3]]
    found = algorithm.sometimes_solved([*programs, *always])
    assert list(found) == [311] and [p.sample for p in found[311]] == [0, 1]


def test_the_control_evaluates_the_policy_as_it_was():
    steps = Steps({})
    outcome = run(steps, "none")
    assert steps.calls == ["zero_shot", "evaluate"] and steps.policy is None and outcome.finetuned


def test_another_models_refinements_are_on_tasks_that_the_refiner_solved_too():
    steps = Steps({"refine": {311, 312}, "llm": {312, 313}})
    outcome = run(steps, "llm")
    assert [(e.task_id, e.target) for e in outcome.examples] == [(312, "llm 312 2")]
    alone = run(Steps({"llm": {313}}), "llm", solved_only=False)
    assert [e.task_id for e in alone.examples] == [313]


def test_every_arms_programs_on_the_trained_tasks_are_noted():
    found = run(Steps({"refine": {311, 313}}, {(313, "gold")}), "gold")
    assert [(e.task_id, e.source) for e in found.expressed] == [(311, "gold"), (311, "human"), (311, "model")]


@dataclass
class Last(Refinements):
    """The last of the refiner's correct programs, and of task 312 none."""

    def program(self, found):
        return None if found.task.task_id == 312 else found.refined[-1].program


@pytest.mark.parametrize("solved_only", [True, False])
def test_an_arm_of_a_users_trains_on_its_own_programs_and_on_tasks_of_the_others(solved_only):
    class Refined(Last):
        refines = True

    arm = Refined("solved" if solved_only else "annotated")
    found = run(Steps({"refine": {311, 312, 313}}, {(313, "gold")}), arm)
    assert [(e.task_id, e.source, e.target) for e in found.examples] == [(311, "Refined", "refine 311 2")]
    assert {e.source for e in found.expressed} == {"gold", "human", "model", "Refined"}


class Several(Steps):
    """Every second sample of a solved task is correct, and the third one repeats the first."""

    def _programs(self, stage, ids, n=5):
        found = super()._programs(stage, ids, n)
        good = self.correct.get(stage, set())
        return [
            replace(p, program=f"{stage} {p.task_id} {p.sample % 4}", verdict=Verdict("passed"))
            if p.task_id in good and p.sample % 2 == 0
            else p
            for p in found
        ]


@pytest.mark.parametrize(("most", "count"), [(1, 1), (2, 2), (None, 2)])
def test_an_arm_takes_different_correct_programs_up_to_a_bound_and_others_keep_to_one(most, count):
    steps = Several({"refine": {311, 313}, "sample": {314}})
    found = run(steps, Model(per_task=most)).examples
    assert Counter(e.task_id for e in found) == {311: count, 313: count}
    assert len({e.target for e in found}) == len(found)
    one = {e.task_id: e.target for e in run(Several({"refine": {311, 313}}), "model").examples}
    assert all(one[i] == next(e.target for e in found if e.task_id == i) for i in one)  # the first is the same
    gold = run(Several({"refine": {311, 313}}), "gold").examples
    assert [e.task_id for e in gold] == [311, 313]
    own = run(Several({"refine": {311}, "sample": {314}}), Self(per_task=most)).examples
    assert Counter(e.task_id for e in own) == {314: count}


def test_each_distinct_program_is_as_likely_to_be_chosen_however_often_it_was_sampled():
    texts = ["often"] * 8 + ["once", "also once"]
    programs = [Program(311, "train", i, 0, "", "", text, Verdict("passed")) for i, text in enumerate(texts)]
    chosen = [pick(programs, seed) for seed in range(3000)]
    # 1000 +- 5 standard deviations; 2400 were there a choice among all samples
    assert all(870 < count < 1130 for count in Counter(chosen).values()) and len(set(chosen)) == 3
    assert chosen[:50] == [pick(programs[::-1], seed) for seed in range(50)]  # the order of sampling decides nothing
    found = [different(programs, seed, None) for seed in range(50)]
    assert [one[0] for one in found] == chosen[:50] and all(sorted(one) == sorted(set(texts)) for one in found)
    assert pick([], 0) is None and different([], 0, None) == []


def test_self_training_without_a_match_takes_all_solved_tasks_and_needs_no_feedback():
    steps = Steps({"sample": {111, 312, 313, 314}})
    found = run(steps, Self(match=False))
    assert [e.task_id for e in found.examples] == [312, 313, 314] and found.feedback is None
    assert steps.calls == ["zero_shot", "sample", "train_policy", "evaluate"]


def test_what_is_new_of_a_task_replaces_all_of_it_from_before():
    class Both(Several):
        def sample(self, policy, tasks):
            return self._programs(f"sample{self.round}", [t.task_id for t in tasks])

    steps = Both({"sample1": {313}, "sample2": {313, 314}})
    whole(steps, Self(match=False, per_task=None), rounds=2)
    assert Counter(i.split()[1] for i in steps.trained[1][1]) == {"313": 2, "314": 2}
    assert all("sample2" in target for target in steps.trained[1][1]) and len(steps.rounds) == 2


def test_both_policies_take_turns_at_the_end_of_a_run():
    steps = Steps({"refine": {311}})
    outcome = whole(steps, rounds=1)
    assert steps.turned == [("zero_shot", None, 6), ("finetuned", "policy 1", 6)]
    assert outcome.turns["finetuned"].feedback == [outcome.last.finetuned]
    nothing = Steps({})
    assert list(whole(nothing).turns) == ["zero_shot"]


def test_another_data_set_is_only_evaluated():
    steps = Steps({"refine": {311}})
    outcome = whole(steps, tasks=TASKS)
    assert steps.calls.count("zero_shot") == steps.calls.count("evaluate") == 2
    assert (
        [p.task_id for p in outcome.transfer_zero_shot] == [p.task_id for p in outcome.transfer_finetuned] == [11] * 3
    )
    assert len(outcome.zero_shot) == len(outcome.last.finetuned) == 6


ROUNDS = {"refine 1": {311, 312}, "sample 2": {311, 112}, "refine 2": {312, 314}, "sample 3": {311, 312, 313, 314}}


def test_each_round_samples_the_newest_policy_and_trains_the_first_one_on_all_that_was_learnt():
    steps = Steps(ROUNDS)
    outcome = whole(steps, rounds=2)
    assert steps.sampled_from == "policy 1" and steps.policy == outcome.policy == "policy 2"
    assert steps.trained == [
        (None, ["refine 311 2", "refine 312 2"]),
        (None, ["refine 311 2", "refine 312 2", "refine 314 2"]),
    ]
    assert set(outcome.rounds[1].failing) == {1, 111, 312, 313, 314}
    assert steps.seen["train_refiner"] == [1, 111, 112, 1, 111]  # feedback of both rounds


def test_rounds_from_the_last_policy_train_it_on_what_is_new():
    steps = Steps(ROUNDS)
    whole(steps, rounds=2, from_last=True)
    assert steps.trained[1] == ("policy 1", ["refine 312 2", "refine 314 2"])


def test_rounds_end_where_nothing_is_left_to_learn_and_keep_what_they_have():
    steps = Steps(ROUNDS)
    outcome = whole(steps, rounds=4)
    assert len(outcome.rounds) == 3 and outcome.rounds[2].finetuned is None
    assert outcome.last is outcome.rounds[1] and outcome.policy == "policy 2"
