"""Fine-tunes the refiner pi_Refine, which maps a task, an incorrect program and feedback to a corrected program."""

from __future__ import annotations

from typing import Any

from ilf.models.targets import encode
from ilf.models.tokens import truncate
from ilf.tasks.feedback_prompts import refine_prompt
from ilf.tasks.prompts import completion_of
from ilf.training.fine_tuning import FineTuningModule
from ilf.types import Example, Feedback, Task


class RefineModule(FineTuningModule):
    """Fine-tunes pi_Refine to write the annotator's refinement x1 from the task t, the program x0 and feedback f."""

    stage = "train_refiner"

    @staticmethod
    def prompt(tokenizer: Any, feedback: Feedback, task: Task, old_code_tokens: int) -> str:
        """Return the refine prompt, with x0 cut to its first `old_code_tokens` tokens as in the paper."""
        return refine_prompt(feedback, task.prompt, truncate(tokenizer, feedback.program, old_code_tokens))

    @staticmethod
    def example(
        tokenizer: Any,
        feedback: Feedback,
        task: Task,
        old_code_tokens: int,
        max_length: int,
        prompt: str | None = None,
    ) -> Example:
        """Return the training example for one annotation. Its target is the task prompt, then the refined body.

        If the annotator wrote no refinement, the target is the task's gold program.

        Args:
            tokenizer: The model's tokenizer.
            feedback: The annotation.
            task: The annotated task.
            old_code_tokens: See `prompt`.
            max_length: The largest number of tokens of an example.
            prompt: The refiner's input, which must end with the task's prompt; by default the result of `prompt`.

        Raises:
            ValueError: The row is too long (see `encode`), x1 can't follow the task's prompt, or there is neither an
                x1 nor a gold program.
        """
        target = feedback.refinement or task.gold or task.code
        if not target:
            raise ValueError("there is neither a refinement nor a gold program to train on")
        refined = completion_of(task.prompt, target, task.entry_point)
        prompt = prompt or RefineModule.prompt(tokenizer, feedback, task, old_code_tokens)
        return encode(tokenizer, task.task_id, prompt.removesuffix(task.prompt), task.prompt + refined, max_length)
