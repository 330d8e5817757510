"""results.json: the results of a run, and the metrics in it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ilf.analysis.refinements import edit_distance, returns_expected_literal
from ilf.analysis.schema import (
    SCHEMA,
    Counts,
    Delta,
    Described,
    FeedbackCost,
    Metrics,
    Points,
    Results,
    RoundResults,
    Transfer,
    TurnResults,
)
from ilf.analysis.statistics import Floats, paired, pass_at_k, rate_ci95
from ilf.installation import versions
from ilf.settings import Settings
from ilf.types import Outcome, Program, Round, Splits, Turns

MEASURED = ("weight_change", "update_kept", "kl", "perplexity", "end_loss")  # see measurements.py


def per_task(programs: Sequence[Program], k: int) -> dict[int, float]:
    """Return pass@k of each task, by task id."""
    outcomes: dict[int, list[bool]] = defaultdict(list)
    for program in programs:
        outcomes[program.task_id].append(program.verdict.passed)
    return {i: pass_at_k(len(passed), sum(passed), k) for i, passed in sorted(outcomes.items())}


def _values(programs: Sequence[Program], k: int) -> Floats:
    return np.array(list(per_task(programs, k).values()))


def metrics(programs: Sequence[Program] | None, k: Sequence[int]) -> Metrics | None:
    """Return pass@k with 95% intervals over tasks, and the share of tasks with a correct program."""
    if not programs:
        return None
    found: Metrics = {f"pass@{i}": float(_values(programs, i).mean()) for i in k}
    found["ci95"] = {f"pass@{i}": list(rate_ci95(_values(programs, i))) for i in k}
    passed = Counter(p.task_id for p in programs if p.verdict.passed)
    tasks = {p.task_id for p in programs}
    return found | {
        "one_correct": len(passed) / len(tasks),
        "n_tasks": len(tasks),
        "n_samples": len(programs) // len(tasks),
        "undecided": sum(p.verdict.verdict == "unsupported_test" for p in programs),  # these count as not passed
        "per_task": {str(i): passed[i] for i in sorted(tasks)},  # the number of programs that passed
    }


def delta(before: Sequence[Program] | None, after: Sequence[Program] | None, k: Sequence[int]) -> Delta | None:
    """Return the paired difference over tasks, `after` minus `before`, for each k."""
    if not before or not after:
        return None
    if per_task(before, 1).keys() != per_task(after, 1).keys():
        raise ValueError("the two sets of programs are on different tasks")
    pairs = {f"pass@{i}": (per_task(before, i), per_task(after, i)) for i in k}
    return {name: found for name, pair in pairs.items() if (found := paired([pair]))}


@dataclass
class Record:
    """Facts that the stages recorded, besides the results of the algorithm."""

    status: str  # "complete", "partial", "no_training_examples", "interrupted" or "failed"
    data_sha256: str
    weights_sha256: str  # of the policy before fine-tuning
    dtypes: dict[str, str | None]  # dtype of the weights while sampling, by stage; None if a server chooses it
    front_tokens: list[str]  # tokens that the policy's tokenizer prepends to a text; empty with a chat template
    end_of_text: str  # the token that training targets end with
    scoring: dict[str, Any]
    isolation: dict[str, Any]  # of executed programs: mechanisms, refused, open
    processes: int  # world size
    halvings: int  # how often a batch of samples did not fit into memory and was halved
    seconds: dict[str, float | None]  # by stage
    reused: list[str]  # stages reused from the store
    entries: dict[str, list[str]]  # names of the store's entries, by stage
    rejected: list[str]  # one line for each rejected row
    fine_tuned: dict[str, Any]  # optimizer steps and last metrics of the policy's fine-tuning; empty without it
    measured: dict[str, Any]  # see measurements.py
    validation: Sequence[Program] | None  # programs on Refine, by which a search chooses settings
    transfer_sha256: str | None  # of the rows of the transfer data set
    feedback_sha256: str | None  # of the annotation file
    near_duplicates: Mapping[int, int] | None  # the tasks that are left out, with the Test task that each repeats
    llm_answers: dict[str, Any] | None  # counts of an LLM's answers by use; see feedback/llm.py


def of_refiner(found: Round, tasks: Splits, k: Sequence[int]) -> Metrics | None:
    """Return the refiner's metrics on Train, the tasks that it solved, and properties of its refinements."""
    part = metrics(found.refinements, k)
    if part is None or found.refinements is None:
        return None
    old = {f.task_id: f.program for f in found.feedback or []}
    sources = {f.task_id: f.source for f in found.feedback or []}
    solved = [p for p in found.refinements if p.verdict.passed]
    first = {p.task_id: p for p in reversed(solved)}
    distances = [edit_distance(old[i], p.program) for i, p in first.items()]
    literal = {p.task_id for p in solved if returns_expected_literal(p.program, tasks.by_id[p.task_id].tests)}
    return part | {
        "solved_tasks": sorted(first),
        "returning_expected_literal": sorted(literal),
        # The mean over solved tasks, each with its first correct refinement.
        "edit_distance": sum(distances) / len(distances) if distances else None,
        "by_source": {  # metrics by feedback source
            source: metrics([p for p in found.refinements if sources[p.task_id] == source], k)
            for source in sorted({sources[p.task_id] for p in found.refinements})
        },
    }


def of_feedback(settings: Settings, outcome: Outcome, delta: Delta | None) -> FeedbackCost:
    """Return the cost of the feedback and its benefit: annotations, minutes, points of pass@1 per 100 annotations.

    Annotations of all rounds count, including those of tasks 1 to 10. Minutes are working time, as recorded by the
    annotation page. Points are the fine-tuned policy's gain over zero-shot, with their interval; null for arms that
    need no feedback.
    """
    given = [f for one in outcome.rounds for f in one.feedback or []]
    seconds = [f.seconds for f in given if f.seconds is not None]
    points: Points | None = None
    if given and delta and "pass@1" in delta and settings.refinements.by_feedback:
        mean, ci95 = delta["pass@1"]["mean"], delta["pass@1"]["ci95"]
        points = {"mean": 1e4 * mean / len(given), "ci95": [1e4 * end / len(given) for end in ci95]}
    return {
        "annotations": len(given),
        "by_source": dict(Counter(f.source for f in given)),
        "timed": len(seconds),
        "minutes": sum(seconds) / 60 if seconds else None,
        "pass@1_points_per_100": points,
    }


def of_round(outcome: Outcome, found: Round, tasks: Splits, k: Sequence[int]) -> RoundResults:
    """Return the results of one round of the algorithm."""

    def count(rows: Sized | None) -> int | None:
        return None if rows is None else len(rows)

    failing = None if found.failing is None else [i for i in found.failing if tasks.by_id[i].split != "prompt"]
    feedback = None if found.feedback is None else [f for f in found.feedback if f.split != "prompt"]
    by_llm = found.llm_refinements or []
    n = len(by_llm) // max(1, len({p.task_id for p in by_llm}))  # llm.n can be smaller than some k
    return {
        "refiner": of_refiner(found, tasks, k),
        "llm": metrics(by_llm, [i for i in k if i <= n]),
        "finetuned": metrics(found.finetuned, k),
        "delta": delta(outcome.zero_shot, found.finetuned, k),
        "training_task_ids": None if found.examples is None else list(dict.fromkeys(e.task_id for e in found.examples)),
        "training_sources": dict(Counter(e.feedback_source for e in found.examples or [] if e.feedback_source)),
        "counts": {
            "failing_tasks": count(failing),
            "annotated": count(feedback),
            "annotated_train": None if feedback is None else sum(f.split == "train" for f in feedback),
            "training_examples": count(found.examples),
        },
    }


def _on_policy(annotated: str | None, policy: str, found: Round) -> bool | None:
    """Return whether people's feedback is on this policy's programs; None if that is unknown.

    Args:
        annotated: The policy whose programs were annotated, if the settings name it. If they do not, feedback counts
            as on-policy if each annotated program is one of the run's own samples; otherwise the answer is unknown,
            as an earlier run of the same policy may have sampled other programs.
        policy: This run's policy.
        found: The round with the run's samples and its feedback.
    """
    if annotated is not None:
        return annotated == policy
    drawn = {(p.task_id, p.program) for p in found.samples or []}
    on = [(f.task_id, f.program) in drawn for f in found.feedback or []]
    return True if on and all(on) else None


def _described(settings: Settings, record: Record) -> Described:
    model = settings.model
    return {
        "schema": SCHEMA,
        "status": record.status,
        "arm": settings.arm,
        "study": settings.study,
        "study_table": settings.study_table,
        "refinements": settings.option("refinements"),
        "feedback": settings.option("feedback"),
        "feedback_sha256": record.feedback_sha256,
        "annotator": settings.feedback.name,
        "refiner_kind": settings.option("refiner"),
        "seed": settings.seed,
        "overrides": settings.overrides,
        "data": settings.option("data"),
        "data_sha256": record.data_sha256,
        "data_settings": settings.config.get("data"),
        "model": model.name,
        "model_id": (model.path if model.name == "local" else model.hub) or model.name,
        "weights_sha256": record.weights_sha256,
        "scoring": record.scoring,
        "isolation": record.isolation,
        "processes": record.processes,
        "sampling": {
            "name": settings.chosen.get("sampler"),
            **asdict(settings.sampler),
            "dtype": record.dtypes["sample"],
            "front_tokens": record.front_tokens,
            "end_of_text": record.end_of_text,
            "prompt": settings.data.prompt,
            "halvings": record.halvings,
        },
        "evaluation": {
            **{name: getattr(settings.evaluation, name) for name in ("n", "temperature", "top_k")},
            "dtype": record.dtypes["evaluate"],
        },
        "objective": settings.option("objective"),
        "per_task": getattr(settings.refinements, "per_task", 1),
        "reviser": settings.evaluate.reviser,
        "training": asdict(settings.training.policy),
        "test_limit": settings.data.limit.test,
        "feedback_limit": settings.feedback.limit,
    }


def _of_transfer(settings: Settings, outcome: Outcome, record: Record) -> Transfer | None:
    k = settings.evaluate.k
    if settings.transfer is None:
        return None
    return {
        "data": settings.option("data@transfer"),
        "data_sha256": record.transfer_sha256,
        "zero_shot": metrics(outcome.transfer_zero_shot, k),
        "finetuned": metrics(outcome.transfer_finetuned, k),
        "delta": delta(outcome.transfer_zero_shot, outcome.transfer_finetuned, k),
    }


def of_turns(turns: Turns, k: Sequence[int]) -> TurnResults:
    """Return the results of feedback at test time, compared with the same number of fresh samples."""
    pairs = list(zip(turns.fresh, turns.feedback, strict=True))[1:]
    return {
        "feedback": [found for one in turns.feedback if (found := metrics(one, k))],
        "fresh": [found for one in turns.fresh if (found := metrics(one, k))],
        "delta": [found for fresh, revised in pairs if (found := delta(fresh, revised, k))],
    }


def of_run(settings: Settings, tasks: Splits, outcome: Outcome, record: Record) -> Results:
    """Return the content of results.json."""
    k = settings.evaluate.k
    feedback = settings.feedback
    human = any(one.people for one in feedback.writers) and feedback.path is not None
    annotated = getattr(feedback, "annotated_policy", None)  # only feedback from people has it
    policy = settings.model.hub or settings.model.name
    samples = [p for p in outcome.last.samples or [] if p.split != "prompt"] or None
    last = of_round(outcome, outcome.last, tasks, k)
    challenged = settings.executor.tests == "challenge"
    counts: Counts = {
        "test_tasks": len(tasks.test),
        "refine_tasks": len(tasks.refine),
        "train_tasks": len(tasks.train),
        **last["counts"],
        "rejected": len(record.rejected),
        "without_challenge_tests": sum(not task.challenge for task in tasks.test) if challenged else None,
        "near_duplicates": None if record.near_duplicates is None else len(record.near_duplicates),
        "selection_samples": settings.sampler.n if samples else None,
        "optimizer_steps": record.fine_tuned.get("optimizer_steps"),
    }
    return {
        **_described(settings, record),
        "feedback_on_policy": not human or _on_policy(annotated, policy, outcome.last),
        "annotated_policy": annotated if human else None,
        "policy_on_annotated": metrics(samples, k) if human else None,
        # "self" trains on none of the tasks that the other arms train on, and "llm" only on some of them.
        "matched": settings.refinements.tasks == "solved" and settings.refinements.matched,
        "near_duplicates": {str(i): repeated for i, repeated in (record.near_duplicates or {}).items()},
        "zero_shot": metrics(outcome.zero_shot, k),
        "samples": metrics(outcome.last.samples, k),
        **last,
        "counts": counts,
        "rounds": [of_round(outcome, one, tasks, k) for one in outcome.rounds],
        "feedback_cost": of_feedback(settings, outcome, last["delta"]),
        "transfer": _of_transfer(settings, outcome, record),
        "turns": {part: of_turns(turns, k) for part, turns in outcome.turns.items()},
        "validation": metrics(record.validation, [1]),
        **record.measured,  # type: ignore[typeddict-item]
        "rejected": record.rejected,
        "llm_answers": record.llm_answers,
        "entries": record.entries,
        "seconds": {**record.seconds, "reused": record.reused},
        "versions": versions(),
    }
