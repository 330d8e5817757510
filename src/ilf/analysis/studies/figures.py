"""Studies of the paper's figures, and of how fine-tuning changed the policy."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain, cycle
from pathlib import Path
from statistics import fmean

import numpy as np

from ilf.analysis.formatting import p_text, percent
from ilf.analysis.plots import COLOURS, canvas, curve
from ilf.analysis.statistics import PerSeed, over_seeds, sign_flip_p_value
from ilf.analysis.studies.job import (
    Job,
    Row,
    Study,
    cells,
    examples,
    figure,
    grouped,
    names,
    per_task,
    subject,
)
from ilf.tasks.prompts import lines_of


def figure3(jobs: Sequence[Job]) -> Study:
    """Compare the perplexity of each arm's programs under the base model, on the same tasks."""
    by_source: dict[str, list[dict[str, float]]] = defaultdict(list)
    for job in jobs:
        for source, values in (job.results["perplexity"] or {}).items():
            by_source[source].append(values)
    means = {source: {i: fmean(v) for i, v in over_seeds(found).items()} for source, found in by_source.items()}
    ends = [job.results["end_loss"] or {} for job in jobs]
    rows = []
    for source, values in means.items():
        array = np.array(list(values.values()))
        others = means.get("gold", {}) if source != "gold" else {}
        common = sorted(values.keys() & others.keys(), key=int)
        logs = np.array([np.log(values[i] / others[i]) for i in common])
        end = over_seeds(found[source] for found in ends if source in found)
        rows.append(
            {
                "row": source,
                "tasks": len(array),
                "median": f"{np.median(array):.2f}",
                "mean": f"{array.mean():.2f}",
                "above_10": f"{100 * (array >= 10).mean():.1f}",
                "above_100": f"{100 * (array >= 100).mean():.1f}",
                "end": f"{fmean(chain(*end.values())):.2f}",
                "ratio": f"{np.exp(logs.mean()):.2f}" if common else None,
                "p": p_text(sign_flip_p_value(logs)).removeprefix("= ") if common else None,
            }
        )

    title = "Figure 3: perplexity under the base model"

    def draw(file: Path, caption: str) -> None:
        edges = np.geomspace(1, max(2.0, *(max(v.values()) * 1.01 for v in means.values())), 25).tolist()
        with canvas(file, caption) as (axis,):
            for colour, (source, values) in zip(cycle(COLOURS), means.items(), strict=False):
                array = np.array(list(values.values()))
                weights = np.full(len(array), 100 / len(array))
                axis.hist(array, edges, weights=weights, histtype="stepfilled", alpha=0.25, color=colour)
                label = f"{source}: median {np.median(array):.2f}"
                axis.hist(array, edges, weights=weights, histtype="step", color=colour, linewidth=1.6, label=label)
            axis.set(xscale="log", xlabel="perplexity of the program given the task", ylabel="programs (%)")
            axis.legend(frameon=False, fontsize=8)

    columns = {
        "programs": "row",
        "tasks": "tasks",
        "median": "median",
        "mean": "mean",
        "10 or more (%)": "above_10",
        "100 or more (%)": "above_100",
        "geometric mean of the ratio to gold's": "ratio",
        "p": "p",
        "loss of the end (nats)": "end",
    }
    notes = [
        "Perplexity per token of the completion that the policy would be trained on, given the task's prompt, on the "
        "tasks that all arms train on. The end-of-text token is reported separately, by its mean loss. p is a "
        "two-sided sign-flip permutation test of the log ratio to gold, paired over tasks. In the paper, gold has more "
        "programs of perplexity 100 or more than the other two arms.",
    ]
    return Study(title, subject(jobs), columns, rows, draw, notes)


def figure4(jobs: Sequence[Job]) -> Study:
    """Relate pass@k on Test to the number of Train tasks with feedback."""
    shown = names(jobs, "finetuned")[:-1]
    done = [job for job in jobs if job.results["finetuned"]]
    rows: list[Row] = []
    lines: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
    sizes = set()
    for (arm, _), group in grouped(done, lambda job: (job.results["arm"], job.results["feedback_limit"])).items():
        given = {job.results["seed"]: job.results["counts"]["annotated_train"] or 0 for job in group}
        if (size := (arm, *sorted(given.items()))) in sizes:  # limits above what is available give the same tasks
            continue
        sizes.add(size)
        count = float(np.mean(list(given.values())))
        row = {
            "row": arm,
            "feedbacks": f"{count:.0f}",
            "examples": f"{np.mean([examples(job) for job in group]):.0f}",
            **cells({n: per_task(group, "finetuned", n) for n in shown}),
        }
        rows.append(row)
        for name in shown:
            lines[f"{arm}, {name}"].append((count, row[name], row[f"{name}_low"], row[f"{name}_high"]))
    title = "Figure 4: pass rate on Test against the number of tasks with feedback"
    before = {name: per_task(jobs, "zero_shot", name) for name in shown}
    levels = {f"zero-shot, {name}": figure(values)["mean"] for name, values in before.items() if values}

    def draw(file: Path, caption: str) -> None:
        curve(file, lines, caption, "Train tasks with feedback", "pass@k on Test (%)", levels)

    columns = {
        "fine-tuned on": "row",
        "tasks with feedback": "feedbacks",
        "training tasks": "examples",
        **{f"{n} (%)": f"{n}_text" for n in shown},
    }
    notes = [
        "Percent, with 95% intervals over tasks. Tasks with feedback belong to Train, and each smaller set of them is "
        "a subset of the larger ones. The policy trains on those that the refiner solved."
    ]
    return Study(title, subject(jobs), columns, rows, draw, notes)


def figure5(jobs: Sequence[Job]) -> Study:
    """Relate the refiner's pass rate to the number of mistakes that the feedback addresses."""
    shown = names(jobs, "refiner")[:1]
    mistakes: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))  # by number and task
    found_in = [(job, per_task([job], "refiner", shown[0])) for job in jobs] if shown else []
    pieces = [
        (f, values[f["task_id"]])
        for job, values in found_in
        for f in job.rows("feedback.jsonl")
        if f["task_id"] in values
    ]
    noted = all(f["bugs"] is not None for f, _ in pieces)
    usable = [(f, value) for f, value in pieces if noted or f["refinement"]]
    for f, value in usable:
        number = f["bugs"] if noted else _edits(f["program"], f["refinement"])
        mistakes[number][f["task_id"]] += value
    rows: list[Row] = []
    for number, values_of in sorted(mistakes.items()):
        found = figure(values_of)
        text = percent(found["mean"], [found["low"], found["high"]])
        text = text if len(values_of) > 1 else text.split(" ")[0]  # one task has no interval
        rows.append({"row": number, "feedbacks": len(values_of), **found, "text": text})
    what = "mistakes that the feedback addresses" if noted else "places that the annotator's refinement changes"
    title = f"Figure 5: the refiner's {shown[0] if shown else 'pass rate'} by number of {what}"

    def draw(file: Path, caption: str) -> None:
        line = [(row["row"], row["mean"], row["low"], row["high"]) for row in rows]
        curve(file, {"refiner": line}, caption, what, f"{shown[0]} on Train (%)")

    columns = {what: "row", "feedbacks": "feedbacks", f"{shown[0] if shown else ''} (%)": "text"}
    notes = ["Percent, with 95% intervals over tasks. In the paper the pass rate falls from one mistake to five."]
    if not noted:
        notes.append(
            "These annotations don't say how many mistakes they address (column `bugs`), which the paper's authors "
            "counted by hand. The number of blocks of lines in which the annotator's refinement differs from the "
            "incorrect program is used instead."
        )
    if len(usable) < len(pieces):
        notes.append(f"{len(pieces) - len(usable)} annotations without a refinement are left out.")
    return Study(title, subject(jobs), columns, rows, draw, notes)


def _edits(before: str, after: str) -> int:
    """Return the number of blocks of lines that differ between two programs."""
    matcher = difflib.SequenceMatcher(None, lines_of(before), lines_of(after), autojunk=False)
    return sum(tag != "equal" for tag, *_ in matcher.get_opcodes())


def policy_change(jobs: Sequence[Job]) -> Study:
    """Report the relative weight change by group of layers, and the KL divergence from the base, by arm."""
    done = [job for job in jobs if job.results["weight_change"] and job.results["kl"]]
    groups = grouped(done, lambda job: job.results["arm"])
    layers = list(dict.fromkeys(name for job in done for name in job.results["weight_change"] or ()))
    weights = {
        arm: {name: float(np.mean([w[name] for j in group if (w := j.results["weight_change"])])) for name in layers}
        for arm, group in groups.items()
    }
    kl = {arm: over_seeds(k["per_task"] for job in group if (k := job.results["kl"])) for arm, group in groups.items()}
    rows = []
    for arm in groups:
        found = figure(kl[arm], rates=False)
        end = float(np.mean([k["end"]["mean"] for job in groups[arm] if (k := job.results["kl"])]))
        row: Row = {
            "row": arm,
            "examples": f"{np.mean([examples(job) for job in groups[arm]]):.0f}",
            **{f"weights_{name}": value for name, value in weights[arm].items()},
            "weights_text": f"{100 * weights[arm]['all']:.3f}",
            "kl": found["mean"],
            "kl_text": f"{found['mean']:.4f} [{found['low']:.4f}, {found['high']:.4f}]",
            "end": end,
            "end_text": f"{end:.2f}",
            "against_gold": None,
        }
        common = sorted(kl[arm].keys() & kl.get("gold", {}).keys(), key=int) if arm != "gold" else []
        if common:
            differences = np.array([fmean(kl[arm][i]) - fmean(kl["gold"][i]) for i in common])
            row["against_gold"] = f"{differences.mean():+.4f}, p {p_text(sign_flip_p_value(differences))}"
        rows.append(row)
    title = "What fine-tuning did to the policy"

    def draw(file: Path, caption: str) -> None:
        _draw_change(file, caption, weights, list(kl.values()))

    columns = {
        "fine-tuned on": "row",
        "examples": "examples",
        "relative weight change (%)": "weights_text",
        "KL to the base (nats a token)": "kl_text",
        "KL at the end (nats)": "end_text",
        "KL against gold's": "against_gold",
    }
    notes = [
        "Weight change: the norm of the difference divided by the norm of the base model's weights. KL(fine-tuned || "
        "base) is measured at the sampling temperature on the fine-tuned policy's own samples on Test: over the "
        "programs' tokens, and separately at the positions where programs end. 95% intervals over tasks; p is a "
        "two-sided sign-flip permutation test, paired over tasks. The paper expects gold to change the policy more "
        "than refinements.",
    ]
    return Study(title, subject(jobs), columns, rows, draw, notes)


def _draw_change(file: Path, title: str, weights: Mapping[str, Mapping[str, float]], kl: Sequence[PerSeed]) -> None:
    """Plot the weight change by group of layers, one line per arm, next to each arm's KL from the base over tasks."""
    shown = list(dict.fromkeys(name for found in weights.values() for name in found if name != "all"))
    height = max(4.2, 1.6 + 0.2 * len(shown))
    with canvas(file, title, panels=2, width=5.6, height=height) as (left, right):
        for colour, (label, found) in zip(cycle(COLOURS), weights.items(), strict=False):
            values = [100 * found[name] for name in shown]
            left.plot(values, range(len(shown)), "o-", color=colour, label=label)
        left.set(xlabel="relative weight change (%)", xlim=(0, None), yticks=range(len(shown)), yticklabels=shown)
        left.invert_yaxis()
        left.legend(frameon=False, fontsize=8)
        for i, (colour, by_task) in enumerate(zip(cycle(COLOURS), kl, strict=False)):
            found_kl = figure(by_task, rates=False)
            right.errorbar(
                found_kl["mean"],
                i,
                xerr=[[found_kl["mean"] - found_kl["low"]], [found_kl["high"] - found_kl["mean"]]],
                color=colour,
                marker="o",
                capsize=3,
            )
        right.locator_params(axis="x", nbins=4)
        right.set(
            xlabel="KL(fine-tuned || base), nats per token",
            xlim=(0, None),
            ylim=(len(weights) - 0.5, -0.5),
            yticks=range(len(weights)),
            yticklabels=list(weights),
        )
