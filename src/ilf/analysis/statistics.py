"""pass@k, intervals over tasks and paired tests. Every task counts, whatever the verdicts of its programs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
K = TypeVar("K")  # a task's id, as a number or as text
PerSeed = Mapping[Any, Sequence[float]]  # the values of each task, one for each seed that has the task
_Z = 1.959964 + 0.841621  # quantiles of the normal distribution: 5% two-sided, plus 80% power
# The 97.5% quantile of Student's t for 1, 2, ... degrees of freedom; beyond these, the normal quantile is used.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


class Difference(TypedDict):
    """The result of `paired`."""

    mean: float
    ci95: list[float]
    p_value: float
    smallest_detectable: float | None


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the unbiased estimate of the probability that one of k programs passes (Chen et al. 2021, equation 1).

    Args:
        n: The number of sampled programs.
        c: The number of these that passed.
        k: The number of programs that a user would inspect.

    Raises:
        ValueError: k is less than 1, or greater than n, where no unbiased estimate exists.

    >>> round(pass_at_k(4, 1, 2), 3)
    0.5
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs k from 1 to n, the {n} programs sampled")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def mean_pass_at_k(tasks: Sequence[Sequence[bool]], k: int) -> float:
    """Return pass@k averaged over tasks. Each task is given as the outcomes of its programs."""
    return float(np.mean([pass_at_k(len(passed), sum(passed), k) for passed in tasks]))


# A comparison tests many pairs of arms on the same tasks. Resampling takes most of the time, so it is cached.
@lru_cache(maxsize=2)
def _resamples(n: int, seed: int, draws: int) -> Floats:
    """Return how often each of n tasks occurs in each bootstrap resample of size n, (draws, n)."""
    drawn = np.random.default_rng(seed).integers(0, n, (draws, n)) + n * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * n).reshape(draws, n).astype(np.float64)


@lru_cache(maxsize=2)
def _signs(n: int, seed: int, draws: int) -> Floats:
    return (np.random.default_rng(seed).integers(0, 2, (draws, n)) * 2 - 1).astype(np.float64)


def bootstrap_ci95(
    values: Floats, weights: Floats | None = None, seed: int = 0, draws: int = 10_000
) -> tuple[float, float]:
    """Return the 95% percentile bootstrap interval of a mean over tasks.

    Args:
        values: One value per task, (T,).
        weights: The tasks' weights in the mean, (T,); None for equal weights.
        seed: The seed of resampling.
        draws: The number of resamples.
    """
    weights = np.ones(len(values)) if weights is None else weights
    counts = _resamples(len(values), seed, draws)
    low, high = np.quantile(counts @ (values * weights) / (counts @ weights), [0.025, 0.975])
    return float(low), float(high)


def rate_ci95(values: Floats, weights: Floats | None = None) -> tuple[float, float]:
    """Return the 95% interval of a mean over tasks of rates from 0 to 1; for the arguments, see `bootstrap_ci95`.

    It is the bootstrap's, unless all tasks pass or all fail. Their resamples are equal, so the exact interval of a
    proportion is used instead (Clopper and Pearson 1934).

    >>> tuple(round(end, 3) for end in rate_ci95(np.ones(100)))
    (0.964, 1.0)
    """
    bound = 0.025 ** (1 / len(values))
    if (values == 1).all():
        return bound, 1.0
    return (0.0, 1 - bound) if (values == 0).all() else bootstrap_ci95(values, weights)


def over_seeds(seeds: Iterable[Mapping[K, float]]) -> dict[K, list[float]]:
    """Return the values of each task, one for each seed that has the task.

    >>> over_seeds([{1: 0.5, 2: 1.0}, {1: 1.0}])
    {1: [0.5, 1.0], 2: [1.0]}
    """
    found: dict[K, list[float]] = defaultdict(list)
    for values in seeds:
        for task, value in values.items():
            found[task].append(value)
    return dict(found)


def task_means(values: PerSeed) -> tuple[Floats, Floats]:
    """Return each task's mean over seeds and its weight in a mean over tasks, both (T,).

    The weight is the number of seeds that have the task. So the mean over tasks is that of all values, and lies between
    the means of the seeds, which may have different tasks.
    """
    return np.array([np.mean(v) for v in values.values()]), np.array([float(len(v)) for v in values.values()])


def t_ci95(values: Sequence[float]) -> tuple[float, float] | None:
    """Return Student's 95% interval of the mean of `values`, one per seed; None for one seed, which has no spread."""
    free = len(values) - 1
    if free < 1:
        return None
    mean = float(np.mean(values))
    half = (_T[free - 1] if free <= len(_T) else 1.96) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean - half, mean + half


def sign_flip_p_value(differences: Floats, seed: int = 0, draws: int = 10_000) -> float:
    """Return the two-sided p-value of the hypothesis that the mean paired difference is 0: a sign-flip test over tasks.

    Args:
        differences: After minus before for each task, (T,).
        seed: The seed of the random flips.
        draws: The number of random flips. The observed signs count as one more, so the smallest possible p-value is
            1 / (draws + 1).
    """
    flipped = np.abs(_signs(len(differences), seed, draws) @ differences)
    return (int((flipped >= abs(differences.sum()) - 1e-12).sum()) + 1) / (draws + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values corrected for multiple testing (Holm 1979), in the given order.

    >>> holm([0.01, 0.04])
    [0.02, 0.04]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = running
    return corrected


def paired(seeds: Iterable[tuple[Mapping[K, float], Mapping[K, float]]], seed: int = 0) -> Difference | None:
    """Return the mean paired difference over tasks, its interval, p-value and minimum detectable difference.

    The minimum detectable difference is that of a two-sided test at the 5% level with 80% power: 2.8 standard errors.
    It is None if the spread of the differences is zero or unknown.

    Args:
        seeds: For each seed, the values before and after by task. Tasks that only one of these has are left out.
        seed: The seed of resampling.

    Returns:
        The difference after minus before; None if no task is left. For the weights of the tasks, see `task_means`.
    """
    differences = over_seeds({task: y[task] - x[task] for task in x if task in y} for x, y in seeds)
    if not differences:
        return None
    values, weights = task_means(differences)
    mean = float(np.average(values, weights=weights))
    n, spread = len(values), float(np.sum((weights * (values - mean)) ** 2))
    detectable = _Z * math.sqrt(spread * n / (n - 1)) / float(weights.sum()) if n > 1 else 0.0
    return {
        "mean": mean,
        "ci95": list(bootstrap_ci95(values, weights, seed)),
        "p_value": sign_flip_p_value(values * weights, seed),
        "smallest_detectable": detectable if detectable > 0 else None,
    }
