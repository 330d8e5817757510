"""The paper's refiner, which is fine-tuned on annotated tasks of the Refine split."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ilf.analysis.refinements import edit_distance
from ilf.protocols import Refiner, Refining
from ilf.ranges import UnderHalf
from ilf.types import Feedback, derive_seed


@dataclass
class FineTuned(Refiner):
    """A refiner: the base model, fine-tuned to write a refinement of each annotated program of Refine.

    Args:
        targets: The refinements to train on. annotator: the annotator's or, if there is none, the task's gold program.
            gold: the gold program. own: the policy's own correct sample that is nearest to the incorrect program, so
            that the refiner imitates no one else's style; tasks that the policy sometimes solves then get feedback too.
        held_out: The fraction of the tasks that are held out for validation.
    """

    targets: Literal["annotator", "gold", "own"] = "annotator"
    held_out: UnderHalf = 0.2

    name = "finetuned"
    trains = True

    @property
    def learns(self) -> Literal["annotator", "gold", "own"]:
        """The source of the programs that the refiner is trained to write."""
        return self.targets

    def trained_on(self, tasks: int) -> int:
        """Return the number of training tasks, given the number of all tasks."""
        return tasks - int(self.held_out * tasks + 1e-9)

    def example(self, feedback: Feedback, run: Refining) -> Any:
        """Return the training example for a feedback. Raise ValueError or SyntaxError if there can't be one."""
        task = run.tasks.by_id[feedback.task_id]
        prompt = self.prompt(feedback, task, run)
        return run.module.example(run.tokenizer, feedback, task, self.old_code_tokens, run.max_length, prompt)

    def train(self, feedback: Sequence[Feedback], run: Refining) -> Path:
        """Fine-tune the refiner, and return the folder of the model."""
        feedback, examples = self._with_targets([f for f in feedback if f.split == "refine"], run), []
        for f in feedback:
            try:
                examples.append(self.example(f, run))
            except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
                run.rejected.append(f"task {f.task_id} (refiner): {error}")
        # Hold out whole tasks, as several rounds may have feedback on the same task.
        found = list(dict.fromkeys(e.task_id for e in examples))
        order = random.Random(derive_seed(run.seed, "held_out")).sample(found, len(found))
        ids = set(order[: len(order) - self.trained_on(len(order))])
        held_out = [e for i in order for e in examples if e.task_id == i and i in ids]
        training = [e for i in order for e in examples if e.task_id == i and i not in ids]
        asked = [(run.tasks.by_id[f.task_id], f) for f in feedback if f.task_id in ids]
        return run.fine_tune(training, held_out, [(task, self.prompt(f, task, run)) for task, f in asked])

    def _with_targets(self, feedback: Sequence[Feedback], run: Refining) -> list[Feedback]:
        """Return each piece of feedback with the target refinement, which is None for the task's gold program."""
        if self.targets == "annotator":
            return list(feedback)
        if self.targets == "gold":
            return [replace(f, refinement=None) for f in feedback]
        found = []
        for f in feedback:
            correct = sorted({p.program for p in run.samples if p.task_id == f.task_id and p.verdict.passed})
            if correct:
                nearest = min(correct, key=lambda program: edit_distance(f.program, program))
                found.append(replace(f, refinement=nearest))
        return found
