"""Plots with 95% intervals: points in panels, and curves."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ilf.analysis.markdown import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#1f5fa8", "#c8553d", "#3a8f5c", "#8a5aa8", "#7a7a7a", "#b8860b")


def plain(text: str) -> str:
    """Return `text` escaped for Matplotlib, which reads text between two dollar signs as a formula."""
    return visible(text).replace("$", r"\$")


@contextmanager
def canvas(
    file: Path, title: str, panels: int = 1, width: float = 6.4, height: float = 4.2, sharey: bool = False
) -> Iterator[list[Axes]]:
    """Yield axes side by side, each of this width in inches, and write the figure to a PNG file on exit."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (width * panels, height)
    drawing, axes = plt.subplots(1, panels, figsize=size, sharey=sharey, squeeze=False, layout="constrained")
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    drawing.suptitle(plain(title), fontsize=9, wrap=True)
    try:
        yield list(axes[0])
        drawing.savefig(file, dpi=130)
    finally:
        plt.close(drawing)


def curve(
    file: Path,
    series: Mapping[str, Sequence[tuple[float, float, float, float]]],
    title: str,
    xlabel: str,
    ylabel: str,
    levels: Mapping[str, float] | None = None,
) -> None:
    """Plot one curve per series, with an interval at each point.

    Args:
        file: The PNG file to write.
        series: The points of each curve, as (x, value, low, high); all but x are fractions.
        title: The figure's title.
        xlabel: The label of the x axis.
        ylabel: The label of the y axis.
        levels: Horizontal reference lines, in the colors of the curves.
    """
    with canvas(file, title) as (axis,):
        for colour, (label, found) in zip(cycle(COLOURS), series.items(), strict=False):
            x, y, low, high = (np.array(column) for column in zip(*sorted(found), strict=True))
            bars = 100 * np.array([y - low, high - y]).clip(min=0)
            axis.errorbar(x, 100 * y, bars, color=colour, marker="o", capsize=3, label=plain(label))
            axis.set_xticks(x)
        for colour, (label, value) in zip(cycle(COLOURS), (levels or {}).items(), strict=False):
            axis.axhline(100 * value, color=colour, linestyle="--", linewidth=1, label=plain(label))
        axis.set(xlabel=plain(xlabel), ylabel=plain(ylabel), ylim=(0, None))
        axis.legend(frameon=False, fontsize=8)


Point = tuple[float, float, float] | str | None  # value, low and high, or a text to show instead


def bars(
    file: Path,
    labels: list[str],
    series: Mapping[str, Sequence[Point]],
    title: str,
    seeds: Mapping[str, Sequence[Sequence[float]]] | None = None,
    published: Mapping[str, Sequence[float | None]] | None = None,
) -> None:
    """Plot points with intervals: one panel per metric, one row per label.

    Args:
        file: The PNG file to write.
        labels: The label of each row, the top row first.
        series: For each metric, one item per label: (value, low, high) as fractions, a text instead, or None.
        title: The title above the panels.
        seeds: For each metric and label, the value of each seed; plotted if there are several.
        published: For each metric and label, the value in the paper.
    """
    several = any(len(values) > 1 for of_metric in (seeds or {}).values() for values in of_metric)
    key = ["points: mean over tasks; lines: 95% intervals over tasks", *["small points: seeds"][:several]]
    key += ["diamonds: the paper"] if published else []
    with _panels(file, labels, len(series), [title, *key], 0.5 if several else 0.45) as axes:
        for axis, (name, points) in zip(axes, series.items(), strict=True):
            for row, point in enumerate(points):
                if isinstance(point, str):
                    middle = axis.get_yaxis_transform()  # x is a fraction of the panel's width
                    axis.text(0.5, row, point, ha="center", va="center", fontsize=9, color="#b03030", transform=middle)
                elif point is not None:
                    _interval(axis, row, point, f"{100 * point[0]:.1f}")
            for row, values in enumerate((seeds or {}).get(name, [])):
                if len(values) > 1:
                    # Three heights below the line, so that seeds with equal values do not hide one another.
                    levels = [row + 0.19 + 0.08 * (i % 3) for i in range(len(values))]
                    shown = [100 * value for value in values]
                    axis.plot(shown, levels, "o", color="#d9822b", markersize=3.5, alpha=0.9)
            for row, theirs in enumerate((published or {}).get(name, [])):
                if theirs is not None:
                    axis.plot(100 * theirs, row, "D", color="#c8553d", markersize=7, fillstyle="none")
            axis.locator_params(axis="x", nbins=6)
            low, high = axis.get_xlim()
            axis.set(xlim=(max(-3, low - 2), min(103, high + 2)), xlabel=f"{name} (%)")


def differences(
    file: Path, labels: list[str], series: Mapping[str, Sequence[tuple[float, float, float, float, str]]], title: str
) -> None:
    """Plot differences with intervals against what could have been detected: one panel per metric, one row per label.

    Args:
        file: The PNG file to write.
        labels: The label of each row, the top row first.
        series: For each metric, one item per label: the difference, the ends of its interval and the minimum
            detectable difference (NaN if it is unknown), as fractions, and the text above the point.
        title: The title above the panels.
    """
    key = "points: differences and Holm-corrected p; lines: 95% intervals over tasks"
    gray = "gray: smaller differences could not be detected"
    with _panels(file, labels, len(series), [title, key, gray], 0.5) as axes:
        for axis, (name, rows) in zip(axes, series.items(), strict=True):
            for row, (value, low, high, smallest, text) in enumerate(rows):
                axis.barh(row, 200 * smallest, left=-100 * smallest, height=0.62, color="#eceff2", zorder=0)
                _interval(axis, row, (value, low, high), text)
            axis.axvline(0, color="#555555", linewidth=1)
            axis.set(xlabel=f"difference in {name} (points)")


@contextmanager
def _panels(file: Path, labels: list[str], panels: int, heading: list[str], height: float) -> Iterator[list[Axes]]:
    """Yield axes side by side with a labeled row for each label, and write the figure on exit."""
    labels = [textwrap.fill(plain(label), 40) for label in labels]
    lines = [line for label in labels for line in label.split("\n")]
    height = max(height, 0.15 + 0.17 * max(label.count("\n") + 1 for label in labels))
    width = 0.6 + 0.085 * max(map(len, lines)) + 3.6 * panels
    above = [textwrap.fill(line, int(width / 0.085)) for text in heading for line in text.split("\n")]
    with canvas(file, "\n".join(above), panels, width / panels, 1.6 + height * len(labels), sharey=True) as axes:
        yield axes
        for axis in axes:
            axis.set(ylim=(len(labels) - 0.5, -0.7), yticks=list(range(len(labels))), yticklabels=labels)
            axis.grid(axis="y", visible=False)


def _interval(axis: Axes, row: int, point: tuple[float, float, float], text: str) -> None:
    value, low, high = (100 * number for number in point)
    axis.plot([low, high], [row, row], color="#9aa5b1", linewidth=3, solid_capstyle="round")
    axis.plot(value, row, "o", color="#1f5fa8", markersize=8)
    axis.annotate(text, (value, row), (0, 8), textcoords="offset points", ha="center", fontsize=9)
