"""What the refiner's and the policy's fine-tuning have in common: optimizer, steps, checkpoints."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.strategies import ModelParallelStrategy, ParallelStrategy
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from ilf.models.continuous import ContinuousSampler
from ilf.models.sampling import Sampler
from ilf.models.served import ServedSampler
from ilf.models.shards import hold_whole, shard
from ilf.models.targets import all_logits, last_logits, token_losses
from ilf.settings import Optimizer, Phase, Training
from ilf.types import Draw, InputError, derive_seed

log = logging.getLogger(__name__)

EVERY = 10.0  # seconds between two words on how far long work has come
AnySampler = Sampler | ContinuousSampler | ServedSampler


def make_optimizer(settings: Optimizer, parameters: list[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Return the optimizer that `settings.name` names.

    A tensor of under 4,096 numbers keeps 32-bit state in the 8-bit ones.
    """
    arguments: dict[str, Any] = {
        "lr": lr,
        "betas": tuple(settings.betas),
        "eps": settings.eps,
        "weight_decay": settings.weight_decay,
    }
    if settings.name == "adamw":
        return torch.optim.AdamW(parameters, **arguments)
    from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit

    made = AdamW8bit if settings.name == "adamw_8bit" else PagedAdamW8bit
    optimizer: torch.optim.Optimizer = made(parameters, **arguments)
    return optimizer


def make_schedule(optimizer: torch.optim.Optimizer, warmup: int, steps: int) -> LRScheduler:
    """Return linear warm-up and linear decay to 0, in optimizer steps."""
    # As transformers' get_linear_schedule_with_warmup, whose module imports peft and bitsandbytes: seconds.
    return LambdaLR(optimizer, lambda t: t / warmup if t < warmup else (steps - t) / max(1, steps - warmup))


class FineTuningModule(pl.LightningModule):
    """Fine-tunes a causal language model on examples, and samples from it.

    Args:
        model: The model, adapted to what is trained of it.
        tokenizer: Its tokenizer.
        sampler: Draws programs on validation and test.
        training: What both fine-tunings share.
        phase: Learning rate, epochs and batch size of this one.
        optimizer: Which optimizer.
        seed: The run's seed.
    """

    stage: str  # prefix of the metrics

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        sampler: AnySampler,
        training: Training,
        phase: Phase,
        optimizer: Optimizer,
        seed: int,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.sampler = model, tokenizer, sampler
        self.training_settings, self.phase, self.optimizer_settings, self.seed = training, phase, optimizer, seed
        self.strict_loading = False  # checkpoints hold only what is trained
        self.automatic_optimization = False  # a batch is an optimizer step of as many passes as its lengths ask for
        # Compiled is a function and not the model: names in checkpoints and saved folders stay as they are.
        self._training_forward = torch.compile(all_logits, dynamic=True) if training.compile else all_logits

    def setup(self, stage: str) -> None:
        """Note the model's tables (rotary frequencies); switch gradient checkpointing on where it is asked for."""
        if stage == "fit":
            self._tables = {n: b.clone() for n, b in self.model.named_buffers() if b.is_floating_point()}
            if self.training_settings.gradient_checkpointing:
                self.model.activation_checkpointing_enable()

    def on_fit_start(self) -> None:
        """Give the model its tables back, where bf16-true has rounded them."""
        for name, buffer in self.model.named_buffers():
            if name in self._tables:
                buffer.data = self._tables[name].to(buffer.device)

    def sample(self, draws: Sequence[Draw]) -> Iterator[tuple[Draw, str]]:
        """Yield each draw with its completion, in the order in which they finish."""
        return self.sampler.sample(self.model, self.tokenizer, draws)

    def losses(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the mean cross-entropy over the target tokens of each example, (B,), in nats a token.

        Args:
            batch: `input_ids`, `attention_mask` and `labels`, each (B, T), right-padded; labels of -100 don't count.

        Raises:
            ValueError: An example has no target token.
        """
        labels = batch["labels"]
        counts = (labels != -100).sum(dim=1)
        if bool((counts == 0).any()):
            raise ValueError("a batch holds an example without a target token")
        first = int((labels != -100).int().argmax(dim=1).min()) - 1  # logits before it predict only prompt tokens
        forward = self._training_forward if self.training else all_logits
        logits = last_logits(self.model, batch["input_ids"], batch["attention_mask"], labels.shape[1] - first, forward)
        loss: torch.Tensor = token_losses(logits, labels[:, first:]).sum(dim=1) / counts
        return loss

    def configure_model(self) -> None:
        """Divide the model among the processes, where it is to be."""
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            shard(self.model, self.trainer.strategy.device_mesh["data_parallel"])

    def on_validation_epoch_start(self) -> None:
        """Take a divided model together: a process that samples can't wait for the others at each token."""
        hold_whole(self.model, True)

    def on_validation_epoch_end(self) -> None:
        """Divide it again."""
        hold_whole(self.model, False)

    def on_train_epoch_start(self) -> None:
        """Seed dropout by the epoch, so that a resumed run draws what an unbroken one draws."""
        torch.manual_seed(derive_seed(self.seed, self.stage, "epoch", self.current_epoch, self.global_rank))
        self._said = time.monotonic()

    def training_step(self, batch: list[dict[str, torch.Tensor]], batch_idx: int) -> None:
        """Do one optimizer step on the mean loss of its examples, a micro-batch a pass."""
        optimizer, schedule = cast(LightningOptimizer, self.optimizers()), cast(LRScheduler, self.lr_schedulers())
        mean = torch.zeros((), device=self.device)
        strategy = self.trainer.strategy
        for i, part in enumerate(batch):
            loss = self.losses(part).sum() * part["weight"]
            early = i + 1 < len(batch)  # gradients travel between processes once a step
            with strategy.block_backward_sync() if early and isinstance(strategy, ParallelStrategy) else nullcontext():
                self.manual_backward(loss)
            mean += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), self.training_settings.clip)
        mean = strategy.reduce(mean, reduce_op="mean")  # so that all processes see what one of them has
        for what, value in (("loss", mean), ("norm of its gradient", norm)):
            if not torch.isfinite(value):
                raise self._diverged(f"the {what} of optimizer step {self.trainer.global_step + 1} is {float(value)}")
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        self.log(f"{self.stage}/loss", mean, on_step=True, on_epoch=False, prog_bar=True)
        if time.monotonic() > self._said + EVERY:
            self._said = time.monotonic()
            steps = int(self.trainer.estimated_stepping_batches)
            log.info("%s: %d of %d steps, loss %.3f", self.stage, self.trainer.global_step, steps, mean)

    def _diverged(self, what: str) -> InputError:
        key = f"training.{self.stage.removeprefix('train_')}.lr"
        advice = "Lower it, add training.warmup_steps, or use trainer.precision=32-true."
        return InputError(key, self.phase.lr, f"the training diverged: {what}", advice)

    def on_train_end(self) -> None:
        """Raise InputError where the last step has left a weight that is no finite number."""
        wrong = [name for name, p in self.named_parameters() if p.requires_grad and not torch.isfinite(p).all()]
        if wrong:
            raise self._diverged(f"after the last step, {len(wrong)} weights are not finite, {wrong[0]} among them")

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the loss of an example batch; a batch of draws is UnitTestCallback's."""
        if isinstance(batch, dict):
            losses = self.losses(batch)
            if not torch.isfinite(losses).all():
                raise self._diverged(
                    f"after {self.trainer.global_step} steps a loss on held-out examples is not finite"
                )
            self.log(f"{self.stage}/validation_loss", losses.mean(), batch_size=len(losses), add_dataloader_idx=False)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Leave the batch of draws to UnitTestCallback."""

    def configure_optimizers(self) -> Any:
        """Return the optimizer, with linear warm-up and linear decay to 0 over all optimizer steps.

        Raises:
            InputError: The warm-up is longer than the training.
        """
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = make_optimizer(self.optimizer_settings, parameters, self.phase.lr)
        steps, warmup = int(self.trainer.estimated_stepping_batches), self.training_settings.warmup_steps
        if warmup > steps:
            raise InputError(
                "training.warmup_steps",
                warmup,
                f"is longer than the training, {steps} optimizer steps",
                "Lower it, or raise the epochs.",
            )
        return [optimizer], [make_schedule(optimizer, warmup, steps)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what is trained: the rest of the weights lies in the base model's folder."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {n: t for n, t in checkpoint["state_dict"].items() if n in trained}
