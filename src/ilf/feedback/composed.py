"""Sources that take their feedback from other sources: the data set's annotator, or a mixture of several sources."""

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
    """Return a built-in source by its name, with `arguments`, or a user's source by a mapping with its own arguments.

    Raises:
        InputError: The name or the mapping is not that of a source.
    """
    if isinstance(node, dict):
        found: Source = read(Source, node, key)
        return found
    if node not in _NAMED:
        allowed = f"must be one of {', '.join(_NAMED)}, or a mapping with `_target_`"
        raise InputError(key, node, allowed, "Choose one of these.")
    return _NAMED[node](**arguments)


@dataclass
class Composed(Source):
    """The base class of sources that are composed of other sources.

    Args:
        annotated_policy: The policy whose incorrect programs people annotated; null if it is not known.
        select: The human annotations to use. annotated: all; annotated_and_failed: only those of tasks that the policy
            also fails.
    """

    annotated_policy: str | None = None
    select: Literal["annotated", "annotated_and_failed"] = "annotated"

    repeatable = True  # the feedback of each of its writers is stored separately

    @property
    @abstractmethod
    def writers(self) -> list[Source]:
        """The sources that write the feedback."""

    def named(self, node: str | dict[str, Any], key: str) -> Source:
        """Return a built-in source by its name, with this source's annotation settings, or a user's by a mapping.

        Raises:
            InputError: The name or the mapping is not that of a source.
        """
        own: dict[str, Any] = {"path": self.path, "transform": self.transform}
        if node == "human":
            own |= {"annotated_policy": self.annotated_policy, "select": self.select}
        return named(node, key, **own)

    def check(self, settings: Any) -> None:
        """Check each of the sources that write the feedback."""
        super().check(settings)
        for i, one in enumerate(self.writers):
            if one.limit is not None:
                allowed = "applies to the feedback as a whole, not to one of its sources"
                raise InputError(f"feedback.sources[{i}].limit", one.limit, allowed, "Use feedback.limit.")
            one.check(settings)


@dataclass
class Annotator(Composed):
    """The feedback of the data set's annotator.

    Args:
        writer: The annotator: human, scripted or the name of another source, or a mapping with `_target_`.
    """

    writer: str | dict[str, Any] = "human"

    @property
    def name(self) -> str:  # type: ignore[override]
        """The annotator's name."""
        return self.writers[0].name

    @property
    def writers(self) -> list[Source]:
        """The annotator, as the only source."""
        return [self.named(self.writer, "feedback.writer")]

    def write(self, failing: Failing, run: Writing) -> list[Feedback]:
        """Return the annotator's feedback."""
        return run.ask(self.writers[0], failing)


@dataclass
class Mixed(Composed):
    """A mixture of sources. Each task gets its feedback from one of the sources that have feedback on it.

    Args:
        sources: A list of human, scripted, unit_tests, llm, or mappings with the `_target_` of other sources.
        shares: The weight with which each source is sampled, among the sources that have feedback on a task.
    """

    sources: list[str | dict[str, Any]] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)

    name = "mixed"

    @property
    def writers(self) -> list[Source]:
        """The mixed sources, in order."""
        return [self.named(node, f"feedback.sources[{i}]") for i, node in enumerate(self.sources)]

    def check(self, settings: Any) -> None:
        """Check the sources and their shares."""
        if "scripted" in self.sources:
            check_specifications(settings.data, "feedback.sources", self.sources)
        names = [one.name for one in self.writers]
        if len(set(names)) < max(2, len(names)):
            allowed = f"must name two or more of {', '.join(_NAMED)}, or of your own sources, each once"
            raise InputError("feedback.sources", self.sources, allowed, "Use 'feedback.sources=[human,unit_tests]'.")
        if len(self.shares) != len(names) or min(self.shares) < 0 or not any(self.shares):
            allowed = f"must be a non-negative number for each of feedback.sources={names}, and not all 0"
            advice = "Use 'feedback.shares=[1,3]' for one quarter and three quarters."
            raise InputError("feedback.shares", self.shares, allowed, advice)
        super().check(settings)

    def write(self, failing: Failing, run: Writing) -> list[Feedback]:
        """Return the feedback of the mixed sources. An LLM is asked only for the tasks for which it is chosen."""
        writers = {one.name: one for one in self.writers}
        others = {name: one for name, one in writers.items() if not one.asks_llm}
        given = {name: {f.task_id: f for f in run.ask(one, failing)} for name, one in others.items()}
        by_task = {
            i: [name for name in writers if i in given.get(name, failing)]
            for i in sorted({*failing, *(i for found in given.values() for i in found)})
        }
        chosen = share_out(by_task, dict(zip(writers, self.shares, strict=True)), run.seed)
        for name in writers.keys() - others.keys():
            # The worked examples are tasks of the Prompt split, whichever source is chosen for these.
            asked = {i for i, one in chosen.items() if one == name or run.tasks.by_id[i].split == "prompt"}
            if name in chosen.values():
                few = {i: programs for i, programs in failing.items() if i in asked}
                given[name] = {f.task_id: f for f in run.ask(writers[name], few)}
        return [given[name][i] for i, name in chosen.items() if i in given.get(name, {})]
