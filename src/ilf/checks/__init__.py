"""Checks of the settings, alone and in combination, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ilf.analysis.jobs import job_folders
from ilf.checks.experiment import check_experiment
from ilf.checks.keys import check_texts
from ilf.checks.numbers import check_finite, check_numbers
from ilf.checks.runtime import check_runtime
from ilf.paths import check_path, check_target
from ilf.settings import STAGES, Settings, value_of
from ilf.types import InputError

_ALLOWED: dict[str, tuple[Any, ...]] = {
    "mode": ("run", "annotate", "store", "pretrain", "compare", "checks", "export"),
    "failing": ("all", "any"),
    "rounds_from": ("base", "last"),
    "model.dtype": ("auto", "float32", "bfloat16"),
    "model.attention": ("auto", "eager", "sdpa", "flash_attention_2"),
    "memory": ("refuse", "warn"),
    "save.dtype": ("float32", "base", "bfloat16", "float16"),
}
_LISTS = {
    "stages": STAGES,
    "measure": ("weight_change", "kl", "perplexity"),
}


def check(settings: Settings) -> None:
    """Check values, files and combinations of settings, before anything is loaded.

    Raises:
        InputError: A setting is invalid. The error names the key, the value, what is allowed and what to do.
    """
    check_texts(settings)
    check_finite(settings)
    for key, allowed in _ALLOWED.items():
        if (value := value_of(settings, key)) not in allowed:
            raise InputError(key, value, f"must be one of {', '.join(allowed)}", "Choose one of these.")
    check_planned(settings.compare.pairs)
    if settings.mode == "compare":  # this mode reads no other settings
        _check_compare(settings.compare.folders)
        return
    if settings.mode == "export":
        if settings.run is not None:
            _check_pairs(settings.run, settings.export)
        else:
            _check_export(settings.feedback.path, settings.export)
        return
    check_numbers(settings)
    for key, allowed in _LISTS.items():
        if unknown := [word for word in value_of(settings, key) if word not in allowed]:
            advice = f"Quote the list: '{key}=[{allowed[0]}]'."
            raise InputError(key, unknown[0], f"must be one of {', '.join(allowed)}", advice)
    if not settings.stages:
        raise InputError("stages", [], "must name at least one stage", f"Use 'stages=[{','.join(STAGES)}]'.")
    check_experiment(settings)
    check_runtime(settings)


def check_planned(pairs: Sequence[Any]) -> None:
    """Check that each planned comparison names two arms, and that none is planned twice.

    Raises:
        InputError: A pair is invalid. The error names it.
    """
    key, advice = "compare.pairs", "Use the arms' names in the table: 'compare.pairs=[[model,gold],[model,none]]'."
    seen = []
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(name, str) and name for name in pair)):
            raise InputError(key, pair, "each pair must be a list of two names of arms", advice)
        if pair[0] == pair[1]:
            raise InputError(key, pair, "names the same arm twice", advice)
        if set(pair) in seen:
            raise InputError(key, pair, "is planned twice, and Holm's correction would count it twice", advice)
        seen.append(set(pair))


def _check_compare(folders: list[str]) -> None:
    key, advice = "compare.folders", "Give folders of sweeps or runs: 'compare.folders=[multirun/A,multirun/B]'."
    if not folders:
        raise InputError(key, folders, "mode=compare needs at least one folder", advice)
    for folder in folders:
        check_path(key, folder, "folder", advice)
        if not job_folders(Path(folder)):
            raise InputError(key, folder, "must hold at least one finished job", advice)


def _check_pairs(run: str, target: str | None) -> None:
    advice = "Use mode=export run=FOLDER export=NEW_FOLDER, where FOLDER is the folder of a run."
    check_path("run", run, "folder", advice)
    if not any(Path(run).glob("training*.jsonl")):
        raise InputError("run", run, "holds no training.jsonl, which a run writes before it fine-tunes", advice)
    if target is None or Path(target).exists():
        raise InputError("export", target, "must be a folder that does not exist yet", advice)


def _check_export(path: str | None, target: str | None) -> None:
    advice = "Use mode=export feedback.path=IN export=OUT, each a .jsonl or .csv file."
    for key, file in (("feedback.path", path), ("export", target)):
        if file is None or Path(file).suffix not in (".jsonl", ".csv"):
            raise InputError(key, file, "mode=export needs a .jsonl or .csv file here", advice)
    assert path is not None and target is not None
    check_path("feedback.path", path, "file", advice)
    check_target("export", target, advice)
    if Path(target).resolve() == Path(path).resolve():
        raise InputError("export", target, "must not be the same file as feedback.path", advice)
