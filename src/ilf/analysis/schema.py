"""The schema of results.json, key by key. `results.of_run` writes it; reports, comparisons and studies read it.

Conventions: a value is null where the run did not get far enough to compute it; no key is ever left out. Rates are
fractions from 0 to 1. Intervals (`ci95`) are [low, high] at 95%, over tasks.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from ilf.analysis.statistics import Difference

SCHEMA = 2  # version of this schema; increased when the meaning of a key changes
# The metrics of a set of programs: pass@k by name ("pass@1"), `ci95` by the same names, `one_correct` (the share of
# tasks with a correct program), `n_tasks`, `n_samples` (per task), `undecided` and `per_task`; see `results.metrics`.
Metrics = dict[str, Any]
Part = Literal["zero_shot", "samples", "refiner", "finetuned", "validation"]  # keys of results.json that hold Metrics
Reported = Literal["zero_shot", "refiner", "finetuned"]
PARTS: tuple[Reported, ...] = ("zero_shot", "refiner", "finetuned")  # the keys that comparisons report
Delta = dict[str, Difference]  # the paired difference, after minus before, by metric ("pass@1")


class Described(TypedDict):
    """The keys that describe the run: settings, data, model and machine."""

    schema: int  # SCHEMA
    status: str  # "complete", "partial", "no_training_examples", "interrupted" or "failed"
    arm: str  # the key `arm`, else the option of the group `refinements`
    study: str | None  # the key `study`
    study_table: str | None  # the key `study_table`: the dotted path of the study's own function
    refinements: str  # the option of the group `refinements`
    feedback: str  # the option of the group `feedback`
    feedback_sha256: str | None  # digest of the file in feedback.path
    annotator: str  # name of the feedback source, such as "scripted"
    refiner_kind: str  # the option of the group `refiner`
    seed: int
    overrides: list[str]  # overrides from the command line, in Hydra's syntax
    data: str  # the option of the group `data`
    data_sha256: str  # digest of the tasks
    data_settings: dict[str, Any] | None  # the group `data` as composed
    model: str  # the option of the group `model`
    model_id: str  # the policy's folder for model=local, else its id on the Hugging Face Hub, else `model`
    weights_sha256: str  # digest of the policy's weights before fine-tuning
    scoring: dict[str, Any]  # settings that the verdicts of the reported programs depend on
    isolation: dict[str, Any]  # of executed programs: `mechanisms` in force, those `refused`, and what is left `open`
    processes: int  # world size
    # The sampler's settings, and what else samples depend on: `dtype`, `front_tokens`, `end_of_text`, `prompt`,
    # `halvings` (how often the batch was halved because memory ran out).
    sampling: dict[str, Any]
    evaluation: dict[str, Any]  # n, temperature, top_k and dtype with which the reported programs are sampled
    objective: str  # the option of the group `objective`
    per_task: int | None  # the largest number of programs per task in the training set; null for all
    reviser: str  # the model that revises programs at test time: "policy" or "refiner"
    training: dict[str, Any]  # settings.Phase of the policy
    test_limit: int | None  # data.limit.test
    feedback_limit: int | None  # feedback.limit


class RoundCounts(TypedDict):
    """The counts of one round; null for what the round did not reach."""

    failing_tasks: int | None  # failing tasks, without those of the prompt split
    annotated: int | None  # programs with feedback, without those of the prompt split
    annotated_train: int | None  # those of `annotated` that belong to Train
    training_examples: int | None  # size of the policy's training set


class Counts(RoundCounts):
    """The counts of a run. Those inherited from RoundCounts are of the last round that produced a policy."""

    test_tasks: int
    refine_tasks: int
    train_tasks: int
    rejected: int  # rows that could not be used: length of the key `rejected`
    # Test tasks without challenge tests, which their other tests decide; null unless executor.tests=challenge.
    without_challenge_tests: int | None
    near_duplicates: int | None  # Refine and Train tasks left out because they repeat a Test task; null if they stay
    selection_samples: int | None  # samples per task from which the programs that get feedback are selected
    optimizer_steps: int | None  # of the policy's fine-tuning


class Learnt(TypedDict):
    """The results of one round of the algorithm."""

    refiner: Metrics | None  # of the refiner's refinements on Train; more keys in `results.of_refiner`
    llm: Metrics | None  # of an LLM's refinements, in the arms that train on them
    finetuned: Metrics | None  # of the fine-tuned policy on Test
    delta: Delta | None  # fine-tuned minus zero-shot, on Test
    training_task_ids: list[int] | None  # tasks in the policy's training set
    training_sources: dict[str, int]  # number of training examples by the source of the feedback behind them


class RoundResults(Learnt):
    """One item of `rounds`."""

    counts: RoundCounts


class Points(TypedDict):
    """The gain in pass@1 over zero-shot, in percentage points, for each 100 annotations."""

    mean: float
    ci95: list[float]


FeedbackCost = TypedDict(
    "FeedbackCost",
    {
        "annotations": int,  # programs with feedback, in all rounds, the prompt split included
        "by_source": dict[str, int],  # the same by feedback source
        "timed": int,  # annotations whose working time was recorded
        "minutes": float | None,  # working time of these in total
        "pass@1_points_per_100": Points | None,  # null for arms that need no feedback
    },
)


class Transfer(TypedDict):
    """The policy's results on another data set (the group `data@transfer`)."""

    data: str  # the option of the group
    data_sha256: str | None  # digest of its rows
    zero_shot: Metrics | None
    finetuned: Metrics | None
    delta: Delta | None


class TurnResults(TypedDict):
    """Programs on Test after 0, 1, 2 ... turns. `delta` starts with turn 1, the other lists with turn 0."""

    feedback: list[Metrics]  # programs that fail are revised with feedback
    fresh: list[Metrics]  # the control: programs that fail are resampled without feedback
    delta: list[Delta]  # `feedback` minus `fresh`, with the same number of samples


class Mean(TypedDict):
    """A mean over tasks, with its 95% interval."""

    mean: float
    ci95: list[float]


class KL(Mean):
    """KL(fine-tuned || base) on the fine-tuned policy's samples on Test, in nats per token of the programs."""

    per_task: dict[str, float]  # by task id
    end: Mean  # at the positions where programs end, in nats; not part of the mean above


class Results(Described, Learnt):
    """All of results.json. What the run did not reach is null, never left out."""

    feedback_on_policy: bool | None  # whether the feedback is on this policy's own programs; null if that is unknown
    annotated_policy: str | None  # the policy whose programs people annotated, where the settings name it
    policy_on_annotated: Metrics | None  # with people's feedback: the same samples without the prompt split
    matched: bool  # whether all arms of a comparison train on the same tasks
    near_duplicates: dict[str, int]  # the tasks that are left out, by id, with the Test task that each repeats
    zero_shot: Metrics | None  # of the policy before fine-tuning, on Test
    samples: Metrics | None  # of the last round's samples, on all tasks but those of Test
    counts: Counts
    rounds: list[RoundResults]  # the keys of Learnt above hold the last round that produced a policy
    feedback_cost: FeedbackCost
    transfer: Transfer | None  # null without data@transfer
    turns: dict[str, TurnResults]  # feedback at test time, by "zero_shot" and "finetuned"; empty with evaluate.turns=0
    validation: Metrics | None  # of the fine-tuned policy on Refine, by which a search chooses settings
    weight_change: dict[str, float] | None  # ||tuned - base|| / ||base|| by layer group, in the dtype of sampling
    update_kept: float | None  # the share of the update that survives rounding to the dtype of sampling
    kl: KL | None
    perplexity: dict[str, dict[str, float]] | None  # of each arm's programs, without their ends, by arm and task id
    end_loss: dict[str, dict[str, float]] | None  # loss of the token that ends each of them, in nats
    measure_error: str | None  # why the measures from `weight_change` to `end_loss` could not be computed
    rejected: list[str]  # one line for each row that could not be used
    llm_answers: dict[str, Any] | None  # counts of the LLM's answers by use; null if none was asked for
    entries: dict[str, list[str]]  # names of the store's entries, by stage
    seconds: dict[str, Any]  # by stage, null if it was not run; `reused` lists the stages reused from the store
    versions: dict[str, str]  # of Python, the platform and packages
