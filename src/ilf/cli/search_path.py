"""The places where Hydra finds options: those of ILF, and folders of the user's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.config_source import ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from ilf import installation
from ilf.types import InputError

VARIABLE = "ILF_CONFIG_PATH"
_ARM_GROUPS = {"feedback", "refiner", "refinements", "llm"}  # the groups whose settings distinguish arms
_KEYS = {  # by the provider that Hydra records for a folder; Hydra searches these folders last
    "command-line": "--config-dir",
    "hydra.searchpath in main": "hydra.searchpath",
    "hydra.searchpath in command-line": "hydra.searchpath",
}


class OwnFolders(SearchPathPlugin):
    """A plugin that puts the folders in ILF_CONFIG_PATH first, so that their options override ours of the same name."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the folders to the search path, in the same order of precedence as in PATH.

        Raises:
            InputError: A folder does not exist.
        """
        for folder in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
            if not Path(folder).is_dir():
                raise InputError(VARIABLE, folder, "no such folder", f"Separate several folders by '{os.pathsep}'.")
            search_path.prepend(VARIABLE, f"file://{os.path.abspath(folder)}", SearchPathQuery(provider="main"))


def _sources(hydra: DictConfig) -> list[ConfigSource]:
    """Return all sources of options, in the order in which Hydra searches them."""
    registry = SourcesRegistry.instance()
    return [registry.resolve(s.schema)(s.provider, f"{s.schema}://{s.path}") for s in hydra.runtime.config_sources]


def _chosen(hydra: DictConfig) -> Iterator[str]:
    """Yield the names of all chosen options with their groups, including those chosen by lists of options."""
    yield hydra.job.config_name
    choices = [(group, [option]) for group, option in hydra.runtime.choices.items()]
    for one in OverridesParser.create().parse_overrides(list(hydra.overrides.task)):
        if isinstance(options := one.value(), list):  # Hydra does not record these among the choices
            choices.append((one.key_or_group, options))
    yield from (f"{group.partition('@')[0]}/{option}" for group, options in choices for option in options)


def check_sources(hydra: DictConfig) -> None:
    """Check that each folder of options exists, and that none of its chosen options is shadowed by another.

    Raises:
        InputError: One of these does not hold. The message names --config-dir or hydra.searchpath, and the folder.
    """
    found = _sources(hydra)
    own = [source for source in found if source.provider in _KEYS]
    for source in own:
        if not source.available():
            advice = "Give an absolute path, or pkg:// and a package that Python can import."
            raise InputError(_KEYS[source.provider], source.full_path(), "no such folder", advice)
    for option in _chosen(hydra) if own else ():
        holders = [source for source in found if source.is_config(option)]
        for source in holders[1:]:
            if source.provider in _KEYS:
                reason = f"its {option}.yaml would not be read: {holders[0].full_path()} comes first and has one too"
                advice = f"Rename it, or put the folder into {VARIABLE}, whose options override ours."
                raise InputError(_KEYS[source.provider], source.full_path(), reason, advice)


def record_sources(hydra: DictConfig) -> None:
    """Record where the options came from, for the commands that ILF suggests.

    They are read from Hydra, as the jobs of a launcher have other arguments than the command. Paths are absolute.
    """
    folders = {source.provider: source.path for source in hydra.runtime.config_sources}
    given = {
        "--config-path": (folders["main"], str(installation.CONF)),
        "--config-name": (hydra.job.config_name, "config"),
        "--config-dir": (folders.get("command-line"), None),
    }
    installation.sources = installation.Sources(
        flags=tuple(word for flag, (value, usual) in given.items() if value != usual for word in (flag, value)),
        overrides=tuple(one for one in hydra.overrides.hydra if one.startswith("hydra.searchpath=")),
        groups="refinements" in hydra.runtime.choices,
    )


def check_arm(hydra: DictConfig) -> None:
    """Check that no override changes what the chosen arm sets.

    Raises:
        InputError: A group or a key that the arm sets is overridden, or several arms are given.
    """
    for override in hydra.overrides.task:
        if override.startswith("arm=["):
            advice = "Choose one, or compare several in a sweep: -m arm=ilf,gold."
            raise InputError("arm", override.removeprefix("arm="), "is a list, but a run has one arm", advice)
    if (arm := hydra.runtime.choices.get("arm")) is None:
        return
    own = set(_set_by(f"arm/{arm}", _sources(hydra)))
    for override in hydra.overrides.task:
        key, _, value = override.lstrip("+~").partition("=")
        inside = value.startswith("{")  # a mapping, rather than the name of an option
        if any(key == one or key.startswith(f"{one}.") or (inside and one.startswith(f"{key}.")) for one in own):
            advice = f"Leave {override} out, or choose another arm. hydra.mode=RUN ignores an experiment's arms."
            raise InputError(key, value, f"is set by arm={arm}", advice)


def _set_by(arm: str, sources: list[ConfigSource]) -> Iterator[str]:
    """Yield the groups that the file of an arm chooses, and the keys in groups of an arm that it sets.

    An arm may build on other arms, which its defaults list names.
    """
    file = next((source for source in sources if source.is_config(arm)), None)
    if file is None:
        return
    config = OmegaConf.to_container(file.load_config(arm).config)
    assert isinstance(config, dict)
    for one in config.pop("defaults", []):
        if isinstance(one, str):
            yield from _set_by(one.removeprefix("/") if one.startswith("/") else f"arm/{one}", sources)
        else:
            yield from (str(key).removeprefix("override /") for key in one)
    for group in _ARM_GROUPS & set(config):
        yield from (f"{group}.{key}" for key in config[group] or ())
