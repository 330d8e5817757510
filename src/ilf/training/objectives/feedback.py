"""Objectives whose texts contain the feedback itself."""

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
    """Return the prompt for writing feedback, and the feedback. Raises ValueError if there is none."""
    program, words = feedback_on(row)
    return critique_prompt(data.old_code(program)), words


@dataclass(frozen=True)
class Critique(SFT):
    """Trains the policy to write the feedback f from the task and x0, and no program (CFT, Wang et al. 2025)."""

    needs_feedback: ClassVar[bool] = True

    def examples(self, data: TrainingData) -> list[Example]:
        """Return for each row its feedback as the target after its incorrect program."""
        return data.each(lambda row: [data.encode(row.task_id, *_critique(data, row))])


@dataclass(frozen=True)
class Multitask(SFT):
    """Trains three tasks on each row: x1 from t, f from x0, and f then x1 from x0 (as LeDex, Jiang et al. 2024).

    The incorrect program x0 contains the task. The arguments weight the three tasks in the loss. For feedback
    modeling beside the paper's loss (RLTF-FM, Song et al. 2026), set explain_and_refine=0.

    Args:
        refine: Weight of x1 after the task alone, which is what the policy is evaluated on.
        explain: Weight of f after x0.
        explain_and_refine: Weight of f and then x1, after x0.
    """

    refine: NotNegative = 1.0
    explain: NotNegative = 1.0
    explain_and_refine: NotNegative = 1.0

    needs_feedback: ClassVar[bool] = True

    def check(self, settings: object) -> None:
        """Raise InputError if all weights are 0."""
        if not self.refine + self.explain + self.explain_and_refine:
            allowed = "is 0, and so are objective.explain and objective.explain_and_refine"
            raise InputError("objective.refine", 0.0, allowed, "Set one of them above 0.")

    def examples(self, data: TrainingData) -> list[Example]:
        """Return up to three examples per row, with their weights as values. The weights are 1 on average."""
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
    """Trains on programs after feedback: x0 after f, x1 after praise (Chain of Hindsight, Liu et al. 2023).

    The fine-tuned policy is then sampled with the praise in its prompt. If you use the policy elsewhere, add the
    praise to the prompt there, too.

    Args:
        praise: The text that stands before a correct program.
    """

    praise: str = "This program is correct."

    needs_feedback: ClassVar[bool] = True

    def examples(self, data: TrainingData) -> list[Example]:
        """Return both programs of each row, each after its feedback or praise."""

        def make(row: Refinement) -> Iterable[Example]:
            _, words = feedback_on(row)
            right, wrong = data.example(row), rejected(data, row)
            found = [
                replace(e, prompt_ids=data.prompt_ids(conditioned_prompt(text, row.prompt)))
                for e, text in ((right, self.praise), (wrong, words))
            ]
            if (longest := max(e.length for e in found)) > data.max_length:
                raise ValueError(f"{longest} tokens with the feedback; training.max_length is {data.max_length}")
            return found

        return data.each(make)

    def prompt(self, task: Task) -> str:
        """Return the task's prompt after the praise."""
        return conditioned_prompt(self.praise, task.prompt)
