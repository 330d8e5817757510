"""The paper's objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ilf.protocols import Objective

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SFT(Objective):
    """The mean cross-entropy of each example's target tokens, EOS included, in nats per token (Chen et al. 2023).

    For an example with prompt t and target y of T tokens, the loss is -1/T sum_i log pi(y_i | t, y_<i), times the
    example's value.
    """

    def losses(self, module: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the loss of each example, (B,).

        Raises:
            ValueError: An example has no target token.
        """
        from ilf.training.objectives.likelihood import likelihood

        return -likelihood(module, batch).mean() * batch["value"]
