"""Algorithm 1 of the paper, Imitation learning from Language Feedback, on one page.

What each line does is passed in (`Steps`), so that this page holds the order and nothing else.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from ilf.types import Feedback, Outcome, Program, Refinement, Splits, Task, derive_seed


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

    def express(self, task: Task, program: str, source: str, feedback: Feedback) -> Refinement | None:
        """Return a training example, None where the program can't be one."""

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
        arm: What pi_theta* is fine-tuned on: "model" (R, the algorithm itself), "human", "gold" or "none".
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
    if arm == "model" or solved_only:
        refiner = do.train_refiner([f for f in outcome.feedback if f.split == "refine"])
        outcome.refinements = do.refine(refiner, train)
    outcome.examples = choose(do, tasks, train, outcome.refinements, arm, solved_only, seed)
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
    solved: dict[int, list[Program]] = defaultdict(list)
    for program in refinements or []:
        if program.verdict.passed:
            solved[program.task_id].append(program)
    chosen = []
    for f in feedback:
        if f.task_id not in solved and (solved_only or arm == "model"):
            continue
        task = tasks.by_id[f.task_id]
        programs = {"gold": task.code}
        if f.refinement is not None:
            programs["human"] = f.refinement
        if f.task_id in solved:
            pick = random.Random(derive_seed(seed, "choose", f.task_id)).choice(solved[f.task_id])
            programs["model"] = pick.program
        examples = {source: do.express(task, text, source, f) for source, text in programs.items()}
        example = examples.get(arm)
        if example is not None and all(examples.values()):
            chosen.append(example)
    return chosen
