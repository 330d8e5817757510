"""Self-distillation: the policy that reads the feedback teaches the policy that does not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ilf.protocols import Objective, TrainingData
from ilf.ranges import Share
from ilf.tasks.feedback_prompts import with_refinement
from ilf.training.objectives.preference import feedback_on, rejected
from ilf.types import Example, Refinement

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SelfDistillation(Objective):
    """Minimizes each token's divergence from a teacher that reads more than the policy.

    The method follows SDPO (Hübotter et al. 2026) and SDFT (Shenfeld et al. 2026). On the policy's own program x0 of
    T tokens, the student is p_i = pi(. | t, x0_<i), and the teacher is q_i = pi(. | context, t, x0_<i), without a
    gradient. The loss is 1/T sum_i D(p_i, q_i) over the whole vocabulary. D is KL(q || p) for alpha = 0, KL(p || q)
    for alpha = 1, and (1 - alpha) KL(p || m) + alpha KL(q || m) with m = (1 - alpha) p + alpha q between them.

    Args:
        context: What the teacher reads before the task. feedback: the refine prompt with x0 and f; refinement: the
            same prompt followed by the correct program x1.
        alpha: From 0 to 1.
        teacher: Whose weights the teacher has. base: the policy before training; policy: the policy itself at each
            step; refiner: pi_Refine, which was trained to read feedback.
    """

    context: Literal["feedback", "refinement"] = "feedback"
    alpha: Share = 0.5
    teacher: Literal["base", "policy", "refiner"] = "base"

    needs_feedback: ClassVar[bool] = True
    texts: ClassVar[int] = 2  # the teacher's text needs less memory

    @property
    def second_model(self) -> Literal["base", "refiner"] | None:
        """The teacher, unless it is the policy being trained."""
        return None if self.teacher == "policy" else self.teacher

    def examples(self, data: TrainingData) -> list[Example]:
        """Return each row's incorrect program after the task; its other text is the same program after the context."""

        def make(row: Refinement) -> Iterable[Example]:
            feedback_on(row)
            student, context = rejected(data, row), data.refine_prompt(row)
            if self.context == "refinement":
                context = with_refinement(context, row)
            teacher = replace(student, prompt_ids=data.prompt_ids(context))
            if teacher.length > data.max_length:
                raise ValueError(f"{teacher.length} tokens with the context; training.max_length is {data.max_length}")
            return [replace(student, other=teacher)]

        return data.each(make)

    def losses(self, module: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the loss of each program, (B,)."""
        from ilf.training.objectives.likelihood import rows

        count = len(batch["value"])
        student, places = self._distributions(module.logits, rows(batch, 0, count))
        teacher, _ = self._distributions(module.teacher_logits, rows(batch, count, 2 * count))
        each = divergence(student, teacher, self.alpha)
        lengths = places.bincount(minlength=count)
        return each.new_zeros(count).index_add(0, places, each) / lengths

    @staticmethod
    def _distributions(logits_of: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-probabilities at each target token, (N, V), and the row of each token, (N,)."""
        from ilf.training.objectives.likelihood import first_target

        labels = batch["labels"]
        first = first_target(labels)
        logits = logits_of(batch, labels.shape[1] - first)[:, :-1]
        there = labels[:, first + 1 :] != -100
        return logits[there].float().log_softmax(dim=-1), there.nonzero()[:, 0]


@dataclass(frozen=True)
class RefinerDistillation(SelfDistillation):
    """Self-distillation with the refiner as the teacher: the policy learns its token distributions given feedback."""

    teacher: Literal["base", "policy", "refiner"] = "refiner"


def divergence(student: torch.Tensor, teacher: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return D at each position, (N,), in nats; see `SelfDistillation`.

    Args:
        student: The student's log-probabilities, (N, V).
        teacher: The teacher's log-probabilities, (N, V).
        alpha: From 0 to 1.
    """
    import torch
    from torch.nn.functional import kl_div

    def kl(of: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        return kl_div(to, of, reduction="none", log_target=True).sum(dim=-1)

    if alpha in (0.0, 1.0):
        return kl(student, teacher) if alpha else kl(teacher, student)
    weights = student.new_tensor([1 - alpha, alpha]).log()
    middle = torch.stack([student + weights[0], teacher + weights[1]]).logsumexp(dim=0)
    return (1 - alpha) * kl(student, middle) + alpha * kl(teacher, middle)
