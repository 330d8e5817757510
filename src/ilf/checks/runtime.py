"""Checks of the processes, models, samplers, executors and loggers, before anything is loaded."""

from __future__ import annotations

import netrc
import os

from ilf.paths import check_model_folder
from ilf.settings import Settings
from ilf.types import InputError


def check_runtime(settings: Settings) -> None:
    """Check the components that train, sample, execute and log.

    Raises:
        InputError: A setting is invalid. The error names the key, the value, what is allowed and what to do.
    """
    _check_processes(settings)
    _check_adapter(settings)
    _check_judge(settings)
    settings.executor.check()
    _check_models(settings)
    settings.sampler.check()
    if settings.evaluation != settings.sampler:
        settings.evaluation.check()
    wandb = settings.logger.get("wandb")
    if wandb is not None and wandb.get("mode") == "online" and not _logged_in():
        raise InputError(
            "logger.mode",
            "online",
            "needs a Weights & Biases login, and none was found",
            "Set WANDB_API_KEY, run `wandb login`, or use logger.mode=offline.",
        )


def _check_processes(settings: Settings) -> None:
    trainer, chosen = settings.trainer, settings.chosen.get("trainer", "auto")
    strategy, devices = trainer.get("strategy", "auto"), trainer.get("devices", "auto")
    counted = isinstance(devices, int) and not isinstance(devices, bool)
    if not (devices == "auto" or (counted and devices >= 1)):
        allowed = "must be a positive number of processes, or auto"
        raise InputError("trainer.devices", devices, allowed, "To choose specific GPUs, set $CUDA_VISIBLE_DEVICES.")
    if strategy == "auto" and devices != "auto":
        allowed = f"trainer={chosen} runs a single process"
        raise InputError("trainer.devices", devices, allowed, "Choose trainer=ddp or trainer=fsdp.")
    if strategy != "auto" and settings.mode == "pretrain":
        raise InputError("trainer", chosen, "mini is pretrained in a single process", "Choose trainer=auto.")
    quantize = settings.training.quantize
    if strategy == "fsdp" and quantize is not None:
        allowed = "bitsandbytes weights can't be sharded"
        raise InputError("training.quantize", quantize, allowed, "Choose adapter=lora, or trainer=ddp.")
    if strategy == "fsdp" and settings.optimizer.target.startswith("bitsandbytes."):
        allowed = "bitsandbytes does not support sharded models"
        raise InputError("optimizer", settings.optimizer.target, allowed, "Choose optimizer=adamw, or trainer=ddp.")


def _check_judge(settings: Settings) -> None:
    """Check that a callback executes the programs of a run and logs the results."""
    judge, path = settings.callbacks.get("unit_tests"), "ilf.training.UnitTestCallback"
    if judge is None:
        advice = f"Add callbacks/default to the defaults of the file, or add {path} under this name."
        raise InputError("callbacks.unit_tests", None, "is required: it executes the programs of every stage", advice)
    if path.rpartition(".")[2] not in {one.__name__ for one in getattr(judge.resolve(), "__mro__", ())}:
        raise InputError(
            "callbacks.unit_tests._target_", judge.target, f"must be {path} or a subclass", "Derive from it."
        )


def _check_adapter(settings: Settings) -> None:
    quantize, adapter = settings.training.quantize, settings.adapter
    if quantize not in (None, "nf4", "int8"):
        raise InputError("training.quantize", quantize, "must be nf4, int8 or null", "Choose one of these.")
    if adapter is None and quantize is not None:
        allowed = "quantizes frozen weights, and without an adapter all weights are trained"
        raise InputError("training.quantize", quantize, allowed, "Omit it, or choose adapter=qlora.")
    if adapter is not None and "PromptLearningConfig" in {one.__name__ for one in adapter.resolve().__mro__}:  # type: ignore[attr-defined]
        allowed = "trains prompt tokens, which can't be merged into the weights of policy/"
        raise InputError("adapter._target_", adapter.target, allowed, "Choose adapter=lora or adapter=ia3.")


def _check_models(settings: Settings) -> None:
    if settings.model.bos is not None and not settings.sampler.local:
        chosen = settings.option("sampler")
        allowed = f"can't be passed to the server of sampler={chosen}, which tokenizes the prompts itself"
        raise InputError("model.bos", settings.model.bos, allowed, "Configure it in the server, and omit it here.")
    if settings.model.bos is not None and settings.chat:
        allowed = "has no effect with data.prompt=chat: the chat template decides how a text begins"
        raise InputError("model.bos", settings.model.bos, allowed, "Omit it.")
    if settings.chat and not getattr(settings.sampler, "takes_tokens", True):
        allowed = f"sends prompts as token ids, which the server of sampler={settings.option('sampler')} rejects"
        raise InputError("data.prompt", "chat", allowed, "Use sampler=hf or sampler=vllm.")
    if settings.model.attention == "flash_attention_2":
        for key, value, wrong in (
            ("model.dtype", settings.model.dtype, "float32"),
            ("model.dtype", settings.model.dtype, "auto"),  # auto uses float32 for everything that is reported
            ("trainer.precision", settings.trainer.get("precision"), "32-true"),
        ):
            if value == wrong:
                reason = "model.attention=flash_attention_2 can compute only in 16 bits"
                raise InputError(key, wrong, reason, "Use bfloat16 and bf16-mixed, or model.attention=sdpa.")
    if settings.model.path is None and settings.model.hub is None:
        raise InputError(
            "model.path", None, "model=local needs a folder in Hugging Face's layout", "Give model.path=FOLDER."
        )
    if settings.mode != "pretrain":
        check_model_folder("model.path", settings.model.path)
    settings.refiner.check(settings)


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
