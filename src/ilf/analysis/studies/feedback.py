"""Tables 5 and 6: statistics of feedback."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from ilf.analysis.plots import COLOURS, canvas, plain
from ilf.analysis.refinements import edit_distance
from ilf.analysis.studies import paper
from ilf.analysis.studies.job import Job, Row, Study, grouped, subject


def tables5_6(jobs: Sequence[Job]) -> Study:
    """Describe feedback by source: how many, their words, mistakes, edit distance and categories of mistakes."""
    sources: dict[str, dict[str, float]] = {}
    for source, group in grouped(jobs, lambda job: job.results["annotator"]).items():
        # Seeds may share programs and feedback. Tasks 1 to 10 are only for worked examples.
        rows_of = [f for job in group for f in job.rows("feedback.jsonl") if f["split"] != "prompt"]
        feedback = list({(f["task_id"], f["program"], f["text"]): f for f in rows_of}.values())
        if feedback:
            sources[f"{source} (ours)" if source == "scripted" else source] = _statistics(feedback)
    if sources:
        for source, found in paper.FEEDBACK.items():
            shares = {f"{name} (%)": 100 * share for name, share in paper.CATEGORIES[source].items()}
            sources[f"{source}, paper"] = {"words": found["words"], "words, sd": found["words_sd"]} | {
                "mistakes addressed": found["bugs"],
                **shares,
            }
    measures = dict.fromkeys(measure for found in sources.values() for measure in found)
    rows: list[Row] = [
        {"row": measure, **{source: _short(found.get(measure)) for source, found in sources.items()}}
        for measure in measures
    ]
    notes = [
        "Words: mean and standard deviation. Edit distance: Levenshtein distance from the incorrect program to the "
        "annotator's refinement, as a share of the longer one. Categories and numbers of mistakes are those that the "
        "annotator recorded (columns `categories` and `bugs` of an annotation file); the paper's categories are in its "
        "authors' own words.",
    ]
    columns = {"": "row", **{source: source for source in sources}}
    return Study(
        "Tables 5 and 6: feedback",
        subject(jobs),
        columns,
        rows,
        lambda file, caption: _draw(file, sources, caption),
        notes,
    )


def _statistics(feedback: Sequence[dict[str, Any]]) -> dict[str, float]:
    words = [len(f["text"].split()) for f in feedback]
    bugs = [f["bugs"] for f in feedback if f["bugs"]]
    edits = [edit_distance(f["program"], f["refinement"]) for f in feedback if f["refinement"]]
    sorted_out = [set(f["categories"]) for f in feedback if f["categories"]]
    shares = Counter(category for categories in sorted_out for category in categories)
    return {
        "feedbacks": float(len(feedback)),
        "words": float(np.mean(words)),
        "words, sd": float(np.std(words, ddof=1)) if len(words) > 1 else 0.0,
        **({"mistakes addressed": float(np.mean(bugs))} if bugs else {}),
        **({"edit distance": float(np.mean(edits))} if edits else {}),
        **{f"{name} (%)": 100 * count / len(sorted_out) for name, count in shares.most_common()},
    }


def _short(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}"


def _draw(file: Path, sources: Mapping[str, Mapping[str, float]], title: str) -> None:
    """Plot the words and the categories of feedback by source; the categories only of sources that name any."""
    categories = list(dict.fromkeys(name for found in sources.values() for name in found if name.endswith(" (%)")))
    height = 1.6 + 0.3 * max(6, len(categories))
    with canvas(file, title, panels=2, width=5.6, height=height) as (left, right):
        for i, (colour, (source, found)) in enumerate(zip(cycle(COLOURS), sources.items(), strict=False)):
            left.barh(i, found["words"], color=colour)
            text = f"{found['words']:.1f} words" + (
                f", {found['mistakes addressed']:.1f} mistakes" if "mistakes addressed" in found else ""
            )
            left.annotate(text, (found["words"], i), (4, 0), textcoords="offset points", va="center", fontsize=8)
            if any(name in found for name in categories):
                where = np.arange(len(categories)) + (i + 0.5 - len(sources) / 2) * 0.8 / len(sources)
                heights = [found.get(name, 0.0) for name in categories]
                right.barh(where, heights, height=0.8 / len(sources), color=colour, label=plain(source))
        most = max(found["words"] for found in sources.values())
        left.set(
            yticks=range(len(sources)),
            yticklabels=list(map(plain, sources)),
            xlabel="words per piece of feedback",
            xlim=(0, 2 * most),
        )
        labels = [plain(name.removesuffix(" (%)")) for name in categories]
        right.set(yticks=range(len(categories)), yticklabels=labels, xlabel="feedback that names such a mistake (%)")
        left.invert_yaxis()
        right.invert_yaxis()
        right.legend(frameon=False, fontsize=8)
