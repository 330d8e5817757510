"""The arms of a comparison: jobs that differ in the seed alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ilf.analysis.jobs import Job
from ilf.analysis.schema import Reported
from ilf.analysis.statistics import pass_at_k

Row = dict[str, Any]  # of a CSV file
Values = Mapping[int, Mapping[str, float]]  # pass@k by seed and task


@dataclass(frozen=True, eq=False)
class Arm:
    """Jobs that differ in the seed alone, or zero-shot: one job a seed of those that start from the same policy."""

    label: str
    jobs: Sequence[Job]
    part: Reported  # "zero_shot" or "finetuned"

    def values(self, part: Reported, name: str) -> Values:
        """Return pass@k, of a part of results.json, by seed and task; zero-shot has no refiner."""
        if part == "refiner" and self.part == "zero_shot":
            return {}
        k = int(name.removeprefix("pass@"))
        found = [(job["seed"], p) for job in self.jobs if (p := job[part]) and name in p]
        return {s: {t: pass_at_k(p["n_samples"], c, k) for t, c in p["per_task"].items()} for s, p in found}

    def means(self, part: Reported, name: str) -> list[float]:
        """Return pass@k, of a part of results.json, of each seed."""
        return [float(np.mean(list(tasks.values()))) for tasks in self.values(part, name).values()]

    @property
    def data_sha256(self) -> str | None:
        """Of the first job that has figures: one that failed early says nothing of its data."""
        return next((job["data_sha256"] for job in self.jobs if "data_sha256" in job), None)

    @property
    def status(self) -> str:
        """What became of the jobs: "failed" only where all did."""
        return next((job["status"] for job in self.jobs if job["status"] != "failed"), "failed")


def arms_of(jobs: list[Job], notes: list[str]) -> tuple[dict[str, Arm], list[Arm]]:
    """Return the zero-shot arms by label, and the others.

    Args:
        jobs: All that have ended.
        notes: What limits a comparison; jobs that should agree and do not are added.
    """
    zero: dict[str, dict[int, Job]] = defaultdict(dict)
    arms: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        arms[job["label"]].append(job)
        if found := job["zero_shot"]:
            first = zero[job["zero_label"]].setdefault(job["seed"], job)
            if first["zero_shot"] and first["zero_shot"]["per_task"] != found["per_task"]:
                notes.append(
                    f"{job['folder']} has other zero-shot figures than {first['folder']}, of the same seed; "
                    "these stand in the table."
                )
    return (
        {label: Arm(label, list(by_seed.values()), "zero_shot") for label, by_seed in zero.items()},
        [Arm(label, same, "finetuned") for label, same in arms.items()],
    )
