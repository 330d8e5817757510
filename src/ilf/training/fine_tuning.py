"""The shared base of the refiner's and the policy's fine-tuning: optimizer, steps and checkpoints."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy, ParallelStrategy

from ilf import distributed
from ilf.components import Component, from_node, node_of
from ilf.models.load import load_model, load_tokenizer, resolve
from ilf.models.shards import hold_whole, shard
from ilf.models.targets import all_logits, last_logits
from ilf.progress import EVERY, time_left
from ilf.protocols import Objective, Sampler
from ilf.sampling.hf import HFSampler
from ilf.training.objectives.sft import SFT
from ilf.training.schedules import make_schedule
from ilf.types import Draw, InputError, derive_seed

log = logging.getLogger(__name__)

Completions = list[dict[str, Any]]  # a Draw's fields, with `completion`
ADAMW = Component("torch.optim.AdamW", {"lr": 5e-6, "weight_decay": 0.0})
LINEAR = Component("ilf.training.schedules.linear")


class FineTuningModule(pl.LightningModule):
    """Fine-tunes a causal language model on examples, and samples from it.

    Lightning's automatic optimization is used. A batch holds the examples of one optimizer step (or a part of them
    with `accumulate_grad_batches`), split by length into micro-batches, so that only one micro-batch needs memory at
    a time.

    Args:
        model: The model with its adapter, if any, or a folder or Hub name. A name is stored among the
            hyperparameters, and `load_from_checkpoint` loads that model again.
        tokenizer: The model's tokenizer; None loads the folder's.
        sampler: Samples programs in validation, test and predict.
        optimizer: Builds an optimizer for parameters.
        scheduler: Builds a learning-rate scheduler for the optimizer, which is stepped with it; None for a constant
            rate.
        objective: The objective to minimize.
        gradient_checkpointing: Whether to recompute activations in the backward pass, which saves memory and takes
            time.
        seed: Seed of dropout.
    """

    stage: str  # prefix of the metrics
    changes_nothing = ("gradient_checkpointing",)  # of the arguments

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        sampler: Sampler | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] = ADAMW,
        scheduler: Callable[..., Any] | None = LINEAR,
        objective: Objective | None = None,
        gradient_checkpointing: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.earlier: dict[str, Any] = {"stopped": False, "metrics": {}}  # of the checkpoint that a fit resumes from
        named = isinstance(model, str | Path)
        sampler, optimizer, scheduler, objective = map(from_node, (sampler, optimizer, scheduler, objective))
        parts = {"sampler": sampler, "optimizer": optimizer, "scheduler": scheduler, "objective": objective}
        own = {name: node_of(part) for name, part in parts.items()}
        own |= {"gradient_checkpointing": gradient_checkpointing, "seed": seed} | (
            {"model": str(model)} if named else {}
        )
        self.save_hyperparameters(own, logger=False)
        if named:
            folder = Path(model) if Path(model).is_dir() else resolve(None, str(model), None, "model")
            tokenizer = tokenizer or load_tokenizer(folder)
            model = load_model(folder, torch.float32).train()
        self.model, self.tokenizer, self.sampler = model, tokenizer, sampler or HFSampler()
        self.optimizer, self.scheduler, self.seed = optimizer, scheduler, seed
        self.gradient_checkpointing = gradient_checkpointing
        self.strict_loading = False  # checkpoints hold only the trained parameters
        self.objective = objective or SFT()
        self._training_forward = all_logits
        self._on_drawn: Callable[[Draw, str], None] = lambda draw, text: None
        self.teach(None)
        self._raised: InputError | None = None  # this process's error, until `raise_together`

    def compile_forward(self) -> None:
        """Compile the training forward pass. It is a function, not the model, so that weights keep their names."""
        self._training_forward = torch.compile(all_logits, dynamic=True)

    def teach(self, teacher: Any) -> None:
        """Set the model behind `teacher_logits`. It is no submodule, so that it is neither trained nor saved."""
        self.__dict__["teacher"] = teacher

    def setup(self, stage: str) -> None:
        """Copy the model's buffers (rotary frequencies), and enable gradient checkpointing if it is configured."""
        if stage == "fit":
            self._tables = {n: b.clone() for n, b in self.model.named_buffers() if b.is_floating_point()}
            if self.gradient_checkpointing:
                self.model.activation_checkpointing_enable()

    def on_fit_start(self) -> None:
        """Restore the buffers, which bf16-true has rounded, and move the teacher to the model's device."""
        if self.teacher is not None:
            self.teacher.to(self.device)
        for name, buffer in self.model.named_buffers():
            if name in self._tables:
                buffer.data = self._tables[name].to(buffer.device)

    def sample(self, draws: Sequence[Draw]) -> Iterator[tuple[Draw, str]]:
        """Yield each draw with its completion, in the order in which they finish."""
        return self.sampler.sample(self.model, self.tokenizer, draws)

    def logits(self, batch: dict[str, torch.Tensor], keep: int) -> torch.Tensor:
        """Return the logits of the last `keep` positions of a batch, (B, keep, V)."""
        forward = self._training_forward if self.training else all_logits
        return last_logits(self.model, batch["input_ids"], batch["attention_mask"], keep, forward)

    def teacher_logits(self, batch: dict[str, torch.Tensor], keep: int) -> torch.Tensor:
        """Return the teacher's logits like `logits`, without a gradient. The default teacher is the model itself."""
        with torch.no_grad():
            if self.teacher is None:
                return self.logits(batch, keep)
            return last_logits(self.teacher, batch["input_ids"], batch["attention_mask"], keep)

    def average(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean of a value over all processes, so that all processes see the same value."""
        mean: torch.Tensor = self.trainer.strategy.reduce(value, reduce_op="mean")
        return mean

    def losses(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the loss of each example of a micro-batch, (B,); see `objectives`."""
        return self.objective.losses(self, batch)

    def configure_model(self) -> None:
        """Shard the model among the processes if the strategy does so."""
        if self._trainer is not None and isinstance(self.trainer.strategy, ModelParallelStrategy):
            shard(self.model, self.trainer.strategy.device_mesh["data_parallel"])

    def on_validation_epoch_start(self) -> None:
        """Gather a sharded model: a process that samples can't wait for the others at each token."""
        hold_whole(self.model, True)

    def on_validation_epoch_end(self) -> None:
        """Shard the model again."""
        hold_whole(self.model, False)

    def on_train_epoch_start(self) -> None:
        """Seed dropout by the epoch, so that a resumed run draws the same numbers as an uninterrupted one."""
        torch.manual_seed(derive_seed(self.seed, self.stage, "epoch", self.current_epoch, self.global_rank))
        self._said = time.monotonic()
        self._epoch = self.trainer.global_step, self._said  # its first step and its start, for the time left

    def training_step(self, batch: list[dict[str, torch.Tensor]], batch_idx: int) -> torch.Tensor:
        """Return the last micro-batch's part of a batch's mean loss; backpropagate the other micro-batches here."""
        strategy, accumulated = self.trainer.strategy, self.trainer.accumulate_grad_batches
        if batch_idx % accumulated == 0:
            self.zero_grad()
        self.objective.before_step(self, batch)
        mean = torch.zeros((), device=self.device, dtype=torch.float32)  # also where 16 bits are the default
        for part in batch[:-1]:
            loss = self.losses(part).sum()
            # Processes exchange gradients once per step.
            with strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext():
                strategy.backward(loss * part["weight"] / accumulated, None)
            mean += loss.detach() * part["share"]
        last: torch.Tensor = self.losses(batch[-1]).sum()
        mean = self.average(mean + last.detach() * batch[-1]["share"])
        step = self.trainer.global_step + 1
        if not torch.isfinite(mean):
            raise self._diverged(f"the loss of optimizer step {step} is {float(mean)}")
        self.log(f"{self.stage}/loss", mean, on_step=True, on_epoch=False, prog_bar=True, batch_size=1)
        if time.monotonic() > self._said + EVERY:
            self._said = time.monotonic()
            steps = self.trainer.estimated_stepping_batches
            first, began = self._epoch
            left = time_left(step - first, steps - first, time.monotonic() - began)
            log.info("%s: %d of %s steps, loss %.3f, %s", self.stage, step, steps, mean, left)
        return last * batch[-1]["weight"]

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Do nothing: when Lightning calls this, the first micro-batches' gradients are already accumulated."""

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the Trainer is configured, and raise InputError if the gradients are not finite."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])
        scaled = self.trainer.precision == "16-mixed"  # its scaler skips such steps
        if not scaled:
            if not torch.isfinite(norm):
                step = self.trainer.global_step + 1
                raise self._diverged(f"the gradient norm of optimizer step {step} is {float(norm)}")
            # Lightning does not clip for a fused optimizer, which would undo the scaling itself.
            optimizer._step_supports_amp_scaling = False
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _diverged(self, what: str) -> InputError:
        optimizers = self.optimizers(use_pl_optimizer=False)
        lr = (optimizers[0] if isinstance(optimizers, list) else optimizers).defaults.get("lr")
        key = f"training.{self.stage.removeprefix('train_')}.lr"
        advice = "Lower it, add scheduler.num_warmup_steps, or use trainer.precision=32-true."
        return InputError(key, lr, f"the training diverged: {what}", advice)

    def on_train_end(self) -> None:
        """Raise InputError if the last step has left a weight that is not finite."""
        wrong = [name for name, p in self.named_parameters() if p.requires_grad and not torch.isfinite(p).all()]
        if wrong:
            raise self._diverged(f"after the last step, {len(wrong)} weights are not finite, including {wrong[0]}")

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Completions] | None:
        """Log the loss of a batch of examples, or return the completions of a batch of draws."""
        if not isinstance(batch, dict):
            return self._draw(batch)
        batch = batch | {"share": torch.tensor(1 / len(batch["value"]), device=self.device)}
        self.objective.before_step(self, [batch])
        losses = self.losses(batch)
        if not torch.isfinite(losses).all():
            raise self._diverged(f"after {self.trainer.global_step} steps, a loss on held-out examples is not finite")
        self.log(f"{self.stage}/validation_loss", losses.mean(), batch_size=len(losses), add_dataloader_idx=False)
        return None

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Completions]:
        """Return each missing draw of a batch with its completion."""
        return self._draw(batch)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Completions]:
        """Return each missing draw of a batch with its completion."""
        return self._draw(batch)

    def _draw(self, batch: Any) -> dict[str, Completions]:
        """Sample a batch, unless an earlier one raised an error that the other processes don't know yet."""
        found: Completions = []
        if self._raised is None:
            try:
                for draw, text in self.sample(batch.missing):
                    found.append(vars(draw) | {"completion": text})
                    self._on_drawn(draw, text)
            except InputError as error:
                self._raised = error
        return {"completions": found}

    def on_drawn(self, take: Callable[[Draw, str], None]) -> None:
        """Pass each completion to `take` as soon as it is sampled, before its batch is finished."""
        self._on_drawn = take

    def raise_together(self) -> None:
        """Raise one process's error in every process, because the others would wait for it."""
        errors = distributed.gather([self._raised] if self._raised else [])
        self._raised = None
        if errors:
            raise errors[0]

    def configure_optimizers(self) -> Any:
        """Return the optimizer with its learning-rate schedule over all optimizer steps."""
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        if self.scheduler is None:
            return optimizer
        schedule = make_schedule(self.scheduler, optimizer, float(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save only the trained parameters: the other weights are in the base model's folder.

        The metrics, and whether a callback has stopped the training, are saved too, because Lightning does not do so.
        """
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {n: t for n, t in checkpoint["state_dict"].items() if n in trained}
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        checkpoint["ilf"] = {"stopped": self.trainer.should_stop, "metrics": metrics}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` saves in addition."""
        self.earlier = checkpoint.get("ilf", self.earlier)

    def on_train_start(self) -> None:
        """Stop at once if a callback had stopped the training before it was interrupted."""
        self.trainer.should_stop = self.trainer.should_stop or self.earlier["stopped"]
