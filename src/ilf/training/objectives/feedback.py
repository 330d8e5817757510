"""Objectives whose texts hold the feedback itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from ilf.protocols import TrainingData
from ilf.ranges import NotNegative
from ilf.tasks.feedback_prompts import conditioned_prompt, critique_prompt
from ilf.training.objectives.preference import feedback_on, rejected
from ilf.training.objectives.sft import SFT
from ilf.types import Example, InputError, Refinement, Task


def _critique(data: TrainingData, row: Refinement) -> tuple[str, str]:
    """Return what the policy is given to write feedback, and the feedback. Raises ValueError where there is none."""
    program, words = feedback_on(row)
    return critique_prompt(data.old_code(program)), words


@dataclass(frozen=True)
class Critique(SFT):
    """Learns to write the feedback f, given the task and x0 (CFT, Wang et al. 2025), and no program at all."""

    needs_feedback: ClassVar[bool] = True

    def examples(self, data: TrainingData) -> list[Example]:
        """Return each row's feedback after its wrong program."""
        return data.each(lambda row: [data.encode(row.task_id, *_critique(data, row))])


@dataclass(frozen=True)
class Multitask(SFT):
    """Learns three things of each row: x1 from t, f from x0, and f and then x1 from x0 (as LeDex, Jiang et al. 2024).

    The wrong program x0 holds the task. The three weigh in the loss as the shares say; feedback modelling beside the
    paper's loss (RLTF-FM, Song et al. 2026) is explain_and_refine=0.

    Args:
        refine: Weight of x1 after the task alone: what the policy is evaluated on.
        explain: Weight of f after x0.
        explain_and_refine: Weight of f and then x1, after x0.
    """

    refine: NotNegative = 1.0
    explain: NotNegative = 1.0
    explain_and_refine: NotNegative = 1.0

    needs_feedback: ClassVar[bool] = True

    def check(self, settings: object) -> None:
        """Raise InputError where all shares are 0."""
        if not self.refine + self.explain + self.explain_and_refine:
            raise InputError("objective.refine", 0.0, "is 0 like the other shares", "Give one of them a weight.")

    def examples(self, data: TrainingData) -> list[Example]:
        """Return up to three examples of each row, with their weights, 1 on average, as values."""
        shares = [share for share in (self.refine, self.explain, self.explain_and_refine) if share]
        unit = sum(shares) / len(shares)

        def make(row: Refinement) -> Iterable[Example]:
            prompt, words = _critique(data, row)
            both = f"{words}\n\nREFINEMENT:\n{row.prompt}{row.target}"
            made = []
            if self.refine:
                made.append(replace(data.example(row), value=self.refine / unit))
            for share, target in ((self.explain, words), (self.explain_and_refine, both)):
                if share:
                    made.append(replace(data.encode(row.task_id, prompt, target), value=share / unit))
            return made

        return data.each(make)


@dataclass(frozen=True)
class FeedbackConditional(SFT):
    """Learns programs behind what was said of them: x0 after f, x1 after praise (Chain of Hindsight, Liu et al. 2023).

    The fine-tuned policy is then sampled behind the praise; whoever uses it elsewhere has to write it there, too.

    Args:
        praise: The words.
    """

    praise: str = "This program is correct."

    needs_feedback: ClassVar[bool] = True

    def examples(self, data: TrainingData) -> list[Example]:
        """Return both programs of each row, each behind its words."""

        def make(row: Refinement) -> Iterable[Example]:
            _, words = feedback_on(row)
            right, wrong = data.example(row), rejected(data, row)
            return [
                replace(e, prompt_ids=data.prompt_ids(conditioned_prompt(text, row.prompt)))
                for e, text in ((right, self.praise), (wrong, words))
            ]

        return data.each(make)

    def prompt(self, task: Task) -> str:
        """Return the task's prompt behind the praise."""
        return conditioned_prompt(self.praise, task.prompt)
