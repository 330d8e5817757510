"""What settings must be like, alone and together: checked before anything is loaded."""

from __future__ import annotations

import netrc
import os
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ilf.analysis.jobs import job_folders
from ilf.annotation.answers import Answers
from ilf.feedback.llm import check_prompts, uses
from ilf.settings import STAGES, Adapter, Annotate, Data, FeedbackSettings, Sampling, Settings
from ilf.tasks.prompts import STYLES
from ilf.types import InputError

_SOURCES = ("human", "scripted", "unit_tests", "llm")
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "mode": ("run", "annotate", "store", "pretrain", "compare", "checks", "export"),
    "rounds_from": ("base", "last"),
    "data.annotator": ("human", "scripted"),
    "data.prompt": STYLES,
    "model.dtype": ("auto", "float32", "bfloat16"),
    "model.attention": ("auto", "eager", "sdpa", "flash_attention_2"),
    "feedback.name": (*_SOURCES, "mixed", "shuffled", "none"),
    "feedback.source": (*_SOURCES, "mixed"),
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
    "feedback.transform": ("shuffle", "one_bug", "drop"),
    "feedback.sources": _SOURCES,
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
    _check_addresses(settings)
    for key, allowed in _ALLOWED.items():
        if (value := _value(settings, key)) not in allowed:
            raise InputError(key, value, f"must be one of {', '.join(allowed)}", "Choose one of these.")
    if settings.mode == "compare":  # the other settings have no reader then
        _check_compare(settings.compare)
        return
    if settings.mode == "export":
        _check_export(settings.feedback.path, settings.export)
        return
    _check_numbers(settings)
    _check_processes(settings)
    for key, allowed in _LISTS.items():
        if unknown := [word for word in _value(settings, key) if word not in allowed]:
            advice = f"Quote the list: '{key}=[{allowed[0]}]'."
            raise InputError(key, unknown[0], f"must be of {', '.join(allowed)}", advice)
    _check_sources(settings)
    if settings.mode == "annotate":
        _check_annotate(settings.annotate)
    _check_study(settings)
    _check_adapter(settings.adapter)
    _check_executor(settings)
    _check_models(settings)
    _check_sampler(settings.sampler)
    if settings.logger.wandb and settings.logger.mode == "online" and not _logged_in():
        raise InputError(
            "logger.mode",
            "online",
            "needs a Weights & Biases login, and none was found",
            "Set WANDB_API_KEY, run `wandb login`, or use logger.mode=offline.",
        )


def _check_addresses(settings: Settings) -> None:
    """Check first that no address has a secret, which the message on any other key might show."""
    for key in ("llm.url", "sampler.url"):
        if set("@?") & set(_value(settings, key) or ""):
            raise InputError(
                key,
                "(not shown)",
                "must hold no user, password or query: results.json would show them",
                "Give http://HOST:PORT/v1, set $OPENAI_API_KEY, and remove .hydra/ of this run's folder, which has it.",
            )


def _check_numbers(settings: Settings) -> None:
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


def _check_compare(folders: list[str]) -> None:
    advice = "Give folders of sweeps or runs: 'compare=[multirun/A,multirun/B]'."
    if not folders:
        raise InputError("compare", folders, "mode=compare needs at least one folder", advice)
    for folder in folders:
        if not Path(folder).is_dir():
            raise InputError("compare", folder, "no such folder", advice)
        if not job_folders(Path(folder)):
            raise InputError("compare", folder, "must hold at least one job that has ended", advice)


def _check_export(path: str | None, target: str | None) -> None:
    advice = "Use mode=export feedback.path=IN export=OUT, each a .jsonl or .csv file."
    for key, file in (("feedback.path", path), ("export", target)):
        if file is None or Path(file).suffix not in (".jsonl", ".csv"):
            raise InputError(key, file, "mode=export needs a .jsonl or .csv file here", advice)
    assert path is not None and target is not None
    if not Path(path).is_file():
        raise InputError("feedback.path", path, "no such file", advice)
    if not Path(target).parent.is_dir() or Path(target).resolve() == Path(path).resolve():
        raise InputError("export", target, "must be another file, in a folder that exists", advice)


def _check_data(key: str, data: Data) -> None:
    """Check the settings of a data set, of the group `data` or `data@transfer`."""
    group = "data@transfer" if key == "transfer" else "data"
    if data.path is not None and data.name not in ("mbpp", "jsonl"):
        allowed = f"{group}={data.name} reads no file"
        raise InputError(f"{key}.path", data.path, allowed, f"Add {group}=mbpp or {group}=jsonl.")
    if data.path is not None and not Path(data.path).is_file():
        advice = "Give MBPP's mbpp.jsonl, or leave it out to use the Hub." if data.name == "mbpp" else "Check the path."
        raise InputError(f"{key}.path", data.path, "no such file", advice)
    if data.name == "jsonl" and data.path is None:
        advice = f"Give {key}.path=tasks.jsonl; docs/tutorial.md has an example."
        raise InputError(f"{key}.path", None, f"{group}=jsonl needs a file of tasks", advice)
    shares = asdict(data.split)
    if min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-9:
        advice = f"Use '{key}.split={{prompt: 0, test: 0.3, refine: 0.3, train: 0.4}}'."
        raise InputError(f"{key}.split", shares, "must be shares of the tasks, together 1", advice)


def _check_annotate(annotate: Annotate) -> None:
    if not 1 <= annotate.port <= 65535:
        raise InputError("annotate.port", annotate.port, "must be from 1 to 65535", "Choose one, such as 8765.")
    path = Path(annotate.path)
    if path.suffix != ".jsonl":
        advice = "Use annotate.path=annotations.jsonl; mode=export makes a table of it."
        raise InputError("annotate.path", annotate.path, "answers are appended as JSON lines, to a .jsonl file", advice)
    if path.is_dir() or not path.parent.is_dir():
        reason = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise InputError("annotate.path", annotate.path, reason, "Give a file in a folder that is there.")
    Answers(path).rows()  # a file that is there must be answers


def _check_sources(settings: Settings) -> None:
    data, feedback = settings.data, settings.feedback
    for key, one in (("data", data), ("transfer", settings.transfer)):
        if one is not None:
            _check_data(key, one)
    other = settings.transfer
    if other is not None and other.name == data.name and (data.name != "jsonl" or other.path == data.path):
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
    _check_shares(feedback)
    mixed, sources = feedback.source == "mixed", feedback.writers
    if "scripted" in sources and data.name != "mini":
        raise InputError(
            "feedback.sources" if mixed else "feedback",
            feedback.sources if mixed else feedback.name,
            f"scripted needs data=mini, not {data.name}: the script knows what mini's tasks ask for",
            "Choose human or unit_tests, or data=mini.",
        )
    if {"human", "llm"} & set(sources) and feedback.path is not None and not Path(feedback.path).is_file():
        advice = "Give a .jsonl or .csv file of annotations."
        raise InputError("feedback.path", feedback.path, "no such file", advice)
    if "human" in sources and feedback.path is not None:
        return
    heard = set(settings.stages) & {"annotate", "train_refiner", "refine", "train_policy"}
    if "human" in sources and "drop" not in feedback.transform and heard:
        raise InputError(
            "feedback.path",
            None,
            f"feedback={feedback.name} needs a file of annotations",
            "Give feedback.path=FILE, or choose feedback=unit_tests.",
        )
    if settings.refinements.name == "human" and "scripted" not in sources and heard:
        raise InputError(
            "refinements",
            "human",
            f"needs an annotator's refinements, which feedback={feedback.name} does not bring",
            "Choose feedback=human (on mini: feedback=scripted), or another arm.",
        )


def _check_shares(feedback: FeedbackSettings) -> None:
    mixed = feedback.source == "mixed"
    for key, values in (("feedback.sources", feedback.sources), ("feedback.shares", feedback.shares)):
        if values and not mixed:
            raise InputError(
                key, values, f"is for several sources, and feedback={feedback.name}", "Add feedback=mixed."
            )
    if not mixed:
        return
    if len(set(feedback.sources)) < max(2, len(feedback.sources)):
        raise InputError(
            "feedback.sources",
            feedback.sources,
            f"must name two or more of {', '.join(_SOURCES)}, each once",
            "Use 'feedback.sources=[human,unit_tests]'.",
        )
    if len(feedback.shares) != len(feedback.sources) or min(feedback.shares) < 0 or not any(feedback.shares):
        raise InputError(
            "feedback.shares",
            feedback.shares,
            f"must be a number from 0 for each of feedback.sources={feedback.sources}, not all 0",
            "Use 'feedback.shares=[1,3]' for a quarter and three quarters.",
        )


def _check_study(settings: Settings) -> None:
    """Check what repeats, sweeps or replaces parts of the algorithm."""
    arm, feedback = settings.refinements.name, settings.feedback
    people = "human" in feedback.writers and feedback.path is not None
    if settings.rounds > 1 and people:
        raise InputError(
            "rounds",
            settings.rounds,
            "needs feedback on each round's new programs, and annotations are about programs that exist already",
            "Choose feedback=scripted (on mini), unit_tests or llm, or rounds=1.",
        )
    if settings.rounds > 1 and arm == "none":
        raise InputError("rounds", settings.rounds, "refinements=none trains nothing to go on from", "Use rounds=1.")
    if settings.transfer is not None and settings.transfer.prompt not in STYLES:
        prompt = settings.transfer.prompt
        raise InputError("transfer.prompt", prompt, f"must be one of {', '.join(STYLES)}", "Choose one of these.")
    _check_llm(settings)
    if settings.select and {"zero_shot", "evaluate"} & set(settings.stages):
        raise InputError(
            "select",
            settings.select,
            "chooses settings by Refine, and stages holds what looks at Test: each setting would",
            "Use 'stages=[sample,annotate,train_refiner,refine,train_policy]', or select=0.",
        )
    for key, wanted in (("refiner.shots", settings.refiner.name == "few_shot"), ("llm.shots", bool(uses(settings)))):
        limit = settings.data.limit.prompt
        if wanted and limit is not None and _value(settings, key) > limit:
            raise InputError(
                key,
                _value(settings, key),
                f"worked examples are of the Prompt split, and data.limit.prompt={limit}",
                "Lower it, or raise data.limit.prompt.",
            )


def _check_llm(settings: Settings) -> None:
    """Check where another model's answers come from, and what it is told."""
    llm, feedback = settings.llm, settings.feedback
    check_prompts(llm)
    if llm.path is not None and not Path(llm.path).is_file():
        advice = "Give an earlier run's programs/llm_answers.jsonl, or llm_feedback.jsonl for feedback=llm."
        raise InputError("llm.path", llm.path, "no such file", advice)
    if not uses(settings):
        return
    if llm.path is None and llm.model is None:
        option = "feedback=llm" if feedback.source == "llm" else "refinements=llm"
        raise InputError(
            "llm.model",
            None,
            f"{option} needs a model, local or of an OpenAI-compatible endpoint, or stored answers",
            "Give llm.model=FOLDER, or llm.url=http://HOST:PORT/v1 llm.model=NAME, or llm.path=FILE.",
        )
    if llm.url is not None and not llm.url.startswith(("http://", "https://")):
        raise InputError("llm.url", llm.url, "must be an address", "Give llm.url=http://HOST:PORT/v1.")
    if llm.path is None and llm.url is None and (Path(str(llm.model)).exists() or str(llm.model).count("/") > 1):
        _check_model_folder("llm.model", llm.model)
    if feedback.source == "llm" and llm.shots and feedback.path is None and settings.data.annotator != "scripted":
        raise InputError(
            "llm.shots",
            llm.shots,
            "worked examples of feedback are an annotator's, on ids 1 to 10, and there are none",
            "Give feedback.path=annotations.jsonl, or llm.shots=0.",
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


def _check_models(settings: Settings) -> None:
    if settings.model.attention == "flash_attention_2":
        for key, wrong in (("model.dtype", "float32"), ("trainer.precision", "32-true")):
            if _value(settings, key) == wrong:
                reason = "model.attention=flash_attention_2 computes in 16 bits only"
                raise InputError(key, wrong, reason, "Use bfloat16 and bf16-mixed, or model.attention=sdpa.")
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


def _check_model_folder(key: str, path: str | None) -> None:
    if path is not None and not (Path(path) / "config.json").is_file():
        raise InputError(
            key,
            path,
            "must be a folder with a config.json, in Hugging Face's layout",
            "Check the path; `save_pretrained` writes such a folder.",
        )


def _check_sampler(sampler: Sampling) -> None:
    served = sampler.name == "openai"
    if served and not str(sampler.url).startswith(("http://", "https://")):
        advice = "Give sampler.url=http://HOST:PORT/v1."
        raise InputError(
            "sampler.url", sampler.url, "sampler=openai needs an OpenAI-compatible server's address", advice
        )
    for key, value in (("sampler.url", sampler.url), ("sampler.extra", sampler.extra)):
        if value and not served:
            raise InputError(key, value, "is for a server, and the sampler is another", "Add sampler=openai.")


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
