"""Feedback of others: of whoever annotates the data, or of several sources, each task's of one."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

from ilf.components import read
from ilf.feedback.human import Human
from ilf.feedback.llm import LLM
from ilf.feedback.scripted import Scripted, check_specifications
from ilf.feedback.source import Failing, Source, Writing
from ilf.feedback.transforms import share_out
from ilf.feedback.unit_tests import UnitTests
from ilf.types import Feedback, InputError

_NAMED: dict[str, type[Source]] = {"human": Human, "scripted": Scripted, "unit_tests": UnitTests, "llm": LLM}


def named(node: str | dict[str, Any], key: str, **arguments: Any) -> Source:
    """Return one of our sources by its name, with arguments; or one of a user's, by a mapping with its own.

    Raises:
        InputError: There is none of this name, or the mapping names none.
    """
    if isinstance(node, dict):
        found: Source = read(Source, node, key)
        return found
    if node not in _NAMED:
        allowed = f"must be of {', '.join(_NAMED)}, or a mapping with `_target_`"
        raise InputError(key, node, allowed, "Choose one of these.")
    return _NAMED[node](**arguments)


@dataclass
class Composed(Source):
    """What sources that are made of others have in common.

    Args:
        annotated_policy: Whose wrong programs people's annotations are about; null where nobody says so.
        select: Of people's annotations: annotated: all; annotated_and_failed: of tasks that the policy fails too.
    """

    annotated_policy: str | None = None
    select: Literal["annotated", "annotated_and_failed"] = "annotated"

    repeatable = True  # what its writers have to say is kept for each

    @property
    @abstractmethod
    def writers(self) -> list[Source]:
        """Those who write."""

    def named(self, node: str | dict[str, Any], key: str) -> Source:
        """Return one of our sources by its name, with what this one says of annotations; or one of a user's.

        Raises:
            InputError: There is none of this name, or the mapping names none.
        """
        own: dict[str, Any] = {"path": self.path, "transform": self.transform}
        if node == "human":
            own |= {"annotated_policy": self.annotated_policy, "select": self.select}
        return named(node, key, **own)

    def check(self, settings: Any) -> None:
        """Check each of those who write."""
        super().check(settings)
        for i, one in enumerate(self.writers):
            if one.limit is not None:
                allowed = "is read of the feedback as a whole, and not of one of its sources"
                raise InputError(f"feedback.sources[{i}].limit", one.limit, allowed, "Use feedback.limit.")
            one.check(settings)


@dataclass
class Annotator(Composed):
    """Whoever annotates the data.

    Args:
        writer: human, scripted, or another source: its name, or a mapping with `_target_`.
    """

    writer: str | dict[str, Any] = "human"

    @property
    def name(self) -> str:  # type: ignore[override]
        """The annotator's."""
        return self.writers[0].name

    @property
    def writers(self) -> list[Source]:
        """The annotator."""
        return [self.named(self.writer, "feedback.writer")]

    def write(self, failing: Failing, run: Writing) -> list[Feedback]:
        """Return the annotator's feedback."""
        return run.ask(self.writers[0], failing)


@dataclass
class Mixed(Composed):
    """Several sources: each task's feedback is taken from one of those that have something to say of it.

    Args:
        sources: human, scripted, unit_tests, llm, or mappings with the `_target_` of others.
        shares: How often each is taken, among those that a task has.
    """

    sources: list[str | dict[str, Any]] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)

    name = "mixed"

    @property
    def writers(self) -> list[Source]:
        """Those who are mixed, in order."""
        return [self.named(node, f"feedback.sources[{i}]") for i, node in enumerate(self.sources)]

    def check(self, settings: Any) -> None:
        """Check the sources and their shares."""
        if "scripted" in self.sources:
            check_specifications(settings.data, "feedback.sources", self.sources)
        names = [one.name for one in self.writers]
        if len(set(names)) < max(2, len(names)):
            allowed = f"must name two or more of {', '.join(_NAMED)}, or of your own, each once"
            raise InputError("feedback.sources", self.sources, allowed, "Use 'feedback.sources=[human,unit_tests]'.")
        if len(self.shares) != len(names) or min(self.shares) < 0 or not any(self.shares):
            allowed = f"must be a number from 0 for each of feedback.sources={names}, not all 0"
            advice = "Use 'feedback.shares=[1,3]' for a quarter and three quarters."
            raise InputError("feedback.shares", self.shares, allowed, advice)
        super().check(settings)

    def write(self, failing: Failing, run: Writing) -> list[Feedback]:
        """Return feedback of several sources; another model is asked only where it is its turn."""
        writers = {one.name: one for one in self.writers}
        others = {name: one for name, one in writers.items() if not one.asks_llm}
        given = {name: {f.task_id: f for f in run.ask(one, failing)} for name, one in others.items()}
        by_task = {
            i: [name for name in writers if i in given.get(name, failing)]
            for i in sorted({*failing, *(i for found in given.values() for i in found)})
        }
        chosen = share_out(by_task, dict(zip(writers, self.shares, strict=True)), run.seed)
        for name in writers.keys() - others.keys():
            # Worked examples are on tasks of the Prompt split, whosever turn it is there.
            asked = {i for i, one in chosen.items() if one == name or run.tasks.by_id[i].split == "prompt"}
            if name in chosen.values():
                few = {i: programs for i, programs in failing.items() if i in asked}
                given[name] = {f.task_id: f for f in run.ask(writers[name], few)}
        return [given[name][i] for i, name in chosen.items() if i in given.get(name, {})]
