"""Jobs that run Lightning's loops for a stage on all processes: sampling with test, fine-tuning with fit.

A job is a record of everything that decides its result, and its key in the store is made from that record. It is sent
to the other processes, and all of them run it together.
"""

from __future__ import annotations

import logging
import math
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.loggers import Logger
from transformers import AutoConfig

from ilf import distributed
from ilf.code_digest import Code, code_sha256
from ilf.components import Component, key_of
from ilf.files import JsonLines, sha256
from ilf.models import (
    batches,
    cuda_graphs,
    decoding,
    dtypes,
    kv_cache,
    load,
    onednn_linear,
    prefill,
    shards,
    shared_prefix,
    targets,
    tokens,
)
from ilf.models.dtypes import compute_dtype, saving_dtype, training_dtype
from ilf.models.load import Model, adapt, load_model, save
from ilf.models.onednn_linear import load_packed
from ilf.protocols import Objective, Sampler
from ilf.sampling import hf
from ilf.sampling.hf import HFSampler
from ilf.settings import Phase, Settings, Training
from ilf.tasks import prompts
from ilf.training import fine_tuning, mbpp_datamodule, trainer
from ilf.training.mbpp_datamodule import Contents
from ilf.training.objectives import likelihood
from ilf.training.objectives.sft import SFT
from ilf.training.trainer import (
    CHANGING_NOTHING,
    changing_results,
    make_trainer,
    precision,
    sampling_trainer,
    training_device,
)
from ilf.training.unit_test_callback import UnitTestCallback, kept_samples
from ilf.types import Draw, Example, Program, derive_seed

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"  # the metrics of each logged step of a fine-tuning
CHECKPOINTS = "checkpoints"  # in a stage's folder: the checkpoint of an unfinished fine-tuning
TAKEN = "samples.taken.jsonl"  # in a stage's folder: the samples of earlier stages
JUDGE = "unit_tests"  # the configured callback that executes programs


# The code that produces a job's stored results, besides its components and its verdicts.
DRAWING: tuple[Code, ...] = (
    *(UnitTestCallback._take, UnitTestCallback._keep, fine_tuning.FineTuningModule._draw),
    *(mbpp_datamodule, load, onednn_linear, tokens, prompts),
)
DECODING: tuple[Code, ...] = (batches, kv_cache, cuda_graphs, decoding, prefill, shared_prefix)  # used by `HFSampler`
TRAINING: tuple[Code, ...] = (
    *(fine_tuning, likelihood, targets, mbpp_datamodule, load, tokens, trainer, shards),
    *(batches.takes, batches.base, dtypes.has_bfloat16, dtypes.saving_dtype),
)


@dataclass(frozen=True)
class Drawing:
    """A job that samples the programs of a stage."""

    model: Model
    draws: Sequence[Draw]
    sampler: Sampler
    dtype: torch.dtype
    module: Component
    datamodule: Component
    trainer: Component

    def key(self) -> dict[str, Any]:
        """Return everything that decides the programs."""
        return {
            "code": code_sha256(Drawing.run, *DRAWING, *(DECODING if isinstance(self.sampler, HFSampler) else ())),
            **self.model.reading,
            "draws": [asdict(draw) for draw in self.draws],
            "dtype": str(self.dtype),
            "sampler": key_of(self.sampler),
            "module": self.module.key(),
            "datamodule": self.datamodule.key(aside=["micro_batch_size"]),
        }

    def taken(self, folder: Path) -> set[tuple[int, int]]:
        """Return the (task, sample) pairs that are stored already and need only their verdicts."""
        if any(folder.glob("done-*.json")):  # a finished stage is scored with other settings
            return {(draw.task_id, draw.sample) for draw in self.draws}
        return {(row["task_id"], row["sample"]) for row in JsonLines(folder / TAKEN).read()}

    def samples(self, taken: Collection[tuple[int, int]]) -> bool:
        """Return whether any sample is missing from `taken`, so that a model is needed."""
        return any((draw.task_id, draw.sample) not in taken for draw in self.draws)

    def run(self, judge: Component, folder: Path, loggers: Sequence[Any] = ()) -> tuple[list[Program], int]:
        """Sample and execute the programs with the test loop; return them and the number of out-of-memory events.

        Args:
            judge: Builds the callback that executes the programs.
            folder: Where to store finished batches.
            loggers: Lightning loggers.
        """
        sampler, kept = replace(self.sampler), kept_samples(folder)  # the copy counts this stage alone
        net, taken = None, self.taken(folder)
        if sampler.local and self.samples(taken):
            device = training_device(self.trainer)
            net = load_packed(self.model.folder, self.dtype, device, self.model.attention, self.model.key)
        tokenizer = self.model.tokenizer()
        module = self.module(model=net, tokenizer=tokenizer, sampler=sampler)
        if not sampler.local:
            module.model = self.model.folder
        contents = Contents(test_draws=self.draws, taken=taken, kept=set(kept), whole_plans=sampler.whole_plans)
        data = self.datamodule(tokenizer=tokenizer, contents=contents)
        callback = judge(folder=folder)
        made = make_trainer(sampling_trainer(self.trainer), callbacks=[callback], loggers=loggers, epochs=1)
        made.test(module, data, verbose=False)
        return callback.programs, sum(distributed.gather([sampler.halvings]))


@dataclass(frozen=True)
class FineTuning:
    """A job that fine-tunes the refiner or the policy."""

    base: Model
    examples: Sequence[Example]
    validation: Sequence[Example]  # for the reported validation loss
    draws: Sequence[Draw]  # programs to sample after each epoch
    phase: Phase
    training: Training
    module: Component
    datamodule: Component
    objective: Objective
    optimizer: Component
    scheduler: Component | None
    adapter: Component | None
    trainer: Component
    callbacks: Mapping[str, Component]
    sampler: Sampler
    save_dtype: str
    seed: int
    teacher: Model | None = None  # for objectives that need a second model
    judged: str = ""  # digest of what the verdicts on `draws` depend on besides the programs

    @classmethod
    def of(cls, settings: Settings, name: str, base: Model, **what: Any) -> FineTuning:
        """Return the fine-tuning job that the settings describe.

        Args:
            settings: The run's settings.
            name: "refiner" or "policy".
            base: The model to fine-tune.
            what: `examples`, `validation`, `draws`, `teacher` and `judged`.
        """
        drawing = settings.sampler  # always HFSampler, as no server has the model in training
        same = ("training", "datamodule", "optimizer", "scheduler", "adapter", "trainer", "callbacks")
        return cls(
            base=base,
            phase=getattr(settings.training, name),
            module=getattr(settings.module, name),
            sampler=HFSampler(
                drawing.n, drawing.temperature, drawing.max_new_tokens, drawing.batch_size, drawing.top_k
            ),
            objective=settings.objective if name == "policy" else SFT(),
            save_dtype=settings.save.dtype,
            seed=settings.seed,
            **{one: getattr(settings, one) for one in same},
            **what,
        )

    def key(self) -> dict[str, Any]:
        """Return everything that decides the weights."""
        quantize, device = self.training.quantize, training_device(self.trainer)
        callbacks = [one.key() for one in changing_results(self.callbacks)]
        # These callbacks may depend on the validation, as early stopping does.
        watched = [asdict(e) for e in self.validation], [asdict(d) for d in self.draws], self.judged
        return {
            "code": code_sha256(FineTuning.run, FineTuning._save, *TRAINING, *((hf, *DECODING) if self.draws else ())),
            **self.base.reading,
            "teacher": self.teacher and self.teacher.weights,
            "examples": sha256([asdict(e) for e in self.examples]),
            "phase": asdict(self.phase),
            "adapter": self.adapter and self.adapter.key(),
            "quantize": quantize,
            "compute_dtype": str(compute_dtype(device)) if quantize else None,
            "compile": self.training.compile,
            "module": self.module.key(),
            "datamodule": self.datamodule.key(aside=["sampling_batch_size"]),
            "objective": key_of(self.objective),
            "optimizer": self.optimizer.key(),
            "scheduler": self.scheduler and self.scheduler.key(),
            "trainer": self.trainer.having(precision=precision(self.trainer)).key(CHANGING_NOTHING),
            "callbacks": callbacks,
            "validation": sha256([*watched, key_of(self.sampler)]) if callbacks else None,
            "save": self.save_dtype,
            "seed": self.seed,
        }

    def run(self, judge: Component, folder: Path, loggers: Sequence[Any] = ()) -> dict[str, Any]:
        """Fine-tune with the fit loop, write `folder`/model, and return the number of steps and the last metrics.

        Args:
            judge: Builds the callback that executes programs.
            folder: Where to store a checkpoint until the end.
            loggers: Lightning loggers.
        """
        stage = self.module.resolve().stage  # type: ignore[attr-defined]
        torch.manual_seed(derive_seed(self.seed, stage))  # LoRA is initialized at random
        tokenizer = self.base.tokenizer()
        device = training_device(self.trainer)
        net = load_model(self.base.folder, torch.float32, self.base.attention, self.training.quantize, device)
        net = adapt(net, self.adapter)
        module = self.module(
            model=net,
            tokenizer=tokenizer,
            sampler=replace(self.sampler),
            optimizer=self.optimizer.having(lr=self.phase.lr),
            scheduler=self.scheduler,
            objective=self.objective,
            seed=self.seed,
        ).train()
        if self.training.compile:
            module.compile_forward()
        if self.teacher is not None:
            dtype = training_dtype(precision(self.trainer))
            module.teach(load_model(self.teacher.folder, dtype, self.teacher.attention).eval())
        contents = Contents(self.examples, self.validation, self.draws)
        data = self.datamodule(tokenizer=tokenizer, contents=contents, batch_size=self.phase.batch_size, seed=self.seed)
        checkpoints = folder / CHECKPOINTS
        made = make_trainer(
            self.trainer,
            callbacks=[judge(k=[1]), *(one() for name, one in self.callbacks.items() if name != JUDGE)],
            loggers=[*loggers, _Rows(folder / METRICS)],
            epochs=self.phase.epochs,
            checkpoints=checkpoints,
        )
        made.fit(module, data, ckpt_path=_last_checkpoint(checkpoints / "last.ckpt", stage))
        self._save(net, tokenizer, folder / "model")
        metrics = module.earlier["metrics"] | made.callback_metrics
        return {"optimizer_steps": made.global_step, "metrics": _Rows.finite(metrics)}

    def _save(self, net: Any, tokenizer: Any, folder: Path) -> None:
        """Write the model from rank 0, also if the model is sharded."""
        weights = shards.gathered(net)
        if distributed.rank() > 0:
            return
        if weights is not None:
            net = adapt(load_model(self.base.folder, torch.float32), self.adapter)
            net.load_state_dict(weights)
        save(net, tokenizer, folder, saving_dtype(self.save_dtype, AutoConfig.from_pretrained(self.base.folder)))


class _Rows(Logger):
    """A logger that stores a fine-tuning's metrics with its result, for later runs that reuse the result."""

    name, version = "rows", ""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.rows = JsonLines(file)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a step's metrics. A training that resumes after a kill logs some steps again."""
        if distributed.rank() == 0:
            self.rows.append([{"step": step, "metrics": self.finite(metrics)}])

    @staticmethod
    def finite(metrics: Mapping[str, Any]) -> dict[str, float]:
        """Return the metrics that are finite numbers, as JSON has no others. A user's callback may log NaN."""
        return {name: float(value) for name, value in metrics.items() if math.isfinite(float(value))}

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the key.json of the store entry has the settings."""


def _last_checkpoint(file: Path, stage: str) -> str | None:
    """Return the checkpoint to resume from. A damaged one is logged and moved aside."""
    if not file.exists():
        return None
    if not zipfile.is_zipfile(file):  # a zip file's directory is at its end
        log.warning("%s: %s is damaged and is renamed to %s.damaged; training restarts", stage, file, file.name)
        file.rename(file.with_name(f"{file.name}.damaged"))
        return None
    log.info("%s: resuming from %s", stage, file)
    return str(file)
