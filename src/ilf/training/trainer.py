"""The one place that builds Lightning's Trainer."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies import ModelParallelStrategy

from ilf import ending, ranks
from ilf.disk import naming
from ilf.models.load import has_bfloat16
from ilf.settings import TrainerSettings


def precision(settings: TrainerSettings) -> str:
    """Return Lightning's precision: "auto" is bf16-mixed on a GPU that has it, else 32-true."""
    if settings.precision != "auto":
        return settings.precision
    return "bf16-mixed" if has_bfloat16(training_device(settings)) else "32-true"


class _Checkpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the one before, and then in its place.

    Lightning's own goes through memory and the system's folder for temporary files, from which another file system gets
    a copy: a kill in the middle of it would leave half a checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(path.name + ".unfinished")
        with naming(path), scratch.open("wb") as file:  # torch itself does not say that a disk is full
            torch.save(checkpoint, file)
        scratch.replace(path)


def _processes(settings: TrainerSettings) -> dict[str, Any]:
    """Return Lightning's arguments for the processes of this run. Which batches each takes, the datamodule says."""
    if settings.strategy == "auto" or ranks.count() == 1:
        return {"devices": 1, "plugins": [_Checkpoints()]}
    strategy: Any = settings.strategy
    if strategy == "fsdp":  # a checkpoint is one file, which any number of processes goes on from
        strategy = ModelParallelStrategy(ranks.count(), 1, save_distributed_checkpoint=False)
    return {
        "strategy": strategy,
        "devices": ranks.local_count(),
        "num_nodes": ranks.count() // ranks.local_count(),
        # The processes are there, and their environment is as torchrun's.
        "plugins": [TorchElasticEnvironment(), _Checkpoints()],
        "use_distributed_sampler": False,
    }


def training_device(settings: TrainerSettings) -> torch.device:
    """Return what this process trains on: a GPU, in a job of several its own one, else the CPU."""
    if settings.accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def make_trainer(
    settings: TrainerSettings,
    *,
    callbacks: list[pl.Callback],
    loggers: list[Any],
    epochs: int = 1,
    clip: float | None = None,
    checkpoints: Path | None = None,
) -> pl.Trainer:
    """Return a Trainer that shows a progress bar on a terminal only.

    Args:
        settings: Accelerator, precision, and how the run's processes train together.
        callbacks: What to call besides the checkpoint.
        loggers: Lightning loggers, none for no tracking.
        epochs: Passes over the training examples.
        clip: Largest gradient norm, None for no clipping here.
        checkpoints: Folder for `last.ckpt`, written at the end of each epoch; None writes none.
    """
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    # Our batches are ready-made lists: worker processes would only copy them.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*across ranks is zero.*")
    warnings.filterwarnings("ignore", message=".*recommended to use .self.log.*sync_dist=True.*")  # all log the same
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    if checkpoints is not None:
        callbacks = [
            *callbacks,
            ModelCheckpoint(checkpoints, filename="last", save_on_train_epoch_end=True, enable_version_counter=False),
        ]
    trainer = pl.Trainer(
        accelerator=settings.accelerator,
        **_processes(settings),
        precision=precision(settings),  # type: ignore[arg-type]
        callbacks=callbacks,
        logger=loggers or False,
        max_epochs=epochs,
        gradient_clip_val=clip,
        enable_checkpointing=checkpoints is not None,
        enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        reload_dataloaders_every_n_epochs=1,
    )
    if ending.listening() or ranks.rank() > 0:
        # Lightning's handlers would only note a signal, and end a fit with exit code 0 and a test never.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer
