"""What Lightning's loops do for a stage, divided among the processes of a run: samples on test, fine-tuning by fit."""

from __future__ import annotations

import logging
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.loggers import Logger
from transformers import AutoConfig

from ilf import ranks
from ilf.executors import Judge
from ilf.files import JsonLines
from ilf.models.load import adapt, load_model, load_tokenizer, sampling_dtype, save, saving_dtype
from ilf.models.shards import gathered
from ilf.parts import Part
from ilf.sampling.hf import HFSampler
from ilf.settings import Phase, Settings
from ilf.training.fine_tuning import Example, FineTuningModule
from ilf.training.mbpp_datamodule import MBPPDataModule
from ilf.training.trainer import make_trainer, sampling_trainer, training_device
from ilf.training.unit_test_callback import TAKEN
from ilf.types import Draw, Program, Task, derive_seed

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"  # of a fine-tuning: each logged step
_JUDGE = "unit_tests"  # the callback that executes programs, among the configured ones


class _Rows(Logger):
    """Keeps what a fine-tuning logs with its result, for the loggers of a run that takes it from the store."""

    name, version = "rows", ""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.rows = JsonLines(file)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a step's metrics. A training that goes on after a kill logs some steps again."""
        if ranks.rank() == 0:
            self.rows.append([{"step": step, "metrics": {k: float(v) for k, v in metrics.items()}}])

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Keep nothing: the entry's key.json has the settings."""


def draw(
    settings: Settings,
    kind: type[FineTuningModule],
    model: Path,
    draws: Sequence[Draw],
    tasks: Mapping[int, Task],
    folder: Path,
    label: str,
    scoring: str,
    as_paper: bool,
    sandbox: Judge,
    loggers: Sequence[Any] = (),
) -> tuple[list[Program], int]:
    """Sample and execute planned programs by the test loop; return them, and how often memory ran out.

    Args:
        settings: Of the run.
        kind: What the model is.
        model: Folder of what is sampled from.
        draws: Every program to sample.
        tasks: By id.
        folder: Keeps finished batches.
        label: Prefix of the logged metrics.
        scoring: See `UnitTestCallback`.
        as_paper: See `UnitTestCallback`.
        sandbox: Executes programs.
        loggers: Lightning loggers.
    """
    callback = _judge(settings)(
        label, tasks, sandbox, settings.executor.tests, folder=folder, scoring=scoring, as_paper=as_paper
    )
    # Samples that are there only need their verdicts: another scoring of a finished stage loads no model.
    finished = any(folder.glob("done-*.json"))
    taken = {(row["task_id"], row["sample"]) for row in JsonLines(folder / TAKEN).read()}
    kept = [d for d in draws if finished or (d.task_id, d.sample) in taken]
    missing = [d for d in draws if not finished and (d.task_id, d.sample) not in taken]
    local = model == settings.refiner.folder
    sampler = replace(settings.sampler)  # which counts for this stage alone
    net: Any = model
    if missing and sampler.local:
        key = "refiner.path" if local else "model.path"
        dtype = sampling_dtype(settings.model.dtype, training_device(settings.trainer))
        net = load_model(model, dtype, settings.model.attention, key=key)
    tokenizer = load_tokenizer(model, None if local else settings.model.bos)  # a local refiner may have its own
    module = kind(net, tokenizer, sampler)
    size = settings.sampler.batch_size
    data = MBPPDataModule(tokenizer, test_draws=missing, kept_draws=kept, sampling_batch_size=size)
    trainer = make_trainer(sampling_trainer(settings.trainer), callbacks=[callback], loggers=loggers, epochs=1)
    trainer.test(module, data, verbose=False)
    return callback.programs, sum(ranks.gather([sampler.halvings]))


def _judge(settings: Settings) -> Part:
    """Return what executes a run's programs."""
    return settings.callbacks[_JUDGE]


def fine_tune(
    settings: Settings,
    kind: type[FineTuningModule],
    base: Path,
    examples: Sequence[Example],
    validation: Sequence[Example],
    draws: Sequence[Draw],
    phase: Phase,
    tasks: Mapping[int, Task],
    folder: Path,
    sandbox: Judge,
    loggers: Sequence[Any] = (),
) -> dict[str, Any]:
    """Fine-tune a folder's model by the fit loop, into `folder`/model; return the steps and the last metrics.

    Args:
        settings: Of the run.
        kind: What the model is to become.
        base: Folder of the model.
        examples: To fit on.
        validation: Examples to report the loss on.
        draws: Programs to sample after each epoch.
        phase: Learning rate, epochs, batch size.
        tasks: By id, those of the draws.
        folder: Keeps a checkpoint until the end.
        sandbox: Executes programs.
        loggers: Lightning loggers.
    """
    torch.manual_seed(derive_seed(settings.seed, kind.stage))  # LoRA's first matrices are random
    tokenizer = load_tokenizer(base, settings.model.bos)
    drawing = settings.sampler  # no server holds what is being trained
    sampler = HFSampler(drawing.n, drawing.temperature, drawing.max_new_tokens, drawing.batch_size)
    device = training_device(settings.trainer)
    training = settings.training
    net = load_model(base, torch.float32, settings.model.attention, training.quantize, device)
    net = adapt(net, settings.adapter)
    optimizer = settings.optimizer.having(lr=phase.lr)
    options = {"gradient_checkpointing": training.gradient_checkpointing, "compile": training.compile}
    module = kind(net, tokenizer, sampler, optimizer, settings.scheduler, seed=settings.seed, **options).train()
    judge = _judge(settings)(kind.stage, tasks, sandbox, settings.executor.tests, k=[1])
    callbacks = [judge, *(one() for name, one in settings.callbacks.items() if name != _JUDGE)]
    data = MBPPDataModule(
        tokenizer,
        training=examples,
        validation=validation,
        validation_draws=draws,
        batch_size=phase.batch_size,
        micro_batch_size=settings.training.micro_batch_size,
        sampling_batch_size=settings.sampler.batch_size,
        seed=settings.seed,
    )
    checkpoints = folder / "checkpoints"
    trainer = make_trainer(
        settings.trainer,
        callbacks=callbacks,
        loggers=[*loggers, _Rows(folder / METRICS)],
        epochs=phase.epochs,
        checkpoints=checkpoints,
    )
    trainer.fit(module, data, ckpt_path=_last_checkpoint(checkpoints / "last.ckpt", kind.stage))
    weights = gathered(net)
    if ranks.rank() == 0:
        if weights is not None:
            net = adapt(load_model(base, torch.float32), settings.adapter)
            net.load_state_dict(weights)
        dtype = saving_dtype(settings.save.dtype, AutoConfig.from_pretrained(base))
        save(net, tokenizer, folder / "model", dtype)
        shutil.rmtree(checkpoints, ignore_errors=True)
    return {
        "optimizer_steps": trainer.global_step,
        "metrics": {k: float(v) for k, v in trainer.callback_metrics.items()},
    }


def _last_checkpoint(file: Path, stage: str) -> str | None:
    """Return the checkpoint to go on from; a damaged one is named and moved aside."""
    if not file.exists():
        return None
    if not zipfile.is_zipfile(file):  # its directory is at its end
        log.warning("%s: %s is damaged, and is kept as %s.damaged; training starts anew", stage, file, file.name)
        file.rename(file.with_name(f"{file.name}.damaged"))
        return None
    log.info("%s: resuming from %s", stage, file)
    return str(file)
