"""Who writes feedback: the protocol of the group `feedback`, and what a run gives to those who write."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from ilf.components import Component, Needs, read, resolve
from ilf.feedback.transforms import NAMED, Shuffle, Transform
from ilf.ranges import Positive
from ilf.types import Feedback, InputError, Program, Splits, Task, Verdict

T = TypeVar("T")
Failing = Mapping[int, Sequence[Program]]  # the wrong programs of each task that has no correct one, by id
_HEARD = {"annotate", "train_refiner", "refine", "train_policy"}  # stages that need feedback


@dataclass(frozen=True)
class Writing:
    """What only a run knows of, given to a source as it writes."""

    tasks: Splits
    seed: int  # of the round of the algorithm
    known: Sequence[Feedback]  # what the source's `known` had read before the run
    score: Callable[[Sequence[tuple[str, Task]]], list[Verdict]]  # executes programs on their tasks' tests
    ask: Callable[[Source, Failing], list[Feedback]]  # has another source write, or takes what it wrote before
    rejected: list[str]  # a line on each task that nothing can be said of; append to it
    annotator: str  # who annotates the data
    specifications: Mapping[int, Any]  # what mini's tasks ask for, by id; empty for other data
    llm: Any  # the other model, see other_answers.py


@dataclass
class Source(ABC):
    """Writes feedback. Derive from it for a source of your own: a dataclass whose fields are its arguments.

    Args:
        transform: What is done to the feedback, in this order: shuffle, one_bug, drop, or a mapping with the `_target_`
            of a function or a `Transform` of your own.
        apply: Where shuffled feedback is used: refine, or train_and_refine.
        limit: On how many tasks of Train its feedback is used, drawn by the run's seed; null for all.
        path: A file of annotations, .jsonl or .csv. In a sweep all sources may be given one; not all read it.
    """

    transform: list[str | dict[str, Any]] = field(default_factory=list)
    apply: Literal["refine", "train_and_refine"] = "refine"
    limit: Positive | None = None
    path: str | None = None

    name: ClassVar[str]  # in results; by default the class's
    people: ClassVar[bool] = False  # whether people wrote before the run, on programs that they chose
    refines: ClassVar[bool] = True  # whether it may bring refinements of its own
    reads_path: ClassVar[bool] = True
    asks_llm: ClassVar[bool] = False  # whether it needs the other model of the group `llm`
    # Whether writing again gives the same at once; else what was written is taken from the store.
    repeatable: ClassVar[bool] = False

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "name" not in vars(cls):
            cls.name = cls.__name__

    @property
    def writers(self) -> list[Source]:
        """Those who write: this source, or those that it is made of."""
        return [self]

    @property
    def transforms(self) -> list[Callable[[list[Feedback], int], list[Feedback]]]:
        """What is done to the feedback. Raises InputError where there is no such thing."""
        return [self._transform(node, f"feedback.transform[{i}]") for i, node in enumerate(self.transform)]

    def _transform(self, node: str | dict[str, Any], key: str) -> Any:
        if isinstance(node, str) and node not in NAMED:
            allowed = f"must be of {', '.join(NAMED)}, or a mapping with `_target_`"
            raise InputError("feedback.transform", node, allowed, "Quote the list: 'feedback.transform=[shuffle]'.")
        if isinstance(node, str):
            return Shuffle(self.apply) if node == "shuffle" else NAMED[node]()
        target = node.get("_target_")
        own = isinstance(target, str) and inspect.isclass(resolve(target, f"{key}._target_"))
        hint: Any = Transform if own else Annotated[Component, Needs(positional=2)]
        return read(hint, node, key)

    def known(self, splits: Mapping[int, str], absent: Container[int]) -> list[Feedback] | None:
        """Return the feedback that is there before the run, None where there is none to read.

        Args:
            splits: Of the data's tasks, by id.
            absent: Ids that may be annotated though the data lack them.

        Raises:
            InputError: Something is wrong in a file; names its line.
        """
        return None

    def check(self, settings: Any) -> None:
        """Raise InputError where a run with these settings lacks what the source needs, before anything loads."""
        _ = self.transforms

    @abstractmethod
    def write(self, failing: Failing, run: Writing) -> list[Feedback]:
        """Return feedback, at most one on each task of Prompt, Refine and Train, in order of task.

        Args:
            failing: The policy's programs.
            run: What only the run knows of.
        """


def is_heard(stages: Sequence[str]) -> bool:
    """Return whether the requested stages need feedback."""
    return bool(_HEARD & set(stages))


def check_worked_examples(settings: Any, key: str, count: int) -> None:
    """Raise InputError where a limit leaves fewer tasks of the Prompt split than there are to be worked examples."""
    limit = settings.data.limit.prompt
    if limit is not None and count > limit:
        allowed = f"worked examples are of the Prompt split, and data.limit.prompt={limit}"
        raise InputError(key, count, allowed, "Lower it, or raise data.limit.prompt.")


def worked_examples(key: str, count: int, found: list[T]) -> list[T]:
    """Return `count` of what is known of the Prompt split; `key` is the setting that asks for so many."""
    if len(found) < count:
        allowed = f"needs as many programs of ids 1 to 10 (the Prompt split) with feedback: {len(found)} are there"
        raise InputError(key, count, allowed, "Lower it, raise data.limit.prompt, or annotate more of these tasks.")
    return found[:count]
