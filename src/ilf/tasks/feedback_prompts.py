"""Prompts that hold feedback. The refine prompt is the paper's (Chen et al. 2023, section 3 and the released data)."""

from __future__ import annotations

from ilf.types import Feedback, Refinement

REFINEMENT = "REFINEMENT:\n"  # the heading behind which the program is written


def refine_prompt(feedback: Feedback, task_prompt: str, old_code: str | None = None) -> str:
    """Return what the refiner is given: the old program, the feedback, and the task prompt to go on from.

    Args:
        feedback: x0 and f.
        task_prompt: The prompt of the task, which the refinement must start with.
        old_code: x0 cut to the refiner's budget of tokens; by default the whole of it.
    """
    old = feedback.program if old_code is None else old_code
    return f"OLD CODE:\n{old}\n\nFEEDBACK:\n{feedback.text}\n\n{REFINEMENT}{task_prompt}"


def critique_prompt(old_code: str) -> str:
    """Return what a model is given to write feedback on a program: the refine prompt as far as the feedback."""
    return f"OLD CODE:\n{old_code}\n\nFEEDBACK:\n"


def conditioned_prompt(words: str, task_prompt: str) -> str:
    """Return a task's prompt behind what is said of the program that is to follow."""
    return f"FEEDBACK:\n{words}\n\n{task_prompt}"


def with_refinement(query: str, row: Refinement) -> str:
    """Return `query` (a refine prompt) with its answer, and the task's prompt anew."""
    return f"{query}{row.target}\n\n\n{row.prompt}"


def few_shot_prompt(examples: list[tuple[Feedback, Refinement]], query: str) -> str:
    """Return `query` (a refine prompt) behind worked examples of the same form."""
    shots = [refine_prompt(f, r.prompt) + r.target for f, r in examples]
    return "\n\n\n".join([*shots, query])
