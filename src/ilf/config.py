"""From Hydra's configuration to checked settings, and from those to the objects of a run.

The only module besides run.py that knows of Hydra. Imports no torch until `build`, so that --help answers at once.
"""

from __future__ import annotations

import json
import netrc
import os
from collections import defaultdict
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from ilf.analysis.jobs import FIELDS, job_folders
from ilf.settings import STAGES, Settings
from ilf.store import write_atomically
from ilf.tasks.prompts import STYLES
from ilf.types import InputError

if TYPE_CHECKING:
    from ilf.stages import Stages

_PACKAGE = Path(__file__).parent
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "mode": ("run", "store", "pretrain", "compare"),
    "rounds_from": ("base", "last"),
    "data.annotator": ("human", "scripted"),
    "data.prompt": STYLES,
    "model.dtype": ("auto", "float32", "bfloat16"),
    "feedback.name": ("human", "scripted", "unit_tests", "shuffled", "none"),
    "feedback.source": ("human", "scripted", "unit_tests"),
    "feedback.apply": ("refine", "train_and_refine"),
    "feedback.select": ("annotated", "annotated_and_failed"),
    "refiner.name": ("finetuned", "few_shot", "local", "policy"),
    "refinements.name": ("model", "human", "gold", "llm", "self", "none"),
    "refinements.tasks": ("solved", "annotated"),
    "executor.tests": ("all", "unseen"),
    "executor.scoring": ("as_written", "paper"),
    "executor.compare": ("exact", "approx"),
    "executor.isolation": ("require", "best", "off"),
    "adapter.name": ("full", "lora"),
    "optimizer.name": ("adamw", "adamw_8bit"),
    "trainer.precision": ("auto", "32-true", "bf16-mixed", "bf16-true"),
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


def register() -> None:
    """Give Hydra the schema and the resolver of files that ship in the package. Call before composing."""
    ConfigStore.instance().store("schema", Settings)
    # --help copies the whole store once a group, which takes seconds; the store is a singleton that nobody writes to.
    ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]
    OmegaConf.register_new_resolver("package", lambda file: str(_PACKAGE / file), replace=True)


def settings_from(config: DictConfig) -> Settings:
    """Return the composed configuration as checked settings.

    Raises:
        InputError: A value can't be used; see `check`.
    """
    settings = OmegaConf.to_object(config)
    assert isinstance(settings, Settings)
    check(settings)
    return settings


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
    for key in ("data.limit.test", "data.limit.refine", "data.limit.train", "refinements.limit"):
        if (value := _value(settings, key)) is not None and value < 1:
            raise InputError(key, value, "must be at least 1, or null for all tasks", "Raise it, or leave it out.")
    for key in ("training.warmup_steps", "training.validate_n", "llm.shots"):
        if (value := _value(settings, key)) < 0:
            raise InputError(key, value, "must be 0 or more", "Raise it.")
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
    _check_study(settings)
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


def _check_sources(settings: Settings) -> None:
    data, feedback = settings.data, settings.feedback
    for key, one in (("data", data), ("transfer", settings.transfer)):
        if one is None or one.path is None:
            continue
        if one.name != "mbpp":
            raise InputError(f"{key}.path", one.path, f"data={one.name} reads no file", "Add data=mbpp.")
        if not Path(one.path).is_file():
            raise InputError(
                f"{key}.path", one.path, "no such file", "Give MBPP's mbpp.jsonl, or leave it out to use the Hub."
            )
    if data.name == "humaneval":
        if set(settings.stages) - {"zero_shot", "report"}:
            raise InputError(
                "data",
                "humaneval",
                "has only tasks to evaluate on",
                "Choose data@transfer=humaneval beside another data set, or 'stages=[zero_shot]'.",
            )
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
    if settings.rounds > 1 and settings.feedback.source == "human":
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
    if llm.path is not None and not Path(llm.path).is_file():
        raise InputError("llm.path", llm.path, "no such file", "Give an earlier run's programs/llm_answers.jsonl.")
    if settings.select and "evaluate" in settings.stages:
        raise InputError(
            "select",
            True,
            "chooses settings by Refine, and stages holds evaluate: each setting would see Test",
            "Use 'stages=[sample,annotate,train_refiner,refine,train_policy]'.",
        )
    if settings.select and settings.training.validate_n == 0:
        raise InputError(
            "training.validate_n", 0, "select=true chooses settings by programs on Refine", "Use at least 1."
        )


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


def build(settings: Settings) -> Stages:
    """Build everything that a run needs and return its stages, ready to run.

    Raises:
        InputError: The device, the data or the annotations can't be used; before the model loads.
    """
    import torch

    from ilf.analysis.report import arm_name
    from ilf.feedback.human import load_annotations
    from ilf.models.load import resolve
    from ilf.sandbox import Limits, Sandbox
    from ilf.stages import Stages
    from ilf.store import Store
    from ilf.tasks.load import load
    from ilf.tasks.mbpp import split_tasks
    from ilf.tracking import Tracker

    if settings.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise InputError(
            "trainer.accelerator",
            "gpu",
            "this machine has no GPU that torch can use",
            "Choose trainer=cpu or trainer=auto.",
        )
    data, executor = settings.data, settings.executor
    tasks, data_sha256 = load(data)
    annotations, only = [], None
    if settings.feedback.source == "human" and settings.feedback.path is not None:
        known = {task.task_id for task in tasks}
        annotations = [a for a in load_annotations(settings.feedback.path) if a.task_id in known]
        only = {annotation.task_id for annotation in annotations}
    splits = split_tasks(tasks, asdict(data.limit), only)
    if settings.transfer is not None:
        limit = settings.transfer.limit.test
        splits = replace(splits, transfer=tuple([t for t in load(settings.transfer)[0] if t.split == "test"][:limit]))
    store = Store(Path(settings.store.dir), settings.store.reuse)
    model = resolve(settings.model.path, settings.model.hub, settings.model.revision)
    sandbox = Sandbox(Limits(**{f.name: getattr(executor, f.name) for f in fields(Limits)}))
    tracker = Tracker(
        settings.logger,
        Path(settings.output_dir),
        OmegaConf.to_container(OmegaConf.structured(settings)),  # type: ignore[arg-type]
        arm_name(settings.arm, settings.feedback.source),
        settings.group or settings.study,
    )
    return Stages(settings, splits, data_sha256, annotations, model, store, sandbox, tracker)


def check_arm(arm: str | None, overrides: list[str], conf: Path) -> None:
    """Check that no override takes back what an arm of a study sets.

    Args:
        arm: The option of the group `arm`, None where none is chosen.
        overrides: What the command line or the sweep sets.
        conf: The folder of the configuration.

    Raises:
        InputError: A group that the arm sets is overridden.
    """
    if arm is None:
        return
    defaults = OmegaConf.to_container(OmegaConf.load(conf / "arm" / f"{arm}.yaml").defaults)
    own = {key.removeprefix("override /") for default in defaults for key in default}  # type: ignore[union-attr]
    for override in overrides:
        group, _, option = override.lstrip("+~").partition("=")
        if group in own:
            raise InputError(
                group, option, f"is set by arm={arm}", f"Leave {override} out, or choose another arm=..., or none."
            )


def select_and_report(sweep: Path) -> None:
    """Evaluate on Test, once, the setting of each arm that did best on Refine: runs in the sweep's folder `chosen`.

    ILF takes gold's best setting where gold was swept too, as in the paper's appendix A.1. Seeds are averaged.
    """
    tried = []
    for folder in job_folders(sweep):
        found = json.loads((folder / "results.json").read_text()) if (folder / "results.json").exists() else {}
        if found.get("validation") is not None:
            tried.append((folder, found["arm"], found["seed"], str(found["training"]), found["validation"]))
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _, arm, _, setting, score in tried:
        scores[arm][setting].append(score)
    best = {
        arm: max(found, key=lambda setting: sum(found[setting]) / len(found[setting])) for arm, found in scores.items()
    }
    chosen = {
        arm: best["gold"] if arm in ("ilf", "model") and "gold" in best else setting for arm, setting in best.items()
    }
    for folder, arm, seed, setting, _ in tried:
        if setting == chosen[arm]:
            saved = OmegaConf.load(folder / ".hydra" / "config.yaml")
            target = sweep / "chosen" / f"{arm}_seed{seed}"
            saved.merge_with({"output_dir": str(target), "stages": list(STAGES), "select": False})
            settings = settings_from(OmegaConf.merge(OmegaConf.structured(Settings), saved))  # type: ignore[arg-type]
            stages = build(settings)
            try:
                stages.run()
            finally:
                stages.tracker.close()


class ComparisonCallback(Callback):
    """Writes a sweep's comparison.* as each job ends, so that a failed or killed job costs no results."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Leave word of a job that failed, and compare the jobs of a sweep that have ended so far."""
        if config.mode != "run":
            return
        from ilf.analysis.studies import write_study

        file = Path(config.hydra.runtime.output_dir) / "failed.json"
        if job_return.status is JobStatus.FAILED:
            # One that failed early leaves no results.json: what that would say of its arm is said here.
            facts = {
                "error": str(job_return._return_value) or repr(job_return._return_value),
                "arm": config.arm,
                "seed": config.seed,
                "annotator": config.feedback.source,
                **{field: config[group].name for field, group in FIELDS.items()},
            }
            write_atomically(file, json.dumps(facts, indent=1))
        else:
            file.unlink(missing_ok=True)
        if "MULTIRUN" in str(config.hydra.mode):
            from ilf.analysis.comparison import write_comparison

            sweep = Path(config.hydra.sweep.dir)
            write_comparison(sweep, [sweep])
            write_study(sweep, [sweep])
        elif study := write_study(file.parent, [file.parent]):
            print(f"{study}\n{study.with_suffix('.png')}")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Evaluate the chosen settings where a sweep is to choose, and say what it came to."""
        from ilf.analysis.studies import write_study

        folder = Path(config.hydra.sweep.dir)
        if config.select:
            select_and_report(folder)
        study = write_study(folder, [folder, folder / "chosen"])
        for file in (folder / "comparison.md", study):
            if file is not None and file.exists():
                print(f"\n{file.read_text()}\n{file.with_suffix('.png')}")
