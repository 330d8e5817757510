"""From Hydra's configuration to checked settings, and from those to the objects of a run.

Imports no torch until `build`: --help answers at once.
"""

from __future__ import annotations

import gc
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, field, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from ilf import ending, ranks
from ilf.checks import check
from ilf.checks.keys import check_known, check_overrides, known_keys, unknown_key
from ilf.disk import check_writable
from ilf.parts import Part, holds_parts, read
from ilf.run_folder import claimed
from ilf.settings import Settings
from ilf.tracking import check_wandb
from ilf.types import Feedback, InputError

if TYPE_CHECKING:
    from ilf.stages import Stages

log = logging.getLogger(__name__)

# On import: all that a launcher's job, in another process or on another machine, does here before it composes.
OmegaConf.register_new_resolver("package", lambda file: str(Path(__file__).parent.parent / file), replace=True)
OmegaConf.register_new_resolver(
    "first", lambda *values: next((v for v in values if v not in (None, "")), None), replace=True
)


def _run_folder() -> str:
    """Return the folder that Hydra has made for this job, or, where it only shows a configuration, would make."""
    hydra = HydraConfig.get()
    known = not OmegaConf.is_missing(hydra.runtime, "output_dir")
    return str(hydra.runtime.output_dir if known else hydra.run.dir)


OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True)


def _schema() -> type:
    """Return the settings as Hydra takes them: a part is a mapping, whose keys only its class knows."""
    made: list[Any] = []
    hints = get_type_hints(Settings, include_extras=True)
    for one in fields(Settings):
        if holds_parts(hints[one.name]):
            made.append((one.name, dict[str, Any] | None, field(default=None)))
        else:
            made.append((one.name, get_type_hints(Settings)[one.name], one))
    return make_dataclass("Settings", made)


_SCHEMA = _schema()


def register() -> None:
    """Give Hydra the schema. Call before composing."""
    ConfigStore.instance().store("schema", _SCHEMA)
    # --help copies the whole store once a group, which takes seconds; the store is a singleton that nobody writes to.
    ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]


def settings_from(
    config: DictConfig, overrides: Sequence[str] = (), sweep: bool = False, chosen: Mapping[str, str] | None = None
) -> Settings:
    """Return the composed configuration as checked settings.

    Args:
        config: As Hydra composes it, or as an earlier run has saved it.
        overrides: What the command line set, in Hydra's syntax.
        sweep: Whether this is a job of a sweep.
        chosen: The option of each group, as Hydra knows it.

    Raises:
        InputError: A value can't be used; see `checks` and `parts.read`.
    """
    if OmegaConf.get_type(config) is not _SCHEMA:  # a saved one has lost its types
        config = OmegaConf.merge(OmegaConf.structured(_SCHEMA), config)  # type: ignore[assignment]
    if not config.arm:  # which loggers name runs after
        config = config.copy()
        config.arm = (chosen or {}).get("refinements", "")
    plain = OmegaConf.to_object(config)
    _check_addresses("", settings_config := OmegaConf.to_container(config, resolve=True))
    check_known(plain)  # type: ignore[arg-type]
    hints = get_type_hints(Settings, include_extras=True)
    assert isinstance(plain, _SCHEMA)
    known = {one.name: getattr(plain, one.name) for one in fields(Settings)}
    parts = {name: read(hints[name], node, name) for name, node in known.items() if holds_parts(hints[name])}
    settings = Settings(**known | parts)
    settings.overrides, settings.chosen = list(overrides), dict(chosen or {})
    settings.arm = settings.arm or settings.option("refinements")
    check(settings)
    check_overrides(settings, overrides, sweep)
    if settings.mode == "run":
        check_wandb(settings.logger, sweep)
    settings.config = settings_config | {"arm": settings.arm}  # type: ignore[assignment, operator]
    return settings


def _check_addresses(key: str, node: Any) -> None:
    """Check first that no address has a secret, which the message on any other key might show."""
    if isinstance(node, dict):
        for name, value in node.items():
            _check_addresses(f"{key}.{name}".lstrip("."), value)
    elif key.endswith(".url") and isinstance(node, str) and set("@?") & set(node):
        allowed = "must hold no user, password or query: results.json would show them"
        advice = "Give http://HOST:PORT/v1, set $OPENAI_API_KEY, and remove .hydra/ of this run's folder, which has it."
        raise InputError(key, "(not shown)", allowed, advice)


def loggers_of(config: DictConfig) -> dict[str, Part]:
    """Return the loggers of a sweep's configuration, before any of its jobs has a folder."""
    nodes = {name: node for name, node in (config.logger or {}).items() if OmegaConf.is_dict(node)}
    return {
        str(name): Part(node._target_, {key: node[key] for key in ("project", "mode") if node.get(key) is not None})
        for name, node in nodes.items()
    }


def check_hydra(hydra: DictConfig) -> None:
    """Check what the command line says to Hydra itself.

    Raises:
        InputError: A key is none of Hydra's, or asks for what would mix or lose results.
    """
    for override in hydra.overrides.hydra:
        key, _, value = override.lstrip("+~").partition("=")
        if "/" in key:  # a group
            continue
        parent, _, name = key.removeprefix("hydra.").rpartition(".")
        kind = OmegaConf.get_type(OmegaConf.select(hydra, parent) if parent else hydra)
        if is_dataclass(kind) and name not in {field.name for field in fields(kind)}:
            raise _unknown_to_hydra(key, value)
    if hydra.job.chdir:
        allowed = "store.dir and all paths of files would be sought in each run's folder"
        raise InputError("hydra.job.chdir", True, allowed, "Leave it out: a run writes into its folder anyway.")
    if hydra.mode is RunMode.MULTIRUN and "${" not in str(hydra.sweep._get_node("subdir")._value()):
        allowed = "all jobs of the sweep would write into this one folder"
        advice = "Leave it out, or name the job in it: 'hydra.sweep.subdir=${hydra.job.num}'."
        raise InputError("hydra.sweep.subdir", hydra.sweep._get_node("subdir")._value(), allowed, advice)


def _unknown_to_hydra(key: str, value: str) -> InputError:
    return InputError(key, value, "is no setting of Hydra's", "`python run.py --cfg hydra` shows all keys.")


def explain(error: Exception) -> str | None:
    """Return what an error means to a user, None where only a traceback tells."""
    cause = error.__cause__ if isinstance(error, HydraException) else error
    if isinstance(cause, OmegaConfBaseException) and (key := cause.full_key):
        given = (one.lstrip("+").removeprefix(f"{key}=") for one in sys.argv if one.lstrip("+").startswith(f"{key}="))
        value, parent = next(given, "(given)"), key.rpartition(".")[0]
        if isinstance(cause, ConfigKeyError | ConfigAttributeError) and key not in known_keys():
            if key.startswith("hydra."):
                return str(_unknown_to_hydra(key, value))
            siblings = list(cause.parent_node) if isinstance(cause.parent_node, DictConfig) else []
            return str(unknown_key(key, value, list(map(str, siblings))))
        if isinstance(cause, MissingMandatoryValue):
            return f"{parent}: no option of this group is chosen. Choose one: `python run.py --help` lists them."
        return f"{key}: {str(cause.msg or cause).splitlines()[0]}. `python run.py --cfg job` shows all keys and values."
    if in_a_file := re.match(r"In '(.+)': .*\n.*\n *full_key: (\S+)", str(error)):
        file, key = in_a_file.groups()
        if key not in known_keys():
            return str(unknown_key(key, f"(in {file}.yaml)"))
    return str(error) if isinstance(error, HydraException) else ending.explain(error)


def check_device(settings: Settings) -> None:
    """Raise InputError where a GPU is asked for and there is none."""
    import torch

    if settings.trainer.get("accelerator") in ("gpu", "cuda") and not torch.cuda.is_available():
        raise InputError(
            "trainer.accelerator",
            settings.trainer.get("accelerator"),
            "this machine has no GPU that torch can use",
            "Choose trainer=cpu or trainer=auto.",
        )


@contextmanager
def _without_collections() -> Iterator[None]:
    """Hold back collections of garbage, and leave what is there at the end out of all later ones.

    What a run imports stays: to go through it takes a second while it comes, and 0.4 at each collection after.
    """
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # later jobs of a sweep import nothing more
            gc.freeze()
        gc.enable()


@_without_collections()
def build(settings: Settings) -> Stages:
    """Build everything that a run needs and return its stages, ready to run.

    Raises:
        InputError: The device, its attention, the data or the annotations can't be used, or the device is too small;
            before the model loads.
    """
    from transformers.utils.import_utils import is_flash_attn_2_available

    from ilf.analysis.jobs import arm_name
    from ilf.budget import check_plan
    from ilf.feedback import llm
    from ilf.feedback.other_model import check_stored
    from ilf.models.folder import check_model
    from ilf.models.load import resolve
    from ilf.stages import Stages
    from ilf.store import Store
    from ilf.tasks import jsonl, mbpp
    from ilf.tasks.load import check_tasks, check_unseen, load, split_tasks
    from ilf.tracking import Tracker
    from ilf.training.trial import check_training, trainings

    check_device(settings)
    check_writable("store.dir", Path(settings.store.dir))
    check_writable("output_dir", Path(settings.output_dir))
    if settings.model.attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise InputError(
            "model.attention",
            "flash_attention_2",
            "needs a GPU and the package flash-attn, and one of them is missing",
            "Install it, or choose model.attention=sdpa.",
        )
    data = settings.data
    tasks, data_sha256 = load(data)
    feedback, asked = settings.feedback, llm.uses(settings)
    known: dict[str, list[Feedback]] = {}  # by the name of its source
    for writer in feedback.writers if settings.mode != "annotate" else ():  # there, it restricts nothing
        absent = mbpp.IDS if data.name == "mbpp" else ()  # a local file may be a part of it
        found = writer.known({task.task_id: task.split for task in tasks}, absent)
        if found is not None:
            known[writer.name] = found
    annotations = {f.task_id: f for found in known.values() for f in found}
    # Where sources are mixed, another one speaks on what people have not annotated.
    only = set(annotations) if known and all(one.people for one in feedback.writers) else None
    splits = split_tasks(tasks, asdict(data.limit), only)
    check_tasks(settings, splits, list(annotations.values()) if known else None, {task.split for task in tasks})
    transfer_sha256 = None
    if settings.transfer is not None:
        limit = settings.transfer.limit.test
        others, transfer_sha256 = load(settings.transfer, "transfer")
        splits = replace(splits, transfer=tuple([t for t in others if t.split == "test"][:limit]))
    check_unseen(settings.executor.tests, splits)
    llm_folder = None
    if settings.llm.path is not None:
        check_stored(settings.llm.path, asked)
    elif asked and settings.llm.url is None:
        name = str(settings.llm.model)
        llm_folder = Path(name) if Path(name).is_dir() else resolve(None, name, None, "llm.model")
        check_model("llm.model", llm_folder)
    model = resolve(settings.model.path, settings.model.hub, settings.model.revision)
    local = settings.sampler.local  # else a server may hold the only weights
    key = "model.path" if settings.model.path is not None else "model.hub"
    config, tokenizer = check_model(key, model, local or bool(trainings(settings)), settings.model.bos)
    sampled = [config]
    if settings.refiner.folder is not None:
        sampled.append(check_model("refiner.path", settings.refiner.folder, local)[0])
    for one in sampled:
        settings.sampler.check_model(one)
    check_training(settings, config, splits)
    strategy, devices = (settings.trainer.get(name, "auto") for name in ("strategy", "devices"))
    ranks.join("auto" if strategy == "auto" else str(strategy), None if devices == "auto" else devices)
    store = Store(Path(settings.store.dir), settings.store.reuse, settings.store.any_code)
    check_plan(settings, config, tokenizer, splits)
    sandbox = settings.executor.start()
    for key, one, own in (("data", data, tasks), ("transfer", settings.transfer, splits.transfer)):
        if one is not None and one.name == "jsonl":
            jsonl.check_gold(str(one.path), own, sandbox, key)
    tracker = Tracker(
        settings.logger,
        Path(settings.output_dir),
        settings.config,
        arm_name(settings.arm, settings.feedback.name),
        settings.group or settings.study,
    )
    return Stages(settings, splits, data_sha256, transfer_sha256, known, model, store, sandbox, tracker, llm_folder)


@contextmanager
def opened(settings: Settings) -> Iterator[Stages]:
    """Hold the run's folder, build the run, and close its tracker at the end.

    Raises:
        InputError: See `run_folder.claimed` and `build`.
    """
    with claimed(settings):
        stages = build(settings)
        try:
            yield stages
        finally:
            stages.tracker.close()


def check_arm(arm: str | None, overrides: list[str], conf: Path) -> None:
    """Check that no override takes back what an arm of a study sets.

    Args:
        arm: The option of the group `arm`, None where none is chosen.
        overrides: What the command line or the sweep sets.
        conf: The folder of the configuration.

    Raises:
        InputError: A group that the arm sets is overridden.
    """
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    folders = [conf, *(Path(one.path) for one in sources if one.schema == "file")]  # a user's too
    files = (folder / "arm" / f"{arm}.yaml" for folder in folders)
    file = next((one for one in files if arm is not None and one.is_file()), None)
    if file is None:
        return
    defaults: Any = OmegaConf.to_container(OmegaConf.load(file)).get("defaults", [])  # type: ignore[union-attr]
    own = {key.removeprefix("override /") for one in defaults if isinstance(one, dict) for key in one}
    for override in overrides:
        group, _, option = override.lstrip("+~").partition("=")
        if group in own:
            raise InputError(
                group, option, f"is set by arm={arm}", f"Leave {override} out, or choose another arm=..., or arm=null."
            )
