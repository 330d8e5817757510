"""Fine-tunes the policy on refinements: line 4 of Algorithm 1."""

from __future__ import annotations

from typing import Any

from ilf.models.targets import encode
from ilf.training.fine_tuning import FineTuningModule
from ilf.types import Example, Refinement


class ILFModule(FineTuningModule):
    """Fine-tunes pi_theta to write a refinement from the task alone; the loss covers the refinement's tokens."""

    stage = "train_policy"

    @staticmethod
    def example(tokenizer: Any, row: Refinement, max_length: int) -> Example:
        """Return the training example for one refinement. Raises ValueError if it is too long (see `encode`)."""
        return encode(tokenizer, row.task_id, row.prompt, row.target, max_length)
