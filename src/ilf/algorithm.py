"""Algorithm 1 of the paper, Imitation learning from Language Feedback, on one page.

What each line does is passed in (`Steps`), so that this page holds the order and nothing else.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ilf.types import Feedback, Outcome, Program, Refinement, Splits, Task, derive_seed


@dataclass(frozen=True)
class Candidate:
    """A program that may become a training example."""

    task: Task
    program: str
    source: str
    feedback: Feedback | None = None


class Steps(Protocol):
    """The collaborators. A `model` is whatever one of them returns and another takes: a folder, say."""

    def zero_shot(self, tasks: Sequence[Task]) -> list[Program] | None:
        """Sample and execute the policy's programs on Test."""

    def sample(self, tasks: Sequence[Task]) -> list[Program]:
        """Sample and execute the policy's programs x0 ~ pi_theta(.|t)."""

    def annotate(self, failing: dict[int, list[Program]]) -> list[Feedback]:
        """Have feedback f written on wrong programs."""

    def train_refiner(self, feedback: Sequence[Feedback]) -> Any:
        """Return pi_Refine."""

    def refine(self, refiner: Any, feedback: Sequence[Feedback]) -> list[Program]:
        """Sample and execute refinements x1 ~ pi_Refine(.|t, x0, f)."""

    def express(self, candidates: Sequence[Candidate]) -> list[Refinement | None]:
        """Return each candidate as a training example, None where it can't be one."""

    def train_policy(self, examples: Sequence[Refinement]) -> Any:
        """Return pi_theta* = Finetune(pi_theta, R)."""

    def evaluate(self, policy: Any, tasks: Sequence[Task]) -> list[Program]:
        """Sample and execute the fine-tuned policy's programs on Test."""


def run(do: Steps, tasks: Splits, outcome: Outcome, *, arm: str, solved_only: bool, seed: int) -> None:
    """Run Algorithm 1 and write what it finds into `outcome` as it goes.

    Args:
        do: The collaborators.
        tasks: D, by split.
        outcome: Filled in line by line, so that an interrupted run keeps what it has.
        arm: What pi_theta* is fine-tuned on: "model" (R, the algorithm itself), "human", "gold", "self" (as many of
            the policy's own correct samples, on other tasks) or "none".
        solved_only: All arms train on the tasks that the refiner solved; else on all annotated ones.
        seed: Of the choice among several correct refinements.
    """
    outcome.zero_shot = do.zero_shot(tasks.test)
    if arm == "none":
        outcome.examples = []
        outcome.finetuned = do.evaluate(None, tasks.test)
        return
    # 1. C: sample x0 ~ pi_theta(.|t), keep the tasks without a correct program.
    outcome.samples = do.sample([*tasks.refine, *tasks.train])
    outcome.failing = failing(outcome.samples)
    # 2. C_annotated: feedback f on one x0 of each.
    outcome.feedback = do.annotate(outcome.failing)
    train = [f for f in outcome.feedback if f.split == "train"]
    # 3. R: sample x1 ~ pi_Refine(.|t, x0, f), keep the correct ones. The other arms need them to match task ids.
    if arm in ("model", "self") or solved_only:
        refiner = do.train_refiner([f for f in outcome.feedback if f.split == "refine"])
        outcome.refinements = do.refine(refiner, train)
    outcome.examples = choose(
        do, tasks, train, outcome.refinements, "model" if arm == "self" else arm, solved_only, seed
    )
    if arm == "self":
        outcome.examples = choose_own(do, tasks, outcome.samples, len(outcome.examples), seed)
    # 4. pi_theta* = Finetune(pi_theta, R), one refinement a task.
    if outcome.examples:
        policy = do.train_policy(outcome.examples)
        outcome.finetuned = do.evaluate(policy, tasks.test)


def failing(programs: Iterable[Program]) -> dict[int, list[Program]]:
    """Return the programs of each task that has no correct one."""
    by_task: dict[int, list[Program]] = defaultdict(list)
    for program in programs:
        by_task[program.task_id].append(program)
    return {i: found for i, found in by_task.items() if not any(p.verdict.passed for p in found)}


def choose(
    do: Steps,
    tasks: Splits,
    feedback: Sequence[Feedback],
    refinements: Sequence[Program] | None,
    arm: str,
    solved_only: bool,
    seed: int,
) -> list[Refinement]:
    """Return the training set of an arm: one example a task, on the same task ids for every arm.

    A task is left out for all arms where the program of any arm that has one can't be made an example.
    """
    solved = _correct(refinements or [])
    groups: list[list[Candidate]] = []
    for f in feedback:
        if f.task_id not in solved and (solved_only or arm == "model"):
            continue
        task = tasks.by_id[f.task_id]
        group = [Candidate(task, task.code, "gold", f)]
        if f.refinement is not None:
            group.append(Candidate(task, f.refinement, "human", f))
        if f.task_id in solved:
            group.append(Candidate(task, _pick(solved[f.task_id], seed), "model", f))
        groups.append(group)
    examples = iter(do.express([candidate for group in groups for candidate in group]))
    chosen = []
    for group in groups:
        found = {candidate.source: next(examples) for candidate in group}
        example = found.get(arm)
        if example is not None and all(found.values()):
            chosen.append(example)
    return chosen


def choose_own(do: Steps, tasks: Splits, samples: Iterable[Program], count: int, seed: int) -> list[Refinement]:
    """Return as many of the policy's own correct samples as `count`, one a task: self-training without feedback.

    They are on Train tasks that the policy solves, so on none of those that the other arms train on.
    """
    correct = _correct(p for p in samples if p.split == "train")
    candidates = [Candidate(tasks.by_id[i], _pick(programs, seed), "self") for i, programs in correct.items()]
    examples = [example for example in do.express(candidates) if example is not None]
    chosen = random.Random(derive_seed(seed, "choose_own")).sample(examples, min(count, len(examples)))
    return sorted(chosen, key=lambda example: example.task_id)


def _correct(programs: Iterable[Program]) -> dict[int, list[Program]]:
    """Return the correct programs of each task that has one."""
    found: dict[int, list[Program]] = defaultdict(list)
    for program in programs:
        if program.verdict.passed:
            found[program.task_id].append(program)
    return found


def _pick(programs: Sequence[Program], seed: int) -> str:
    """Return one of a task's programs."""
    return random.Random(derive_seed(seed, "choose", programs[0].task_id)).choice(programs).program
