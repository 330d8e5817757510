"""What settings must be like, alone and together: checked before anything is loaded."""

from __future__ import annotations

import netrc
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ilf.analysis.jobs import job_folders
from ilf.annotation.answers import Answers
from ilf.settings import STAGES, Adapter, Annotate, Settings
from ilf.tasks.prompts import STYLES
from ilf.types import InputError

_ALLOWED: dict[str, tuple[Any, ...]] = {
    "mode": ("run", "annotate", "store", "pretrain", "compare", "checks"),
    "rounds_from": ("base", "last"),
    "data.annotator": ("human", "scripted"),
    "data.prompt": STYLES,
    "model.dtype": ("auto", "float32", "bfloat16"),
    "model.attention": ("auto", "eager", "sdpa", "flash_attention_2"),
    "feedback.name": ("human", "scripted", "unit_tests", "shuffled", "none"),
    "feedback.source": ("human", "scripted", "unit_tests"),
    "feedback.apply": ("refine", "train_and_refine"),
    "feedback.select": ("annotated", "annotated_and_failed"),
    "refiner.name": ("finetuned", "few_shot", "local", "policy"),
    "refinements.name": ("model", "human", "gold", "llm", "self", "none"),
    "refinements.tasks": ("solved", "annotated"),
    "sampler.name": ("hf", "continuous", "openai"),
    "executor.name": ("sandbox", "ray"),
    "executor.tests": ("all", "unseen"),
    "executor.scoring": ("as_written", "paper"),
    "executor.compare": ("exact", "approx"),
    "executor.isolation": ("require", "best", "off"),
    "adapter.name": ("full", "lora", "qlora"),
    "optimizer.name": ("adamw", "adamw_8bit", "paged_adamw_8bit"),
    "trainer.strategy": ("auto", "ddp", "fsdp"),
    "trainer.precision": ("auto", "32-true", "bf16-mixed", "bf16-true"),
    "trainer.memory": ("refuse", "warn"),
    "logger.mode": ("offline", "online"),
}
_LISTS = {
    "stages": STAGES,
    "measure": ("weight_change", "kl", "perplexity"),
    "feedback.transform": ("shuffle", "drop"),
}
_POSITIVE = (
    "rounds",
    "llm.max_tokens",
    "llm.parallel",
    "sampler.n",
    "sampler.temperature",
    "sampler.max_new_tokens",
    "sampler.batch_size",
    "executor.time_limit",
    "executor.memory_mb",
    "executor.output_mb",
    "executor.disk_mb",
    "executor.workers",
    "adapter.rank",
    "training.refiner.lr",
    "training.refiner.epochs",
    "training.refiner.batch_size",
    "training.policy.lr",
    "training.policy.epochs",
    "training.policy.batch_size",
    "training.micro_batch_size",
    "training.max_length",
    "training.clip",
    "refiner.old_code_tokens",
    "pretrain.vocabulary",
    "pretrain.layers",
    "pretrain.lr",
    "pretrain.batch_size",
    "pretrain.epochs",
)


def _value(settings: Settings, key: str) -> Any:
    value: Any = settings
    for part in key.split("."):
        value = getattr(value, part)
    return value


def check(settings: Settings) -> None:
    """Check values, files and what must fit together, before anything is loaded.

    Raises:
        InputError: Names the key, the value, what is allowed and what to do.
    """
    for key, allowed in _ALLOWED.items():
        if (value := _value(settings, key)) not in allowed:
            raise InputError(key, value, f"must be one of {', '.join(allowed)}", "Choose one of these.")
    if settings.mode == "compare":  # the other settings have no reader then
        _check_compare(settings.compare)
        return
    for key in _POSITIVE:
        if (value := _value(settings, key)) <= 0:
            raise InputError(key, value, "must be above 0", "Raise it.")
    limits = ["data.limit.test", "data.limit.refine", "data.limit.train", "refinements.limit"]
    for key in [*limits, *(["transfer.limit.test"] if settings.transfer else [])]:
        if (value := _value(settings, key)) is not None and value < 1:
            raise InputError(key, value, "must be at least 1, or null for all tasks", "Raise it, or leave it out.")
    for key in ("training.warmup_steps", "training.validate_n", "llm.shots", "select", "data.limit.prompt"):
        if (value := _value(settings, key)) is not None and value < 0:
            raise InputError(key, value, "must be 0 or more", "Raise it.")
    _check_processes(settings)
    for key, allowed in _LISTS.items():
        if unknown := [word for word in _value(settings, key) if word not in allowed]:
            advice = f"Quote the list: '{key}=[{allowed[0]}]'."
            raise InputError(key, unknown[0], f"must be of {', '.join(allowed)}", advice)
    if not settings.evaluate.k:
        raise InputError("evaluate.k", [], "must name at least one k", "Use 'evaluate.k=[1]'.")
    for k in settings.evaluate.k:
        if not 1 <= k <= settings.sampler.n:
            raise InputError(
                "evaluate.k",
                settings.evaluate.k,
                f"pass@{k} needs k from 1 to sampler.n={settings.sampler.n}",
                f"Raise sampler.n, or set 'evaluate.k=[1,{settings.sampler.n}]'.",
            )
    _check_sources(settings)
    if settings.mode == "annotate":
        _check_annotate(settings.annotate)
    _check_study(settings)
    _check_adapter(settings.adapter)
    if settings.model.attention == "flash_attention_2":
        for key, wrong in (("model.dtype", "float32"), ("trainer.precision", "32-true")):
            if _value(settings, key) == wrong:
                reason = "model.attention=flash_attention_2 computes in 16 bits only"
                raise InputError(key, wrong, reason, "Use bfloat16 and bf16-mixed, or model.attention=sdpa.")
    _check_executor(settings)
    if settings.model.path is None and settings.model.hub is None:
        raise InputError(
            "model.path", None, "model=local needs a folder in Hugging Face's layout", "Give model.path=FOLDER."
        )
    if settings.mode != "pretrain":
        _check_model_folder("model.path", settings.model.path)
    if settings.refiner.name == "local":
        if settings.refiner.path is None:
            raise InputError(
                "refiner.path",
                None,
                "refiner=local needs a folder in Hugging Face's layout",
                "Give refiner.path=FOLDER, such as the refiner/ of an earlier run.",
            )
        _check_model_folder("refiner.path", settings.refiner.path)
    served, url = settings.sampler.name == "openai", settings.sampler.url
    if served and not str(url).startswith(("http://", "https://")):
        advice = "Give sampler.url=http://HOST:PORT/v1."
        raise InputError("sampler.url", url, "sampler=openai needs an OpenAI-compatible server's address", advice)
    for key, value in (("sampler.url", url), ("sampler.extra", settings.sampler.extra)):
        if value and not served:
            raise InputError(key, value, "is for a server, and the sampler is another", "Add sampler=openai.")
    if settings.logger.wandb and settings.logger.mode == "online" and not _logged_in():
        raise InputError(
            "logger.mode",
            "online",
            "needs a Weights & Biases login, and none was found",
            "Set WANDB_API_KEY, run `wandb login`, or use logger.mode=offline.",
        )


def _check_compare(folders: list[str]) -> None:
    advice = "Give folders of sweeps or runs: 'compare=[multirun/A,multirun/B]'."
    if not folders:
        raise InputError("compare", folders, "mode=compare needs at least one folder", advice)
    for folder in folders:
        if not Path(folder).is_dir():
            raise InputError("compare", folder, "no such folder", advice)
        if not job_folders(Path(folder)):
            raise InputError("compare", folder, "must hold at least one job that has ended", advice)


def _check_annotate(annotate: Annotate) -> None:
    if not 1 <= annotate.port <= 65535:
        raise InputError("annotate.port", annotate.port, "must be from 1 to 65535", "Choose one, such as 8765.")
    path = Path(annotate.path)
    if path.is_dir() or not path.parent.is_dir():
        reason = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise InputError("annotate.path", annotate.path, reason, "Give a file in a folder that is there.")
    Answers(path).rows()  # a file that is there must be answers


def _check_sources(settings: Settings) -> None:
    data, feedback = settings.data, settings.feedback
    for key, one in (("data", data), ("transfer", settings.transfer)):
        if one is None or one.path is None:
            continue
        if one.name != "mbpp":
            group = "data@transfer" if key == "transfer" else "data"
            raise InputError(f"{key}.path", one.path, f"{group}={one.name} reads no file", f"Add {group}=mbpp.")
        if not Path(one.path).is_file():
            raise InputError(
                f"{key}.path", one.path, "no such file", "Give MBPP's mbpp.jsonl, or leave it out to use the Hub."
            )
    if settings.transfer is not None and settings.transfer.name == data.name:
        raise InputError(
            "transfer",
            data.name,
            "is the data set that the policy learns on, and Test is evaluated already",
            "Choose another one: data@transfer=humaneval.",
        )
    if data.name == "humaneval":
        if set(settings.stages) - {"zero_shot", "report"} or settings.mode == "annotate":
            raise InputError(
                "data",
                "humaneval",
                "has only tasks to evaluate on",
                "Choose data@transfer=humaneval beside another data set, or 'stages=[zero_shot]'.",
            )
        return
    if settings.mode == "annotate":  # the feedback is still to be written
        return
    if feedback.source == "scripted" and data.name != "mini":
        raise InputError(
            "feedback",
            feedback.name,
            f"needs data=mini, not {data.name}: the script knows what mini's tasks ask for",
            "Choose feedback=human or unit_tests, or data=mini.",
        )
    if feedback.source == "human" and feedback.path is not None:
        if not Path(feedback.path).is_file():
            raise InputError("feedback.path", feedback.path, "no such file", "Give a JSON-lines file of annotations.")
        return
    if feedback.source == "human" and "drop" not in feedback.transform:
        raise InputError(
            "feedback.path",
            None,
            f"feedback={feedback.name} needs a file of annotations",
            "Give feedback.path=FILE, or choose feedback=unit_tests.",
        )
    if settings.refinements.name == "human" and feedback.source != "scripted":
        raise InputError(
            "refinements",
            "human",
            f"needs an annotator's refinements, which feedback={feedback.name} does not bring",
            "Choose feedback=human (on mini: feedback=scripted), or another arm.",
        )


def _check_study(settings: Settings) -> None:
    """Check what repeats, sweeps or replaces parts of the algorithm."""
    arm, llm = settings.refinements.name, settings.llm
    people = settings.feedback.source == "human" and settings.feedback.path is not None
    if settings.rounds > 1 and people:
        raise InputError(
            "rounds",
            settings.rounds,
            "needs feedback on each round's new programs, and annotations are about programs that exist already",
            "Choose feedback=scripted (on mini) or feedback=unit_tests, or rounds=1.",
        )
    if settings.rounds > 1 and arm == "none":
        raise InputError("rounds", settings.rounds, "refinements=none trains nothing to go on from", "Use rounds=1.")
    if arm == "llm" and llm.path is None and (llm.url is None or llm.model is None):
        raise InputError(
            "llm.url",
            llm.url,
            "refinements=llm needs an OpenAI-compatible endpoint and a model there, or stored answers",
            "Give llm.url=http://HOST:PORT/v1 llm.model=NAME, or llm.path=llm_answers.jsonl.",
        )
    if settings.transfer is not None and settings.transfer.prompt not in STYLES:
        prompt = settings.transfer.prompt
        raise InputError("transfer.prompt", prompt, f"must be one of {', '.join(STYLES)}", "Choose one of these.")
    if llm.path is not None and not Path(llm.path).is_file():
        raise InputError("llm.path", llm.path, "no such file", "Give an earlier run's programs/llm_answers.jsonl.")
    if settings.select and {"zero_shot", "evaluate"} & set(settings.stages):
        raise InputError(
            "select",
            settings.select,
            "chooses settings by Refine, and stages holds what looks at Test: each setting would",
            "Use 'stages=[sample,annotate,train_refiner,refine,train_policy]', or select=0.",
        )
    for key, wanted in (("refiner.shots", settings.refiner.name == "few_shot"), ("llm.shots", arm == "llm")):
        limit = settings.data.limit.prompt
        if wanted and limit is not None and _value(settings, key) > limit:
            raise InputError(
                key,
                _value(settings, key),
                f"worked examples are of ids 1 to 10, and data.limit.prompt={limit}",
                "Lower it, or raise data.limit.prompt.",
            )


def _check_processes(settings: Settings) -> None:
    strategy, devices = settings.trainer.strategy, settings.trainer.devices
    if devices is not None and devices < 1:
        raise InputError("trainer.devices", devices, "must be at least 1, or null for one a GPU", "Raise it.")
    if strategy == "auto" and devices is not None:
        allowed = f"trainer={settings.trainer.name} is one process"
        raise InputError("trainer.devices", devices, allowed, "Choose trainer=ddp or trainer=fsdp.")
    if strategy != "auto" and settings.mode == "pretrain":
        raise InputError("trainer", settings.trainer.name, "mini is pretrained by one process", "Choose trainer=auto.")
    if strategy == "fsdp" and settings.adapter.quantize is not None:
        allowed = "bitsandbytes' weights can't be held in parts"
        raise InputError("adapter", settings.adapter.name, allowed, "Choose adapter=lora, or trainer=ddp.")
    if strategy == "fsdp" and settings.optimizer.name != "adamw":
        allowed = "bitsandbytes does not take a model in parts"
        raise InputError("optimizer", settings.optimizer.name, allowed, "Choose optimizer=adamw, or trainer=ddp.")


def _check_adapter(adapter: Adapter) -> None:
    if adapter.name == "qlora" and adapter.quantize not in ("nf4", "int8"):
        raise InputError(
            "adapter.quantize", adapter.quantize, "adapter=qlora takes nf4 or int8", "Choose one of these."
        )
    if adapter.name != "qlora" and adapter.quantize is not None:
        allowed = f"adapter={adapter.name} trains on weights as they are, and takes only null"
        raise InputError("adapter.quantize", adapter.quantize, allowed, "Leave it out, or choose adapter=qlora.")


def _check_executor(settings: Settings) -> None:
    executor = settings.executor
    if executor.name == "ray" and find_spec("ray") is None:
        raise InputError(
            "executor",
            "ray",
            "needs the package ray",
            "pip install -r requirements-extras.txt, or use executor=sandbox.",
        )
    if executor.name != "ray" and executor.address is not None:
        raise InputError("executor.address", executor.address, "is of a Ray cluster", "Add executor=ray.")


def _check_model_folder(key: str, path: str | None) -> None:
    if path is not None and not (Path(path) / "config.json").is_file():
        raise InputError(
            key,
            path,
            "must be a folder with a config.json, in Hugging Face's layout",
            "Check the path; `save_pretrained` writes such a folder.",
        )


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
