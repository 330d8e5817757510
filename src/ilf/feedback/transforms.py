"""Transforms of the feedback of any source, for the ablations that measure how much the feedback is worth."""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ilf.sandbox.rewards import CODE_BLOCK
from ilf.types import Feedback, InputError, derive_seed

# Where a text moves on to another mistake: at a list item, or at a sentence that signals it.
_NEXT = re.compile(
    r"\n\s*(?=(?:[2-9][.)]|[-*\u2022])\s)"
    r"|(?:(?<=[.!?])|(?<=[.!?][\"')]))\s+"
    r"(?=(?:second(?:ly)?|the (?:second|other|next)|another|also|additionally|in addition|furthermore|moreover|besides|"
    r"finally|lastly|third(?:ly)?|the (?:third|last))\b)",
    re.IGNORECASE,
)
# A code block that begins a line: in the middle of one, backticks may be quoted words.
CODE = re.compile(rf"^[ \t]*{CODE_BLOCK.pattern}", CODE_BLOCK.flags)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z`\"'(])|\n+")


@dataclass
class Transform(ABC):
    """A transform of feedback. For your own transform, derive from this class, or give a function."""

    @abstractmethod
    def __call__(self, feedback: list[Feedback], seed: int) -> list[Feedback]:
        """Return the transformed feedback.

        Args:
            feedback: The feedback, one for each task.
            seed: The seed of the round. The same seed must give the same feedback.
        """


@dataclass
class Drop(Transform):
    """Removes the feedback text, and leaves the programs and refinements as they are."""

    def __call__(self, feedback: list[Feedback], seed: int) -> list[Feedback]:
        """Return the transformed feedback."""
        return drop(feedback)


@dataclass
class Shuffle(Transform):
    """Gives each program the feedback on another program; see `shuffle`.

    Args:
        apply: refine: on Train only; train_and_refine: also on Refine, on which the refiner is trained.
    """

    apply: Literal["refine", "train_and_refine"] = "refine"

    def __call__(self, feedback: list[Feedback], seed: int) -> list[Feedback]:
        """Return the transformed feedback."""
        return shuffle(feedback, ("train",) if self.apply == "refine" else ("refine", "train"), seed)


@dataclass
class OneBug(Transform):
    """Reduces the feedback to the first mistake; see `one_bug`."""

    def __call__(self, feedback: list[Feedback], seed: int) -> list[Feedback]:
        """Return the transformed feedback."""
        return one_bug(feedback)


@dataclass
class NoCode(Transform):
    """Removes the code blocks, and leaves the words; see `no_code`."""

    def __call__(self, feedback: list[Feedback], seed: int) -> list[Feedback]:
        """Return the transformed feedback."""
        return no_code(feedback)


NAMED: dict[str, type[Transform]] = {"shuffle": Shuffle, "one_bug": OneBug, "no_code": NoCode, "drop": Drop}


def drop(feedback: Sequence[Feedback]) -> list[Feedback]:
    """Return the same programs and refinements without the feedback text."""
    return [replace(f, text="", source="none", bugs=None, categories=()) for f in feedback]


def shuffle(feedback: Sequence[Feedback], splits: Sequence[str], seed: int) -> list[Feedback]:
    """Return each program with the feedback on another program of its split, as in the paper's Table 2.

    Args:
        feedback: The feedback, one for each task.
        splits: The splits to shuffle. The others are left unchanged.
        seed: Decides which feedback each program gets.

    Raises:
        InputError: A split has a single program, or more than half of its programs have the same feedback.
    """
    found = {f.task_id: f for f in feedback}
    for split in splits:
        # Group equal texts, in an order that the seed decides. Each program then takes the text half the list away.
        group = [f for f in feedback if f.split == split]
        group.sort(key=lambda f: (derive_seed(seed, "shuffle", f.text), f.task_id))
        for own, other in zip(group, group[len(group) // 2 :] + group[: len(group) // 2], strict=True):
            if own.text == other.text:
                raise InputError(
                    "feedback.transform",
                    ["shuffle"],
                    f"finds no different feedback for task {own.task_id} among the {len(group)} annotations in {split}",
                    "Give more annotations, raise data.limit or feedback.limit if they are set, or omit the transform.",
                )
            found[own.task_id] = replace(own, text=other.text, bugs=other.bugs, categories=other.categories)
    return [found[f.task_id] for f in feedback]


def one_bug(feedback: Sequence[Feedback]) -> list[Feedback]:
    """Return each program with the feedback on the first mistake only.

    A text is cut before the list item or sentence that moves on to another mistake ("2.", "The second", "Also").
    Without such a sign, it is cut to its share of sentences if the annotator noted the number of mistakes, and
    otherwise left unchanged. The text is not understood, so inspect feedback.jsonl.
    """
    return [replace(f, text=_first(f), bugs=f.bugs and 1, categories=f.categories[:1]) for f in feedback]


def no_code(feedback: Sequence[Feedback]) -> list[Feedback]:
    """Return each program with the words of its feedback only, without Markdown's fenced code blocks.

    An LLM may write the correct program although it is asked for words. A refiner that copies it imitates the LLM.
    """
    return [replace(f, text=CODE.sub("", f.text).strip()) for f in feedback]


def _first(f: Feedback) -> str:
    if f.bugs == 1:
        return f.text
    opening = re.match(r"\s*(?:[-*\u2022]|1[.)])?\s*", f.text)  # the first list marker does not start the next item
    if found := _NEXT.search(f.text, opening.end() if opening else 0):
        return f.text[: found.start()].rstrip()
    ends = [match.start() for match in _SENTENCE.finditer(f.text.strip())]
    keep = -(-(len(ends) + 1) // f.bugs) if f.bugs else len(ends) + 1
    return f.text.strip()[: ends[keep - 1]] if keep <= len(ends) else f.text


def share_out(sources: Mapping[int, Sequence[str]], shares: Mapping[str, float], seed: int) -> dict[int, str]:
    """Return the source of each task's feedback, by task id.

    Args:
        sources: The names of the sources that have feedback on each task, by task id.
        shares: The sampling weight of each source. For a task, only the weights of its own sources count.
        seed: The seed. It is combined with the task id, so that a task's source does not depend on the other tasks.
    """
    chosen = {}
    for task_id, names in sources.items():
        weights = [shares[name] for name in names]
        if any(weights):
            chosen[task_id] = random.Random(derive_seed(seed, "source", task_id)).choices(names, weights)[0]
    return chosen
