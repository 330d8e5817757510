"""The batches of one stage: training examples, and validation and test draws on the tasks of MBPP's splits."""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from ilf.models.decoding import REFILLS
from ilf.models.load import load_tokenizer
from ilf.models.targets import collate, encode
from ilf.models.tokens import by_length, encode_prompts
from ilf.tasks import MBPP
from ilf.tasks.data import split_tasks
from ilf.tasks.near_duplicates import near_duplicates
from ilf.tasks.prompts import completion_of
from ilf.types import Draw, Example, Task, derive_seed

log = logging.getLogger(__name__)

_LONGEST = 1024  # largest number of tokens of an example without settings
PADDING = 0.05  # largest share of padding among a micro-batch's tokens


def plan_draws(tasks: Iterable[tuple[Task, str]], stage: str, n: int, seed: int) -> list[Draw]:
    """Return `n` draws per task, each with its own seed.

    Args:
        tasks: Each task with the prompt that the model is given for it.
        stage: Part of every seed, so that no two stages share random numbers.
        n: Programs per task.
        seed: The run's seed.
    """
    return [Draw.of(task, i, prompt, stage, seed) for task, prompt in tasks for i in range(n)]


def micro_batches(examples: Iterable[Example], size: int) -> list[list[Example]]:
    """Return the examples in groups of similar length, the longest first.

    Args:
        examples: The examples of one optimizer step or of a validation.
        size: The largest number of examples in a group. An example that would raise its group's padding above PADDING
            starts the next group.
    """
    return by_length(examples, lambda example: example.length, PADDING, size)


class DrawBatch:
    """Draws that are sampled together. It is an object because Lightning searches lists for tensors to move.

    Args:
        draws: All draws of the batch.
        missing: The draws that still have to be sampled; None for all.
    """

    def __init__(self, draws: Sequence[Draw], missing: Sequence[Draw] | None = None) -> None:
        self.draws, self.missing = draws, draws if missing is None else missing


@dataclass(frozen=True)
class Contents:
    """The examples and draws that a stage trains and samples on."""

    training: Sequence[Example] = ()  # for fit
    validation: Sequence[Example] = ()  # for the validation loss after each epoch
    validation_draws: Sequence[Draw] = ()  # programs to sample after each epoch
    test_draws: Sequence[Draw] = ()  # programs to sample in test and predict
    taken: Collection[tuple[int, int]] = ()  # (task, sample) of test draws that go into batches of their own
    kept: Collection[tuple[int, int]] = ()  # (task, sample) of test draws that are already sampled
    whole_plans: bool = True  # whether a batch with a missing draw is resampled whole


class _Steps(Dataset[Any]):
    """The optimizer steps of a datamodule."""

    def __init__(self, data: MBPPDataModule) -> None:
        self.data = data

    def __len__(self) -> int:
        return -(-len(self.data.contents.training) // self.data.batch_size)

    def __getitem__(self, number: int) -> list[dict[str, torch.Tensor]]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self.data.step(number)


class MBPPDataModule(pl.LightningDataModule):
    """Loaders for Lightning's fit, validate, test and predict.

    Without `contents`, it loads a data set, divides it into the paper's splits, and serves the gold programs of Train
    for fit, draws on Refine for validate, and draws on Test for test and predict. A training batch is one optimizer
    step: a list of micro-batches, which are dicts of tensors (B, T). A validation batch is a micro-batch or a
    `DrawBatch`, a test batch a `DrawBatch`. With several processes, each has its share of every step and of the
    draws. All have the same number of micro-batches and of batches, some of which may be empty.

    Args:
        tokenizer: The model's tokenizer, or a model folder. It gives the padding id and the lengths by which batches
            are planned.
        contents: What to serve; None for the contents of `data`.
        data: A data set, such as `MBPP(path="mbpp.jsonl")`; None for MBPP from the Hugging Face Hub.
        n: Programs per task if `contents` is None.
        batch_size: Examples per optimizer step.
        micro_batch_size: The largest number of examples per forward pass.
        sampling_batch_size: Programs sampled at once. A batch of draws is several times as large.
        seed: Decides the order of the training examples, together with the epoch.
    """

    def __init__(
        self,
        tokenizer: Any,
        contents: Contents | None = None,
        data: Any = None,
        n: int = 1,
        batch_size: int = 32,
        micro_batch_size: int = 1,
        sampling_batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.tokenizer = load_tokenizer(Path(tokenizer)) if isinstance(tokenizer, str | Path) else tokenizer
        self.contents, self.data, self.n = contents or Contents(), data, n
        self.alone = contents is None  # whether the data must still be read
        self.tasks: dict[int, Task] = {}  # by id, once they are read
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.sampling_batch_size, self.seed = sampling_batch_size, seed

    def setup(self, stage: str) -> None:
        """Read the data set if no contents were given."""
        if not self.alone:
            return
        self.alone, data = False, self.data or MBPP()
        tasks = data.load()[0]
        dropped = near_duplicates(tasks) if data.near_duplicates == "drop" else {}
        splits = split_tasks([task for task in tasks if task.task_id not in dropped], vars(data.limit))
        self.tasks, training = splits.by_id, []
        for task in splits.train:
            if not task.code:
                log.warning("task %d is left out of the training set: it has no gold program", task.task_id)
                continue
            try:
                target = completion_of(task.prompt, task.gold or task.code, task.entry_point)
                training.append(encode(self.tokenizer, task.task_id, task.prompt, target, _LONGEST))
            except (ValueError, SyntaxError) as error:
                log.warning("task %d is left out of the training set: %s", task.task_id, error)
        draws = {
            name: plan_draws([(task, task.prompt) for task in tasks], name, self.n, self.seed)
            for name, tasks in (("validate", splits.refine), ("test", splits.test))
        }
        self.contents = Contents(training, validation_draws=draws["validate"], test_draws=draws["test"])

    def train_dataloader(self) -> DataLoader[Any]:
        """Return each epoch's optimizer steps. Each example occurs once, in a step that seed and epoch decide."""
        return DataLoader(_Steps(self), batch_size=None)

    def step(self, number: int) -> list[dict[str, torch.Tensor]]:
        """Return this process's micro-batches of an optimizer step of the current epoch."""
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        order = list(self.contents.training)
        random.Random(derive_seed(self.seed, "order", epoch)).shuffle(order)
        return self._share(order[number * self.batch_size : (number + 1) * self.batch_size])

    def _share(self, step: Sequence[Example]) -> list[dict[str, torch.Tensor]]:
        """Return this process's micro-batches of an optimizer step."""
        rank, count = self._rank
        parts = micro_batches(step, min(self.micro_batch_size, -(-len(step) // count)))
        # The gradient is a mean over a full batch, so that an example of an epoch's smaller last step counts as much as
        # any other. The factor `count` compensates for the averaging of gradients over processes.
        full = min(self.batch_size, len(self.contents.training))
        share = [self._collate(part, count / full, count / len(step)) for part in parts[rank::count]]
        if len(share) < -(-len(parts) // count):  # every rank must join a sharded model's passes
            share.append(self._collate(parts[-1][:1], 0.0, 0.0))
        return share

    @property
    def _rank(self) -> tuple[int, int]:
        """This process's rank, and the world size."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Return a loader of examples, if there are any, and a loader of draws, if there are any."""
        own = self.contents
        examples = [self._collate(part) for part in micro_batches(own.validation, self.micro_batch_size)]
        loaders = [examples, self._share_of_draws(own.validation_draws)]
        return [DataLoader(batches, batch_size=None) for batches in loaders if batches]  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the planned batches of draws, followed by separate batches of the stored ones."""
        own = self.contents
        kept = [d for d in own.test_draws if (d.task_id, d.sample) in own.taken]
        planned = [d for d in own.test_draws if (d.task_id, d.sample) not in own.taken]
        return DataLoader(self._share_of_draws(planned) + self._share_of_draws(kept), batch_size=None)  # type: ignore[arg-type]

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the same batches as `test_dataloader`."""
        return self.test_dataloader()

    def _share_of_draws(self, draws: Sequence[Draw]) -> list[DrawBatch]:
        (rank, count), batches = self._rank, self.draw_batches(draws)
        share = range(rank, -(-len(batches) // count) * count, count)
        return [self._batch(batches[i] if i < len(batches) else []) for i in share]

    def _batch(self, draws: Sequence[Draw]) -> DrawBatch:
        kept = self.contents.kept
        missing = [d for d in draws if (d.task_id, d.sample) not in kept]
        return DrawBatch(draws, draws if missing and self.contents.whole_plans else missing)

    def draw_batches(self, draws: Sequence[Draw]) -> list[list[Draw]]:
        """Return the draws in batches of prompts of similar length, the longest first, so that memory fails early.

        A batch is stored, or resampled, as a whole. During sampling, waiting draws take the places of finished ones.
        There are at least as many batches as processes, if there are enough draws.
        """
        prompts = list({d.prompt for d in draws})
        length = {p: len(ids) for p, ids in zip(prompts, encode_prompts(self.tokenizer, prompts), strict=True)}
        order = sorted(draws, key=lambda d: (-length[d.prompt], d.task_id, d.sample))
        share = -(-len(draws) // self._rank[1])
        size = max(1, min(REFILLS * self.sampling_batch_size, share))
        return [order[i : i + size] for i in range(0, len(order), size)]

    def _collate(self, examples: Sequence[Example], weight: float = 1.0, share: float = 1.0) -> dict[str, torch.Tensor]:
        """Return the tensors of `collate`, plus the weight and share of each example in its optimizer step.

        Args:
            examples: The examples of a micro-batch.
            weight: The weight of each example in the gradient.
            share: The weight of each example in a mean over the examples of the step.
        """
        own = {"weight": torch.tensor(weight), "share": torch.tensor(share)}
        return collate(examples, self.tokenizer.pad_token_id) | own
