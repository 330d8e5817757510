"""Formatting of metrics, p-values and model names in everything that people read."""

from __future__ import annotations

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
