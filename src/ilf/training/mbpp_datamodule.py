"""The batches of one stage: training examples, validation and test draws on the tasks of MBPP's splits."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from ilf.training.fine_tuning import Example
from ilf.types import Draw, Task, derive_seed

_REFILLS = 8  # batches of draws hold so many times the programs that are sampled at once


def plan_draws(tasks: Iterable[tuple[Task, str]], stage: str, n: int, seed: int) -> list[Draw]:
    """Return `n` draws a task, each with a seed of its own.

    Args:
        tasks: Each task with what the model is given for it.
        stage: Part of every seed, so that no two stages share random numbers.
        n: Programs a task.
        seed: The run's seed.
    """
    return [
        Draw(task.task_id, task.split, i, derive_seed(seed, stage, task.task_id, i), prompt, task.prompt)
        for task, prompt in tasks
        for i in range(n)
    ]


class MBPPDataModule(pl.LightningDataModule):
    """Loaders for Lightning's fit, validate and test.

    A training batch is a dict of tensors (B, T); a validation or test batch is a list of `Draw`.

    Args:
        tokenizer: Gives the padding id and the lengths that batches are planned by.
        training: Examples to fit on.
        validation: Examples to report the loss on after each epoch.
        validation_draws: Programs to sample after each epoch.
        test_draws: Programs to sample on test.
        batch_size: Examples an optimizer step.
        micro_batch_size: Examples a forward pass, at most.
        sampling_batch_size: Programs sampled at once; a batch of draws is several times as large.
        seed: Decides the order of the training examples, with the epoch.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        training: Sequence[Example] = (),
        validation: Sequence[Example] = (),
        validation_draws: Sequence[Draw] = (),
        test_draws: Sequence[Draw] = (),
        batch_size: int = 32,
        micro_batch_size: int = 1,
        sampling_batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.tokenizer, self.training, self.validation = tokenizer, training, validation
        self.validation_draws, self.test_draws = validation_draws, test_draws
        self.batch_size, self.micro_batch_size = batch_size, min(micro_batch_size, batch_size)
        self.sampling_batch_size, self.seed = sampling_batch_size, seed

    @property
    def accumulate(self) -> int:
        """Forward passes an optimizer step."""
        return -(-self.batch_size // self.micro_batch_size)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the epoch's batches: each example once, in an order that the seed and the epoch decide."""
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        order = list(self.training)
        random.Random(derive_seed(self.seed, "order", epoch)).shuffle(order)
        batches = []
        for start in range(0, len(order), self.batch_size):
            step = order[start : start + self.batch_size]
            for i in range(0, len(step), self.micro_batch_size):
                batches.append(self._collate(step[i : i + self.micro_batch_size], len(step)))
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Return a loader of examples, where there are any, and one of draws."""
        size = self.micro_batch_size
        examples = [self.validation[i : i + size] for i in range(0, len(self.validation), size)]
        loaders = [[self._collate(batch, len(batch)) for batch in examples], self.draw_batches(self.validation_draws)]
        return [DataLoader(batches, batch_size=None) for batches in loaders if batches]  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the planned batches of draws."""
        return DataLoader(self.draw_batches(self.test_draws), batch_size=None)  # type: ignore[arg-type]

    def draw_batches(self, draws: Sequence[Draw]) -> list[list[Draw]]:
        """Return the draws in batches, prompts of like length together, the longest first: memory fails early.

        A batch is what is kept, or drawn again, as a whole; while it is drawn, waiting draws take the places of
        finished ones.
        """
        length = {p: len(self.tokenizer(p, add_special_tokens=False).input_ids) for p in {d.prompt for d in draws}}
        order = sorted(draws, key=lambda d: (-length[d.prompt], d.task_id, d.sample))
        size = _REFILLS * self.sampling_batch_size
        return [order[i : i + size] for i in range(0, len(order), size)]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move tensors; draws are plain records and stay as they are."""
        return super().transfer_batch_to_device(batch, device, dataloader_idx) if isinstance(batch, dict) else batch

    def _collate(self, examples: Sequence[Example], examples_in_step: int) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask` and `labels`, (B, T), right-padded, labels only on the targets."""
        width = max(len(e.prompt_ids) + len(e.target_ids) for e in examples)
        ids = torch.full((len(examples), width), self.tokenizer.pad_token_id)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, example in enumerate(examples):
            prompt, end = len(example.prompt_ids), len(example.prompt_ids) + len(example.target_ids)
            ids[row, :end] = torch.tensor([*example.prompt_ids, *example.target_ids])
            labels[row, prompt:end] = torch.tensor(example.target_ids)
            mask[row, :end] = 1
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels,
            "examples_in_step": torch.tensor(float(examples_in_step)),
        }
