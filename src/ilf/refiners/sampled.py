"""Refiners that a run does not fine-tune: a prompted policy, a saved model, and a control without feedback."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ilf.feedback.source import check_worked_examples, worked_examples
from ilf.paths import check_model_folder
from ilf.protocols import Refiner, Refining
from ilf.ranges import Natural
from ilf.tasks.feedback_prompts import few_shot_prompt
from ilf.tasks.prompts import completion_of
from ilf.types import Feedback, InputError, Refinement, Task

log = logging.getLogger(__name__)


@dataclass
class FewShot(Refiner):
    """A refiner: the run's initial policy, prompted with worked examples.

    Args:
        shots: The number of worked examples, which are tasks of the Prompt split.
    """

    shots: Natural = 1

    name = "few_shot"

    @property
    def worked_examples(self) -> int:
        """The number of worked examples in each prompt."""
        return self.shots

    def check(self, settings: Any) -> None:
        """Raise InputError if there are too few tasks for the worked examples."""
        check_worked_examples(settings, "refiner.shots", self.shots)

    def train(self, feedback: Sequence[Feedback], run: Refining) -> Path:
        """Return the folder of the run's initial policy."""
        for f, target in self._targets(run):
            if not isinstance(target, str):
                log.warning("refiner=few_shot: task %d is left out of the worked examples: %s", f.task_id, target)
        return run.base

    def prompt(self, feedback: Feedback, task: Task, run: Refining) -> str:
        """Return the worked examples followed by the refine prompt."""
        possible = (
            (f, Refinement(f.task_id, run.tasks.by_id[f.task_id].prompt, target, f.source))
            for f, target in self._targets(run)
            if isinstance(target, str)
        )
        shown = list(islice(possible, self.shots))
        return few_shot_prompt(worked_examples("refiner.shots", self.shots, shown), super().prompt(feedback, task, run))

    def _targets(self, run: Refining) -> Iterator[tuple[Feedback, str | Exception]]:
        """Yield each worked example with its target, or with the reason why its program can't follow the prompt."""
        for f in run.worked:
            own = run.tasks.by_id[f.task_id]
            try:
                yield f, completion_of(own.prompt, f.refinement or own.code, own.entry_point)
            except (ValueError, SyntaxError) as error:
                yield f, error


@dataclass
class Folder(Refiner):
    """A refiner that was fine-tuned before.

    Args:
        path: The folder of the model, such as the refiner/ of an earlier run.
    """

    path: str | None = None

    name = "local"

    @property
    def folder(self) -> Path | None:
        """The folder of the model."""
        return Path(str(self.path))

    def check(self, settings: Any) -> None:
        """Raise InputError if the folder holds no model."""
        if self.path is None:
            allowed = f"refiner={settings.option('refiner')} needs a folder in Hugging Face's layout"
            advice = "Give refiner.path=FOLDER, such as the refiner/ of an earlier run."
            raise InputError("refiner.path", None, allowed, advice)
        check_model_folder("refiner.path", self.path)

    def train(self, feedback: Sequence[Feedback], run: Refining) -> Path:
        """Return the folder of the model."""
        return Path(str(self.path))


@dataclass
class Policy(Refiner):
    """A control: fresh samples of the newest policy, prompted with the task but without program and feedback."""

    name = "policy"
    reads_program = False

    def train(self, feedback: Sequence[Feedback], run: Refining) -> Path:
        """Return the folder of the newest policy."""
        return run.policy

    def prompt(self, feedback: Feedback, task: Task, run: Refining) -> str:
        """Return the task's prompt."""
        return task.prompt
