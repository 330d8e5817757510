"""What the policy learns from, the arms of a comparison: the protocol and the options of the group `refinements`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ilf.ranges import Positive
from ilf.types import Found, Program, Task, different, pick


@dataclass
class Refinements(ABC):
    """An arm. Derive from it for one of your own: a dataclass whose fields are its arguments.

    Args:
        tasks: solved: Train tasks that the refiner solved, for every arm alike; annotated: all.
    """

    tasks: Literal["solved", "annotated"] = "solved"

    source: ClassVar[str]  # of its programs, in training.jsonl; by default the class's name
    name: ClassVar[str]  # where no option says it; by default the same
    trains: ClassVar[bool] = True  # else the policy is evaluated as it was
    refines: ClassVar[bool] = False  # whether it takes the refiner's programs, so that unsolved tasks are left out
    asks_llm: ClassVar[bool] = False  # whether it takes those of the other model of the group `llm`
    own_samples: ClassVar[bool] = False  # trains on as many of the policy's own correct samples instead
    needs_annotator: ClassVar[bool] = False  # takes refinements that came with the feedback
    by_feedback: ClassVar[bool] = True  # whether what it learns came of feedback
    matched: ClassVar[bool] = False  # whether it has a program for each task that the refiner solved

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "source" not in vars(cls) and cls.__module__ != __name__:
            cls.source = cls.__name__
        if "name" not in vars(cls):
            cls.name = cls.source

    @abstractmethod
    def program(self, found: Found) -> str | None:
        """Return the program to train on for one task, None where there is none. It is executed before it is used."""

    def more(self, found: Found) -> list[str]:
        """Return further programs to train on for the same task, which the other arms need not have."""
        return []

    @property
    def unmatched(self) -> bool:
        """Whether it trains on all tasks that the policy solves, however many the other arms train on."""
        return False

    def own(self, correct: Sequence[Program], seed: int) -> list[str]:
        """Return those of the policy's own correct samples of a task to train on, where the arm trains on such."""
        return different(correct, seed, 1)

    def missing(self, train: Sequence[Task], refined: Container[int] | None) -> str | None:
        """Return what the arm lacks where no task of Train has it, for an error before anything is sampled.

        Args:
            train: The tasks.
            refined: Ids of those with a refinement by people; None where others may bring some.
        """
        return None


@dataclass
class Model(Refinements):
    """The algorithm itself: one of the refiner's distinct correct programs, each as likely, or several of them.

    Args:
        per_task: How many of a task, at most; null for all. The paper has one.
    """

    per_task: Positive | None = 1

    source = "model"
    refines = True
    matched = True

    def program(self, found: Found) -> str | None:
        """Return one of them, as the seed decides."""
        return pick(found.refined, found.seed)

    def more(self, found: Found) -> list[str]:
        """Return different ones besides it."""
        return different(found.refined, found.seed, self.per_task)[1:]


@dataclass
class Human(Refinements):
    """The annotator's own refinements."""

    source = "human"
    needs_annotator = True
    matched = True

    def program(self, found: Found) -> str | None:
        """Return the refinement that came with the feedback."""
        return found.feedback.refinement

    def missing(self, train: Sequence[Task], refined: Container[int] | None) -> str | None:
        """Return what is lacking where people have written no refinement."""
        lacking = refined is not None and not any(task.task_id in refined for task in train)
        return "people's refinements" if lacking else None


@dataclass
class Gold(Refinements):
    """The tasks' gold programs."""

    source = "gold"
    by_feedback = False
    matched = True

    def program(self, found: Found) -> str | None:
        """Return the gold program."""
        return found.task.gold or found.task.code or None

    def missing(self, train: Sequence[Task], refined: Container[int] | None) -> str | None:
        """Return what is lacking where no task has a gold program."""
        return None if any(task.code for task in train) else "gold programs (column `code`)"


@dataclass
class LLM(Refinements):
    """Another model's refinements."""

    source = "llm"
    asks_llm = True

    def program(self, found: Found) -> str | None:
        """Return one of its correct programs, as the seed decides."""
        return pick(found.by_llm, found.seed)


@dataclass
class Self(Model):
    """Self-training, on correct samples of the policy's own: expert iteration (ReST-EM, Singh et al. 2023) in rounds.

    Args:
        match: Train on as many examples as there would be of the refiner's, on other tasks, with more of a task where
            these are too few; false: on all tasks that the policy solves, which needs neither feedback nor a refiner.
    """

    match: bool = True

    @property
    def unmatched(self) -> bool:
        """Whether it trains on all tasks that the policy solves."""
        return not self.match

    def own(self, correct: Sequence[Program], seed: int) -> list[str]:
        """Return different correct samples of a task."""
        return different(correct, seed, self.per_task)

    source = "model"  # whose number counts
    name = "self"
    own_samples = True
    by_feedback = False
    matched = False


@dataclass
class Nothing(Refinements):
    """No fine-tuning: the policy as it was, sampled again."""

    source = "none"
    trains = False
    by_feedback = False
    matched = True

    def program(self, found: Found) -> str | None:
        """Return none."""
        return None


COMPARED: tuple[Refinements, ...] = (Gold(), Human(), Model(), LLM())  # the arms that train on the same tasks
