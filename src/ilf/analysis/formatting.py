"""Formatting of metrics, p-values and model names in everything that people read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypedDict


class Model(TypedDict):
    """The keys of results.json that name the model."""

    model: str
    model_id: str


def model_name(results: Model) -> str:
    """Return the model's display name: the name of its folder if it is local."""
    return Path(results["model_id"]).name if results["model"] == "local" else results["model"]


def percent(value: float, interval: list[float]) -> str:
    """Return a value and its interval in percent.

    >>> percent(0.25, [0.1, 0.4])
    '25.0 [10.0, 40.0]'
    """
    return f"{100 * value:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def p_text(p: float) -> str:
    """Return a p-value rounded to three decimal places, and never as 0.

    >>> p_text(0.0001), p_text(0.0213)
    ('< 0.001', '= 0.021')
    """
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def samples(results: Any) -> str:
    """Return the number of samples per task and their temperature, and the same for Test where it differs."""
    drawn, reported = (
        f"{one['n']} samples a task at temperature {one['temperature']}"
        for one in (results["sampling"], results["evaluation"])
    )
    return drawn if drawn == reported else f"{drawn} ({reported} on Test)"


def time_left(done: float, total: float, seconds: float) -> str:
    """Return how long the rest of some work takes at the pace so far.

    >>> time_left(1, 4, 600.0), time_left(3, 4, 30.0), time_left(4, 4, 30.0)
    ('about 30 min left', 'about 10 s left', 'none left')
    >>> time_left(0, 4, 1.0), time_left(1, float("inf"), 1.0)
    ('time left unknown', 'time left unknown')
    """
    if done >= total:
        return "none left"
    if not done or math.isinf(total):
        return "time left unknown"
    rest = seconds * (total - done) / done
    if rest < 100:
        return f"about {rest:.0f} s left"
    return f"about {rest / 60:.0f} min left" if rest < 6000 else f"about {rest / 3600:.1f} h left"
