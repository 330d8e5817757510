"""The protocol of the group `refiner`, and what a run gives to a refiner."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ilf.ranges import Positive
from ilf.tasks.prompts import refine_prompt
from ilf.types import Feedback, Splits, Task


@dataclass(frozen=True)
class Refining:
    """What only a run knows of, given to a refiner."""

    tasks: Splits
    seed: int  # of the round of the algorithm
    base: Path  # folder of the policy that the run started with
    policy: Path  # folder of the newest one
    tokenizer: Any  # the policy's
    worked: Sequence[Feedback]  # on tasks of the Prompt split, each with a refinement or a gold program
    rejected: list[str]  # a line on each row that can't be learnt from; append to it
    # Returns a row to fine-tune on: the refinement, or the gold program, after a prompt. Raises ValueError or
    # SyntaxError where there is none, or it is too long.
    example: Callable[[Feedback, Task, str], Any]
    # Fine-tunes the base by training.refiner, through the store: on examples, validated on others and on programs that
    # are drawn for tasks with their prompts. Returns the folder.
    fine_tune: Callable[[Sequence[Any], Sequence[Any], Sequence[tuple[Task, str]]], Path]


@dataclass
class Refiner(ABC):
    """Mends wrong programs as feedback says. Derive from it for one of your own: a dataclass with its arguments.

    Args:
        old_code_tokens: The wrong program is cut to this many tokens in the refine prompt.
    """

    old_code_tokens: Positive = 512

    name: ClassVar[str]  # where no option says it; by default the class's
    trains: ClassVar[bool] = False  # whether it is fine-tuned, by training.refiner
    reads_program: ClassVar[bool] = True  # whether its prompts hold the wrong program

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "name" not in vars(cls):
            cls.name = cls.__name__

    @property
    def folder(self) -> Path | None:
        """The folder of a model that was there before the run."""
        return None

    @property
    def worked_examples(self) -> int:
        """How many worked examples each prompt holds."""
        return 0

    def check(self, settings: Any) -> None:  # noqa: B027
        """Raise InputError where a run with these settings lacks what the refiner needs, before anything loads."""

    @abstractmethod
    def train(self, feedback: Sequence[Feedback], run: Refining) -> Path:
        """Return the folder of the model that writes refinements, in Hugging Face's layout.

        Args:
            feedback: On tasks of Prompt and Refine, of all rounds so far.
            run: What only the run knows of.
        """

    def prompt(self, feedback: Feedback, task: Task, run: Refining) -> str:
        """Return what the model is given for one wrong program; it ends with the task's prompt."""
        from ilf.models.tokens import truncate  # which imports torch

        return refine_prompt(feedback, task.prompt, truncate(run.tokenizer, feedback.program, self.old_code_tokens))
