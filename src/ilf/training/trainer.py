"""The one place that builds Lightning's Trainer."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies import ModelParallelStrategy

from ilf import distributed, shutdown
from ilf.components import Component
from ilf.disk import naming
from ilf.models.load import has_bfloat16

# Arguments of a Trainer that change no weights, and so stand in no key of the store.
CHANGING_NOTHING = (
    *("devices", "strategy", "profiler", "detect_anomaly", "log_every_n_steps"),
    *("enable_progress_bar", "enable_model_summary", "num_sanity_val_steps", "sync_batchnorm"),
)
# Callbacks that only show or note something. One of a user's says so by an attribute `changes_results = False`.
_SHOWING = ("LearningRateMonitor", "DeviceStatsMonitor", "ModelSummary", "ProgressBar", "Timer", "ThroughputMonitor")
# What a Trainer that samples keeps of the configured one.
_OF_SAMPLING = ("accelerator", "devices", "profiler", "deterministic", "benchmark", "enable_progress_bar")


def precision(trainer: Component) -> str:
    """Return Lightning's precision: by default bf16-mixed on a GPU that has it, else 32-true."""
    given = trainer.get("precision")
    if given is None:
        return "bf16-mixed" if has_bfloat16(training_device(trainer)) else "32-true"
    return {"bf16": "bf16-mixed", "16": "16-mixed", "32": "32-true", "64": "64-true"}.get(str(given), str(given))


def changing_results(callbacks: Mapping[str, Component]) -> list[Component]:
    """Return the callbacks that may change the weights that a training ends with."""
    found = []
    for _, callback in sorted(callbacks.items()):
        kinds: tuple[type, ...] = getattr(callback.resolve(), "__mro__", ())
        shows = any(kind.__module__.startswith("pytorch_lightning.") and kind.__name__ in _SHOWING for kind in kinds)
        if not shows and getattr(kinds[0], "changes_results", True):
            found.append(callback)
    return found


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


def _processes(trainer: Component) -> dict[str, Any]:
    """Return Lightning's arguments for the processes of this run. Which batches each takes, the datamodule says."""
    strategy = trainer.get("strategy", "auto")
    if strategy == "auto" or distributed.count() == 1:
        return {"strategy": "auto", "devices": 1, "plugins": [_Checkpoints()]}
    if strategy == "fsdp":  # a checkpoint is one file, which any number of processes goes on from
        strategy = ModelParallelStrategy(distributed.count(), 1, save_distributed_checkpoint=False)
    return {
        "strategy": strategy() if isinstance(strategy, Component) else strategy,
        "devices": distributed.local_count(),
        "num_nodes": distributed.count() // distributed.local_count(),
        # The processes are there, and their environment is as torchrun's.
        "plugins": [TorchElasticEnvironment(), _Checkpoints()],
        "use_distributed_sampler": False,
    }


def training_device(trainer: Component) -> torch.device:
    """Return what this process trains on: a GPU, in a job of several its own one, else the CPU."""
    if trainer.get("accelerator", "auto") == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def sampling_trainer(trainer: Component) -> Component:
    """Return a Trainer's part for sampling: each process samples from a whole model, as it was loaded.

    Another precision of Lightning's would change the type of its weights; limits of a training leave no program out.
    """
    own = {name: trainer.arguments[name] for name in _OF_SAMPLING if name in trainer.arguments}
    return Component(trainer.target, own).having(strategy="ddp", precision="32-true", enable_model_summary=False)


def make_trainer(
    trainer: Component,
    *,
    callbacks: Sequence[pl.Callback] = (),
    loggers: Sequence[Any] = (),
    epochs: int | None = None,
    checkpoints: Path | None = None,
) -> pl.Trainer:
    """Return a Trainer for the processes of this run, that shows a progress bar on a terminal only.

    Args:
        trainer: The configured one.
        callbacks: What to call besides the checkpoint.
        loggers: Lightning loggers, none for no tracking.
        epochs: Passes over the training examples, where the configured Trainer sets no end itself.
        checkpoints: Folder for `last.ckpt`, written at the end of each epoch; None writes none.
    """
    _quieten()
    callbacks = list(callbacks)
    if checkpoints is not None:
        callbacks.append(
            ModelCheckpoint(checkpoints, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        )
    own: dict[str, Any] = {
        "precision": precision(trainer),
        "callbacks": callbacks,
        "logger": list(loggers) or False,
        "enable_checkpointing": checkpoints is not None,
        "reload_dataloaders_every_n_epochs": 1,
        **_processes(trainer),
    }
    ended = trainer.get("max_epochs") is not None or trainer.get("max_steps", -1) != -1
    if not ended and trainer.get("max_time") is None:
        own["max_epochs"] = epochs
    if trainer.get("enable_progress_bar") is None:
        own["enable_progress_bar"] = sys.stderr.isatty()
    made: pl.Trainer = trainer(**own)
    if shutdown.listening() or distributed.rank() > 0:
        # Lightning's handlers would only note a signal, and end a fit with exit code 0 and a test never.
        made._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return made


def _quieten() -> None:
    """Keep back what Lightning says of choices that are ours."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    # Our batches are ready-made lists: worker processes would only copy them.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*across ranks is zero.*")
    warnings.filterwarnings("ignore", message=".*recommended to use .self.log.*sync_dist=True.*")  # all log the same
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*srun. command is available.*")  # `ranks` looks for it
