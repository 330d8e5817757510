"""pass@k, intervals over tasks and paired tests. Every task counts, whatever became of its programs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_Z = 1.959964 + 0.841621  # two-sided 5% and 80% power, of the normal distribution


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the unbiased estimate of the chance that one of k programs passes (Chen et al. 2021, equation 1).

    Args:
        n: Programs sampled.
        c: How many of them passed.
        k: Programs that a user would look at.

    Raises:
        ValueError: n < k, where no unbiased estimate exists.

    >>> round(pass_at_k(4, 1, 2), 3)
    0.5
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs k from 1 to n, the {n} programs sampled")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def mean_pass_at_k(tasks: Sequence[Sequence[bool]], k: int) -> float:
    """Return pass@k averaged over tasks, each given as the outcomes of its programs."""
    return float(np.mean([pass_at_k(len(passed), sum(passed), k) for passed in tasks]))


def bootstrap_ci95(values: Floats, seed: int = 0, draws: int = 10_000) -> tuple[float, float]:
    """Return the 95% percentile interval of the mean of `values`, one a task, (T,), resampling tasks."""
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [values[rng.integers(0, len(values), (chunk, len(values)))].mean(axis=1) for chunk in [500] * (draws // 500)]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def sign_flip_p_value(differences: Floats, seed: int = 0, draws: int = 10_000) -> float:
    """Return the two-sided p-value of a mean paired difference of 0, by flipping signs of tasks at random.

    Args:
        differences: One a task, (T,): after minus before.
        seed: Of the flips.
        draws: Random flips; the observed signs count as one more, so that the smallest p-value is 1 / (draws + 1).
    """
    rng = np.random.default_rng(seed)
    observed = abs(differences.sum())
    hits = 0
    for chunk in [500] * (draws // 500):
        signs = rng.integers(0, 2, (chunk, len(differences))) * 2 - 1
        hits += int((abs(signs @ differences) >= observed - 1e-12).sum())
    return (hits + 1) / (draws + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979), in the order given.

    >>> holm([0.01, 0.04])
    [0.02, 0.04]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = running
    return corrected


def paired(before: Floats, after: Floats, seed: int = 0) -> dict[str, object]:
    """Return the mean difference over tasks, its interval and p-value, and the smallest difference one could detect.

    Args:
        before: One value a task, (T,).
        after: The same tasks in the same order.
        seed: Of resampling.

    The smallest detectable difference is at 5%, two-sided, with 80% power: 2.8 standard errors; None where the
    tasks do not differ at all, which tells nothing of the spread.
    """
    differences = after - before
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else float("nan")
    detectable = _Z * spread / math.sqrt(len(differences))
    return {
        "mean": float(differences.mean()),
        "ci95": list(bootstrap_ci95(differences, seed)),
        "p_value": sign_flip_p_value(differences, seed),
        "smallest_detectable": detectable if detectable > 0 else None,
    }
