"""Checks that every key that a user sets is known and read."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

from ilf.components import Component, holds_components
from ilf.feedback.llm import uses
from ilf.files import whole
from ilf.installation import COMMAND
from ilf.settings import Phase, Settings
from ilf.types import InputError


def _fine_tunes(settings: Settings) -> bool:
    return settings.refinements.trains or (settings.refines and settings.refiner.trains)


# Keys and groups that only some runs read: a description of what reads them, and whether these settings do.
_READ_BY: dict[str, tuple[str, Callable[[Settings], bool]]] = {
    "data.revision": ("data=mbpp without data.path", lambda s: getattr(s.data, "path", None) is None),
    "data.newlines": ("every arm but refinements=none", lambda s: s.refinements.trains),
    "data.reindent": ("every arm but refinements=none", lambda s: s.refinements.trains),
    "model.hub": ("a model without model.path", lambda s: s.model.path is None),
    "model.revision": ("a model without model.path", lambda s: s.model.path is None),
    "feedback.path": (
        "feedback=human and, for its worked examples, feedback=llm",
        lambda s: any(one.reads_path for one in s.feedback.writers),
    ),
    "feedback.apply": ("feedback=shuffled", lambda s: "shuffle" in s.feedback.transform),
    "feedback.select": ("feedback=human", lambda s: any(one.people for one in s.feedback.writers)),
    "refiner.old_code_tokens": ("every refiner but refiner=policy", lambda s: s.refiner.reads_program),
    "refiner": ("arms that have a refiner", lambda s: s.refines),
    "feedback.choose": ("arms that need feedback", lambda s: s.needs_feedback),
    "failing": ("arms that need feedback", lambda s: s.needs_feedback),
    "refinements.tasks": ("every arm but refinements=none", lambda s: s.refinements.trains),
    "feedback.limit": (
        "every arm but refinements=none and refinements.match=false",
        lambda s: s.needs_feedback,
    ),
    "objective.": ("every arm but refinements=none", lambda s: s.refinements.trains),
    "evaluate.feedback": ("evaluate.turns above 0", lambda s: s.evaluate.turns > 0),
    "evaluate.reviser": ("evaluate.turns above 0", lambda s: s.evaluate.turns > 0),
    "select_min_programs": ("select above 0", lambda s: s.select > 0),
    "rounds_from": ("rounds above 1", lambda s: s.rounds > 1),
    "llm.n": ("refinements=llm", lambda s: s.refinements.asks_llm),
    "llm.": ("feedback=llm and refinements=llm", lambda s: bool(uses(s))),
    "training.refiner.": ("arms that have a refiner, with refiner=finetuned", lambda s: s.refines and s.refiner.trains),
    "training.policy.": ("every arm but refinements=none", lambda s: s.refinements.trains),
    "training.": ("a run that fine-tunes", _fine_tunes),
    "adapter": ("a run that fine-tunes", _fine_tunes),
    "optimizer": ("a run that fine-tunes", _fine_tunes),
    "scheduler": ("a run that fine-tunes", _fine_tunes),
    "save.dtype": ("a run that fine-tunes", _fine_tunes),
    "store.prune_days": ("mode=store", lambda s: s.mode == "store"),
    "pretrain.": ("mode=pretrain", lambda s: s.mode == "pretrain"),
    "annotate.": ("mode=annotate", lambda s: s.mode == "annotate"),
    "compare.folders": ("mode=compare", lambda s: s.mode == "compare"),
    "compare.pairs": ("a sweep and mode=compare", lambda s: s.mode == "compare"),
    "run": ("mode=export", lambda s: s.mode == "export"),
    "export": ("mode=export", lambda s: s.mode == "export"),
}


def check_known(settings: Settings) -> None:
    """Check that every key is in the schema.

    Hydra rejects an unknown key that a file or the command line sets, but not one that is added with `+`.

    Raises:
        InputError: A key is unknown. The error names it and the nearest known key.
    """
    for parent, node in _nodes(settings):
        known = {field.name for field in fields(node)}
        for name, value in vars(node).items():
            if name not in known:
                raise unknown_key(f"{parent}{name}", value)


# Groups whose options set their own `name`. Hydra knows the options of components, whose `name` may be any setting.
_NAMED = {name for name, hint in get_type_hints(Settings, include_extras=True).items() if not holds_components(hint)}
# Keys of earlier versions, and their current names.
MOVED = {
    "feedback.name": "feedback",
    "feedback.source": "feedback",
    "refinements.name": "refinements",
    "refiner.name": "refiner",
    "refinements.limit": "feedback.limit",
    "adapter.alpha": "adapter.lora_alpha",
    "adapter.dropout": "adapter.lora_dropout",
    "adapter.quantize": "training.quantize",
    "adapter.rank": "adapter.r",
    "data.train_last": "data.last_train_id",
    "data.without": "data.exclude_ids",
    "compare": "compare.folders",
    "logger.project": "logger.wandb.project",
    "trainer.memory": "memory",
    "select_least": "select_min_programs",
    "store.any_code": "store.ignore_code_changes",
    "training.clip": "trainer.gradient_clip_val",
    "training.warmup_steps": "scheduler.num_warmup_steps",
}


def unknown_key(key: str, value: object, siblings: Sequence[str] = ()) -> InputError:
    """Return the error for an unknown key, with its new name or the nearest known key.

    Args:
        key: The key that was given.
        value: The value that was given.
        siblings: The keys of its group, if the group configures a component.
    """
    if key in MOVED:
        return InputError(key, value, "is no longer a setting", f"Use its new name, {MOVED[key]}.")
    parent, _, name = key.rpartition(".")
    own = [one.rpartition(".")[2] for one in known_keys() if one.rpartition(".")[0] == parent]
    own = own or [one for one in siblings if not one.startswith("_")]
    near = [f"{parent}.{one}".lstrip(".") for one in difflib.get_close_matches(name, own, 1, 0.6)]
    near = near or difflib.get_close_matches(key, known_keys(), 1, 0.75)
    listed = f"; {parent} has {', '.join(own)}" if parent and own else ""
    advice = f"`{COMMAND} --cfg job` shows all keys."
    if near:
        advice = f"Did you mean {near[0]}?"
    elif siblings:
        advice = f"Another option of {parent} may read it; `{COMMAND} --help` lists the options."
    return InputError(key, value, f"is not a setting, so nothing would read it{listed}", advice)


def known_keys() -> list[str]:
    """Return every key of the schema, including groups, but not the arguments of components."""

    def walk(kind: type, prefix: str) -> Iterator[str]:
        hints, annotated = get_type_hints(kind), get_type_hints(kind, include_extras=True)
        for field in fields(kind):
            yield f"{prefix}{field.name}"
            if holds_components(annotated[field.name]):
                continue
            options = getattr(hints[field.name], "__args__", ())  # the types of an optional group
            for one in (hints[field.name], *options):
                if is_dataclass(one):
                    yield from walk(one, f"{prefix}{field.name}.")  # type: ignore[arg-type]

    return list(walk(Settings, ""))


def check_texts(settings: Settings) -> None:
    """Check that each string can be encoded in UTF-8, and that none is empty unless its default is.

    On a command line, `key=` gives an empty string, and bytes that are not UTF-8 become lone surrogates.

    Raises:
        InputError: A string is invalid. The error names its key.
    """
    for parent, node in _nodes(settings):
        for field in fields(node):
            default = None if field.default is MISSING else field.default
            value = getattr(node, field.name)
            if isinstance(value, str) and value != whole(value):
                allowed = "must be text that UTF-8 can encode, and it contains half of a surrogate pair"
                raise InputError(f"{parent}{field.name}", value, allowed, "Encode it in UTF-8.")
            if value == "" != default:
                advice = "Omit it." if default is None else f"Omit it to use the default, {default!r}."
                raise InputError(f"{parent}{field.name}", "", "must not be empty", advice)


def check_overrides(settings: Settings, overrides: Sequence[str], sweep: bool = False) -> None:
    """Check that every override on the command line takes effect.

    Args:
        settings: The composed settings.
        overrides: The overrides on the command line, in Hydra's syntax.
        sweep: Whether this is a job of a sweep, in which some arms may read keys that others do not. If no job reads a
            swept key, the comparison reports it.

    Raises:
        InputError: Nothing in this run reads a given key, a key sets the name of an option without choosing it, or a
            file overrides the value for which a given key is the default.
    """
    pairs = (one.lstrip("+").partition("=") for one in overrides if not one.startswith("~"))
    given = {key: value for key, _, value in pairs}  # the last value of a key that is given twice
    given = {key: value for key, value in given.items() if value != "null"}
    for key, value in given.items():
        group, _, name = key.rpartition(".")
        if name == "name" and group in _NAMED:
            raise InputError(
                key, value, "only records the chosen option and does not choose one", f"Use {group}={value}."
            )
        part = getattr(settings, key.partition(".")[0], None)
        if is_dataclass(part) and not type(part).__module__.startswith("ilf."):
            continue  # a class of the user's own reads all of its fields
        for prefix, (reader, read) in _READ_BY.items() if not sweep and settings.mode == "run" else ():
            if (key == prefix or key.startswith(f"{prefix.rstrip('.')}.")) and not read(settings):
                advice = "Omit it, or choose an option that reads it."
                raise InputError(key, value, f"is read only by {reader}, so it would have no effect", advice)
    for field in fields(Phase):
        key = f"training.{field.name}"
        for part in ("refiner", "policy"):
            own, wanted = (getattr(node, field.name) for node in (getattr(settings.training, part), settings.training))
            if key in given and f"training.{part}.{field.name}" not in given and own != wanted:
                allowed = f"has no effect on the {part}: a file sets training.{part}.{field.name}={own}"
                advice = f"Set training.{part}.{field.name} too."
                raise InputError(key, wanted, allowed, advice)


def _nodes(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the key prefix and the instance of each group of settings."""
    yield prefix, node
    for name, value in vars(node).items():
        if is_dataclass(value) and not isinstance(value, Component):
            yield from _nodes(value, f"{prefix}{name}.")
