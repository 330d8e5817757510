"""What a fine-tuning minimises: the options of the group `objective`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Objective(ABC):
    """A loss over examples. Derive from it for an objective of your own: a dataclass whose fields are its arguments."""

    changes_nothing: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def losses(self, module: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the loss of each example, (B,).

        Args:
            module: A FineTuningModule: its `model`, `tokenizer`, and `logits`.
            batch: `input_ids`, `attention_mask` and `labels`, each (B, T), right-padded; labels of -100 don't count.
        """


@dataclass(frozen=True)
class SFT(Objective):
    """The paper's: the mean cross-entropy over the target tokens of each example, EOS included, in nats a token."""

    def losses(self, module: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the loss of each example, (B,).

        Raises:
            ValueError: An example has no target token.
        """
        from ilf.training.fine_tuning import token_losses

        labels = batch["labels"]
        counts = (labels != -100).sum(dim=1)
        if bool((counts == 0).any()):
            raise ValueError("a batch holds an example without a target token")
        first = int((labels != -100).int().argmax(dim=1).min()) - 1  # logits before it predict only prompt tokens
        logits = module.logits(batch, labels.shape[1] - first)
        loss: torch.Tensor = token_losses(logits, labels[:, first:]).sum(dim=1) / counts
        return loss
