"""The mini model's pretraining corpus: programs as people write them, many incorrect, and revisions of some.

A document is a list of texts that are tokenized separately, as prompts and targets are everywhere. The model learns
to write programs and reviews; prompts are only read. No specification of the benchmark occurs in the corpus.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, fields, replace

from ilf.feedback.scripted import differences, review
from ilf.tasks.mini import specifications
from ilf.tasks.mini_grammar import Names, Sketch, Specification, draw_argument, draw_names, draw_specification
from ilf.tasks.prompts import task_prompt
from ilf.types import derive_seed

REVISIONS, SHORT, USUAL = 0.25, 0.15, 0.75  # shares of revisions, of comprehensions, and of a part's first mistake


@functools.cache
def _held_out() -> frozenset[str]:
    return frozenset(specification.key for specification in specifications().values())


@dataclass(frozen=True)
class Text:
    """A part of a document."""

    text: str
    learnt: bool  # whether the loss covers it


def draw_document(rng: random.Random) -> list[Text]:
    """Return a program after its prompt, sometimes followed by a review of it and its corrected version."""
    specification = draw_specification(rng)
    while specification.key in _held_out():
        specification = draw_specification(rng)
    names = draw_names(specification, None, rng)
    right = specification.sketch(short=rng.random() < SHORT)
    written = with_mistakes(specification, right, rng)
    prompt = _prompt(specification, names, rng)
    if rng.random() >= REVISIONS or not differences(written, right):
        return [Text(prompt, False), Text(written.body(names), True)]
    words = review(specification, written, right, names, rng)
    return [
        Text(f"# Before\n{prompt}", False),
        Text(f"{written.body(names)}\n\n# Review\n{words}\n\n# After\n", True),
        Text(prompt, False),
        Text(right.body(names), True),
    ]


def with_mistakes(specification: Specification, right: Sketch, rng: random.Random) -> Sketch:
    """Return a program with the typical mistakes of somebody who knows what it has to do."""
    written = right
    for part, wrong in specification.mistakes(right):
        if rng.random() < part.habit:
            chosen = wrong[0] if len(wrong) == 1 or rng.random() < USUAL else rng.choice(wrong[1:])
            changes = {f.name: getattr(chosen, f.name) for f in fields(Sketch)}
            written = replace(written, **{slot: changes[slot] for slot in differences(chosen, right)})
    return written


def wrong_share(seed: int, count: int = 2000) -> float:
    """Return the share of incorrect programs in the corpus, estimated from `count` specifications."""
    rng, wrong = random.Random(derive_seed(seed, "wrong_share")), 0
    for _ in range(count):
        specification = draw_specification(rng)
        right = specification.sketch(short=rng.random() < SHORT)
        wrong += with_mistakes(specification, right, rng) != right
    return wrong / count


def _prompt(specification: Specification, names: Names, rng: random.Random) -> str:
    while not specification.values(data := draw_argument(specification, rng)):
        pass
    name = specification.function_name()
    test = f"assert {name}({data!r}) == {specification.answer(data)!r}"
    return task_prompt(specification.text(rng), f"def {name}({names.arg}):\n    pass", (test,))
