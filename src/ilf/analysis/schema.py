"""results.json, key by key: what `results.of_run` writes, and what reports, comparisons and studies read."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from ilf.analysis.statistics import Difference

SCHEMA = 2  # raised where what a key holds changes
Metrics = dict[str, Any]  # of a set of programs: pass@k by its name, and what else `results.metrics` says
Part = Literal["zero_shot", "samples", "refiner", "finetuned", "validation"]  # keys with metrics or null
Reported = Literal["zero_shot", "refiner", "finetuned"]
PARTS: tuple[Reported, ...] = ("zero_shot", "refiner", "finetuned")
Delta = dict[str, Difference]  # fine-tuned against zero-shot, by metric


class Described(TypedDict):
    """What ran: settings, data, model and machine."""

    schema: int
    status: str  # "complete", "partial", "no_training_examples", "interrupted" or "failed"
    arm: str
    study: str | None
    study_table: str | None
    refinements: str
    feedback: str
    annotator: str
    refiner_kind: str
    seed: int
    overrides: list[str]  # of the command line
    data: str
    data_sha256: str
    data_settings: dict[str, Any] | None  # of the group data, as composed
    model: str
    model_id: str
    weights_sha256: str
    scoring: dict[str, Any]
    isolation: dict[str, Any]
    processes: int
    sampling: dict[str, Any]  # settings.Sampling, and what else a draw depends on
    evaluation: dict[str, Any]  # n, temperature, top_k and dtype of the programs that are reported
    objective: str
    per_task: int | None  # programs of a task that are trained on, at most; None for all
    reviser: str  # who writes programs anew at test time
    training: dict[str, Any]  # settings.Phase of the policy
    test_limit: int | None  # data.limit.test
    feedback_limit: int | None


class RoundCounts(TypedDict):
    """How many of each there were in a round; null where it did not come to them."""

    failing_tasks: int | None
    annotated: int | None
    annotated_train: int | None
    training_examples: int | None


class Counts(RoundCounts):
    """How many of each there were in a run."""

    test_tasks: int
    refine_tasks: int
    train_tasks: int
    rejected: int
    without_challenge_tests: (
        int | None
    )  # Test tasks that their other tests decide; null but for executor.tests=challenge
    near_duplicates: int | None  # tasks of Refine and Train that are left out; null where they are kept
    selection_samples: int | None
    optimizer_steps: int | None


class Learnt(TypedDict):
    """What one round of the algorithm came to."""

    refiner: Metrics | None
    llm: Metrics | None
    finetuned: Metrics | None
    delta: Delta | None
    training_task_ids: list[int] | None
    training_sources: dict[str, int]  # whose feedback stands behind how many of them


class RoundResults(Learnt):
    """One of `rounds`."""

    counts: RoundCounts


class Points(TypedDict):
    """Points of pass@1 over zero-shot."""

    mean: float
    ci95: list[float]


FeedbackCost = TypedDict(
    "FeedbackCost",
    {
        "annotations": int,
        "by_source": dict[str, int],
        "timed": int,
        "minutes": float | None,
        "pass@1_points_per_100": Points | None,
    },
)


class Transfer(TypedDict):
    """What the policy does on another data set."""

    data: str
    data_sha256: str | None
    zero_shot: Metrics | None
    finetuned: Metrics | None
    delta: Delta | None


class TurnResults(TypedDict):
    """Programs on Test after 0, 1, 2 ... turns; the last of these lists begins with the first turn."""

    feedback: list[Metrics]  # written anew with words on what failed
    fresh: list[Metrics]  # drawn anew without
    delta: list[Delta]  # feedback against fresh draws, as many


class Mean(TypedDict):
    """A mean over tasks, with its interval."""

    mean: float
    ci95: list[float]


class KL(Mean):
    """KL(fine-tuned || base), in nats a token of the programs."""

    per_task: dict[str, float]
    end: Mean  # in nats, where programs end


class Results(Described, Learnt):
    """All of results.json. A part that the run did not come to is null, never left out."""

    feedback_on_policy: bool | None
    annotated_policy: str | None
    policy_on_annotated: Metrics | None
    matched: bool  # whether all arms of a comparison train on the same tasks
    near_duplicates: dict[str, int]  # the tasks that are left out, by id, each with the task of Test that it repeats
    zero_shot: Metrics | None
    samples: Metrics | None  # of the policy on everything but Test
    counts: Counts
    rounds: list[RoundResults]
    feedback_cost: FeedbackCost
    transfer: Transfer | None
    turns: dict[str, TurnResults]  # at test time, of "zero_shot" and "finetuned"; empty where not asked for
    validation: Metrics | None  # on Refine: what settings are chosen by
    weight_change: dict[str, float] | None  # by group of layers, as they are sampled
    update_kept: float | None  # the share of the update that rounding leaves in what is sampled
    kl: KL | None
    perplexity: dict[str, dict[str, float]] | None  # of the programs without their ends, by arm and task
    end_loss: dict[str, dict[str, float]] | None  # of the token that ends each, in nats
    measure_error: str | None
    rejected: list[str]
    llm_answers: dict[str, Any] | None
    entries: dict[str, list[str]]  # of the store, by stage
    seconds: dict[str, Any]  # by stage, null where it was not done; `reused` lists those from the store
    versions: dict[str, str]
