"""Prompts with feedback. The refine prompt is the paper's (Chen et al. 2023, section 3 and the released data)."""

from __future__ import annotations

from ilf.types import Feedback, Refinement

REFINEMENT = "REFINEMENT:\n"  # the heading after which the program is written


def refine_prompt(feedback: Feedback, task_prompt: str, old_code: str | None = None) -> str:
    """Return the refiner's prompt: the old program, the feedback, and the task prompt to continue.

    Args:
        feedback: The incorrect program x0 and the feedback f.
        task_prompt: The prompt of the task, with which the refinement must start.
        old_code: x0 truncated to the refiner's token budget; by default the whole program.
    """
    old = feedback.program if old_code is None else old_code
    return f"OLD CODE:\n{old}\n\nFEEDBACK:\n{feedback.text}\n\n{REFINEMENT}{task_prompt}"


def critique_prompt(old_code: str) -> str:
    """Return the prompt for writing feedback on a program: the refine prompt up to the feedback."""
    return f"OLD CODE:\n{old_code}\n\nFEEDBACK:\n"


def conditioned_prompt(words: str, task_prompt: str) -> str:
    """Return the feedback on the program that is to follow, and then the task's prompt."""
    return f"FEEDBACK:\n{words}\n\n{task_prompt}"


def with_refinement(query: str, row: Refinement) -> str:
    """Return `query` (a refine prompt) with its answer, followed by the task's prompt again."""
    return f"{query}{row.target}\n\n\n{row.prompt}"


def few_shot_prompt(examples: list[tuple[Feedback, Refinement]], query: str) -> str:
    """Return worked examples followed by `query` (a refine prompt), all in the same format."""
    shots = [refine_prompt(f, r.prompt) + r.target for f, r in examples]
    return "\n\n\n".join([*shots, query])
