"""Build the policy's training set: rows whose programs pass their tests, and the data that objectives use."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from ilf.models.targets import encode
from ilf.models.tokens import encode_prompts, truncate
from ilf.protocols import Refining, TrainingData
from ilf.runner import Runner
from ilf.scoring import score
from ilf.tasks.prompts import completion_of
from ilf.types import Candidate, Feedback, Program, Refinement, Round


def express(runner: Runner, module: Any, candidates: Sequence[Candidate]) -> list[Refinement | None]:
    """Return programs as rows of a training set. Rejected ones are None, and the reasons are recorded.

    Args:
        runner: Runner of the run.
        module: The class that fine-tunes the policy.
        candidates: Candidate programs.
    """
    settings = runner.settings
    rows: list[Refinement | None] = []
    for c in candidates:
        f = c.feedback
        parent, text, source, wrong = (f.parent, f.text, f.source, f.program) if f else (None,) * 4
        try:
            if c.program is None:
                reason = "this source has no program for this task, only for others"
                raise ValueError(f"{reason}; refinements.tasks=annotated needs no match")
            target = completion_of(c.task.prompt, c.program, c.task.entry_point)
            row = Refinement(c.task.task_id, c.task.prompt, target, c.source, parent, text, source, wrong)
            module.example(runner.tokenizer, row, settings.training.max_length)
            rows.append(row)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            runner.rejected.append(f"task {c.task.task_id} ({c.source}): {error}")
            rows.append(None)
    kept = [row for row in rows if row is not None]
    programs = [(row.prompt + row.target, runner.tasks[row.task_id]) for row in kept]
    failed = set()
    for row, verdict in zip(kept, score(programs, runner.sandbox, settings.executor.tests), strict=True):
        if not verdict.passed:
            runner.rejected.append(f"task {row.task_id} ({row.source}): {verdict.verdict}, {verdict.detail}")
            failed.add(row)
    return [None if row in failed else row for row in rows]


def training_data(
    runner: Runner, module: Any, refining: Refining, rows: Sequence[Refinement], rounds: Sequence[Round]
) -> TrainingData:
    """Return the data from which an objective makes its examples.

    Args:
        runner: Runner of the run.
        module: The class that fine-tunes the policy.
        refining: The run's state, with which the refiner's prompts are made.
        rows: The training set.
        rounds: The rounds, with all sampled programs.
    """
    settings, tokenizer, ids = runner.settings, runner.tokenizer, {row.task_id for row in rows}
    length, refiner = settings.training.max_length, settings.refiner

    def by_task(programs: Iterable[Program]) -> dict[int, list[Program]]:
        found: dict[int, list[Program]] = defaultdict(list)
        for program in programs:
            if program.task_id in ids:
                found[program.task_id].append(program)
        return found

    def refine_prompt(row: Refinement) -> str:
        wrong = Feedback(row.task_id, "train", row.wrong_program or "", row.feedback or "", row.source)
        return refiner.prompt_with_program(wrong, runner.tasks[row.task_id], refining)

    refined = rounds if settings.refinements.refines else ()
    return TrainingData(
        rows=rows,
        samples=by_task(p for one in rounds for p in one.samples or ()),
        refinements=by_task(p for one in refined for p in one.refinements or ()),
        tasks=runner.tasks,
        seed=runner.seed,
        example=lambda row: module.example(tokenizer, row, length),
        encode=lambda task_id, prompt, target: encode(tokenizer, task_id, prompt, target, length),
        prompt_ids=lambda prompt: tuple(encode_prompts(tokenizer, [prompt])[0]),
        old_code=lambda program: truncate(tokenizer, program, refiner.old_code_tokens),
        refine_prompt=refine_prompt,
        max_length=length,
        rejected=runner.rejected,
    )
