"""The scorer that all arms, stages and splits share: programs and their tasks -> verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from ilf.executors import Judge
from ilf.tasks.data import job_of
from ilf.tasks.prompts import as_paper_scores
from ilf.types import Task, Verdict


def score(programs: Sequence[tuple[str, Task]], sandbox: Judge, tests: str, as_paper: bool = False) -> list[Verdict]:
    """Return the verdict of each program on its task. All arms, stages and splits share this scorer.

    Args:
        programs: Complete programs with their tasks.
        sandbox: Executes the programs.
        tests: Which tests decide: "all", "unseen" or "challenge"; see `ilf.tasks.data.job_of`.
        as_paper: Whether to first change what follows the task's prompt in a program as the paper's evaluation does
            (`as_paper_scores`). A program that does not start with the prompt is executed unchanged.
    """
    jobs = []
    for text, task in programs:
        if as_paper and text.startswith(task.prompt):
            text = task.prompt + as_paper_scores(text.removeprefix(task.prompt))
        jobs.append(job_of(text, task, tests, task.code))
    return sandbox.run(jobs)
