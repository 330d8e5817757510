"""results.json: what a run found, and the metrics in it."""

from __future__ import annotations

import importlib.metadata
import platform
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ilf.analysis.statistics import Floats, bootstrap_ci95, paired, pass_at_k
from ilf.types import Program

SCHEMA = 1
_PACKAGES = (
    "torch",
    "pytorch-lightning",
    "hydra-core",
    "transformers",
    "datasets",
    "peft",
    "bitsandbytes",
    "wandb",
    "numpy",
)


def per_task(programs: Sequence[Program], k: int) -> dict[int, float]:
    """Return pass@k of each task, by id."""
    outcomes: dict[int, list[bool]] = defaultdict(list)
    for program in programs:
        outcomes[program.task_id].append(program.verdict.passed)
    return {i: pass_at_k(len(passed), sum(passed), k) for i, passed in sorted(outcomes.items())}


def _values(programs: Sequence[Program], k: int) -> Floats:
    return np.array(list(per_task(programs, k).values()))


def metrics(programs: Sequence[Program] | None, k: Sequence[int]) -> dict[str, Any] | None:
    """Return pass@k with 95% intervals over tasks, and the share of tasks with a correct program."""
    if not programs:
        return None
    found: dict[str, Any] = {f"pass@{i}": float(_values(programs, i).mean()) for i in k}
    found["ci95"] = {f"pass@{i}": list(bootstrap_ci95(_values(programs, i))) for i in k}
    solved = {p.task_id for p in programs if p.verdict.passed}
    tasks = {p.task_id for p in programs}
    return found | {
        "one_correct": len(solved) / len(tasks),
        "n_tasks": len(tasks),
        "n_samples": len(programs) // len(tasks),
    }


def delta(before: Sequence[Program] | None, after: Sequence[Program] | None, k: Sequence[int]) -> dict[str, Any] | None:
    """Return the paired comparison over tasks of `after` against `before`, for each k."""
    if not before or not after:
        return None
    if per_task(before, 1).keys() != per_task(after, 1).keys():
        raise ValueError("the two sets of programs are on different tasks")
    return {f"pass@{i}": paired(_values(before, i), _values(after, i)) for i in k}


def versions() -> dict[str, str]:
    """Return the versions that a figure may depend on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        found[package] = importlib.metadata.version(package)
    from ilf import __version__

    return found | {"ilf": __version__}
