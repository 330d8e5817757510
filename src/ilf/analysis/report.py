"""summary.md and the picture of one run."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROWS = {"zero_shot": "zero-shot (Test)", "refiner": "refiner (Train)", "finetuned": "fine-tuned (Test)"}


def arm_name(arm: str, annotator: str) -> str:
    """Return what a reader calls an arm: a script's refinements are never called human.

    >>> arm_name("human", "scripted")
    'annotator (scripted)'
    """
    return "annotator (scripted)" if (arm, annotator) == ("human", "scripted") else arm


def model_name(results: dict[str, Any]) -> str:
    """Return what a reader calls the model: the folder's name for a local one."""
    return Path(results["model_id"]).name if results["model"] == "local" else str(results["model"])


def percent(value: float, interval: list[float]) -> str:
    """Return a figure and its interval, in percent.

    >>> percent(0.25, [0.1, 0.4])
    '25.0 [10.0, 40.0]'
    """
    return f"{100 * value:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def p_text(p: float) -> str:
    """Return a p-value to three places, never as 0.

    >>> p_text(0.0001), p_text(0.0213)
    ('< 0.001', '= 0.021')
    """
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def table(results: dict[str, Any]) -> str:
    """Return the run's figures as a Markdown table: pass@k in percent with 95% intervals over tasks."""
    parts = {label: results[key] for key, label in ROWS.items() if results[key]}
    if not parts:
        return "No figures yet: no programs on Test, and no refinements."
    names = [key for part in list(parts.values())[:1] for key in part["ci95"]]
    lines = [
        "| | " + " | ".join(f"{name} (%)" for name in names) + " | tasks | samples a task |",
        "| --- " * (len(names) + 3) + "|",
    ]
    for label, part in parts.items():
        cells = [percent(part[name], part["ci95"][name]) for name in names]
        lines.append(f"| {label} | " + " | ".join(cells) + f" | {part['n_tasks']} | {part['n_samples']} |")
    return "\n".join(lines)


def delta_text(results: dict[str, Any]) -> str:
    """Return the fine-tuned policy against zero-shot in one line for each k."""
    lines = []
    for name, d in (results["delta"] or {}).items():
        smallest = "unknown" if d["smallest_detectable"] is None else f"{100 * d['smallest_detectable']:.1f}"
        lines.append(
            f"{name}: {100 * d['mean']:+.1f} points, 95% interval [{100 * d['ci95'][0]:+.1f}, "
            f"{100 * d['ci95'][1]:+.1f}], p {p_text(d['p_value'])} (smallest detectable difference: {smallest})"
        )
    return "\n".join(lines)


def summary(results: dict[str, Any]) -> str:
    """Return summary.md: what was run, on what, the figures, and what each line of the algorithm left over."""
    counts, seconds = results["counts"], results["seconds"]
    lines = [
        f"# ILF: {arm_name(results['arm'], results['annotator'])}, data {results['data']}, model {model_name(results)}",
        "",
        f"Status {results['status']}. Feedback: {results['feedback']}; refiner: {results['refiner_kind']}; "
        f"seed {results['seed']}.",
        "",
        table(results),
        "",
        delta_text(results) or "No comparison: the run has not come to the fine-tuned policy.",
        "",
        "| count | |",
        "| --- | --- |",
        *(f"| {name.replace('_', ' ')} | {value} |" for name, value in counts.items()),
        "",
        "| stage | seconds |",
        "| --- | --- |",
        *(
            f"| {name} | {value:.1f}{' (reused)' if name in seconds['reused'] else ''} |"
            for name, value in seconds.items()
            if name != "reused" and value is not None
        ),
        "",
    ]
    if results["rejected"]:
        lines += ["Rejected rows:", "", *(f"- {row}" for row in results["rejected"]), ""]
    if results["feedback_on_policy"] is False:
        lines += ["The annotated programs are another policy's: feedback is off-policy.", ""]
    if not results["matched"]:
        lines += ["Unmatched: the arms of this comparison need not train on the same tasks.", ""]
    return "\n".join(lines)


def plot(results: dict[str, Any], file: Path) -> None:
    """Draw zero-shot, refiner and fine-tuned pass@k with their intervals."""
    parts = {label: results[key] for key, label in ROWS.items() if results[key]}
    if not parts:
        return
    names = list(next(iter(parts.values()))["ci95"])
    arm = arm_name(results["arm"], results["annotator"])
    bars(
        file,
        list(parts),
        {n: [(p[n], *p["ci95"][n]) for p in parts.values()] for n in names},
        f"{arm}: data {results['data']}, model {model_name(results)}, seed {results['seed']}",
    )


Point = tuple[float, float, float] | str | None  # value and interval, or a word in their place


def bars(
    file: Path,
    labels: list[str],
    series: Mapping[str, Sequence[Point]],
    title: str,
    seeds: Mapping[str, Sequence[Sequence[float]]] | None = None,
) -> None:
    """Draw points with intervals, one panel a metric, one row a label.

    Args:
        file: The PNG file.
        labels: One a row, the first on top.
        series: For each metric, (value, low, high) a label, as fractions; a word is written; None leaves the row empty.
        title: Above the panels.
        seeds: For each metric, the values of the seeds a label; drawn where there are several.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = [textwrap.fill(label, 40) for label in labels]
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
                # On three levels below the line, so that equal seeds do not hide one another.
                levels = [row + 0.19 + 0.08 * (i % 3) for i in range(len(values))]
                axis.plot([100 * value for value in values], levels, "o", color="#d9822b", markersize=3.5, alpha=0.9)
        axis.set(
            xlim=(-3, 103), xlabel=f"{name} (%)", ylim=(len(labels) - 0.5, -0.7), yticks=list(rows), yticklabels=labels
        )
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    key = "points: mean over tasks; lines: 95% intervals over tasks" + ("\nsmall points: seeds" if several else "")
    figure.suptitle(f"{textwrap.fill(title, int(width / 0.085))}\n{key}", fontsize=10)
    figure.savefig(file, dpi=130)
    plt.close(figure)
