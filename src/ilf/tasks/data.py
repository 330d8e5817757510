"""What all data sets have in common: the options of the group `data`, and those of a user's own."""

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
    """How many tasks of a split to use (the first ids); null for all."""

    prompt: Natural | None = None
    test: Positive | None = None
    refine: Positive | None = None
    train: Positive | None = None


@dataclass
class Data(ABC):
    """A data set. Derive from it for one of your own whose rows are unlike MBPP's, else from `ilf.tasks.Table`.

    Args:
        prompt: paper; no_leak: without helper code of the gold program; chat: the paper's in a turn of the model's chat
            template, whose answer begins with the head of the program.
        near_duplicates: keep, or drop: leave out tasks of Refine and Train that nearly repeat a task of Test.
        limit: How many tasks of each split a run uses.
        annotator: Who annotates this data: human or scripted.
        annotations: What people wrote: a .jsonl or .csv file.
        annotated_policy: Whose wrong programs they saw.
    """

    prompt: Literal["paper", "no_leak", "chat"] = "paper"
    near_duplicates: Literal["keep", "drop"] = "keep"
    limit: Limit = field(default_factory=Limit)
    annotator: Literal["human", "scripted"] = "human"
    annotations: str | None = None
    annotated_policy: str | None = None

    only_test: ClassVar[bool] = False  # whether there are no tasks to learn from
    gold_passes: ClassVar[bool] = False  # whether gold programs are known to pass, so that a run does not execute them
    mend_gold: ClassVar[str] = "Mend the program or its tests, or leave it out (for a signature, if tests call it)."
    may_lack: ClassVar[Container[int]] = ()  # ids that may be annotated where the data lack them

    @abstractmethod
    def read(self, key: str) -> tuple[Sequence[Task], str]:
        """Return all tasks, and the SHA-256 of their content (`ilf.files.sha256` gives one).

        Args:
            key: The setting's group, for errors: "data" or "transfer".
        """

    def load(self, key: str = "data") -> tuple[list[Task], str]:
        """Return all tasks in order of id, and the SHA-256 of their content, both checked.

        Args:
            key: The setting's group, for errors: "data" or "transfer".

        Raises:
            InputError: The data can't be found, a row is malformed, or none is of Test.
        """
        self.check(key)
        tasks, sha256 = self.read(key)
        tasks = self._checked(tasks, key)
        if not any(task.split == "test" for task in tasks):
            allowed = f"holds no task of the Test split ({self.place_of('test')})"
            raise self.wrong(key, allowed, "Add Test tasks: every figure is reported on them.")
        return tasks, sha256

    def _checked(self, tasks: Iterable[Task], key: str) -> list[Task]:
        """Return the tasks in order of id. Raises InputError where a class has made something else."""
        found: dict[int, Task] = {}
        for task in tasks:
            if not isinstance(task, Task):
                raise self.wrong(key, f"reads {task!r:.60}, and must read ilf.types.Task", "Mend its method `read`.")
            place = f"{key}: task {task.task_id}"
            for name, kind in _KINDS.items():
                value = getattr(task, name)
                if not isinstance(value, kind):
                    allowed = f"must be of type {kind.__name__}, and is {type(value).__name__}"
                    raise InputError(f"{place}: {name}", value, allowed, "Mend the method `read`.")
            if bool(task.tests) == bool(task.inputs) or len(task.inputs) != len(task.outputs):
                there = f"{len(task.tests)} tests, {len(task.inputs)} inputs and {len(task.outputs)} outputs"
                allowed = f"must have tests, or inputs and as many outputs, and has {there}"
                raise InputError(place, task.task_id, allowed, "Mend the method `read`.")
            if task.split not in SPLITS:
                raise InputError(f"{place}: split", task.split, f"must be one of {', '.join(SPLITS)}", "Choose one.")
            if task.task_id in found:
                raise InputError(place, task.task_id, "is the id of two tasks", "Give each its own.")
            found[task.task_id] = task
        return [found[i] for i in sorted(found)]

    def check(self, key: str = "data") -> None:
        """Raise InputError where something that the data need is not there, before anything loads.

        Args:
            key: The setting's group, for errors: "data" or "transfer".
        """
        if self.near_duplicates == "drop" and (self.only_test or key == "transfer"):
            allowed = "leaves out tasks to learn from, and only Test of this data set is used"
            raise InputError(f"{key}.near_duplicates", "drop", allowed, "Leave it out.")
        if self.annotator == "scripted" and not self.specifications():
            allowed = "needs a script that knows what the tasks ask for, and this data set has none"
            raise InputError(f"{key}.annotator", "scripted", allowed, f"Use {key}.annotator=human.")

    def check_gold(self, tasks: Iterable[Task], sandbox: Judge, key: str = "data") -> None:
        """Execute every gold program on its tests, unless they are known to pass.

        Args:
            tasks: Those without a gold program are passed over.
            sandbox: Executes them.
            key: The setting's group, for errors: "data" or "transfer".

        Raises:
            InputError: Names the place of each that does not pass, the first five of them, with what came of it.
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
        """The argument that says where the tasks come from, and its value; of a class without one the class."""
        return "_target_", f"{type(self).__module__}.{type(self).__qualname__}"

    def wrong(self, key: str, allowed: str, advice: str) -> InputError:
        """Return the error that says something of the tasks as a whole."""
        name, value = self.source
        return InputError(f"{key}.{name}", value, allowed, advice)

    def same(self, other: Data) -> bool:
        """Return whether another data set has the same tasks."""
        return type(self) is type(other) and self.source == other.source

    def place_of(self, *splits: str) -> str:
        """Return what makes a task one of these splits, for errors."""
        return "`split` of a task"

    def places(self, key: str) -> Mapping[int, str]:
        """Return where each task stands, such as FILE:LINE, by id, as far as that is known."""
        return {}

    def specifications(self) -> Mapping[int, Any]:
        """Return what the tasks ask for, by id, as `feedback=scripted` needs it; empty where no script knows."""
        return {}


def job_of(program: str, task: Task, tests: str = "all", gold: str = "") -> Job:
    """Return a program with what its task asks of it, for a sandbox.

    Args:
        program: A whole one.
        task: The task.
        tests: "all"; "unseen" to leave out the tests or inputs that the prompt shows; "challenge" for the task's
            challenge tests in place of its tests, where it has some.
        gold: See `ilf.sandbox.Job`.
    """
    first = task.shown if tests == "unseen" else 0
    if task.inputs:
        given, expected = task.inputs[first:], task.outputs[first:]
        return Job(program, gold=gold, inputs=given, outputs=expected, compare_output=task.compare_output)
    asked = task.challenge if tests == "challenge" and task.challenge else task.tests[first:]
    return Job(program, asked, task.setup, gold=gold)


def split_tasks(tasks: Iterable[Task], limit: Mapping[str, int | None], only: set[int] | None = None) -> Splits:
    """Return the splits, restricted and limited.

    Args:
        tasks: All tasks.
        limit: Of a split by its name: how many tasks to keep, the first ids; None for all.
        only: Ids that Refine and Train keep (the annotated ones when feedback comes from a file), before the limit.
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
