"""Build the objects of a run from checked settings. Unusable input raises an error before any model loads."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils.import_utils import is_flash_attn_2_available

from ilf import distributed
from ilf.checks.tasks import check_scoring, check_tasks, check_tests
from ilf.disk import check_writable
from ilf.feedback import llm
from ilf.feedback.llm_client import check_stored
from ilf.files import file_sha256
from ilf.models.folder import check_model
from ilf.models.load import resolve
from ilf.resources import check_plan
from ilf.settings import Settings
from ilf.stages import Stages
from ilf.store import Store
from ilf.tasks.data import split_tasks
from ilf.tasks.near_duplicates import near_duplicates
from ilf.tracking import Tracker
from ilf.training.dry_run import check_training, trainings
from ilf.types import Feedback, InputError, Inputs

log = logging.getLogger(__name__)


def build(settings: Settings) -> Stages:
    """Build everything that a run needs and return its stages, ready to run.

    Raises:
        InputError: The device, its attention, the data or the annotations can't be used, or the device is too small.
    """
    with _without_collections():
        check_device(settings)
        check_writable("store.dir", Path(settings.store.dir))
        check_writable("output_dir", Path(settings.output_dir))
        tasks, inputs = _inputs(settings)
        llm_folder = _llm_folder(settings)
        model, config, tokenizer = _model(settings)
        check_training(settings, config, inputs.tasks)
        strategy, devices = (settings.trainer.get(name, "auto") for name in ("strategy", "devices"))
        distributed.join("auto" if strategy == "auto" else str(strategy), None if devices == "auto" else devices)
        store = Store(Path(settings.store.dir), settings.store.reuse, settings.store.ignore_code_changes)
        check_plan(settings, config, tokenizer, inputs.tasks, llm_folder)
        sandbox = settings.executor.start()
        try:
            for key, one, own in (
                ("data", settings.data, tasks),
                ("transfer", settings.transfer, inputs.tasks.transfer),
            ):
                if one is not None:
                    one.check_gold(own, sandbox, key)
            group = settings.group or settings.study
            tracker = Tracker(settings.logger, Path(settings.output_dir), settings.config, settings.arm, group)
            return Stages(settings, inputs, model, store, sandbox, tracker, llm_folder)
        except BaseException:
            sandbox.close()
            raise


@contextmanager
def _without_collections() -> Iterator[None]:
    """Disable garbage collection inside the context, and exclude the existing objects from all later collections.

    A run's imports stay in memory. Scanning them takes a second during the imports, and 0.4 s in each later collection.
    """
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # later jobs of a sweep import nothing new
            gc.freeze()
        gc.enable()


def check_device(settings: Settings) -> None:
    """Raise InputError if the settings need a GPU, or an attention implementation for GPUs, that is not available."""
    accelerator = settings.trainer.get("accelerator")
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        allowed = "this machine has no GPU that PyTorch can use"
        raise InputError("trainer.accelerator", accelerator, allowed, "Choose trainer=cpu or trainer=auto.")
    if settings.model.attention == "flash_attention_2" and not is_flash_attn_2_available():
        allowed = "needs a GPU and the package flash-attn, and one of them is missing"
        advice = "Install it, or choose model.attention=sdpa."
        raise InputError("model.attention", "flash_attention_2", allowed, advice)


def _inputs(settings: Settings) -> tuple[list[Any], Inputs]:
    """Return all tasks of the data set, and the inputs of the run."""
    data, feedback = settings.data, settings.feedback
    tasks, data_sha256 = data.load()
    known: dict[str, list[Feedback]] = {}  # by the name of the source
    for writer in feedback.writers if settings.mode != "annotate" else ():  # annotating restricts no tasks
        found = writer.known({task.task_id: task.split for task in tasks}, data.may_lack)
        if found is not None:
            known[writer.name] = found
    annotations = {f.task_id: f for found in known.values() for f in found}
    # With mixed sources, another source gives feedback on tasks that people have not annotated.
    only = set(annotations) if known and all(one.people for one in feedback.writers) else None
    dropped = None
    if data.near_duplicates == "drop":
        dropped = near_duplicates(tasks)
        said = ", ".join(f"{i} repeats {test}" for i, test in dropped.items())
        log.info("data.near_duplicates=drop leaves out %d tasks of Refine and Train: %s", len(dropped), said or "none")
    splits = split_tasks([t for t in tasks if t.task_id not in (dropped or {})], asdict(data.limit), only)
    check_tasks(settings, splits, list(annotations.values()) if known else None, {task.split for task in tasks})
    transfer_sha256 = None
    if settings.transfer is not None:
        limit = settings.transfer.limit.test
        others, transfer_sha256 = settings.transfer.load("transfer")
        splits = replace(splits, transfer=tuple([t for t in others if t.split == "test"][:limit]))
    check_tests(settings.executor.tests, splits)
    check_scoring(settings.executor.scoring, splits)
    file = Path(feedback.path or "")
    feedback_sha256 = file_sha256(file) if file.is_file() else None
    return tasks, Inputs(splits, data_sha256, transfer_sha256, feedback_sha256, dropped, known)


def _llm_folder(settings: Settings) -> Path | None:
    """Return the folder of the LLM that writes feedback or refinements, or None if it is not a local model."""
    asked = llm.uses(settings)
    if settings.llm.path is not None:
        check_stored(settings.llm.path, asked)
        return None
    if not asked or settings.llm.url is not None:
        return None
    name = str(settings.llm.model)
    folder = Path(name) if Path(name).is_dir() else resolve(None, name, None, "llm.model")
    check_model("llm.model", folder)
    return folder


def _model(settings: Settings) -> tuple[Path, Any, Any]:
    """Return the policy's folder, its transformers configuration and its tokenizer."""
    model = resolve(settings.model.path, settings.model.hub, settings.model.revision)
    local = settings.sampler.local  # otherwise only a server may have the weights
    key = "model.path" if settings.model.path is not None else "model.hub"
    weights = local or bool(trainings(settings))
    config, tokenizer = check_model(key, model, weights, settings.model.bos, settings.chat)
    sampled = [config]
    if settings.refiner.folder is not None:
        sampled.append(check_model("refiner.path", settings.refiner.folder, local, chat=settings.chat)[0])
    for one in sampled:
        settings.sampler.check_model(one)
    return model, config, tokenizer
