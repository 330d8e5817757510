"""Refiners that no run fine-tunes: a prompted policy, a folder of an earlier run, and the control without feedback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilf.feedback.source import check_worked_examples, worked_examples
from ilf.paths import check_model_folder
from ilf.protocols import Refiner, Refining
from ilf.ranges import Natural
from ilf.tasks.feedback_prompts import few_shot_prompt
from ilf.tasks.prompts import completion_of
from ilf.types import Feedback, InputError, Refinement, Task


@dataclass
class FewShot(Refiner):
    """The policy that the run started with, prompted with worked examples.

    Args:
        shots: How many examples, on tasks of the Prompt split.
    """

    shots: Natural = 1

    name = "few_shot"

    @property
    def worked_examples(self) -> int:
        """How many worked examples each prompt holds."""
        return self.shots

    def check(self, settings: Any) -> None:
        """Raise InputError where the tasks are too few for the examples."""
        check_worked_examples(settings, "refiner.shots", self.shots)

    def train(self, feedback: Sequence[Feedback], run: Refining) -> Path:
        """Return the folder of the policy that the run started with."""
        return run.base

    def prompt(self, feedback: Feedback, task: Task, run: Refining) -> str:
        """Return the refine prompt behind the worked examples."""
        shown = []
        for f in worked_examples("refiner.shots", self.shots, list(run.worked)):
            own = run.tasks.by_id[f.task_id]
            target = completion_of(own.prompt, f.refinement or own.code, own.entry_point)
            shown.append((f, Refinement(f.task_id, own.prompt, target, f.source)))
        return few_shot_prompt(shown, super().prompt(feedback, task, run))


@dataclass
class Folder(Refiner):
    """A model that was fine-tuned before.

    Args:
        path: Its folder, such as the refiner/ of an earlier run.
    """

    path: str | None = None

    name = "local"

    @property
    def folder(self) -> Path | None:
        """The folder."""
        return Path(str(self.path))

    def check(self, settings: Any) -> None:
        """Raise InputError where the folder holds no model."""
        if self.path is None:
            allowed = f"refiner={settings.option('refiner')} needs a folder in Hugging Face's layout"
            advice = "Give refiner.path=FOLDER, such as the refiner/ of an earlier run."
            raise InputError("refiner.path", None, allowed, advice)
        check_model_folder("refiner.path", self.path)

    def train(self, feedback: Sequence[Feedback], run: Refining) -> Path:
        """Return the folder."""
        return Path(str(self.path))


@dataclass
class Policy(Refiner):
    """A control: fresh samples of the newest policy, given the task without program and feedback."""

    name = "policy"
    reads_program = False

    def train(self, feedback: Sequence[Feedback], run: Refining) -> Path:
        """Return the folder of the newest policy."""
        return run.policy

    def prompt(self, feedback: Feedback, task: Task, run: Refining) -> str:
        """Return the task's prompt."""
        return task.prompt
