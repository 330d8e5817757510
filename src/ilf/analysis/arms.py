"""The arms of a comparison (groups of jobs that differ only in the seed), and the difference between two arms."""

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

Row = dict[str, Any]  # a row of a CSV file
Values = Mapping[int, Mapping[str, float]]  # pass@k by seed and task


@dataclass(frozen=True, eq=False)
class Arm:
    """Jobs that differ only in the seed, or a baseline: all jobs with its results, the first of each seed counts."""

    label: str
    jobs: Sequence[Job]
    part: Reported  # "zero_shot" or "finetuned"
    _known: dict[tuple[Reported, str], Values] = field(default_factory=dict, repr=False)

    def values(self, part: Reported, name: str) -> Values:
        """Return pass@k by seed and task. Zero-shot has no refiner, so its values for "refiner" are empty.

        Args:
            part: A key of results.json, or of its `transfer`.
            name: The name of the metric; see `jobs.metric_names`.
        """
        if (part, name) not in self._known:  # cached, as every pair of arms is compared
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
        """Return the mean pass@k of each seed; for the arguments, see `values`."""
        return [float(np.mean(list(tasks.values()))) for tasks in self.values(part, name).values()]

    def data_sha256(self, name: str) -> str | None:
        """Return the digest of the data that a metric is measured on, from the first job that has one."""
        found = (measured(job, name)[0].get("data_sha256") for job in self.jobs)
        return next((digest for digest in found if digest is not None), None)

    def seeds(self, failed: bool) -> int:
        """Return the number of seeds that have failed, or that have not."""
        return len({job["seed"] for job in self.jobs if (job["status"] == "failed") is failed})

    @property
    def status(self) -> str:
        """The status of the jobs: that of the first that has not failed, else "failed"."""
        return next((job["status"] for job in self.jobs if job["status"] != "failed"), "failed")

    @property
    def trains(self) -> bool:
        """Whether the policy was fine-tuned; if not, the arm is a baseline."""
        return self.part == "finetuned" and all(job["refinements"] != "none" for job in self.jobs)


@dataclass(frozen=True)
class Arms:
    """All arms of a comparison."""

    zero: Mapping[str, Arm]  # zero-shot, by `zero_label`
    none: Mapping[str, Arm]  # the policy without fine-tuning, sampled again; also by `zero_label`
    own: Sequence[Arm]  # one per label of the jobs, including arms without training, which `none` groups together

    @property
    def shown(self) -> list[Arm]:
        """The arms that have a row."""
        return [*self.zero.values(), *self.own]


def arms_of(jobs: list[Job], notes: list[str]) -> Arms:
    """Return the arms that the jobs form.

    Args:
        jobs: All finished jobs.
        notes: Notes on the limits of the comparison; this adds one for jobs whose zero-shot results should agree and
            do not.
    """
    zero: dict[str, list[Job]] = defaultdict(list)
    none: dict[str, list[Job]] = defaultdict(list)
    own: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        own[job["label"]].append(job)
        # If two such jobs have the same zero-shot results, what else sets them apart does not affect their samples.
        if job["refinements"] == "none" and job["finetuned"]:
            none[job["zero_label"]].append(job)
        if found := job["zero_shot"]:
            before = zero[job["zero_label"]]
            first = next((other for other in before if other["seed"] == job["seed"]), job)
            if first["zero_shot"] and first["zero_shot"]["per_task"] != found["per_task"]:
                notes.append(
                    f"{job['folder']} has other zero-shot results than {first['folder']}, of the same seed; "
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

    name: str  # of the metric
    before: Arm
    after: Arm
    tasks: int  # number of shared tasks
    seeds: int  # number of shared seeds
    found: Difference  # after minus before, over the shared tasks
    seeds_ci95: tuple[float, float] | None  # interval of the difference over the shared seeds


def pair_of(before: Arm, after: Arm, name: str) -> Pair | None:
    """Return two arms compared by a metric; None if one lacks it, or if their data differ or share no tasks."""
    x, y = (arm.values(arm.part, name) for arm in (before, after))
    if not x or not y or before.data_sha256(name) != after.data_sha256(name):
        return None
    # With the same seed both arms have the same samples before fine-tuning, so the noise that they share cancels out.
    shared = sorted(x.keys() & y.keys())
    both = [(x[seed], y[seed]) for seed in shared]
    if not shared:
        x_mean, y_mean = ({t: fmean(v) for t, v in over_seeds(values.values()).items()} for values in (x, y))
        both = [(x_mean, y_mean)]
    difference = paired(both)
    if not difference:
        return None
    tasks = {task for a, b in both for task in a.keys() & b.keys()}
    by_seed = [fmean(b[task] - a[task] for task in common) for a, b in both if (common := a.keys() & b.keys())]
    return Pair(name, before, after, len(tasks), len(shared), difference, t_ci95(by_seed))


def planned_pair(labels: Sequence[str], arms: Sequence[Arm], notes: list[str]) -> tuple[Arm, Arm] | None:
    """Return the two arms of a planned comparison: the baseline first; None if they cannot be compared.

    Args:
        labels: The labels of the two arms, the baseline last. The part of a label before its first comma is enough if
            no other arm has it.
        arms: All arms that have a row.
        notes: Gets a note with the reason if the pair cannot be compared.
    """
    what, found = f"Planned but not compared: {' and '.join(labels)}", []
    for label in labels:
        same = [arm for arm in arms if arm.label == label] or [a for a in arms if a.label.split(",")[0] == label]
        if len(same) != 1:
            why = "is the name of several arms" if same else "is no arm's name, and there are"
            notes.append(f"{what}: {label} {why}: {'; '.join(arm.label for arm in same or arms)}.")
            return None
        if not any(job[same[0].part] for job in same[0].jobs):
            notes.append(f"{what}: {label} has no results.")
            return None
        found += same
    after, before = found
    if after is before:
        notes.append(f"{what}: both are the arm {after.label}.")
        return None
    return before, after
