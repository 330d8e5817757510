"""Feedback at test time: failing programs are rewritten with feedback. As a control, as many are resampled without.

In each turn, every program that still fails gets feedback. The policy or the refiner gets the task, the program and the
feedback, and rewrites the program. Programs that pass stay unchanged. The control does the same without feedback: the
policy resamples failing programs, given only the task. Both sample one more program for each one that fails.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ilf.annotators import Annotators
from ilf.feedback.composed import named
from ilf.protocols import Refining
from ilf.runner import Runner
from ilf.types import Draw, Feedback, Program, Task, Turns

log = logging.getLogger(__name__)

_Chain = tuple[int, int]  # a task's id and a sample's index


def take_turns(
    runner: Runner,
    annotators: Annotators,
    refining: Refining,
    stage: str,
    policy: Path,
    reviser: Path,
    prompt: Callable[[Task], str],
    programs: Sequence[Program],
) -> Turns:
    """Return the programs after each turn, both rewritten with feedback and resampled.

    Args:
        runner: Runs stages and stores their results.
        annotators: The feedback sources.
        refining: The run's state, with which refine prompts are made.
        stage: Name of the stage that sampled the programs.
        policy: Folder of the policy that sampled them.
        reviser: Folder of the model that rewrites them.
        prompt: Returns the policy's prompt for a task.
        programs: The n programs of each task, with their verdicts.
    """
    found = Turns([list(programs)], [list(programs)])
    for number in range(1, runner.settings.evaluate.turns + 1):
        words = _feedback(runner, annotators, _failing(found.feedback[-1]), f"{stage}_turn{number}")
        refiner = runner.settings.refiner
        revising = {at: refiner.prompt_with_program(f, runner.tasks[at[0]], refining) for at, f in words.items()}
        drawing = {_at(p): prompt(runner.tasks[p.task_id]) for p in _failing(found.fresh[-1])}
        ways = (("", reviser, found.feedback, revising), ("_fresh", policy, found.fresh, drawing))
        for suffix, model, turns, prompts in ways:
            label = f"{stage}_turn{number}{suffix}"
            draws = [
                Draw.of(runner.tasks[task_id], sample, prompts[task_id, sample], label, runner.seed)
                for task_id, sample in sorted(prompts)
            ]
            drawn = runner.draw(stage, model, draws, label + runner.suffix, k=[1]) if draws else []
            newest = {_at(p): p for p in drawn}
            turns.append([newest.get(_at(p), p) for p in turns[-1]])
            log.info("%s: %d of %d programs pass", label, sum(p.verdict.passed for p in turns[-1]), len(turns[-1]))
    return found


def _at(program: Program) -> _Chain:
    return program.task_id, program.sample


def _failing(programs: Iterable[Program]) -> list[Program]:
    return [p for p in programs if not p.verdict.passed]


def _feedback(
    runner: Runner, annotators: Annotators, failing: Sequence[Program], label: str
) -> Mapping[_Chain, Feedback]:
    """Return feedback on each failing program. Programs on which the source has nothing to say get none.

    Sources write feedback on one program per task. Therefore, each program is presented as the only one of its own
    task.
    """
    ids = {_at(p): number for number, p in enumerate(failing, 1 + max(runner.tasks))}
    tasks = {i: replace(runner.tasks[at[0]], task_id=i) for at, i in ids.items()}
    source = named(runner.settings.evaluate.feedback, "evaluate.feedback")
    asked = {ids[_at(p)]: [replace(p, task_id=ids[_at(p)])] for p in failing}
    given = annotators.at_test_time(source, asked, tasks, {i: at[0] for at, i in ids.items()}, label)
    by_id = {f.task_id: f for f in given}
    return {at: replace(by_id[i], task_id=at[0]) for at, i in ids.items() if i in by_id}
