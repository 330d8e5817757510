"""What a fine-tuning minimises: the options of the group `objective`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ilf.protocols import Objective

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SFT(Objective):
    """The paper's: the mean cross-entropy over the target tokens of each example, EOS included, in nats a token."""

    def losses(self, module: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the loss of each example, (B,).

        Raises:
            ValueError: An example has no target token.
        """
        from ilf.models.targets import token_losses

        labels = batch["labels"]
        counts = (labels != -100).sum(dim=1)
        if bool((counts == 0).any()):
            raise ValueError("a batch holds an example without a target token")
        first = int((labels != -100).int().argmax(dim=1).min()) - 1  # logits before it predict only prompt tokens
        logits = module.logits(batch, labels.shape[1] - first)
        loss: torch.Tensor = token_losses(logits, labels[:, first:]).sum(dim=1) / counts
        return loss
