"""Policy gradients on programs that were sampled earlier."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ilf.protocols import Objective, TrainingData
from ilf.ranges import AboveZero, Natural
from ilf.training.objectives.preference import sampled
from ilf.types import Example

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Weighted(Objective):
    """Weights each program's log-likelihood by its advantage (RLTF-SD, Song et al. 2026); ILF is a special case.

    With the reward R(x) = 1 if x passes and 0 otherwise, the loss of a program x of T tokens is -A(x) / T sum_i log
    pi(x_i | t, x_<i), A(x) = R(x) - b. If b is the mean reward of the policy's own samples, it is 0 on the tasks that
    ILF trains on, because none of their samples passes (failing=all). What remains is the paper's loss on correct
    refinements.

    With `clip` = c and q_i = pi(x_i | t, x_<i) / pi_ref(x_i | t, x_<i), where pi_ref is the policy before training,
    the loss is -1/T sum_i min(q_i A, clamp(q_i, 1 - c, 1 + c) A) (PPO, Schulman et al. 2017): a token whose ratio has
    left the range gets no further update.

    Args:
        baseline: The source of b. first_turn: the mean reward of the policy's samples; group: the mean reward of
            these and the refiner's.
        negatives: The largest number of incorrect programs per task. Their advantage is -b; they are left out if it
            is 0.
        clip: c; null for no clipping.
    """

    baseline: Literal["first_turn", "group"] = "first_turn"
    negatives: Natural = 0
    clip: AboveZero | None = None

    @property
    def needs_reference(self) -> bool:
        """True if the ratio is clipped."""
        return self.clip is not None

    def examples(self, data: TrainingData) -> list[Example]:
        """Return the programs of the training set, plus incorrect ones, with their advantages as values."""
        found = [replace(e, value=1 - self._mean(data, e.task_id)) for e in data.each(lambda row: [data.example(row)])]
        for task_id in dict.fromkeys(row.task_id for row in data.rows) if self.negatives else ():
            wrong = sampled(data, (p for p in data.programs(task_id) if not p.verdict.passed), self.negatives)
            found += [replace(e, value=-self._mean(data, task_id)) for e in wrong]
        return [e for e in found if e.value]

    def _mean(self, data: TrainingData, task_id: int) -> float:
        """Return the mean reward of the programs sampled on a task."""
        programs = data.programs(task_id) if self.baseline == "group" else data.samples.get(task_id, ())
        return sum(p.verdict.passed for p in programs) / len(programs) if programs else 0.0

    def losses(self, module: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the loss of each program, (B,)."""
        import torch

        from ilf.training.objectives.likelihood import likelihood

        found, advantage = likelihood(module, batch), batch["value"]
        if self.clip is None:
            return -found.mean() * advantage
        ratio = found.ratios().exp()  # (B, W)
        held = ratio.clamp(1 - self.clip, 1 + self.clip)
        least = torch.minimum(ratio * advantage[:, None], held * advantage[:, None]) * found.mask
        return -least.sum(dim=1) / found.mask.sum(dim=1)
