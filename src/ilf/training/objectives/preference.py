"""Objectives that learn from comparisons: the refinement is better than the incorrect program."""

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
    """Direct preference optimization (Rafailov et al. 2023) of x1 over x0, on the paper's pairs.

    With r(x) = sum_i log pi(x_i | t, x_<i) - log pi_ref(x_i | t, x_<i) and m = beta (r(x1) - r(x0)), the loss of a
    pair is -(1 - e) log sigmoid(m) - e log sigmoid(-m) - sft_weight / |x1| log pi(x1 | t), where pi_ref is the policy
    before training and e is the label smoothing of conservative DPO (Mitchell 2023). Both texts of a pair have the
    same prompt.

    Args:
        beta: How strongly the policy is held to the reference policy.
        label_smoothing: e, the share of pairs that are assumed to be the wrong way round.
        length_normalised: Whether to divide each r by its number of tokens (as in SimPO, Meng et al. 2024, but with a
            reference).
        sft_weight: Weight of the paper's loss on x1, which is added to the loss (RPO, Pang et al. 2024).
    """

    beta: AboveZero = 0.1
    label_smoothing: UnderHalf = 0.0
    length_normalised: bool = False
    sft_weight: NotNegative = 0.0

    texts: ClassVar[int] = 2

    @property
    def needs_reference(self) -> bool:
        """True: the loss always uses reference log-probabilities."""
        return True

    def examples(self, data: TrainingData) -> list[Example]:
        """Return a pair for each row: x1, with x0 as its other text."""
        return data.each(lambda row: [self.pair(data.example(row), rejected(data, row))])

    def pair(self, chosen: Example, other: Example) -> Example:
        """Return the two texts as one example."""
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
    """DPO on only the tokens in which x1 and x0 differ (after Focused-DPO, Zhang et al. 2025).

    Most of a refinement repeats the incorrect program, and pushing those tokens both ways adds noise. The tokens that
    count are those that one text has and the other lacks. If the other text has nothing in their place, its next
    token counts, because that token is the correct or incorrect choice. `sft_weight` covers all tokens of x1.
    """

    def pair(self, chosen: Example, other: Example) -> Example:
        """Return the two texts as one example that marks the tokens that count."""
        mine, theirs = changed(chosen.target_ids, other.target_ids)
        return replace(chosen, focus=mine, other=replace(other, focus=theirs))


def changed(new: Sequence[int], old: Sequence[int]) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Return for each token of two texts whether it differs between them.

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
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024): learns from correct and incorrect programs without pairs.

    With r(x) as in DPO and z the mean of r over an optimizer step's programs, each placed after the prompt of another
    task (z is at least 0 and has no gradient), the loss is w (1 - sigmoid(beta (r(x) - z))) for a correct program and
    w' (1 - sigmoid(beta (z - r(x)))) for an incorrect one. The programs are those of the training set, and all
    distinct programs that were sampled on its tasks, with their verdicts: the policy's, and the refiner's if the arm
    trains on them.

    Args:
        beta: How strongly the policy is held to the reference policy.
        programs: The largest number of sampled programs per task, for correct and incorrect ones each; null for all.
        desirable_weight: w.
        undesirable_weight: w'; null to give both kinds the same total weight.
        sft_weight: Weight of the paper's loss on correct programs, which is added to the loss.
    """

    beta: AboveZero = 0.1
    programs: Positive | None = None
    desirable_weight: AboveZero = 1.0
    undesirable_weight: AboveZero | None = None
    sft_weight: NotNegative = 0.0

    @property
    def needs_reference(self) -> bool:
        """True: the loss always uses reference log-probabilities."""
        return True

    def examples(self, data: TrainingData) -> list[Example]:
        """Return an example for each program. Its value is its weight, negative if the program is incorrect."""
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

        mean = torch.zeros((), device=module.device, dtype=torch.float32)  # also where 16 bits are the default
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
        return loss - self.sft_weight * found.mean() * (value > 0) if self.sft_weight else loss


def _unrelated(example: Example, others: Sequence[Example], data: TrainingData) -> Example:
    """Return a target of another task after an example's prompt, cut to the largest length of an example."""
    rng = random.Random(derive_seed(data.seed, "unrelated", example.task_id, *example.target_ids))
    foreign = [e for e in others if e.task_id != example.task_id and e.target_ids != example.target_ids]
    target = rng.choice(foreign or others).target_ids
    return replace(example, target_ids=target[: max(1, data.max_length - len(example.prompt_ids))])


def feedback_on(row: Refinement) -> tuple[str, str]:
    """Return a row's incorrect program and its feedback. Raises ValueError if the row lacks either."""
    if not row.feedback or row.wrong_program is None:
        raise ValueError("the row has no feedback on an incorrect program")
    return row.wrong_program, row.feedback


def rejected(data: TrainingData, row: Refinement) -> Example:
    """Return an incorrect program after the task's prompt: x0, or one of the policy's if x0 can't follow the prompt.

    Raises:
        ValueError: There is no such program, or it is too long.
    """
    task, program = data.tasks[row.task_id], row.wrong_program
    if program is not None:
        try:
            begun = program.startswith(row.prompt)  # as sampled programs do, which need not parse
            target = program[len(row.prompt) :] if begun else completion_of(row.prompt, program, task.entry_point)
            return data.encode(row.task_id, row.prompt, target)
        except (ValueError, SyntaxError):
            pass
    made = sampled(data, (p for p in data.samples.get(row.task_id, ()) if not p.verdict.passed), 1)
    if not made:
        raise ValueError("the task has no incorrect program that can follow its prompt")
    return made[0]


def sampled(data: TrainingData, programs: Iterable[Program], most: int | None) -> list[Example]:
    """Return up to `most` distinct sampled programs of a task as examples, chosen by the seed.

    Programs that are too long are skipped.
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
