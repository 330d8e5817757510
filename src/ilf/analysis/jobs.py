"""The jobs of one or several sweeps: the results or the error of each, and the label that tells it from the others."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, cast

import yaml

from ilf.analysis.schema import PARTS, Delta, Metrics, Results, Transfer
from ilf.files import read_json
from ilf.settings import NO_EFFECT
from ilf.types import InputError


class Job(TypedDict):
    """A job of a sweep: its results.json, or what is known without one, plus the keys that `read_jobs` adds."""

    folder: str
    label: str  # shared by the jobs that differ only in the seed
    zero_label: str  # shared by the jobs that start from the same zero-shot policy
    status: str
    error: str  # empty if there was none
    overrides: dict[str, str]
    seed: int
    arm: NotRequired[str]
    annotator: str
    data: str
    model: str
    feedback: str
    refiner_kind: str
    refinements: str
    objective: str
    training_task_ids: list[int] | None
    counts: TrainedOn
    zero_shot: Metrics | None
    refiner: Metrics | None
    finetuned: Metrics | None
    delta: Delta | None
    transfer: Transfer | None
    # Only present in jobs that have results:
    model_id: str
    matched: bool
    data_sha256: NotRequired[str]
    weights_sha256: NotRequired[str]
    feedback_sha256: NotRequired[str | None]
    entries: NotRequired[dict[str, list[str]]]


class TrainedOn(TypedDict):
    """The entries of a job's `counts` that comparisons read."""

    training_examples: int | None


Field = Literal["data", "model", "feedback", "refiner_kind", "refinements", "objective"]
# The keys of results.json that describe a job's arm, with the configuration group that sets each.
FIELDS: dict[Field, str] = {
    "data": "data",
    "model": "model",
    "feedback": "feedback",
    "refiner_kind": "refiner",
    "refinements": "refinements",
    "objective": "objective",
}
_OF_THE_ARM: tuple[Field, ...] = ("feedback", "refiner_kind", "refinements")  # set by an option of the group `arm`
_FOUND = (*PARTS, "delta", "transfer", "training_task_ids")  # absent or null in a job that failed
# Overrides that don't tell arms apart; each stands for a whole key or for the first word of keys.
_ASIDE = (*NO_EFFECT, "seed", "hydra")
# Groups whose key `path` names a folder or file, which can lie elsewhere on another machine or change between two
# sweeps, and the key of results.json that has the digest of its contents.
_CONTENTS = {"data": "data_sha256", "model": "weights_sha256", "feedback": "feedback_sha256"}
# Overrides that cannot change the zero-shot results.
_AFTER_ZERO_SHOT = (
    *("arm", "feedback", "refiner", "refinements", "adapter", "optimizer", "scheduler", "training", "llm"),
    *("trainer.max_epochs", "trainer.max_steps", "trainer.accumulate_grad_batches", "trainer.gradient_clip_val"),
    *("failing", "save", "objective", "rounds", "rounds_from", "select", "transfer", "data@transfer"),
    *("feedback_sha256", "evaluate.turns", "evaluate.feedback", "evaluate.reviser"),
    *("data.limit.prompt", "data.limit.refine", "data.limit.train"),
    *("data.newlines", "data.reindent", "data.near_duplicates"),
)


def scripted_note(arms: Collection[str], annotators: Collection[str]) -> str:
    """Return the note that stands below results of the arm `human` where a script wrote its refinements, else "".

    >>> scripted_note(["gold", "human"], ["scripted"])
    'human: the refinements of a scripted annotator, not of people.'
    """
    scripted = "human" in arms and "scripted" in annotators
    return "human: the refinements of a scripted annotator, not of people." if scripted else ""


def job_folders(folder: Path) -> list[Path]:
    """Return the folders of a sweep's finished jobs, ordered by number; for the folder of a run, that folder itself."""

    def ended(job: Path) -> bool:
        return (job / "results.json").exists() or (job / "failed.json").exists()

    def order(job: Path) -> list[str | int]:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", job.name)]

    return [folder] if ended(folder) else sorted(filter(ended, folder.glob("*/")), key=order)


def read_jobs(sweeps: Sequence[Path]) -> tuple[list[Job], list[str]]:
    """Return the jobs of all sweeps, and notes on how they were combined.

    Each job gets its `label`, which it shares with the jobs that differ only in the seed, and its `zero_label`, which
    it shares with the jobs that start from the same zero-shot policy. If an arm has the same seed twice, the later job
    replaces the earlier one, unless the earlier one got further: a complete job comes before one that was interrupted
    or has run a part of the stages, and that before a failed one.
    """
    folders = [folder for sweep in sweeps for folder in job_folders(sweep)]
    jobs = [_read(folder, str(folder) if len(sweeps) > 1 else folder.name) for folder in folders]
    _tell_contents_apart(jobs)
    unsaid = _add_labels(jobs)
    _tell_transfers_apart(jobs)
    kept: list[Job] = []
    notes = [f"Unless a run's name says otherwise: {unsaid}."] if unsaid else []
    for job in jobs:
        for other in list(kept):
            same = (other["label"], other["seed"]) == (job["label"], job["seed"])
            if same and _progress(job["status"]) >= _progress(other["status"]):
                kept.remove(other)
                notes.append(f"{job['label']}, seed {job['seed']}: {job['folder']} replaces {other['folder']}.")
            elif same and job["status"] != "failed":
                notes.append(f"{job['label']}, seed {job['seed']}: {job['folder']} is {job['status']} and not used.")
                break
        else:
            kept.append(job)
    return kept, notes


def _progress(status: str) -> int:
    """Return how far a job with this status got, as a rank."""
    return {"failed": 0, "complete": 2}.get(status, 1)


def metric_names(jobs: Sequence[Job]) -> list[str]:
    """Return the names of all metrics: "pass@1" on a job's own data, then "humaneval pass@1" on another data set."""
    own = [name for job in jobs for part in PARTS for name in (job[part] or {}).get("ci95", {})]
    others = [
        f"{transfer['data']} {name}"
        for job in jobs
        if (transfer := job["transfer"])
        for found in (transfer["zero_shot"], transfer["finetuned"])
        for name in (found or {}).get("ci95", {})
    ]
    return list(dict.fromkeys([*own, *others]))


def measured(job: Job, name: str) -> tuple[Mapping[str, Any], str]:
    """Return the part of results.json that holds a metric, and the metric's name in that part.

    The part is all of results.json for "pass@1", and `transfer` for "humaneval pass@1". It is empty if the job has no
    such data set.
    """
    data, _, own = name.rpartition(" ")
    transfer = job["transfer"]
    if not data:
        return job, own
    return (transfer if transfer and transfer["data"] == data else {}), own


def _tell_contents_apart(jobs: list[Job]) -> None:
    """Compare data, models and annotations by their digests, whatever their paths are.

    The first path of some contents replaces the others. If a name or path stands for different contents, such as a file
    that was edited between two sweeps, the digest counts as an override.
    """
    for group, digest in _CONTENTS.items():
        key = f"{group}.path"
        known = [job for job in jobs if job.get(digest)]
        paths: dict[Any, str] = {}
        for job in known:
            if key in job["overrides"]:
                job["overrides"][key] = paths.setdefault(job.get(digest), job["overrides"][key])
        found = defaultdict(set)
        for job in known:
            found[job.get(group), job["overrides"].get(key)].add(job.get(digest))
        for job in known:
            if len(found[job.get(group), job["overrides"].get(key)]) > 1:
                job["overrides"][digest] = str(job.get(digest))[:6]


def _tell_transfers_apart(jobs: list[Job]) -> None:
    """Append the digest to the names of transfer data sets that have the same name and different contents."""
    digests: dict[str, set[str | None]] = defaultdict(set)
    found = [transfer for job in jobs if (transfer := job["transfer"])]
    for transfer in found:
        digests[transfer["data"]].add(transfer["data_sha256"])
    for transfer in found:
        if len(digests[transfer["data"]]) > 1:
            transfer["data"] += f"_{str(transfer['data_sha256'])[:6]}"


def read_job(folder: Path) -> tuple[str, Results, dict[str, Any]]:
    """Return the status of a job, its results.json and its failed.json; a file that does not exist is empty.

    A job whose files are damaged counts as failed, with that error.
    """
    try:
        results, failed = (
            read_json(file) if file.exists() else {} for file in (folder / "results.json", folder / "failed.json")
        )
    except InputError as error:
        results, failed = {}, {"error": str(error)}
    status = str(results.get("status", "failed"))
    if failed and status != "no_training_examples":  # such a job has the refiner's results, which count as a finding
        status = "failed"
    return status, cast(Results, results), failed


def _read(folder: Path, shown: str) -> Job:
    """Return a job's results.json, or what is known without one, with its overrides and its error.

    Args:
        folder: The job's folder.
        shown: The display name of the folder.

    Raises:
        InputError: An older version wrote results.json, without the results of each task.
    """
    status, results, failed = read_job(folder)
    file = folder / ".hydra" / "overrides.yaml"
    overrides = dict(map(_override, yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else []))
    job: dict[str, Any] = {
        **{field: overrides.get(group, "") for field, group in FIELDS.items()},
        **{"seed": yaml.safe_load(overrides.get("seed", "0")), "annotator": "", "counts": {"training_examples": None}},
        **dict.fromkeys(_FOUND),
        **failed,
        **results,
        "folder": shown,
        "status": status,
        "overrides": overrides,
        "error": str(failed.get("error") or "see run.log").split("\n")[0][:200] if failed or status == "failed" else "",
    }
    if status == "failed":
        job |= dict.fromkeys(_FOUND)
    for part, found in itertools.product(PARTS, (job, job["transfer"] or {})):
        if found.get(part) and "per_task" not in found[part]:
            raise InputError(
                "results.json",
                str(folder / "results.json"),
                f"was written by an older version without {part}.per_task, which comparisons need",
                "Run the job again: its finished stages are reused from the store.",
            )
    return cast(Job, job)


def _override(text: str) -> tuple[str, str]:
    """Return the key and the value of a Hydra override, with numbers in one canonical notation.

    >>> _override("++training.lr=1e-4")
    ('training.lr', '0.0001')
    """
    key, _, value = text.lstrip("+").partition("=")
    try:
        return key, f"{float(value):.12g}"
    except ValueError:
        return key, value


def setting_of(overrides: Sequence[str]) -> dict[str, str]:
    """Return the setting that a job of a search tries: its overrides without the arm and those in `_ASIDE`."""
    given = dict(map(_override, overrides))
    return {key: value for key, value in given.items() if key not in ("arm", "refinements") and not _among(key, _ASIDE)}


def _add_labels(jobs: list[Job]) -> str:
    """Set each job's labels; return the settings that most jobs share, which labels leave out."""
    # A job without results may lack fields. A missing field does not tell jobs apart.
    fields = [field for field in FIELDS if len({job[field] for job in jobs} - {""}) > 1]
    common = {field: Counter(job[field] for job in jobs).most_common(1)[0] for field in fields}
    unsaid: dict[str, str] = {
        field: value for field, (value, count) in common.items() if field != "refinements" and 2 * count > len(jobs)
    }
    left_out: dict[str, str] = {}
    keys = sorted({key for job in jobs for key in job["overrides"] if not _among(key, _ASIDE)})
    keys = [key for key in keys if len({job["overrides"].get(key) for job in jobs}) > 1]
    for job in jobs:
        named = "arm" in job["overrides"]
        said = {field: job[field] for field in fields if job[field] and not (named and field in _OF_THE_ARM)}
        by_fields = {"arm"} | {group for field, group in FIELDS.items() if not (named and field in _OF_THE_ARM)}
        rest = {key: job["overrides"][key] for key in keys if key in job["overrides"] and key not in by_fields}
        arm = job["overrides"].get("arm") or job.get("arm") or job["refinements"]
        if arm == job["refinements"]:
            said.pop("refinements", None)
        left_out |= {FIELDS[field]: value for field, value in said.items() if value == unsaid.get(field)}
        shown = {FIELDS[field]: value for field, value in said.items() if value != unsaid.get(field)} | rest
        job["label"] = _joined(arm or "run", shown)
        before = {key: value for key, value in shown.items() if not _among(key, _AFTER_ZERO_SHOT)}
        job["zero_label"] = _joined("zero-shot", before)
    return ", ".join(f"{key}={value}" for key, value in left_out.items())


def _among(key: str, keys: Sequence[str]) -> bool:
    return key in keys or re.split("[./@]", key)[0] in keys


def _joined(name: str, settings: Mapping[str, str]) -> str:
    return ", ".join([name, *(f"{key}={value}" for key, value in settings.items())])
