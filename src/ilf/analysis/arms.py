"""The arms of a comparison, jobs that differ in the seed alone, and the difference of two of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from ilf.analysis.jobs import Job, measured
from ilf.analysis.schema import Reported
from ilf.analysis.statistics import Difference, over_seeds, paired, pass_at_k, t_ci95

Row = dict[str, Any]  # of a CSV file
Values = Mapping[int, Mapping[str, float]]  # pass@k by seed and task


@dataclass(frozen=True, eq=False)
class Arm:
    """Jobs that differ in the seed alone, or a baseline: all jobs that have its figures, the first of each seed's."""

    label: str
    jobs: Sequence[Job]
    part: Reported  # "zero_shot" or "finetuned"
    _known: dict[tuple[Reported, str], Values] = field(default_factory=dict, repr=False)

    def values(self, part: Reported, name: str) -> Values:
        """Return pass@k, of a part of results.json, by seed and task; zero-shot has no refiner.

        Args:
            part: Of results.json, or of its `transfer`.
            name: Of the metric; see `jobs.metric_names`.
        """
        if (part, name) not in self._known:  # every two arms are compared
            self._known[part, name] = {} if (part, self.part) == ("refiner", "zero_shot") else self._read(part, name)
        return self._known[part, name]

    def _read(self, part: Reported, name: str) -> Values:
        values: dict[int, dict[str, float]] = {}
        for job in self.jobs:
            results, own = measured(job, name)
            found = results.get(part) or {}
            if own in found and job["seed"] not in values:
                k, n = int(own.removeprefix("pass@")), found["n_samples"]
                values[job["seed"]] = {task: pass_at_k(n, c, k) for task, c in found["per_task"].items()}
        return values

    def means(self, part: Reported, name: str) -> list[float]:
        """Return pass@k, of a part of results.json, of each seed."""
        return [float(np.mean(list(tasks.values()))) for tasks in self.values(part, name).values()]

    def data_sha256(self, name: str) -> str | None:
        """Return the digest of the data of a metric: of the first job that has figures."""
        found = (measured(job, name)[0].get("data_sha256") for job in self.jobs)
        return next((digest for digest in found if digest is not None), None)

    def seeds(self, failed: bool) -> int:
        """Return how many seeds have failed, or have not."""
        return len({job["seed"] for job in self.jobs if (job["status"] == "failed") is failed})

    @property
    def status(self) -> str:
        """What became of the jobs: "failed" only where all did."""
        return next((job["status"] for job in self.jobs if job["status"] != "failed"), "failed")

    @property
    def trains(self) -> bool:
        """Whether the policy was fine-tuned; else the arm is a baseline."""
        return self.part == "finetuned" and all(job["refinements"] != "none" for job in self.jobs)


@dataclass(frozen=True)
class Arms:
    """What a comparison compares."""

    zero: Mapping[str, Arm]  # zero-shot, by `zero_label`
    none: Mapping[str, Arm]  # the policy without fine-tuning, sampled again: by `zero_label`, too
    own: Sequence[Arm]  # those of jobs; each that trains nothing is among them, and in `none` with those like it

    @property
    def shown(self) -> list[Arm]:
        """All that have a row."""
        return [*self.zero.values(), *self.own]


def arms_of(jobs: list[Job], notes: list[str]) -> Arms:
    """Return the arms of jobs.

    Args:
        jobs: All that have ended.
        notes: What limits a comparison; jobs that should agree and do not are added.
    """
    zero: dict[str, list[Job]] = defaultdict(list)
    none: dict[str, list[Job]] = defaultdict(list)
    own: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        own[job["label"]].append(job)
        # What sets two such jobs apart, and not their zero-shot figures, is read by no draw of theirs.
        if job["refinements"] == "none" and job["finetuned"]:
            none[job["zero_label"]].append(job)
        if found := job["zero_shot"]:
            before = zero[job["zero_label"]]
            first = next((other for other in before if other["seed"] == job["seed"]), job)
            if first["zero_shot"] and first["zero_shot"]["per_task"] != found["per_task"]:
                notes.append(
                    f"{job['folder']} has other zero-shot figures than {first['folder']}, of the same seed; "
                    "these stand in the table."
                )
            before.append(job)
    return Arms(
        {label: Arm(label, same, "zero_shot") for label, same in zero.items()},
        {label: Arm("none", same, "finetuned") for label, same in none.items()},
        [Arm(label, same, "finetuned") for label, same in own.items()],
    )


@dataclass(frozen=True)
class Pair:
    """Two arms compared over the tasks that both have."""

    name: str  # the metric
    before: Arm
    after: Arm
    tasks: int
    seeds: int  # that both have
    found: Difference  # over tasks
    seeds_ci95: tuple[float, float] | None  # over the seeds that both have


def pair_of(before: Arm, after: Arm, name: str) -> Pair | None:
    """Return two arms compared by a metric; None where one lacks it, or they have no tasks in common."""
    x, y = (arm.values(arm.part, name) for arm in (before, after))
    if not x or not y or before.data_sha256(name) != after.data_sha256(name):
        return None
    # The same seed gives both arms the same draws before fine-tuning: what they share there cancels.
    shared = sorted(x.keys() & y.keys())
    x_mean, y_mean = (over_seeds(values[seed] for seed in shared or values) for values in (x, y))
    tasks = sorted(x_mean.keys() & y_mean.keys(), key=int)
    if not tasks:
        return None
    difference = paired(np.array([x_mean[task] for task in tasks]), np.array([y_mean[task] for task in tasks]))
    both = [(x[seed], y[seed]) for seed in shared if x[seed].keys() & y[seed].keys()]
    by_seed = [fmean(b[task] - a[task] for task in a.keys() & b.keys()) for a, b in both]
    return Pair(name, before, after, len(tasks), len(shared), difference, t_ci95(by_seed))


def planned_pair(labels: Sequence[str], arms: Sequence[Arm], notes: list[str]) -> tuple[Arm, Arm] | None:
    """Return the two arms of a planned comparison, the one that is held against the other last.

    Args:
        labels: Of the two, the latter first; the part before the first comma is enough where no other arm has it.
        arms: All that have a row.
        notes: What keeps a pair from being compared is added; it is None then.
    """
    what, found = f"Planned, and not compared: {' and '.join(labels)}", []
    for label in labels:
        same = [arm for arm in arms if arm.label == label] or [a for a in arms if a.label.split(",")[0] == label]
        if len(same) != 1:
            why = "is the name of several arms" if same else "is no arm's name, and there are"
            notes.append(f"{what}: {label} {why}: {'; '.join(arm.label for arm in same or arms)}.")
            return None
        if not any(job[same[0].part] for job in same[0].jobs):
            notes.append(f"{what}: {label} has no figures.")
            return None
        found += same
    after, before = found
    if after is before:
        notes.append(f"{what}: both are the arm {after.label}.")
        return None
    return before, after
