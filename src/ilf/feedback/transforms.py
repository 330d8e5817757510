"""What is done to feedback, from whatever source: the ablations that ask how much the words are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ilf.types import Feedback, InputError, derive_seed


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
                    "Raise data.limit, or leave the shuffling out.",
                )
            found[own.task_id] = replace(own, text=other.text, bugs=other.bugs, categories=other.categories)
    return [found[f.task_id] for f in feedback]
