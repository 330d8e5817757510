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
def canvas(file: Path, title: str, panels: int = 1, width: float = 6.4, height: float = 4.2) -> Iterator[list[Axes]]:
    """Yield axes side by side, and write the figure to a PNG file on exit."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawing, axes = plt.subplots(1, panels, figsize=(width * panels, height), squeeze=False, layout="constrained")
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    drawing.suptitle(plain(title), fontsize=9, wrap=True)
    yield list(axes[0])
    drawing.savefig(file, dpi=130)
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
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = [textwrap.fill(plain(label), 40) for label in labels]
    lines = [line for label in labels for line in label.split("\n")]
    several = any(len(values) > 1 for of_metric in (seeds or {}).values() for values in of_metric)
    height = max(0.5 if several else 0.45, 0.15 + 0.17 * max(label.count("\n") + 1 for label in labels))
    width = 0.6 + 0.085 * max(map(len, lines)) + 3.6 * len(series)
    figure, axes = plt.subplots(
        1, len(series), figsize=(width, 1.6 + height * len(labels)), sharey=True, squeeze=False, layout="constrained"
    )
    rows = range(len(labels))
    for axis, (name, points) in zip(axes[0], series.items(), strict=True):
        for row, point in zip(rows, points, strict=True):
            if isinstance(point, str):
                axis.text(50, row, point, ha="center", va="center", fontsize=9, color="#b03030")
            elif point is not None:
                value, low, high = (100 * number for number in point)
                axis.plot([low, high], [row, row], color="#9aa5b1", linewidth=3, solid_capstyle="round")
                axis.plot(value, row, "o", color="#1f5fa8", markersize=8)
                axis.annotate(f"{value:.1f}", (value, row), (0, 8), textcoords="offset points", ha="center", fontsize=9)
        for row, values in enumerate((seeds or {}).get(name, [])):
            if len(values) > 1:
                # Three heights below the line, so that seeds with equal values do not hide one another.
                levels = [row + 0.19 + 0.08 * (i % 3) for i in range(len(values))]
                axis.plot([100 * value for value in values], levels, "o", color="#d9822b", markersize=3.5, alpha=0.9)
        for row, theirs in enumerate((published or {}).get(name, [])):
            if theirs is not None:
                axis.plot(100 * theirs, row, "D", color="#c8553d", markersize=7, fillstyle="none")
        axis.set(
            xlim=(-3, 103), xlabel=f"{name} (%)", ylim=(len(labels) - 0.5, -0.7), yticks=list(rows), yticklabels=labels
        )
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    key = "points: mean over tasks; lines: 95% intervals over tasks" + ("\nsmall points: seeds" if several else "")
    key += "\ndiamonds: the paper" if published else ""
    above = "\n".join(textwrap.fill(line, int(width / 0.085)) for line in plain(title).split("\n"))
    figure.suptitle(f"{above}\n{key}", fontsize=10)
    figure.savefig(file, dpi=130)
    plt.close(figure)
