"""The refiner of the paper: fine-tuned on annotated tasks of the Refine split."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilf.refiners.refiner import Refiner, Refining
from ilf.types import Feedback, derive_seed


@dataclass
class FineTuned(Refiner):
    """The base, fine-tuned to write the annotators' refinements; where there is none, the task's gold program."""

    name = "finetuned"
    trains = True

    def example(self, feedback: Feedback, run: Refining) -> Any:
        """Return what is learnt from one feedback. Raises ValueError or SyntaxError where nothing can be."""
        task = run.tasks.by_id[feedback.task_id]
        return run.example(feedback, task, self.prompt(feedback, task, run))

    def train(self, feedback: Sequence[Feedback], run: Refining) -> Path:
        """Return the folder of the fine-tuned model; a fifth of the tasks is held out to validate on."""
        feedback, examples = [f for f in feedback if f.split == "refine"], []
        for f in feedback:
            try:
                examples.append(self.example(f, run))
            except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
                run.rejected.append(f"task {f.task_id} (refiner): {error}")
        # By task, as several rounds may have feedback on the same one.
        found = list(dict.fromkeys(e.task_id for e in examples))
        order = random.Random(derive_seed(run.seed, "held_out")).sample(found, len(found))
        ids = set(order[: len(order) // 5])
        held_out = [e for i in order for e in examples if e.task_id == i and i in ids]
        training = [e for i in order for e in examples if e.task_id == i and i not in ids]
        asked = [(run.tasks.by_id[f.task_id], f) for f in feedback if f.task_id in ids]
        return run.fine_tune(training, held_out, [(task, self.prompt(f, task, run)) for task, f in asked])
