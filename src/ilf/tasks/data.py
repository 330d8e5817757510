"""The base class of data sets, which are the options of the group `data` and a user's own."""

from __future__ import annotations

import typing
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from ilf.ranges import Natural, Positive
from ilf.sandbox import Job
from ilf.types import InputError, Splits, Task

if TYPE_CHECKING:
    from ilf.executors import Judge

SPLITS = ("prompt", "test", "refine", "train")
_KINDS = {name: typing.get_origin(hint) or hint for name, hint in typing.get_type_hints(Task).items()}
Share = Annotated[float, Ge(0)]


@dataclass
class Limit:
    """The maximum number of tasks to use from each split, lowest ids first; null uses all."""

    prompt: Natural | None = None
    test: Positive | None = None
    refine: Positive | None = None
    train: Positive | None = None


@dataclass
class Data(ABC):
    """A data set. For your own data, derive from this class or, if it has MBPP's columns, from `ilf.tasks.Table`.

    Args:
        prompt: paper: the paper's prompt; no_leak: without the helper code of the gold program; chat: the paper's
            prompt in a turn of the model's chat template, whose answer begins with the head of the program.
        near_duplicates: keep, or drop: exclude tasks of Refine and Train that nearly duplicate a task of Test.
        limit: The maximum number of tasks of each split.
        annotator: The annotator of this data set: human or scripted.
        annotations: A file of human annotations, .jsonl or .csv.
        annotated_policy: The policy that sampled the annotated programs.
    """

    prompt: Literal["paper", "no_leak", "chat"] = "paper"
    near_duplicates: Literal["keep", "drop"] = "keep"
    limit: Limit = field(default_factory=Limit)
    annotator: Literal["human", "scripted"] = "human"
    annotations: str | None = None
    annotated_policy: str | None = None

    only_test: ClassVar[bool] = False  # whether there are no tasks to train on
    gold_passes: ClassVar[bool] = False  # whether gold programs are known to pass, so they are not executed
    mend_gold: ClassVar[str] = (
        "Fix the program or its tests, or omit the program (and give a signature if tests call it)."
    )
    may_lack: ClassVar[Container[int]] = ()  # ids that may be annotated although the data lack them

    @abstractmethod
    def read(self, key: str) -> tuple[Sequence[Task], str]:
        """Return all tasks, and the SHA-256 of their content (`ilf.files.sha256` computes one).

        Args:
            key: The group of the setting, for errors: "data" or "transfer".
        """

    def load(self, key: str = "data") -> tuple[list[Task], str]:
        """Check the data; return all tasks in order of id, and the SHA-256 of their content.

        Args:
            key: The group of the setting, for errors: "data" or "transfer".

        Raises:
            InputError: The data can't be found, a row is malformed, or there is no Test task.
        """
        self.check(key)
        tasks, sha256 = self.read(key)
        tasks = self._checked(tasks, key)
        if not any(task.split == "test" for task in tasks):
            allowed = f"has no task of the Test split ({self.place_of('test')})"
            raise self.wrong(key, allowed, "Add Test tasks: all results are reported on them.")
        return tasks, sha256

    def _checked(self, tasks: Iterable[Task], key: str) -> list[Task]:
        """Return the tasks in order of id. Raise InputError if a class returns anything but valid tasks."""
        found: dict[int, Task] = {}
        for task in tasks:
            if not isinstance(task, Task):
                raise self.wrong(
                    key, f"returned {task!r:.60}, and must return ilf.types.Task", "Fix its method `read`."
                )
            place = f"{key}: task {task.task_id}"
            for name, kind in _KINDS.items():
                value = getattr(task, name)
                if not isinstance(value, kind):
                    allowed = f"must be of type {kind.__name__}, and is {type(value).__name__}"
                    raise InputError(f"{place}: {name}", value, allowed, "Fix the method `read`.")
            if bool(task.tests) == bool(task.inputs) or len(task.inputs) != len(task.outputs):
                there = f"{len(task.tests)} tests, {len(task.inputs)} inputs and {len(task.outputs)} outputs"
                allowed = f"must have tests, or equally many inputs and outputs, and has {there}"
                raise InputError(place, task.task_id, allowed, "Fix the method `read`.")
            if task.split not in SPLITS:
                raise InputError(f"{place}: split", task.split, f"must be one of {', '.join(SPLITS)}", "Choose one.")
            if task.task_id in found:
                raise InputError(place, task.task_id, "is the id of two tasks", "Give each task its own id.")
            found[task.task_id] = task
        return [found[i] for i in sorted(found)]

    def check(self, key: str = "data") -> None:
        """Raise InputError if anything that the data need is missing, before anything is loaded.

        Args:
            key: The group of the setting, for errors: "data" or "transfer".
        """
        if self.near_duplicates == "drop" and (self.only_test or key == "transfer"):
            allowed = "excludes training tasks, and only the Test split of this data set is used"
            raise InputError(f"{key}.near_duplicates", "drop", allowed, "Omit it.")
        if self.annotator == "scripted" and not self.specifications():
            allowed = "needs a script that knows what the tasks require, and this data set has none"
            raise InputError(f"{key}.annotator", "scripted", allowed, f"Use {key}.annotator=human.")

    def check_gold(self, tasks: Iterable[Task], sandbox: Judge, key: str = "data") -> None:
        """Execute every gold program on its tests, unless the gold programs are known to pass.

        Args:
            tasks: The tasks. Tasks without a gold program are skipped.
            sandbox: The sandbox that executes the programs.
            key: The group of the setting, for errors: "data" or "transfer".

        Raises:
            InputError: Gold programs fail. The error names the places and verdicts of the first five.
        """
        if self.gold_passes:
            return
        golds = [task for task in tasks if task.code]
        verdicts = sandbox.run([job_of(task.code, task) for task in golds])
        failed = {task.task_id: v for task, v in zip(golds, verdicts, strict=True) if not v.passed}
        if failed:
            places = self.places(key)
            said = [f"{places.get(i, key)}: task {i}: {v.verdict}, {v.detail}" for i, v in failed.items()]
            more = f"; and {len(said) - 5} more" if len(said) > 5 else ""
            raise self.wrong(
                key,
                f"gold programs (column code) must pass their tests, and {len(said)} of {len(golds)} do not: "
                f"{'; '.join(said[:5])}{more}",
                self.mend_gold,
            )

    @property
    def source(self) -> tuple[str, Any]:
        """The argument that names the source of the tasks, and its value; if there is none, the class."""
        return "_target_", f"{type(self).__module__}.{type(self).__qualname__}"

    def wrong(self, key: str, allowed: str, advice: str) -> InputError:
        """Return an error about the data set as a whole."""
        name, value = self.source
        return InputError(f"{key}.{name}", value, allowed, advice)

    def same(self, other: Data) -> bool:
        """Return whether another data set has the same tasks."""
        return type(self) is type(other) and self.source == other.source

    def place_of(self, *splits: str) -> str:
        """Return what assigns a task to one of these splits, for errors."""
        return "`split` of a task"

    def places(self, key: str) -> Mapping[int, str]:
        """Return the place of each task, such as FILE:LINE, by id, as far as it is known."""
        return {}

    def specifications(self) -> Mapping[int, Any]:
        """Return what each task requires, by id, for `feedback=scripted`; empty if no script knows it."""
        return {}


def job_of(program: str, task: Task, tests: str = "all", gold: str = "") -> Job:
    """Return the sandbox job that executes a program on the tests of its task.

    Args:
        program: A whole program.
        task: The task.
        tests: "all"; "unseen" to omit the tests or inputs that the prompt shows; "challenge" to use the task's
            challenge tests, if it has any, in place of its tests.
        gold: See `ilf.sandbox.Job`.
    """
    first = task.shown if tests == "unseen" else 0
    if task.inputs:
        given, expected = task.inputs[first:], task.outputs[first:]
        return Job(program, gold=gold, inputs=given, outputs=expected, compare_output=task.compare_output)
    asked = task.challenge if tests == "challenge" and task.challenge else task.tests[first:]
    return Job(program, asked, task.setup, gold=gold)


def split_tasks(tasks: Iterable[Task], limit: Mapping[str, int | None], only: set[int] | None = None) -> Splits:
    """Return the tasks by split, restricted and limited.

    Args:
        tasks: All tasks.
        limit: The maximum number of tasks of each split, by its name (lowest ids first); None keeps all.
        only: The ids to keep in Refine and Train before the limit, such as the annotated ones; None keeps all.
    """
    groups: dict[str, list[Task]] = {name: [] for name in SPLITS}
    refine = []
    for task in tasks:
        if task.split == "refine":
            refine.append(task)
        if only is None or task.split in ("prompt", "test") or task.task_id in only:
            groups[task.split].append(task)
    cut = {name: tuple(group[: limit.get(name)]) for name, group in groups.items()}
    validation = tuple(refine[: limit.get("refine")])
    return Splits(cut["test"], cut["refine"], cut["train"], cut["prompt"], validation=validation)
