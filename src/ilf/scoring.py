"""The one scorer of every arm, stage and split: programs and their tasks -> verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from ilf.executors import Judge
from ilf.tasks.data import job_of
from ilf.tasks.prompts import as_paper_scores
from ilf.types import Task, Verdict


def score(programs: Sequence[tuple[str, Task]], sandbox: Judge, tests: str, as_paper: bool = False) -> list[Verdict]:
    """Return the verdict of each program on its task: the one scorer of every arm, stage and split.

    Args:
        programs: Whole programs with their tasks.
        sandbox: Executes them.
        tests: Which decide, see `ilf.tasks.data.job_of`: "all", "unseen" or "challenge".
        as_paper: Whether what a program has after its task's prompt is changed first as the paper's evaluation does
            (`as_paper_scores`). One that does not start with the prompt is executed as it stands.
    """
    jobs = []
    for text, task in programs:
        if as_paper and text.startswith(task.prompt):
            text = task.prompt + as_paper_scores(text.removeprefix(task.prompt))
        jobs.append(job_of(text, task, tests, task.code))
    return sandbox.run(jobs)
