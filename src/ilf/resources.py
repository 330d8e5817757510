"""Check before any work whether a run fits its device and disk. If not, refuse it and suggest what would fit."""

from __future__ import annotations

import copy
import logging
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from ilf import distributed
from ilf.components import Component
from ilf.disk import nearest
from ilf.feedback import llm
from ilf.models.decoding import PADDING
from ilf.models.dtypes import sampling_dtype, saving_dtype
from ilf.models.load import load_tokenizer
from ilf.models.memory import FineTuning, Need, fine_tuning, sampling, written
from ilf.models.tokens import by_length, encode_prompts
from ilf.sampling.hf import HFSampler
from ilf.settings import Settings
from ilf.tasks.feedback_prompts import refine_prompt
from ilf.training.dry_run import check_lengths, check_positions, trainings
from ilf.training.trainer import precision, training_device
from ilf.types import Feedback, InputError, Splits

log = logging.getLogger(__name__)

_ASKING = "asking the LLM"
_FEEDBACK_TOKENS = 128  # tokens reserved for the feedback in a refine prompt
_EIGHT_BIT = Component("bitsandbytes.optim.AdamW8bit")  # the same as in the options of these names
_LORA = Component("peft.LoraConfig", {"r": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"})
# pairs in which the second override replaces the first
_REPLACED = {("optimizer", "adapter"), ("trainer", "optimizer"), ("trainer", "adapter")}


def check_plan(settings: Settings, config: Any, tokenizer: Any, tasks: Splits, llm_folder: Path | None) -> None:
    """Check that a run fits its example length, its device's memory and its disk. The requirements are logged.

    Args:
        settings: Checked settings.
        config: The policy's, of transformers.
        tokenizer: The policy's.
        tasks: By split, restricted and limited.
        llm_folder: The folder of the LLM that writes feedback or refinements, if it is a local model.

    Raises:
        InputError: No row fits `training.max_length` or the models' positions. Or, if `memory` is "refuse", a stage
            needs more memory than the device has, or the run needs more disk space than is free. The message says what
            would fit.
    """
    encoded = encode_prompts(tokenizer, [task.prompt for task in tasks.by_id.values()])
    tokens = {task_id: len(ids) for task_id, ids in zip(tasks.by_id, encoded, strict=True)}
    check_lengths(settings, tasks, tokens)
    (template,) = encode_prompts(tokenizer, [refine_prompt(Feedback(0, "", "", "", ""), "")])
    check_positions(settings, config, tasks, tokens, len(template))
    answering = None
    if llm_folder is not None:
        llm_config = AutoConfig.from_pretrained(llm_folder)
        questions = llm.longest_questions(settings, llm_config, load_tokenizer(llm_folder), tasks)
        answering = Answering(llm_config, questions)
    budget = Budget(settings, config, max(tokens.values(), default=0), answering)
    check_memory(budget)
    check_disk(budget)


@dataclass(frozen=True)
class Answering:
    """The answers of a local LLM, for the memory plan."""

    config: Any  # the LLM's transformers configuration
    questions: Sequence[int]  # the lengths of the longest questions, in tokens


def check_memory(budget: Budget) -> None:
    """Log the device memory that a run needs. If it can't fit, raise an error or warn, depending on `memory`."""
    settings = budget.settings
    device, size = device_memory(settings.trainer)
    needs = budget.needs()
    log.info("peak memory, in GB; %s has %.1f GB\n%s", device, size / 1e9, table(needs))
    for need in needs:
        if need.least > size:
            problem = f"{need.work} needs {need.least / 1e9:.1f} GB at its peak, and {device} has {size / 1e9:.1f} GB"
            _refuse(settings, "memory", settings.memory, problem, budget.advice(need.work, size))


def check_disk(budget: Budget) -> None:
    """Log the peak disk space of a run. If it can't fit, raise an error or warn, depending on `memory`.

    The estimate counts model folders, adapters and checkpoints, as if no stage were finished. If the store already has
    trainings, the run may reuse some of them, which only its samples will determine. In that case, it is only a
    warning.
    """
    settings = budget.settings
    store, output = Path(settings.store.dir), Path(settings.output_dir)
    stored, copied = budget.disk()
    if not stored:
        return
    places = [("store.dir", store, stored)]  # on one file system, the run's models are hard links into the store
    if nearest(store).stat().st_dev != nearest(output).stat().st_dev:
        places.append(("output_dir", output, copied))
    for key, folder, size in places:
        free = shutil.disk_usage(nearest(folder)).free
        log.info("peak disk space: %s=%s needs %.3f GB, and %.1f GB are free", key, folder, size / 1e9, free / 1e9)
        if size > free:
            problem = f"models and checkpoints need {size / 1e9:.3f} GB at the peak, and {free / 1e9:.3f} GB are free"
            advice = f"Choose {key}=FOLDER on a larger disk, or free space, such as by mode=store store.prune_days=30."
            if settings.save.dtype == "float32":
                advice += " save.dtype=bfloat16 halves the size of models."
            reusable = settings.store.reuse and any(store.glob("train_*/*"))
            _refuse(settings, key, str(folder), problem, advice, only_warn=reusable)


def _refuse(settings: Settings, key: str, value: str, problem: str, advice: str, only_warn: bool = False) -> None:
    """Raise InputError, or only warn if `only_warn` or `memory` says so."""
    if settings.memory == "refuse" and not only_warn:
        raise InputError(key, value, problem, f"{advice} memory=warn runs it anyway.")
    log.warning("%s=%s: %s. %s", key, value, problem, advice)


def device_memory(trainer: Component) -> tuple[str, int]:
    """Return the name of the device of one of a run's processes, and its size in bytes.

    For a CPU, this is the memory limit of the container or machine, divided among the run's processes on this machine.
    Memory that other programs use is not subtracted.
    """
    if trainer.get("accelerator", "auto") != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1]
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            size = min(size, int(Path(file).read_text()))
        except (OSError, ValueError):  # another operating system, or the value "max", which is no limit
            pass
    processes = distributed.local_count()
    return "this machine" if processes == 1 else f"each of {processes} processes on this machine", size // processes


def _width(column: str) -> int:
    """Return how wide a column is: the table has less than 80 characters."""
    return max(len(column) + 1, 7)


def table(needs: Sequence[Need]) -> str:
    """Return a table with one line per need, in GB of 10^9 bytes."""
    columns = ("parameters", "gradients", "optimizer", "cache", "activations", "total")
    lines = [" " * 23 + "".join(f"{column:>{_width(column)}}" for column in columns)]
    for need in needs:
        cells = (f"{getattr(need, column) / 1e9:{_width(column)}.2f}" for column in columns)
        lines.append(f"{need.work:23}" + "".join(cells))
    return "\n".join(lines)


class Budget:
    """Estimates the memory and disk space that the stages of a run need.

    Args:
        settings: Checked settings.
        config: The policy's transformers configuration.
        prompt: Number of tokens of the longest task prompt.
        answering: The answers of a local LLM, if there is one.
    """

    def __init__(self, settings: Settings, config: Any, prompt: int, answering: Answering | None = None) -> None:
        self.settings, self.config, self.prompt, self.answering = settings, config, prompt, answering
        self.device = training_device(settings.trainer).type

    def needs(self, only: str | None = None) -> list[Need]:
        """Return the need of each kind of work in the requested stages, or of one kind only."""
        settings, stages = self.settings, set(self.settings.stages)
        found = []
        drawing = stages & {"sample", "zero_shot", "refine", "evaluate"} and settings.sampler.local
        if drawing and only in (None, "sampling"):
            learns = not (stages & {"zero_shot", "refine", "evaluate"} or settings.select or settings.rounds > 1)
            dtype = sampling_dtype(settings.model.dtype, training_device(settings.trainer), learns)
            # A saved refiner may be larger than the policy.
            other = settings.refiner.folder if "refine" in stages and settings.refines else None
            models = [self.config, *([AutoConfig.from_pretrained(other)] if other is not None else [])]
            needed = [self._sampling(dtype, settings.sampler.batch_size, model) for model in models]
            found.append(max(needed, key=lambda need: need.total))
        asking = stages & {"annotate", "refine", *(("zero_shot", "evaluate") if settings.evaluate.turns else ())}
        if self.answering is not None and self.answering.questions and asking and only in (None, _ASKING):
            found.append(self._asking(self.answering))
        phases = [(f"fine-tuning the {name}", phase) for name, phase in trainings(settings).items()]
        done: dict[int, Need] = {}  # by rows per forward pass, the only difference between the two fine-tunings
        for work, phase in [pair for pair in phases if only in (None, pair[0])]:
            rows = min(settings.training.micro_batch_size, phase.batch_size)
            rows *= settings.objective.texts if work.endswith("policy") else 1
            done[rows] = done.get(rows) or self._training(rows)
            need = done[rows]
            if work.endswith("policy") and settings.objective.second_model:
                whole = self._sampling(self._how(1).dtype, 1).parameters
                need = replace(need, parameters=need.parameters + whole)
            found.append(replace(need, work=work))
        return found

    def advice(self, work: str, size: int) -> str:
        """Return the overrides with which one kind of work would fit into `size` bytes.

        The overrides are tried in order, from those that change results least. Each that lowers the need is kept for
        the next.
        """
        fitting: list[str] = []
        tried: dict[str, str] = {}
        least = self.needs(work)[0].least
        for step in self._steps(work):
            group, _, option = step.partition("=")
            kept = {key: value for key, value in tried.items() if (key, group) not in _REPLACED}
            (found,) = self._with(kept | {group: option}).needs(work)
            if found.least < least:
                tried, least = kept | {group: option}, found.least
                if least <= size:
                    names = " ".join(f"{key}={value}" for key, value in tried.items())
                    fitting.append(f"{names} ({least / 1e9:.1f} GB)")
            if fitting and work in ("sampling", _ASKING):
                break
        if not fitting:
            return "No known setting makes it fit: choose a smaller model or a larger device."
        return f"These would fit: {'; '.join(fitting)}."

    def _steps(self, work: str) -> list[str]:
        """Return the overrides that lower the need of one kind of work and are compatible with the other settings."""
        settings = self.settings
        if work in ("sampling", _ASKING):
            key, rows = "sampler.batch_size", settings.sampler.batch_size
            if work == _ASKING:
                key, rows = "llm.parallel", settings.llm.parallel
            halves = [f"{key}={rows >> i}" for i in range(1, int(math.log2(rows)) + 1)]
            return [*halves, *(["model.dtype=bfloat16"] if work == "sampling" else [])]
        steps = ["training.validate_n=0", "training.gradient_checkpointing=true", "training.micro_batch_size=1"]
        in_bits = settings.optimizer.target.startswith("bitsandbytes.") or settings.training.quantize is not None
        match settings.trainer.get("strategy"):  # bitsandbytes does not support sharded models
            case "fsdp":
                return [*steps, "adapter=lora"]
            case "ddp" if not in_bits:
                steps.append("trainer=fsdp")
        return [*steps, "optimizer=adamw_8bit", "adapter=lora", "adapter=qlora"]

    def _with(self, overrides: dict[str, str]) -> Budget:
        settings = copy.deepcopy(self.settings)
        for key, value in overrides.items():
            match key:
                case "sampler.batch_size":
                    settings.sampler.batch_size = int(value)
                case "llm.parallel":
                    settings.llm.parallel = int(value)
                case "model.dtype":
                    settings.model.dtype = value
                case "training.validate_n":
                    settings.training.validate_n = int(value)
                case "training.gradient_checkpointing":
                    settings.training.gradient_checkpointing = True
                case "training.micro_batch_size":
                    settings.training.micro_batch_size = int(value)
                case "trainer":
                    settings.trainer = settings.trainer.having(strategy=value)
                case "optimizer":
                    settings.optimizer = _EIGHT_BIT
                case "adapter":
                    settings.adapter = settings.adapter or _LORA
                    settings.training.quantize = "nf4" if value == "qlora" else None
        return Budget(settings, self.config, self.prompt, self.answering)

    def _asking(self, answering: Answering) -> Need:
        """Return the need of a local LLM while it answers the longest questions."""
        asked, dtype = self.settings.llm, sampling_dtype("auto", training_device(self.settings.trainer))
        needs = []
        for together in by_length(answering.questions[: asked.parallel], int, PADDING):
            drawing = HFSampler(n=1, batch_size=len(together), max_new_tokens=asked.max_tokens)
            needs.append(sampling(answering.config, drawing, dtype, together[0], device=self.device))
        return replace(max(needs, key=lambda need: need.total), work=_ASKING)

    def _sampling(self, dtype: torch.dtype, rows: int, config: Any = None) -> Need:
        """Return the need of sampling `rows` programs at once from the longest prompts, including refine prompts."""
        settings, tokens = self.settings, self.prompt
        refining = set(settings.stages) & {"train_refiner", "refine"} and settings.refiner.reads_program
        if refining or settings.evaluate.turns:
            # The incorrect program, feedback and task. People may annotate longer programs than the policy samples.
            old = settings.refiner.old_code_tokens
            if settings.feedback.path is None:
                old = min(old, self.prompt + settings.sampler.max_new_tokens)
            tokens = (1 + settings.refiner.worked_examples) * (old + _FEEDBACK_TOKENS + self.prompt)
        drawing = replace(settings.sampler, batch_size=rows)
        return sampling(config or self.config, drawing, dtype, tokens, settings.model.attention, self.device)

    def disk(self) -> tuple[int, int]:
        """Return the peak bytes that the run writes to the store, and the bytes of its own models."""
        settings, phases = self.settings, trainings(self.settings)
        if not phases:
            return 0, 0
        dtype = saving_dtype(settings.save.dtype, self.config)
        folder, checkpoint = written(self.config, self._how(1), dtype)
        # The last training's checkpoint exists beside all models, or beside the checkpoint that it replaces.
        several = any(phase.epochs > 1 for phase in phases.values())
        before = (settings.rounds * len(phases) - 1) * folder
        return before + checkpoint + max(folder, several * checkpoint), len(phases) * folder

    def _how(self, rows: int) -> FineTuning:
        settings, training = self.settings, self.settings.training
        return FineTuning(
            settings.adapter,
            settings.optimizer,
            precision(settings.trainer),
            rows,
            training.max_length,
            training.gradient_checkpointing,
            settings.model.attention,
            training.quantize,
        )

    def _training(self, rows: int) -> Need:
        """Return the need of a fine-tuning, including that of the programs sampled after each epoch."""
        settings, training, how = self.settings, self.settings.training, self._how(rows)
        sharded = settings.trainer.get("strategy") == "fsdp"  # shards all that is trained, except the block that runs
        need = fine_tuning(self.config, how, self.device, distributed.count() if sharded else 1)
        if settings.trainer.get("strategy") == "ddp" and distributed.count() > 1:  # its buckets copy the gradients
            need = replace(need, activations=need.activations + need.gradients)
        if not training.validate_n:
            return need
        # On a GPU, the sampler halves a batch when memory runs out, which costs little between epochs.
        drawing = self._sampling(how.dtype, 1 if self.device == "cuda" else settings.sampler.batch_size)
        whole = drawing.parameters if sharded else need.parameters  # a sharded model is gathered to be sampled
        if drawing.cache + drawing.activations + whole <= need.activations + need.parameters:
            return need
        return replace(need, parameters=whole, cache=drawing.cache, activations=drawing.activations)
