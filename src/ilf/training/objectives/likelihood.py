"""Log-probabilities of a batch's targets, from which objectives are computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ilf.models.targets import token_losses


@dataclass(frozen=True)
class Likelihood:
    """A model's log-probabilities of the targets of R texts.

    The W columns begin at the first target token of any text.
    """

    logps: torch.Tensor  # (R, W), log-probability of each target token, in nats; 0 elsewhere
    mask: torch.Tensor  # (R, W), True at target tokens
    focus: torch.Tensor  # (R, W), True at the target tokens that the objective counts
    reference: torch.Tensor | None  # (R, W), like `logps`, under the model before training

    def mean(self) -> torch.Tensor:
        """Return the mean log-probability of each text's target tokens, (R,)."""
        return self.logps.sum(dim=1) / self.mask.sum(dim=1)

    def ratios(self) -> torch.Tensor:
        """Return log pi_theta - log pi_ref of each counted target token, (R, W); 0 elsewhere."""
        if self.reference is None:
            raise ValueError("the examples have no log-probabilities of the model before training")
        return (self.logps - self.reference) * self.focus


def first_target(labels: torch.Tensor) -> int:
    """Return the position before the first target token of any row of labels, (R, T); logits are needed from there on.

    Raises:
        ValueError: A row has no target token.
    """
    there = labels != -100
    if not bool(there.any(dim=1).all()):
        raise ValueError("a batch holds an example without a target token")
    return int(there.int().argmax(dim=1).min()) - 1


def rows(batch: dict[str, torch.Tensor], start: int, end: int) -> dict[str, torch.Tensor]:
    """Return the texts `start` to `end` of a batch, cut to the longest of them."""
    width = int(batch["attention_mask"][start:end].sum(dim=1).max())
    by_row = ("input_ids", "attention_mask", "labels", "focus", "reference")
    return {name: tensor[start:end, :width] for name, tensor in batch.items() if name in by_row}


def likelihood(module: Any, batch: dict[str, torch.Tensor]) -> Likelihood:
    """Return the log-probabilities of a batch's targets under a module's model.

    Args:
        module: A FineTuningModule.
        batch: `input_ids`, `attention_mask` and `labels`, (R, T); optionally `focus` and `reference`.
    """
    labels = batch["labels"]
    first = first_target(labels)
    logits = module.logits(batch, labels.shape[1] - first)
    mask = labels[:, first + 1 :] != -100
    focus, reference = batch.get("focus"), batch.get("reference")
    return Likelihood(
        -token_losses(logits, labels[:, first:]),
        mask,
        mask if focus is None else focus[:, first + 1 :],
        None if reference is None else reference[:, first + 1 :],
    )
