"""From Hydra's configuration to checked settings, and from those to the objects of a run.

torch is only imported by `build`, and the checks only when there are settings to check, so that --help is fast.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, field, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from ilf import shutdown
from ilf.cli.search_path import OwnFolders, check_sources
from ilf.components import Component, holds_components, read
from ilf.installation import COMMAND, CONF
from ilf.run_folder import claimed
from ilf.settings import Settings
from ilf.types import InputError

if TYPE_CHECKING:
    from ilf.stages import Stages

log = logging.getLogger(__name__)

# Registered on import, as a launcher's job in another process or on another machine imports this before it composes.
OmegaConf.register_new_resolver("package", lambda file: str(Path(__file__).parent.parent / file), replace=True)
OmegaConf.register_new_resolver("command", lambda: COMMAND, replace=True)
OmegaConf.register_new_resolver(
    "first", lambda *values: next((v for v in values if v not in (None, "")), None), replace=True
)


def _run_folder() -> str:
    """Return the folder that Hydra has created for this job, or would create if it only shows the configuration."""
    hydra = HydraConfig.get()
    known = not OmegaConf.is_missing(hydra.runtime, "output_dir")
    return str(hydra.runtime.output_dir if known else hydra.run.dir)


OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True)


_OF_A_COMMAND = ("chosen", "config")  # fields that `settings_from` fills in; a configuration does not have them


def _schema() -> type:
    """Return the schema of the settings for Hydra. A component is a mapping, whose keys only its class knows."""
    made: list[Any] = []
    hints = get_type_hints(Settings, include_extras=True)
    for one in fields(Settings):
        if one.name in _OF_A_COMMAND:
            continue
        if holds_components(hints[one.name]):
            made.append((one.name, dict[str, Any] | None, field(default=None)))
        else:
            made.append((one.name, get_type_hints(Settings)[one.name], one))
    # It is named after the variable that holds it, as a launcher's jobs unpickle it in other processes.
    return make_dataclass("Schema", made, namespace={"__module__": __name__})


Schema = _schema()


def register() -> None:
    """Register the schema and the folders of ILF_CONFIG_PATH with Hydra. Call this before composing."""
    ConfigStore.instance().store("schema", Schema)
    # --help copies the whole store once per group, which takes seconds. The store is a singleton and nothing writes to
    # it, so a copy is not needed.
    ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]
    Plugins.instance().register(OwnFolders)


def settings_from(
    config: DictConfig, overrides: Sequence[str] = (), sweep: bool = False, chosen: Mapping[str, str] | None = None
) -> Settings:
    """Return the composed configuration as checked settings.

    Args:
        config: The configuration, as composed by Hydra or as saved by an earlier run.
        overrides: The overrides on the command line, in Hydra's syntax.
        sweep: Whether this is a job of a sweep.
        chosen: The chosen option of each group, as Hydra records it.

    Raises:
        InputError: A value can't be used; see `checks` and `components.read`.
    """
    from ilf.checks import check
    from ilf.checks.keys import check_known, check_overrides
    from ilf.tracking import check_wandb

    if OmegaConf.get_type(config) is not Schema:  # a saved configuration has lost its types
        config = OmegaConf.merge(OmegaConf.structured(Schema), config)  # type: ignore[assignment]
    if not config.arm:  # loggers need it for the names of runs
        config = config.copy()
        config.arm = (chosen or {}).get("refinements", "")
    plain = OmegaConf.to_object(config)
    _check_addresses("", settings_config := OmegaConf.to_container(config, resolve=True))
    check_known(plain)  # type: ignore[arg-type]
    hints = get_type_hints(Settings, include_extras=True)
    assert isinstance(plain, Schema)
    known = {one.name: getattr(plain, one.name) for one in fields(Settings) if one.name not in _OF_A_COMMAND}
    parts = {name: read(hints[name], node, name) for name, node in known.items() if holds_components(hints[name])}
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
    """Check that no URL has a secret. This comes first, as a message on any other key might show the secret."""
    if isinstance(node, dict):
        for name, value in node.items():
            _check_addresses(f"{key}.{name}".lstrip("."), value)
    elif key.endswith(".url") and isinstance(node, str) and set("@?") & set(node):
        allowed = "must not contain a user, password or query: results.json would show them"
        advice = "Give http://HOST:PORT/v1, set $OPENAI_API_KEY, and remove .hydra/ in this run's folder, which has it."
        raise InputError(key, "(not shown)", allowed, advice)


def loggers_of(config: DictConfig) -> dict[str, Component]:
    """Return the loggers of a sweep's configuration with only what a check needs, as no job has a folder yet."""
    nodes = {name: node for name, node in (config.logger or {}).items() if OmegaConf.is_dict(node)}
    return {
        str(name): Component(
            node._target_, {key: node[key] for key in ("project", "mode") if node.get(key) is not None}
        )
        for name, node in nodes.items()
    }


def check_hydra(hydra: DictConfig) -> None:
    """Check the settings of Hydra itself on the command line.

    Raises:
        InputError: A key is unknown to Hydra, or its value would mix up or lose results; also see `check_sources`.
    """
    for override in hydra.overrides.hydra:
        key, _, value = override.lstrip("+~").partition("=")
        if "/" in key:  # a group, not a setting
            continue
        parent, _, name = key.removeprefix("hydra.").rpartition(".")
        kind = OmegaConf.get_type(OmegaConf.select(hydra, parent) if parent else hydra)
        if is_dataclass(kind) and name not in {field.name for field in fields(kind)}:
            raise _unknown_to_hydra(key, value)
    check_sources(hydra)
    if hydra.job.chdir:
        allowed = "store.dir and all relative paths would be resolved in each run's folder"
        raise InputError("hydra.job.chdir", True, allowed, "Leave it out: a run writes to its folder anyway.")
    if hydra.mode is RunMode.MULTIRUN and "${" not in str(hydra.sweep._get_node("subdir")._value()):
        allowed = "all jobs of the sweep would write to this one folder"
        advice = "Leave it out, or include the job's number: 'hydra.sweep.subdir=${hydra.job.num}'."
        raise InputError("hydra.sweep.subdir", hydra.sweep._get_node("subdir")._value(), allowed, advice)


def _unknown_to_hydra(key: str, value: str) -> InputError:
    return InputError(key, value, "is not a setting of Hydra", f"`{COMMAND} --cfg hydra` shows all keys.")


def explain(error: Exception) -> str | None:
    """Return the message that explains an error to a user; None if only a traceback can explain it."""
    from ilf.checks.keys import MOVED, known_keys, unknown_key

    cause = error.__cause__ if isinstance(error, HydraException) else error
    if isinstance(cause, OmegaConfBaseException) and (key := cause.full_key):
        given = (one.lstrip("+").removeprefix(f"{key}=") for one in sys.argv if one.lstrip("+").startswith(f"{key}="))
        value, parent = next(given, "(given)"), key.rpartition(".")[0]
        if key in MOVED:
            return str(unknown_key(key, value))
        if isinstance(cause, ConfigKeyError | ConfigAttributeError) and key not in known_keys():
            if key.startswith("hydra."):
                return str(_unknown_to_hydra(key, value))
            siblings = list(cause.parent_node) if parent and isinstance(cause.parent_node, DictConfig) else []
            return str(unknown_key(key, value, list(map(str, siblings))))
        if isinstance(cause, MissingMandatoryValue):
            return f"{parent}: no option of this group is chosen. Choose one: `{COMMAND} --help` lists them."
        return f"{key}: {str(cause.msg or cause).splitlines()[0]}. `{COMMAND} --cfg job` shows all keys and values."
    if "Config group override must be a string or a list" in str(error):  # Hydra's error does not name it
        nulls = (one.removesuffix("=null").lstrip("+") for one in sys.argv if one.endswith("=null"))
        key = next((one for one in nulls if (CONF / one.partition("@")[0]).is_dir()), "GROUP")
        return f"{key}=null: must be the name of an option. Omit it, or use '~{key}' if a file chooses an option."
    if in_a_file := re.match(r"In '(.+)': .*\n.*\n *full_key: (\S+)", str(error)):
        file, key = in_a_file.groups()
        if key not in known_keys():
            return str(unknown_key(key, f"(in {file}.yaml)"))
    return str(error) if isinstance(error, HydraException) else shutdown.explain(error)


@contextmanager
def opened(settings: Settings) -> Iterator[Stages]:
    """Claim the run's folder, print the settings if requested, build the run, and stop what it started at the end.

    Yields:
        The stages of the run.

    Raises:
        InputError: See `run_folder.claimed` and `build`.
    """
    with claimed(settings):
        if settings.extras.print_config:
            from ilf.cli.config_tree import show_tree

            show_tree(asdict(settings), Path(settings.output_dir))
        from ilf.build import build

        stages, failed = build(settings), True
        try:
            yield stages
            failed = False
        finally:
            stages.close(failed)
