"""The arms of a comparison, which choose the policy's training set: base class and options of `refinements`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ilf.ranges import Positive
from ilf.types import Found, Program, Task, different, pick


@dataclass
class Refinements(ABC):
    """An arm of a comparison. To write your own, derive a dataclass whose fields are its arguments.

    Args:
        tasks: The Train tasks to use: solved (those that the refiner solved, equal for every arm) or annotated (all).
    """

    tasks: Literal["solved", "annotated"] = "solved"

    source: ClassVar[str]  # source of its programs in training.jsonl; by default the name of the class
    name: ClassVar[str]  # used if no option gives one; by default the same as `source`
    trains: ClassVar[bool] = True  # otherwise the initial policy is evaluated
    # whether it uses the refiner's programs; tasks that the refiner fails are then left out
    refines: ClassVar[bool] = False
    asks_llm: ClassVar[bool] = False  # whether it uses programs of the LLM in the group `llm`
    own_samples: ClassVar[bool] = False  # whether it trains on as many of the policy's own correct samples instead
    mixes: ClassVar[bool] = False  # whether it trains on both
    needs_annotator: ClassVar[bool] = False  # whether it uses refinements that come with the feedback
    by_feedback: ClassVar[bool] = True  # whether its programs result from feedback
    matched: ClassVar[bool] = False  # whether it has a program for each task that the refiner solved

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "source" not in vars(cls) and cls.__module__ != __name__:
            cls.source = cls.__name__
        if "name" not in vars(cls):
            cls.name = cls.source

    @abstractmethod
    def program(self, found: Found) -> str | None:
        """Return the program to train on for one task, or None if there is none. It is executed before it is used."""

    def more(self, found: Found) -> list[str]:
        """Return more programs to train on for the same task, which the other arms need not have."""
        return []

    @property
    def unmatched(self) -> bool:
        """Whether it trains on all tasks that the policy solves, regardless of how many the other arms train on."""
        return False

    def own(self, correct: Sequence[Program], seed: int) -> list[str]:
        """Return the programs to train on from the policy's own correct samples of a task, if the arm uses these."""
        return different(correct, seed, 1)

    def missing(self, train: Sequence[Task], refined: Container[int] | None) -> str | None:
        """Return what the arm needs but no Train task has, or None. The error is raised before anything is sampled.

        Args:
            train: The Train tasks.
            refined: Ids of the tasks with a refinement by people; None if other sources may provide some.
        """
        return None


@dataclass
class Model(Refinements):
    """The algorithm itself: one of the refiner's distinct correct programs, chosen uniformly, or several of them.

    Args:
        per_task: Maximum programs per task; null for all. The paper uses one.
    """

    per_task: Positive | None = 1

    source = "model"
    refines = True
    matched = True

    def program(self, found: Found) -> str | None:
        """Return one of the refiner's correct programs, chosen by the seed."""
        return pick(found.refined, found.seed)

    def more(self, found: Found) -> list[str]:
        """Return other distinct correct programs."""
        return different(found.refined, found.seed, self.per_task)[1:]

    def own(self, correct: Sequence[Program], seed: int) -> list[str]:
        """Return distinct correct samples of a task."""
        return different(correct, seed, self.per_task)


@dataclass
class ModelAndSelf(Model):
    """ILF mixed with self-training: adds as many of the policy's own correct samples, on other tasks. Not in the paper.

    `per_task` limits both.
    """

    name = "model_and_self"
    own_samples = True
    mixes = True
    matched = False


@dataclass
class Human(Refinements):
    """An arm that trains on the annotator's own refinements."""

    source = "human"
    needs_annotator = True
    matched = True

    def program(self, found: Found) -> str | None:
        """Return the refinement that came with the feedback."""
        return found.feedback.refinement

    def missing(self, train: Sequence[Task], refined: Container[int] | None) -> str | None:
        """Return the missing input if people have written no refinement for any Train task."""
        lacking = refined is not None and not any(task.task_id in refined for task in train)
        return "people's refinements" if lacking else None


@dataclass
class Gold(Refinements):
    """An arm that trains on the tasks' gold programs."""

    source = "gold"
    by_feedback = False
    matched = True

    def program(self, found: Found) -> str | None:
        """Return the gold program."""
        return found.task.gold or found.task.code or None

    def missing(self, train: Sequence[Task], refined: Container[int] | None) -> str | None:
        """Return the missing input if no Train task has a gold program."""
        return None if any(task.code for task in train) else "gold programs (column `code`)"


@dataclass
class LLM(Refinements):
    """An arm that trains on an LLM's refinements."""

    source = "llm"
    asks_llm = True

    def program(self, found: Found) -> str | None:
        """Return one of the LLM's correct programs, chosen by the seed."""
        return pick(found.by_llm, found.seed)


@dataclass
class Self(Model):
    """Self-training on the policy's own correct samples. In rounds: expert iteration (ReST-EM, Singh et al. 2023).

    Args:
        match: Train on as many examples as there are from the refiner, but on other tasks, and on more samples per task
            if these are too few. If false, train on all tasks that the policy solves, without feedback or a refiner.
    """

    match: bool = True

    @property
    def unmatched(self) -> bool:
        """Whether it trains on all tasks that the policy solves."""
        return not self.match

    source = "model"  # the arm whose number of examples it matches
    name = "self"
    own_samples = True
    by_feedback = False
    matched = False


@dataclass
class Nothing(Refinements):
    """A control arm without fine-tuning: the initial policy is sampled again."""

    source = "none"
    trains = False
    by_feedback = False
    matched = True

    def program(self, found: Found) -> str | None:
        """Return None, because this arm trains on nothing."""
        return None


COMPARED: tuple[Refinements, ...] = (Gold(), Human(), Model(), LLM())  # the arms that train on the same tasks
