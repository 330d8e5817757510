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
    feedback = []
    for task_id in sorted(failing):
        program = random.Random(derive_seed(seed, "annotate", task_id)).choice(failing[task_id])
        feedback.append(Feedback(task_id, program.split, program.program, in_words(program), "unit_tests"))
    return feedback
