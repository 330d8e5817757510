"""Algorithm 1 of the paper, Imitation learning from Language Feedback, on one page.

The collaborators (`Steps`) implement each line and are passed in, so this module contains only their order.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

from ilf.types import (
    Candidate,
    Feedback,
    Found,
    Outcome,
    Program,
    Refinement,
    Round,
    Splits,
    Task,
    Turns,
    derive_seed,
    different,
)


class Arm(Protocol):
    """An arm chooses the programs on which pi_theta* is fine-tuned. refinements.py has the existing arms."""

    # solved: all arms train on the tasks that the refiner solved; annotated: on all annotated tasks
    tasks: Literal["solved", "annotated"]
    source: ClassVar[str]  # name of the source of its programs
    trains: ClassVar[bool]  # otherwise the initial policy is evaluated
    refines: ClassVar[bool]  # whether it uses the refiner's programs
    asks_llm: ClassVar[bool]  # whether it uses an LLM's programs
    own_samples: ClassVar[bool]  # whether it trains on the policy's own correct samples instead, on other tasks
    mixes: ClassVar[bool]  # whether it trains on both

    def program(self, found: Found) -> str | None:
        """Return the program to train on for one task, or None if there is none."""

    def more(self, found: Found) -> list[str]:
        """Return more programs to train on for the same task, which the other arms need not have."""

    @property
    def unmatched(self) -> bool:
        """Whether it trains on all tasks that the policy solves, regardless of how many the other arms train on."""

    def own(self, correct: Sequence[Program], seed: int) -> list[str]:
        """Return the programs to train on from the policy's own correct samples of a task."""


class Steps(Protocol):
    """The collaborators. They pass models to each other in whatever form they choose, such as folders.

    A policy of None is the one with which the run started.
    """

    def begin_round(self, number: int) -> None:
        """Start a round, counted from 1, or return to one. Each round has its own random seeds."""

    def zero_shot(self, tasks: Sequence[Task]) -> list[Program] | None:
        """Sample and execute the initial policy's programs on tasks that are reported."""

    def sample(self, policy: Any, tasks: Sequence[Task]) -> list[Program]:
        """Sample and execute the policy's programs x0 ~ pi_theta(.|t)."""

    def failing(self, samples: Sequence[Program]) -> dict[int, list[Program]]:
        """Return C: the incorrect programs of each task that fails."""

    def annotate(self, failing: dict[int, list[Program]]) -> list[Feedback]:
        """Collect feedback f on incorrect programs."""

    def train_refiner(self, feedback: Sequence[Feedback]) -> Any:
        """Train the refiner and return pi_Refine."""

    def refine(self, refiner: Any, feedback: Sequence[Feedback]) -> list[Program]:
        """Sample and execute refinements x1 ~ pi_Refine(.|t, x0, f)."""

    def ask_llm(self, feedback: Sequence[Feedback]) -> list[Program]:
        """Have an LLM refine x0, and execute its programs."""

    def express(self, candidates: Sequence[Candidate]) -> list[Refinement | None]:
        """Return each candidate as a training example, or None if it can't be one."""

    def train_policy(self, policy: Any, examples: Sequence[Refinement], rounds: Sequence[Round]) -> Any:
        """Return pi_theta* = Finetune(pi_theta, R), given R and all samples of the rounds so far."""

    def evaluate(self, policy: Any, tasks: Sequence[Task]) -> list[Program]:
        """Sample and execute the fine-tuned policy's programs on tasks that are reported."""

    def take_turns(self, part: str, policy: Any, programs: Sequence[Program]) -> Turns | None:
        """Have failing programs rewritten with feedback for the configured number of turns; None if that is 0."""


def run(
    do: Steps,
    tasks: Splits,
    outcome: Outcome,
    *,
    arm: Arm,
    others: Sequence[Arm],
    seed: int,
    rounds: int = 1,
    from_last: bool = False,
) -> None:
    """Run Algorithm 1 and write its results into `outcome` step by step.

    Args:
        do: The collaborators.
        tasks: D, by split.
        outcome: The results. It is filled in step by step, so that an interrupted run retains what it has.
        arm: Chooses what pi_theta* is fine-tuned on. For the algorithm itself, this is R.
        others: The arms with which it is compared. They train on the same tasks.
        seed: Seed of the choice among several correct refinements.
        rounds: How often to run the algorithm, each time with samples of and feedback on the new policy.
        from_last: Fine-tune the previous round's policy on the new examples, not the first policy on all examples.
    """
    outcome.zero_shot = do.zero_shot(tasks.test)
    if tasks.transfer:
        outcome.transfer_zero_shot = do.zero_shot(tasks.transfer)
    learnt: dict[int, list[Refinement]] = {}  # the newest examples, by task
    for number in range(1, rounds + 1):
        do.begin_round(number)
        outcome.rounds.append(this := Round())
        if not arm.trains:
            this.examples = []
        else:
            new = _one_round(do, tasks, outcome, arm, others, seed)
            learnt = ({} if from_last else learnt) | {group[0].task_id: group for group in new}
            this.examples = [example for group in learnt.values() for example in group]
            if not new:  # no training examples are left
                break
            # 4. pi_theta* = Finetune(pi_theta, R). The paper has one refinement per task.
            this.policy = do.train_policy(outcome.policy if from_last else None, this.examples, outcome.rounds)
            outcome.policy = this.policy
        this.finetuned = do.evaluate(outcome.policy, tasks.test)
        if tasks.transfer:
            outcome.transfer_finetuned = do.evaluate(outcome.policy, tasks.transfer)
    last = next(number for number, one in enumerate(outcome.rounds, 1) if one is outcome.last)
    for part, number, policy, programs in (
        ("zero_shot", 1, None, outcome.zero_shot),
        ("finetuned", last, outcome.last.policy, outcome.last.finetuned),
    ):
        do.begin_round(number)  # the one in which the programs were sampled
        if programs and (turns := do.take_turns(part, policy, programs)):
            outcome.turns[part] = turns


def _one_round(
    do: Steps, tasks: Splits, outcome: Outcome, arm: Arm, others: Sequence[Arm], seed: int
) -> list[list[Refinement]]:
    """Run lines 1 to 3 with the newest policy, and return the training examples by task."""
    this = outcome.rounds[-1]
    # 1. C: sample x0 ~ pi_theta(.|t), keep the tasks that fail.
    this.samples = do.sample(outcome.policy, [*tasks.prompt, *tasks.refine, *tasks.train])
    this.failing = do.failing(this.samples)
    if arm.unmatched:
        return choose_own(do, tasks, this.samples, arm, seed)
    # 2. C_annotated: feedback f on one x0 of each.
    this.feedback = do.annotate(this.failing)
    train = [f for f in this.feedback if f.split == "train"]
    if not train and len(outcome.rounds) > 1:  # in the first round, the steps raise an error that explains this
        return []
    # 3. R: sample x1 ~ pi_Refine(.|t, x0, f), keep the correct ones. Other arms match their task ids.
    if arm.refines or arm.tasks == "solved":
        seen = [f for one in outcome.rounds for f in one.feedback or [] if f.split != "train"]
        this.refinements = do.refine(do.train_refiner(seen), train)
    if arm.asks_llm:
        this.llm_refinements = do.ask_llm(train)
    examples = choose(do, tasks, train, this, arm, others, seed)
    if not arm.own_samples:
        return examples
    own = choose_own(do, tasks, this.samples, arm, seed, matching=examples)
    return [*examples, *own] if arm.mixes else own


def unsolved(programs: Iterable[Program]) -> dict[int, list[Program]]:
    """Return the programs of each task that has no correct program."""
    return {i: found for i, found in _by_task(programs).items() if not any(p.verdict.passed for p in found)}


def not_always_solved(programs: Iterable[Program]) -> dict[int, list[Program]]:
    """Return the incorrect programs of each task that has any."""
    return _by_task(p for p in programs if not p.verdict.passed)


def sometimes_solved(programs: Iterable[Program]) -> dict[int, list[Program]]:
    """Return the incorrect programs of each task that has correct programs, too."""
    by_task = _by_task(programs)
    wrong = {i: [p for p in found if not p.verdict.passed] for i, found in by_task.items()}
    return {i: some for i, some in wrong.items() if 0 < len(some) < len(by_task[i])}


def _by_task(programs: Iterable[Program]) -> dict[int, list[Program]]:
    by_task: dict[int, list[Program]] = defaultdict(list)
    for program in programs:
        by_task[program.task_id].append(program)
    return by_task


def choose(
    do: Steps, tasks: Splits, feedback: Sequence[Feedback], found: Round, arm: Arm, others: Sequence[Arm], seed: int
) -> list[list[Refinement]]:
    """Return the training set of an arm, by task: one or more examples per task, on the same task ids for every arm.

    A task is left out for all arms if any arm has a program for it that can't become an example. Where only some tasks
    have gold programs or an annotator's refinements, the arm that trains on them leaves out the other tasks, and so do
    all arms if arms are to match.
    """
    solved, llm = _correct(found.refinements or []), _correct(found.llm_refinements or [])
    matching, known = arm.tasks == "solved", {other.source for other in others}
    golden = any(tasks.by_id[f.task_id].code for f in feedback) and (matching or arm.source == "gold")
    refining = {f.source for f in feedback if f.refinement is not None and (matching or arm.source == "human")}
    groups: list[tuple[list[Candidate], list[Candidate]]] = []  # per task: those that all arms need, and other ones
    for f in feedback:
        one = Found(tasks.by_id[f.task_id], f, solved.get(f.task_id, []), llm.get(f.task_id, []), seed)
        if not one.refined and (matching or arm.refines):
            continue
        programs = {other.source: other.program(one) for other in (*others, arm)}
        asked = {"gold": golden, "human": f.source in refining}
        asking = [
            Candidate(one.task, program, source, f)
            for source, program in programs.items()
            if program is not None or asked.get(source, source not in known)
        ]
        groups.append((asking, [Candidate(one.task, program, arm.source, f) for program in arm.more(one)]))
    examples = iter(do.express([candidate for asking, more in groups for candidate in (*asking, *more)]))
    chosen, found.expressed = [], []
    for asking, more in groups:
        expressed = {candidate.source: next(examples) for candidate in asking}
        others_of_task = [next(examples) for _ in more]
        example = expressed.get(arm.source)
        if all(expressed.values()):
            found.expressed += [e for e in expressed.values() if e is not None]
            if example is not None:
                chosen.append([example, *(e for e in others_of_task if e is not None)])
    return chosen


def choose_own(
    do: Steps,
    tasks: Splits,
    samples: Iterable[Program],
    arm: Arm,
    seed: int,
    matching: Sequence[Sequence[Refinement]] | None = None,
) -> list[list[Refinement]]:
    """Return the policy's own correct samples, by task, for training without feedback.

    Args:
        do: The collaborators.
        tasks: The tasks, by split.
        samples: The policy's programs. Only Train tasks that the policy solves count.
        arm: Chooses among the correct samples of a task.
        seed: Seed of the choice of tasks.
        matching: The examples of the other arms, by task. Their number is matched, and none of their tasks is used. If
            the policy solves too few other tasks, these get more of their correct samples each, and finally
            duplicates. None for all tasks that the policy solves.
    """
    taken = {group[0].task_id for group in matching or ()}
    correct = _correct(p for p in samples if p.split == "train" and p.task_id not in taken)
    kept = {i: arm.own(programs, seed) for i, programs in correct.items()}
    solved = _grouped(do, tasks, kept)
    if matching is None:
        return sorted(solved.values(), key=lambda group: group[0].task_id)
    count, spare = sum(map(len, matching)), dict[int, list[Refinement]]()
    if sum(map(len, solved.values())) < count:
        more = {i: [p for p in different(correct[i], seed, None) if p not in kept[i]] for i in solved}
        spare = _grouped(do, tasks, more)
    order = random.Random(derive_seed(seed, "choose_own")).sample(sorted(solved), len(solved))
    return _as_many(solved, spare, order, count)


def _grouped(do: Steps, tasks: Splits, programs: Mapping[int, Sequence[str]]) -> dict[int, list[Refinement]]:
    """Return the policy's own programs as examples, by task. Tasks without any are left out."""
    candidates = [Candidate(tasks.by_id[i], program, "self") for i, some in programs.items() for program in some]
    groups: dict[int, list[Refinement]] = defaultdict(list)
    for example in do.express(candidates):
        if example is not None:
            groups[example.task_id].append(example)
    return groups


def _as_many(
    solved: Mapping[int, list[Refinement]], spare: Mapping[int, list[Refinement]], order: Sequence[int], count: int
) -> list[list[Refinement]]:
    """Return `count` examples by task: first `solved` in `order`, then spare ones of each in turn, then duplicates."""
    groups: dict[int, list[Refinement]] = {}
    for i in order:
        if count > 0:
            groups[i], count = solved[i][:count], count - len(solved[i])
    waiting = {i: [*spare.get(i, ()), *group] for i, group in groups.items()}
    for i in itertools.islice(itertools.cycle(groups), max(count, 0)):
        waiting[i].append(waiting[i].pop(0))
        groups[i].append(waiting[i][-1])
    return [groups[i] for i in sorted(groups)]


def _correct(programs: Iterable[Program]) -> dict[int, list[Program]]:
    """Return the correct programs of each task that has any."""
    return _by_task(p for p in programs if p.verdict.passed)
