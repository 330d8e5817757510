"""Feedback without an annotator: what the unit tests said of one of the policy's own wrong programs."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from ilf.types import Feedback, Program, derive_seed


def in_words(program: Program) -> str:
    """Return what went wrong with a program, as its unit tests saw it."""
    verdict = program.verdict
    if verdict.verdict == "timed_out":
        return "The program does not come to an end."
    if verdict.verdict == "failed":
        return f"The program fails this test: {verdict.detail}"
    return f"The program does not run through: {verdict.verdict}, {verdict.detail}"


def annotate(failing: Mapping[int, Sequence[Program]], seed: int) -> list[Feedback]:
    """Return feedback on one program of each failing task.

    Args:
        failing: The wrong programs of each task that has no correct one.
        seed: Decides which program.
    """
    return [Feedback(p.task_id, p.split, p.program, in_words(p), "unit_tests") for p in choose(failing, seed)]


def choose(failing: Mapping[int, Sequence[Program]], seed: int) -> list[Program]:
    """Return the program of each failing task that feedback is written on, where the writer does not choose."""
    return [random.Random(derive_seed(seed, "annotate", i)).choice(failing[i]) for i in sorted(failing)]
