"""Algorithm 1 with steps whose results are predefined."""

from collections import Counter
from dataclasses import dataclass, replace

import pytest

from ilf import algorithm
from ilf.refinements import COMPARED, LLM, Gold, Human, Model, ModelAndSelf, Nothing, Refinements, Self
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
WITHOUT_TRANSFER = replace(TASKS, transfer=())


ARMS = {one.name: one for one in (Model, ModelAndSelf, Human, Gold, LLM, Self, Nothing)}


class Steps:
    """Steps with predefined results, which record the order of their calls."""

    def __init__(self, correct: dict[str, set[int]], unusable: set[tuple[int, str]] = frozenset()):
        self.correct, self.unusable, self.calls, self.seen = correct, unusable, [], {}
        self.round, self.trained = 0, []

    def _programs(self, stage, ids, n=3):
        self.calls.append(stage)
        self.seen[stage] = list(ids)
        good = self.correct.get(f"{stage} {self.round}", self.correct.get(stage, set()))
        # Of a solved task, only the last sample is correct.
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
        assert refiner == "refiner" and feedback  # the real step raises an error if there is no feedback
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
        self.turned = [*getattr(self, "turned", []), (part, self.round, policy, len(programs))]
        return Turns([list(programs)], [list(programs)])


def run_all_rounds(steps, arm="model", solved_only=True, tasks=WITHOUT_TRANSFER, **more):
    outcome = Outcome()
    if isinstance(arm, str):
        arm = ARMS[arm]("solved" if solved_only else "annotated")
    algorithm.run(steps, tasks, outcome, arm=arm, others=COMPARED, seed=0, **more)
    return outcome


def run_round(steps, arm="model", solved_only=True, **more):
    return run_all_rounds(steps, arm, solved_only, **more).last


def test_steps_run_in_the_papers_order_on_the_right_splits():
    steps = Steps({"sample": {111, 314}, "refine": {311, 313}})
    outcome = run_round(steps)
    assert steps.calls == ["zero_shot", "sample", "annotate", "train_refiner", "refine", "train_policy", "evaluate"]
    assert set(outcome.failing) == {1, 112, 311, 312, 313}  # tasks that the policy never solved
    assert steps.seen["train_refiner"] == [1, 112]  # none of Train or Test; 1 only for worked examples
    assert steps.seen["refine"] == [311, 312, 313]
    assert [(e.task_id, e.target) for e in outcome.examples] == [(311, "refine 311 2"), (313, "refine 313 2")]
    assert steps.seen["evaluate"] == steps.seen["zero_shot"] == [11, 12]


@pytest.mark.parametrize("unusable", [set(), {(311, "gold")}, {(313, "human")}, {(311, "model"), (312, "gold")}])
def test_all_arms_train_on_the_same_tasks(unusable):
    made = {}
    for arm in ("model", "human", "gold"):
        outcome = run_round(Steps({"refine": {311, 312, 313}}, unusable), arm)
        made[arm] = [e.task_id for e in outcome.examples]
        assert {e.source for e in outcome.examples} == {arm}
    assert (
        made["model"]
        == made["human"]
        == made["gold"]
        == [i for i in (311, 312, 313) if i not in {t for t, _ in unusable}]
    )


class Partial(Steps):
    """Feedback on task 312 has no refinement, and feedback on task 314 comes from unit tests."""

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
def test_matched_arms_leave_out_tasks_that_lack_the_program_of_an_arm(solved_only, ids):
    train = tuple(replace(t, code="" if t.task_id == 313 else t.code) for t in TASKS.train)
    tasks = replace(WITHOUT_TRANSFER, train=train)
    for arm, expected in ids.items():
        steps = Partial({"refine": {311, 312, 313, 314}})
        assert [e.task_id for e in run_all_rounds(steps, arm, solved_only, tasks).last.examples] == expected, arm


def test_arms_without_a_program_on_any_task_exclude_no_tasks():
    tasks = replace(WITHOUT_TRANSFER, train=tuple(replace(t, code="") for t in TASKS.train))
    steps = Steps({"refine": {311, 313}})
    steps.annotate = lambda failing: [replace(f, refinement=None) for f in Steps.annotate(steps, failing)]
    found = run_all_rounds(steps, "model", True, tasks).last
    assert [(e.task_id, e.source) for e in found.expressed] == [(311, "model"), (313, "model")]


def test_gold_on_annotated_tasks_needs_no_refiner():
    steps = Steps({})
    outcome = run_round(steps, "gold", solved_only=False)
    assert "refine" not in steps.calls and len(outcome.examples) == 4


def test_without_solved_tasks_no_policy_is_trained():
    steps = Steps({})
    outcome = run_round(steps)
    assert outcome.examples == [] and outcome.finetuned is None and "train_policy" not in steps.calls


def test_self_training_matches_the_example_count_on_solved_tasks():
    outcome = run_round(Steps({"sample": {111, 313, 314}, "refine": {311}}), "self")
    assert outcome.failing.keys() == {1, 112, 311, 312}
    assert [e.source for e in outcome.examples] == ["self"] and outcome.examples[0].task_id in (313, 314)
    assert outcome.examples[0].target.startswith("sample ") and outcome.examples[0].target.endswith(" 2")
    few = run_round(Steps({"sample": {314}, "refine": {311, 312, 313}}), "self")
    assert [e.task_id for e in few.examples] == [314] * 3  # the same number, with duplicates
    unusable = run_round(Steps({"sample": {313, 314}, "refine": {311, 312}}, {(313, "self"), (312, "gold")}), "self")
    assert [e.task_id for e in unusable.examples] == [314]


def test_ilf_and_self_adds_as_many_own_samples_on_other_tasks():
    correct = {"sample": {313, 314}, "refine": {311, 312}}
    ilf, own = (run_round(Steps(correct), arm).examples for arm in ("model", "self"))
    assert {e.source for e in ilf} == {"model"} and {e.source for e in own} == {"self"}
    assert run_round(Steps(correct), "model_and_self").examples == [*ilf, *own]
    one = run_round(Steps({**correct, "refine": {311}}), "model_and_self").examples
    assert [e.source for e in one] == ["model", "self"]
    assert run_round(Steps({"sample": {313}}), "model_and_self").examples == []


def test_self_training_excludes_the_tasks_of_the_other_arms():
    class Annotated(Steps):
        """Has feedback on fixed tasks, including tasks that the policy solves."""

        def annotate(self, failing):
            return super().annotate({i: self._programs("sample", [i]) for i in (311, 312, 313)})

    correct = {"sample": {312, 313, 314}, "refine": {311, 312}}
    assert [e.task_id for e in run_round(Annotated(correct), "model").examples] == [311, 312]
    own = run_round(Annotated(correct), "self").examples
    assert len(own) == 2 and not {e.task_id for e in own} & {311, 312}
    assert [e.task_id for e in run_round(Annotated({**correct, "sample": {312, 314}}), "self").examples] == [314, 314]


@pytest.mark.parametrize(("matching", "counts"), [({311}, [1]), ({311, 312}, [1, 1]), ({311, 312, 313}, [1, 2])])
def test_self_training_uses_distinct_samples_before_duplicates(matching, counts):
    own = run_round(Several({"sample": {314}, "refine": matching}), "self").examples
    assert sorted(Counter(e.target for e in own).values()) == counts and {e.task_id for e in own} == {314}


@pytest.mark.parametrize("solvable", [{314}, {312, 313, 314}])
@pytest.mark.parametrize("most", [1, 2, None])
def test_self_training_matches_the_example_count_for_any_per_task(solvable, most):
    correct = {"sample": solvable, "refine": {311, 313} - solvable}
    other = run_round(Several(correct), Model(per_task=most)).examples
    own = run_round(Several(correct), Self(per_task=most)).examples
    assert len(own) == len(other) and {e.task_id for e in own} <= solvable


def test_sometimes_solved_requires_correct_and_incorrect_programs():
    programs = Steps({"sample": {311}})._programs("sample", [311, 312])
    always = [replace(p, task_id=313, verdict=Verdict("passed")) for p in programs[:3]]
    found = algorithm.sometimes_solved([*programs, *always])
    assert list(found) == [311] and [p.sample for p in found[311]] == [0, 1]


def test_the_none_arm_evaluates_the_initial_policy():
    steps = Steps({})
    outcome = run_round(steps, "none")
    assert steps.calls == ["zero_shot", "evaluate"] and steps.policy is None and outcome.finetuned


def test_the_llm_arm_trains_on_tasks_that_the_refiner_also_solved():
    steps = Steps({"refine": {311, 312}, "llm": {312, 313}})
    outcome = run_round(steps, "llm")
    assert [(e.task_id, e.target) for e in outcome.examples] == [(312, "llm 312 2")]
    alone = run_round(Steps({"llm": {313}}), "llm", solved_only=False)
    assert [e.task_id for e in alone.examples] == [313]


def test_programs_of_all_arms_are_recorded_for_the_trained_tasks():
    found = run_round(Steps({"refine": {311, 313}}, {(313, "gold")}), "gold")
    assert [(e.task_id, e.source) for e in found.expressed] == [(311, "gold"), (311, "human"), (311, "model")]


@dataclass
class Last(Refinements):
    """Trains on the last of the refiner's correct programs, and not on task 312."""

    def program(self, found):
        return None if found.task.task_id == 312 else found.refined[-1].program


@pytest.mark.parametrize("solved_only", [True, False])
def test_a_user_defined_arm_trains_on_its_own_programs(solved_only):
    class Refined(Last):
        refines = True

    arm = Refined("solved" if solved_only else "annotated")
    found = run_round(Steps({"refine": {311, 312, 313}}, {(313, "gold")}), arm)
    assert [(e.task_id, e.source, e.target) for e in found.examples] == [(311, "Refined", "refine 311 2")]
    assert {e.source for e in found.expressed} == {"gold", "human", "model", "Refined"}


class Several(Steps):
    """Every second sample of a solved task is correct, and the third correct one repeats the first."""

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
def test_per_task_limits_the_distinct_programs_of_an_arm(most, count):
    steps = Several({"refine": {311, 313}, "sample": {314}})
    found = run_round(steps, Model(per_task=most)).examples
    assert Counter(e.task_id for e in found) == {311: count, 313: count}
    assert len({e.target for e in found}) == len(found)
    one = {e.task_id: e.target for e in run_round(Several({"refine": {311, 313}}), "model").examples}
    # The first program does not depend on per_task.
    assert all(one[i] == next(e.target for e in found if e.task_id == i) for i in one)
    gold = run_round(Several({"refine": {311, 313}}), "gold").examples
    assert [e.task_id for e in gold] == [311, 313]
    own = run_round(Several({"refine": {311}, "sample": {314}}), Self(per_task=most)).examples
    assert Counter(e.task_id for e in own) == {314: count}


def test_distinct_programs_are_chosen_uniformly_despite_duplicates():
    texts = ["often"] * 8 + ["once", "also once"]
    programs = [Program(311, "train", i, 0, "", "", text, Verdict("passed")) for i, text in enumerate(texts)]
    chosen = [pick(programs, seed) for seed in range(3000)]
    # 1000 +- 5 standard deviations; a choice among all samples would give 2400 for one of them
    assert all(870 < count < 1130 for count in Counter(chosen).values()) and len(set(chosen)) == 3
    assert chosen[:50] == [pick(programs[::-1], seed) for seed in range(50)]  # independent of the order of the samples
    found = [different(programs, seed, None) for seed in range(50)]
    assert [one[0] for one in found] == chosen[:50] and all(sorted(one) == sorted(set(texts)) for one in found)
    assert pick([], 0) is None and different([], 0, None) == []


def test_unmatched_self_training_uses_all_solved_tasks_and_no_feedback():
    steps = Steps({"sample": {111, 312, 313, 314}})
    found = run_round(steps, Self(match=False))
    assert [e.task_id for e in found.examples] == [312, 313, 314] and found.feedback is None
    assert steps.calls == ["zero_shot", "sample", "train_policy", "evaluate"]


def test_new_examples_replace_all_earlier_examples_of_their_task():
    class SeveralPerRound(Several):
        def sample(self, policy, tasks):
            return self._programs(f"sample{self.round}", [t.task_id for t in tasks])

    steps = SeveralPerRound({"sample1": {313}, "sample2": {313, 314}})
    run_all_rounds(steps, Self(match=False, per_task=None), rounds=2)
    assert Counter(i.split()[1] for i in steps.trained[1][1]) == {"313": 2, "314": 2}
    assert all("sample2" in target for target in steps.trained[1][1]) and len(steps.rounds) == 2


@pytest.mark.parametrize("rounds", [1, 3])
def test_feedback_turns_run_in_the_rounds_in_which_the_programs_were_sampled(rounds):
    # The third round has nothing to train on.
    steps = Steps({"refine 1": {311}, "refine 2": {312}})
    outcome = run_all_rounds(steps, rounds=rounds)
    newest = min(rounds, 2)
    assert steps.turned == [("zero_shot", 1, None, 6), ("finetuned", newest, f"policy {newest}", 6)]
    assert outcome.turns["finetuned"].feedback == [outcome.last.finetuned]
    nothing = Steps({})
    assert list(run_all_rounds(nothing).turns) == ["zero_shot"]


def test_a_transfer_data_set_is_only_evaluated():
    steps = Steps({"refine": {311}})
    outcome = run_all_rounds(steps, tasks=TASKS)
    assert steps.calls.count("zero_shot") == steps.calls.count("evaluate") == 2
    assert (
        [p.task_id for p in outcome.transfer_zero_shot] == [p.task_id for p in outcome.transfer_finetuned] == [11] * 3
    )
    assert len(outcome.zero_shot) == len(outcome.last.finetuned) == 6


ROUNDS = {"refine 1": {311, 312}, "sample 2": {311, 112}, "refine 2": {312, 314}, "sample 3": {311, 312, 313, 314}}


def test_rounds_sample_the_newest_policy_and_train_the_initial_one():
    steps = Steps(ROUNDS)
    outcome = run_all_rounds(steps, rounds=2)
    assert steps.sampled_from == "policy 1" and steps.policy == outcome.policy == "policy 2"
    assert steps.trained == [
        (None, ["refine 311 2", "refine 312 2"]),
        (None, ["refine 311 2", "refine 312 2", "refine 314 2"]),
    ]
    assert set(outcome.rounds[1].failing) == {1, 111, 312, 313, 314}
    assert steps.seen["train_refiner"] == [1, 111, 112, 1, 111]  # feedback of both rounds


def test_rounds_from_last_train_the_last_policy_on_new_examples():
    steps = Steps(ROUNDS)
    run_all_rounds(steps, rounds=2, from_last=True)
    assert steps.trained[1] == ("policy 1", ["refine 312 2", "refine 314 2"])


def test_rounds_stop_without_new_examples_and_keep_their_results():
    steps = Steps(ROUNDS)
    outcome = run_all_rounds(steps, rounds=4)
    assert len(outcome.rounds) == 3 and outcome.rounds[2].finetuned is None
    assert outcome.last is outcome.rounds[1] and outcome.policy == "policy 2"
