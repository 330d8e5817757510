"""The base class of feedback sources, the options of the group `feedback`, and what a run passes to them."""

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
Failing = Mapping[int, Sequence[Program]]  # the incorrect programs of each failing task, by task id
_HEARD = {"annotate", "train_refiner", "refine", "train_policy"}  # stages that need feedback


@dataclass(frozen=True)
class Writing:
    """The state of a run that a source gets when it writes feedback."""

    tasks: Splits
    seed: int  # of the round of the algorithm
    known: Sequence[Feedback]  # the feedback that the source's `known` returned before the run
    score: Callable[[Sequence[tuple[str, Task]]], list[Verdict]]  # executes programs on their tasks' tests
    ask: Callable[[Source, Failing], list[Feedback]]  # gets another source's feedback, or reuses what it wrote before
    rejected: list[str]  # append a line for each task without feedback
    annotator: str  # name of the data set's annotator
    specifications: Mapping[int, Any]  # what mini's tasks require, by id; empty for other data
    llm: Any  # the answers of the LLM; see llm_answers.py


@dataclass
class Source(ABC):
    """A feedback source. For your own source, derive a dataclass from it, whose fields are its arguments.

    Args:
        transform: The transforms to apply to the feedback, in order: shuffle, one_bug, no_code, drop, or a mapping with
            the `_target_` of your own function or `Transform`.
        apply: Where feedback is shuffled: refine for Train only, or train_and_refine for Refine too.
        limit: The number of Train tasks whose feedback is used, sampled with the run's seed; null uses all.
        path: An annotation file, .jsonl or .csv. A sweep may set it for all sources, but not all of them read it.
    """

    transform: list[str | dict[str, Any]] = field(default_factory=list)
    apply: Literal["refine", "train_and_refine"] = "refine"
    limit: Positive | None = None
    path: str | None = None

    name: ClassVar[str]  # name in results; by default the class name
    people: ClassVar[bool] = False  # whether people wrote it before the run, on programs that they chose
    refines: ClassVar[bool] = True  # whether it may provide its own refinements
    reads_path: ClassVar[bool] = True
    asks_llm: ClassVar[bool] = False  # whether it needs the LLM of the group `llm`
    # Whether writing again gives the same feedback quickly. Otherwise the feedback is reused from the store.
    repeatable: ClassVar[bool] = False

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "name" not in vars(cls):
            cls.name = cls.__name__

    @property
    def writers(self) -> list[Source]:
        """The sources that write the feedback: this source, or those that it is composed of."""
        return [self]

    @property
    def transforms(self) -> list[Callable[[list[Feedback], int], list[Feedback]]]:
        """The transforms to apply to the feedback. Raises InputError if one is unknown."""
        return [self._transform(node, f"feedback.transform[{i}]") for i, node in enumerate(self.transform)]

    def _transform(self, node: str | dict[str, Any], key: str) -> Any:
        if isinstance(node, str) and node not in NAMED:
            allowed = f"must be one of {', '.join(NAMED)}, or a mapping with `_target_`"
            raise InputError("feedback.transform", node, allowed, "Quote the list: 'feedback.transform=[shuffle]'.")
        if isinstance(node, str):
            return Shuffle(self.apply) if node == "shuffle" else NAMED[node]()
        target = node.get("_target_")
        own = isinstance(target, str) and inspect.isclass(resolve(target, f"{key}._target_"))
        hint: Any = Transform if own else Annotated[Component, Needs(positional=2)]
        return read(hint, node, key)

    def known(self, splits: Mapping[int, str], absent: Container[int]) -> list[Feedback] | None:
        """Return the feedback that exists before the run, or None if there is none to read.

        Args:
            splits: The split of each task in the data, by task id.
            absent: Ids that may be annotated although the data lack them.

        Raises:
            InputError: A file is invalid. The error names the line.
        """
        return None

    def check(self, settings: Any) -> None:
        """Raise InputError if a run with these settings lacks what the source needs, before anything is loaded."""
        _ = self.transforms

    @abstractmethod
    def write(self, failing: Failing, run: Writing) -> list[Feedback]:
        """Return feedback in order of task id, at most one for each task of Prompt, Refine and Train.

        Args:
            failing: The policy's incorrect programs of each failing task.
            run: The state of the run.
        """


def is_heard(stages: Sequence[str]) -> bool:
    """Return whether the requested stages need feedback."""
    return bool(_HEARD & set(stages))


def check_worked_examples(settings: Any, key: str, count: int) -> None:
    """Raise InputError if a limit leaves fewer Prompt tasks than the requested number of worked examples."""
    limit = settings.data.limit.prompt
    if limit is not None and count > limit:
        allowed = f"needs this many tasks of the Prompt split for worked examples, and data.limit.prompt={limit}"
        raise InputError(key, count, allowed, "Lower it, or raise data.limit.prompt.")


def worked_examples(key: str, count: int, found: list[T]) -> list[T]:
    """Return the first `count` worked examples. `key` is the setting that requests them."""
    if len(found) < count:
        allowed = (
            f"needs this many programs of ids 1 to 10 (the Prompt split) with feedback, and there are {len(found)}"
        )
        raise InputError(key, count, allowed, "Lower it, raise data.limit.prompt, or annotate more of these tasks.")
    return found[:count]
