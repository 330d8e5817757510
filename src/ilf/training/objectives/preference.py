"""Objectives that learn from comparisons: the refinement is better than the wrong program."""

from __future__ import annotations

import difflib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ilf.protocols import Objective, TrainingData
from ilf.ranges import AboveZero, NotNegative, Positive, UnderHalf
from ilf.tasks.prompts import completion_of
from ilf.types import Example, Program, Refinement, derive_seed

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DPO(Objective):
    """Direct preference optimisation (Rafailov et al. 2023) of x1 over x0, on the paper's pairs.

    With r(x) = sum_i log pi(x_i | t, x_<i) - log pi_ref(x_i | t, x_<i) and m = beta (r(x1) - r(x0)), the loss of a pair
    is -(1 - e) log sigmoid(m) - e log sigmoid(-m) - sft_weight / |x1| log pi(x1 | t), where pi_ref is the policy before
    the training and e the label smoothing of conservative DPO (Mitchell 2023). A pair's texts have the same prompt.

    Args:
        beta: How strongly the policy is held to the one before.
        label_smoothing: e, the share of pairs that are taken to be the wrong way round.
        length_normalised: Divide each r by the number of its tokens (as in SimPO, Meng et al. 2024, with a reference).
        sft_weight: Of the paper's loss on x1 beside it (RPO, Pang et al. 2024).
    """

    beta: AboveZero = 0.1
    label_smoothing: UnderHalf = 0.0
    length_normalised: bool = False
    sft_weight: NotNegative = 0.0

    texts: ClassVar[int] = 2

    @property
    def needs_reference(self) -> bool:
        """Always."""
        return True

    def examples(self, data: TrainingData) -> list[Example]:
        """Return a pair for each row: x1, and as its other text x0."""
        return data.each(lambda row: [self.pair(data.example(row), rejected(data, row))])

    def pair(self, chosen: Example, other: Example) -> Example:
        """Return the two as one example."""
        return replace(chosen, other=other)

    def losses(self, module: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the loss of each pair, (B,)."""
        from torch.nn.functional import logsigmoid

        from ilf.training.objectives.likelihood import likelihood

        found = likelihood(module, batch)
        scores = found.ratios().sum(dim=1)
        if self.length_normalised:
            scores = scores / found.focus.sum(dim=1).clamp(min=1)
        chosen, other = scores.chunk(2)
        margin = self.beta * (chosen - other)
        loss = -(1 - self.label_smoothing) * logsigmoid(margin) - self.label_smoothing * logsigmoid(-margin)
        if self.sft_weight:
            loss = loss - self.sft_weight * found.mean().chunk(2)[0]
        return loss


@dataclass(frozen=True)
class FocusedDPO(DPO):
    """DPO that counts only the tokens in which x1 and x0 differ (after Focused-DPO, Zhang et al. 2025).

    Most of a refinement is the wrong program again, and pulling these tokens both ways is noise. Counted are the tokens
    that one text has and the other has not, and, where nothing stands in their place, the token that goes on there: it
    is what is right or wrong. `sft_weight` counts all tokens of x1.
    """

    def pair(self, chosen: Example, other: Example) -> Example:
        """Return the two as one example, with the tokens that count."""
        mine, theirs = changed(chosen.target_ids, other.target_ids)
        return replace(chosen, focus=mine, other=replace(other, focus=theirs))


def changed(new: Sequence[int], old: Sequence[int]) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Return for each token of two texts whether it is one in which they differ.

    >>> changed([1, 2, 3, 9], [1, 3, 9])
    ((False, True, False, False), (False, True, False))
    """
    marks = [False] * len(new), [False] * len(old)
    matcher = difflib.SequenceMatcher(None, new, old, autojunk=False)
    for what, start, end, other_start, other_end in matcher.get_opcodes():
        if what != "equal":
            for mark, first, last in ((marks[0], start, end), (marks[1], other_start, other_end)):
                last = min(max(last, first + 1), len(mark))
                mark[first:last] = [True] * (last - first)
    return tuple(marks[0]), tuple(marks[1])


@dataclass(frozen=True)
class KTO(Objective):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024): programs that are right or wrong, without pairs.

    With r(x) as for DPO and z the mean of r over an optimizer step's programs after tasks that they are not of, at
    least 0 and without a gradient, the loss is w (1 - sigmoid(beta (r(x) - z))) for a correct program and
    w' (1 - sigmoid(beta (z - r(x)))) for a wrong one. Programs are the training set's, and with their verdicts all
    different ones that were sampled on its tasks: the policy's, and the refiner's where the arm trains on them.

    Args:
        beta: How strongly the policy is held to the one before.
        programs: Sampled programs of a task, at most, of the right and of the wrong ones each; null for all.
        desirable_weight: w.
        undesirable_weight: w'; null so that both kinds weigh the same in sum.
        sft_weight: Of the paper's loss on correct programs beside it.
    """

    beta: AboveZero = 0.1
    programs: Positive | None = None
    desirable_weight: AboveZero = 1.0
    undesirable_weight: AboveZero | None = None
    sft_weight: NotNegative = 0.0

    @property
    def needs_reference(self) -> bool:
        """Always."""
        return True

    def examples(self, data: TrainingData) -> list[Example]:
        """Return each program: its value is its weight, below 0 where it is wrong."""
        right, wrong = data.each(lambda row: [data.example(row)]), list[Any]()
        own = {(e.task_id, e.target_ids) for e in right}
        for task_id in dict.fromkeys(row.task_id for row in data.rows):
            found = data.programs(task_id)
            for passed, kind in ((True, right), (False, wrong)):
                made = sampled(data, (p for p in found if p.verdict.passed == passed), self.programs)
                kind += [e for e in made if (e.task_id, e.target_ids) not in own]
        other = self.undesirable_weight
        weight = self.desirable_weight * len(right) / max(len(wrong), 1) if other is None else other
        made = [replace(e, value=self.desirable_weight) for e in right] + [replace(e, value=-weight) for e in wrong]
        return [replace(e, other=_unrelated(e, made, data)) for e in made]

    def before_step(self, module: Any, batch: Sequence[dict[str, torch.Tensor]]) -> None:
        """Add z to each micro-batch."""
        import torch

        from ilf.training.objectives.likelihood import likelihood, rows

        mean = torch.zeros((), device=module.device)
        with torch.no_grad():
            for part in batch:
                count = len(part["value"])
                mean += likelihood(module, rows(part, count, 2 * count)).ratios().sum() * part["share"]
        mean = module.average(mean)
        for part in batch:
            part["divergence"] = mean.clamp(min=0)

    def losses(self, module: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the loss of each program, (B,)."""
        import torch

        from ilf.training.objectives.likelihood import likelihood, rows

        value = batch["value"]
        found = likelihood(module, rows(batch, 0, len(value)))
        score = self.beta * (found.ratios().sum(dim=1) - batch["divergence"]) * value.sign()
        loss = value.abs() * (1 - torch.sigmoid(score))
        return loss - self.sft_weight * found.mean() * value.clamp(min=0) if self.sft_weight else loss


def _unrelated(example: Example, others: Sequence[Example], data: TrainingData) -> Example:
    """Return another task's target after an example's prompt, cut to the longest that an example may be."""
    rng = random.Random(derive_seed(data.seed, "unrelated", example.task_id, *example.target_ids))
    foreign = [e for e in others if e.task_id != example.task_id and e.target_ids != example.target_ids]
    target = rng.choice(foreign or others).target_ids
    return replace(example, target_ids=target[: max(1, data.max_length - len(example.prompt_ids))])


def feedback_on(row: Refinement) -> tuple[str, str]:
    """Return a row's wrong program and what was said of it. Raises ValueError where there is nothing."""
    if not row.feedback or row.wrong_program is None:
        raise ValueError("there is no feedback on a wrong program")
    return row.wrong_program, row.feedback


def rejected(data: TrainingData, row: Refinement) -> Example:
    """Return a wrong program after the task's prompt: x0, or where it can't stand there one of the policy's.

    Raises:
        ValueError: There is none, or it is too long.
    """
    task, program = data.tasks[row.task_id], row.wrong_program
    if program is not None:
        try:
            begun = program.startswith(row.prompt)  # as what is sampled does, which need not parse
            target = program[len(row.prompt) :] if begun else completion_of(row.prompt, program, task.entry_point)
            return data.encode(row.task_id, row.prompt, target)
        except (ValueError, SyntaxError):
            pass
    made = sampled(data, (p for p in data.samples.get(row.task_id, ()) if not p.verdict.passed), 1)
    if not made:
        raise ValueError("no wrong program can be written after the task's prompt")
    return made[0]


def sampled(data: TrainingData, programs: Iterable[Program], most: int | None) -> list[Example]:
    """Return different sampled programs of a task as examples, at most so many, as the seed decides.

    One that is too long is left out.
    """
    different = list({p.completion: p for p in programs}.values())
    if different:
        rng = random.Random(derive_seed(data.seed, "sampled", different[0].task_id, different[0].verdict.passed))
        different = rng.sample(different, len(different))
    found: list[Example] = []
    for p in different:
        if most is not None and len(found) == most:
            break
        try:
            found.append(data.encode(p.task_id, data.tasks[p.task_id].prompt, p.completion))
        except ValueError:
            continue
    return found
