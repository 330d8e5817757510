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
from transformers import AutoConfig

from ilf import ranks
from ilf.files import JsonLines
from ilf.models.continuous import ContinuousSampler
from ilf.models.load import adapt, load_model, load_tokenizer, sampling_dtype, save, saving_dtype
from ilf.models.sampling import Sampler
from ilf.models.served import ServedSampler
from ilf.models.shards import gathered
from ilf.models.targets import Example
from ilf.sandbox import Sandbox
from ilf.settings import Phase, Settings
from ilf.training.fine_tuning import AnySampler, FineTuningModule
from ilf.training.mbpp_datamodule import MBPPDataModule
from ilf.training.trainer import make_trainer, training_device
from ilf.training.unit_test_callback import TAKEN, UnitTestCallback
from ilf.types import Draw, Program, Task, derive_seed

log = logging.getLogger(__name__)


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
    sandbox: Sandbox,
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
    callback = UnitTestCallback(
        label,
        tasks,
        sandbox,
        settings.executor.tests,
        settings.evaluate.k,
        folder,
        scoring,
        as_paper=as_paper,
    )
    # Samples that are there only need their verdicts: another scoring of a finished stage loads no model.
    finished = any(folder.glob("done-*.json"))
    taken = {(row["task_id"], row["sample"]) for row in JsonLines(folder / TAKEN).read()}
    kept = [d for d in draws if finished or (d.task_id, d.sample) in taken]
    missing = [d for d in draws if not finished and (d.task_id, d.sample) not in taken]
    local = settings.refiner.path is not None and model == Path(settings.refiner.path)
    net = None
    if missing and settings.sampler.name != "openai":
        key = "refiner.path" if local else "model.path"
        dtype = sampling_dtype(settings.model.dtype, training_device(settings.trainer))
        net = load_model(model, dtype, settings.model.attention, key=key)
    tokenizer = load_tokenizer(model, None if local else settings.model.bos)  # a local refiner may have its own
    sampler = _sampler(settings, model)
    module = kind(net, tokenizer, sampler, settings.training, Phase(), settings.optimizer, settings.seed)
    size = settings.sampler.batch_size
    data = MBPPDataModule(tokenizer, test_draws=missing, kept_draws=kept, sampling_batch_size=size)
    # Each process samples from a whole model, also where one is trained in parts, and as it was loaded: another
    # precision of Lightning's would change the type of its weights.
    sampling = replace(settings.trainer, strategy="ddp", precision="32-true")
    trainer = make_trainer(sampling, callbacks=[callback], loggers=list(loggers))
    trainer.test(module, data, verbose=False)
    return callback.programs, sum(ranks.gather([sampler.halvings]))


def _sampler(settings: Settings, model: Path) -> AnySampler:
    """Return what draws programs from the model of a folder."""
    if settings.sampler.name == "continuous":
        return ContinuousSampler(settings.sampler)
    if settings.sampler.name == "openai":
        return ServedSampler(settings.sampler, str(model.absolute()))
    return Sampler(settings.sampler)


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
    sandbox: Sandbox,
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
    sampler = Sampler(settings.sampler)  # no server holds what is being trained
    device = training_device(settings.trainer)
    net = load_model(base, torch.float32, settings.model.attention, settings.adapter.quantize, device)
    net = adapt(net, settings.adapter)
    module = kind(net, tokenizer, sampler, settings.training, phase, settings.optimizer, settings.seed).train()
    callback = UnitTestCallback(kind.stage, tasks, sandbox, settings.executor.tests, [1])
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
        settings.trainer, callbacks=[callback], loggers=list(loggers), epochs=phase.epochs, checkpoints=checkpoints
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
