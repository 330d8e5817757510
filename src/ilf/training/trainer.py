"""Builds Lightning's Trainer; no other module does."""

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
from ilf.models.dtypes import has_bfloat16

# Trainer arguments that don't change the weights, and so are left out of the store's keys.
CHANGING_NOTHING = (
    *("devices", "strategy", "profiler", "detect_anomaly", "log_every_n_steps"),
    *("enable_progress_bar", "enable_model_summary", "num_sanity_val_steps", "sync_batchnorm"),
)
# Callbacks that only display or log. A user's callback declares this by an attribute `changes_results = False`.
_SHOWING = ("LearningRateMonitor", "DeviceStatsMonitor", "ModelSummary", "ProgressBar", "ThroughputMonitor")
# Arguments that the Trainer for sampling takes from the configured one.
_OF_SAMPLING = ("accelerator", "devices", "profiler", "deterministic", "benchmark", "enable_progress_bar")


def precision(trainer: Component) -> str:
    """Return Lightning's precision; the default is bf16-mixed on a GPU with bfloat16, else 32-true."""
    given = trainer.get("precision")
    if given is None:
        return "bf16-mixed" if has_bfloat16(training_device(trainer)) else "32-true"
    return {"bf16": "bf16-mixed", "16": "16-mixed", "32": "32-true", "64": "64-true"}.get(str(given), str(given))


def changing_results(callbacks: Mapping[str, Component]) -> list[Component]:
    """Return the callbacks that may change the final weights of a training."""
    found = []
    for _, callback in sorted(callbacks.items()):
        kinds: tuple[type, ...] = getattr(callback.resolve(), "__mro__", ())
        shows = any(kind.__module__.startswith("pytorch_lightning.") and kind.__name__ in _SHOWING for kind in kinds)
        if not shows and getattr(kinds[0], "changes_results", True):
            found.append(callback)
    return found


class _Checkpoints(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file beside the previous one, and then replaces that one.

    Lightning's own implementation goes through memory and the system's temporary folder. If that is on another file
    system, the file is then copied, and a kill during the copy would leave half a checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`, completely or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(path.name + ".unfinished")
        with naming(path), scratch.open("wb") as file:  # torch's own error doesn't say that a disk is full
            torch.save(checkpoint, file)
        scratch.replace(path)


def _processes(trainer: Component) -> dict[str, Any]:
    """Return Lightning's arguments for this run's processes. The datamodule assigns the batches to them."""
    strategy = trainer.get("strategy", "auto")
    if strategy == "auto" or distributed.count() == 1:
        return {"strategy": "auto", "devices": 1, "plugins": [_Checkpoints()]}
    if strategy == "fsdp":  # one checkpoint file, so that any world size can resume from it
        strategy = ModelParallelStrategy(distributed.count(), 1, save_distributed_checkpoint=False)
    return {
        "strategy": strategy() if isinstance(strategy, Component) else strategy,
        "devices": distributed.local_count(),
        "num_nodes": distributed.count() // distributed.local_count(),
        # The processes are already running, in an environment like torchrun's.
        "plugins": [TorchElasticEnvironment(), _Checkpoints()],
        "use_distributed_sampler": False,
    }


def training_device(trainer: Component) -> torch.device:
    """Return the device that this process trains on: its own GPU if GPUs are used, else the CPU."""
    if trainer.get("accelerator", "auto") == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def sampling_trainer(trainer: Component) -> Component:
    """Return the Trainer component for sampling: each process samples from a whole model with its loaded dtype.

    Another Lightning precision would change the dtype of the weights. The limits of a training are dropped, because
    they would leave out programs.
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
    """Return a Trainer for the processes of this run. It shows a progress bar only on a terminal.

    Args:
        trainer: The configured Trainer.
        callbacks: Callbacks besides the checkpoint callback.
        loggers: Lightning loggers. Without any, nothing is tracked.
        epochs: Passes over the training examples, unless the configured Trainer sets its own end.
        checkpoints: Folder for `last.ckpt`, which is written at the end of each epoch. None writes no checkpoint.
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
    if trainer.get("max_epochs") is None and trainer.get("max_steps", -1) == -1:
        own["max_epochs"] = epochs
    if trainer.get("enable_progress_bar") is None:
        own["enable_progress_bar"] = sys.stderr.isatty()
    made: pl.Trainer = trainer(**own)
    if shutdown.listening() or distributed.rank() > 0:
        # Lightning's handlers only record a signal: a fit would stop with exit code 0, and a test would not stop.
        made._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return made


def _quieten() -> None:
    """Silence Lightning's messages about choices that this project makes on purpose."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    # The batches are ready-made lists: worker processes would only copy them.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*across ranks is zero.*")
    # All ranks log the same value.
    warnings.filterwarnings("ignore", message=".*recommended to use .self.log.*sync_dist=True.*")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*srun. command is available.*")  # `distributed` looks for it
