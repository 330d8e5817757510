"""What is done to feedback, from whatever source: the ablations that ask how much the words are worth."""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ilf.types import Feedback, InputError, derive_seed

# Where a text goes on to another mistake: an item of a list, or a sentence that says so.
_NEXT = re.compile(
    r"\n\s*(?=(?:[2-9][.)]|[-*\u2022])\s)"
    r"|(?:(?<=[.!?])|(?<=[.!?][\"')]))\s+"
    r"(?=(?:second(?:ly)?|the (?:second|other|next)|another|also|additionally|in addition|furthermore|moreover|besides|"
    r"finally|lastly|third(?:ly)?|the (?:third|last))\b)",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z`\"'(])|\n+")


@dataclass
class Transform(ABC):
    """Changes feedback, from whatever source. Derive from it for one of your own, or give a function."""

    @abstractmethod
    def __call__(self, feedback: list[Feedback], seed: int) -> list[Feedback]:
        """Return the feedback as it is to be used.

        Args:
            feedback: One for each task.
            seed: Of the round; the same seed has to give the same feedback.
        """


@dataclass
class Drop(Transform):
    """Keeps the same programs and refinements without a word."""

    def __call__(self, feedback: list[Feedback], seed: int) -> list[Feedback]:
        """Return the feedback as it is to be used."""
        return drop(feedback)


@dataclass
class Shuffle(Transform):
    """Gives each program the feedback on another one, see `shuffle`.

    Args:
        apply: refine: on Train alone; train_and_refine: on Refine too, which the refiner learns from.
    """

    apply: Literal["refine", "train_and_refine"] = "refine"

    def __call__(self, feedback: list[Feedback], seed: int) -> list[Feedback]:
        """Return the feedback as it is to be used."""
        return shuffle(feedback, ("train",) if self.apply == "refine" else ("refine", "train"), seed)


@dataclass
class OneBug(Transform):
    """Keeps the words on the first mistake alone, see `one_bug`."""

    def __call__(self, feedback: list[Feedback], seed: int) -> list[Feedback]:
        """Return the feedback as it is to be used."""
        return one_bug(feedback)


NAMED: dict[str, type[Transform]] = {"shuffle": Shuffle, "one_bug": OneBug, "drop": Drop}


def drop(feedback: Sequence[Feedback]) -> list[Feedback]:
    """Return the same programs and refinements without a word."""
    return [replace(f, text="", source="none", bugs=None, categories=()) for f in feedback]


def shuffle(feedback: Sequence[Feedback], splits: Sequence[str], seed: int) -> list[Feedback]:
    """Return each program with the feedback on another one of its split, as in the paper's Table 2.

    Args:
        feedback: One for each task.
        splits: In which of them to shuffle; the others stay.
        seed: Decides who gets whose.

    Raises:
        InputError: A split has a single program, or one text stands in more than half of it.
    """
    found = {f.task_id: f for f in feedback}
    for split in splits:
        # Like texts together, in an order that the seed decides; then each takes the text half a turn away.
        group = [f for f in feedback if f.split == split]
        group.sort(key=lambda f: (derive_seed(seed, "shuffle", f.text), f.task_id))
        for own, other in zip(group, group[len(group) // 2 :] + group[: len(group) // 2], strict=True):
            if own.text == other.text:
                raise InputError(
                    "feedback.transform",
                    ["shuffle"],
                    f"finds no other text for task {own.task_id}: {len(group)} annotations in {split}",
                    "Give more annotations, raise data.limit or feedback.limit where set, or leave the shuffling out.",
                )
            found[own.task_id] = replace(own, text=other.text, bugs=other.bugs, categories=other.categories)
    return [found[f.task_id] for f in feedback]


def one_bug(feedback: Sequence[Feedback]) -> list[Feedback]:
    """Return each program with the words on the first mistake alone.

    A text ends before the list item or the sentence that goes on to another mistake ("2.", "The second", "Also").
    Without such a sign it is cut to its share of sentences where the annotator noted how many mistakes it addresses,
    and else stays as it is. The words are cut, not understood: look at feedback.jsonl.
    """
    return [replace(f, text=_first(f), bugs=f.bugs and 1, categories=f.categories[:1]) for f in feedback]


def _first(f: Feedback) -> str:
    if f.bugs == 1:
        return f.text
    opening = re.match(r"\s*(?:[-*\u2022]|1[.)])?\s*", f.text)  # of a list: its first sign is not the next item's
    if found := _NEXT.search(f.text, opening.end() if opening else 0):
        return f.text[: found.start()].rstrip()
    ends = [match.start() for match in _SENTENCE.finditer(f.text.strip())]
    keep = -(-(len(ends) + 1) // f.bugs) if f.bugs else len(ends) + 1
    return f.text.strip()[: ends[keep - 1]] if keep <= len(ends) else f.text


def share_out(sources: Mapping[int, Sequence[str]], shares: Mapping[str, float], seed: int) -> dict[int, str]:
    """Return which source each task's feedback is taken from.

    Args:
        sources: Those that have something to say of a task, by id.
        shares: How often each is to be taken; of a task, only its own sources' count.
        seed: Decides, task by task: a task's source does not depend on which others there are.
    """
    chosen = {}
    for task_id, names in sources.items():
        weights = [shares[name] for name in names]
        if any(weights):
            chosen[task_id] = random.Random(derive_seed(seed, "source", task_id)).choices(names, weights)[0]
    return chosen
