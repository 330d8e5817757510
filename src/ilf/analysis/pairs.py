"""Export of a run's training pairs as a data set for other frameworks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ilf.files import JsonLines
from ilf.tasks.feedback_prompts import critique_prompt
from ilf.types import InputError

COLUMNS = ("task_id", "prompt", "chosen", "rejected", "privileged_context", "feedback", "source")


def export_pairs(run: str, target: str) -> tuple[int, int]:
    """Write a run's training set as a folder that `datasets.load_from_disk` reads.

    `prompt`, `chosen` and `rejected` are the columns of TRL's preference trainers: the task, and the correct and the
    incorrect program as completions of the prompt. `prompt` and `privileged_context` are the columns of its SDPO and
    SDFT trainers; the latter holds the incorrect program and the feedback. A row is left out if it has no incorrect
    program, or one that does not start with the prompt.

    Args:
        run: The run's folder.
        target: The folder to write.

    Returns:
        The number of rows written, and the number of rows left out.

    Raises:
        InputError: The run has no pairs.
    """
    from datasets import Dataset

    found: dict[tuple[int, str], dict[str, Any]] = {}
    for file in sorted(Path(run).glob("training*.jsonl")):  # later rounds include the rows of earlier ones
        found |= {(row["task_id"], row["target"]): row for row in JsonLines(file).read()}
    rows = [made for row in found.values() if (made := _pair(row)) is not None]
    if not rows:
        advice = "Give the folder of a run that has fine-tuned its policy on refinements."
        raise InputError("run", run, "contains no pair of an incorrect and a correct program", advice)
    Dataset.from_list(rows).save_to_disk(target)
    return len(rows), len(found) - len(rows)


def _pair(row: dict[str, Any]) -> dict[str, Any] | None:
    wrong, prompt = row.get("wrong_program"), row["prompt"]
    if wrong is None or not wrong.startswith(prompt):
        return None
    words = row["feedback"] or ""
    values = (row["task_id"], prompt, row["target"], wrong[len(prompt) :], critique_prompt(wrong) + words, words)
    return dict(zip(COLUMNS, (*values, row["source"]), strict=True))
