"""summary.md and the plots of one run."""

from __future__ import annotations

import difflib
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ilf import installation
from ilf.analysis.formatting import model_name, p_text, percent, samples
from ilf.analysis.jobs import scripted_note
from ilf.analysis.markdown import fence, inline
from ilf.analysis.plots import bars, curve
from ilf.analysis.schema import Learnt, Metrics, Results
from ilf.analysis.sentences import ALPHA, ONE_SEED, change_text, conclusion, cost_text, delta_text, trained_on
from ilf.tasks.prompts import lines_of
from ilf.types import Outcome, Splits

ROWS = {"zero_shot": "zero-shot (Test)", "refiner": "refiner (Train)", "finetuned": "fine-tuned (Test)"}


@dataclass(frozen=True)
class Mended:
    """A task that the refiner solved: the incorrect program, the feedback on it, and the refinement that passed."""

    task_id: int
    text: str  # the task's description
    before: str  # the whole incorrect program
    detail: str  # the output of its unit tests; empty if the program comes from an annotation
    feedback: str
    after: str  # the whole first refinement that passed


def labeled_metrics(results: Results) -> dict[str, Metrics]:
    """Return the metrics that a run has by display name, separately for each round and data set."""
    named = [(ROWS["zero_shot"], results["zero_shot"])]
    rounds: Sequence[Learnt] = results["rounds"] if len(results["rounds"]) > 1 else [results]
    for number, found in enumerate(rounds, 1):
        which = f", round {number}" if len(rounds) > 1 else ""
        named += [(ROWS["refiner"] + which, found["refiner"]), (ROWS["finetuned"] + which, found["finetuned"])]
    for part, turns in results["turns"].items():
        for number, (revised, fresh) in enumerate(zip(turns["feedback"][1:], turns["fresh"][1:], strict=True), 1):
            named += [(f"{ROWS[part]}, feedback {number}x", revised), (f"{ROWS[part]}, drawn anew {number}x", fresh)]
    if transfer := results["transfer"]:
        named += [(f"zero-shot ({transfer['data']})", transfer["zero_shot"])]
        named += [(f"fine-tuned ({transfer['data']})", transfer["finetuned"])]
    return {label: part for label, part in named if part}


def table(results: Results) -> str:
    """Return the run's results as a Markdown table: pass@k in percent with 95% intervals over tasks."""
    if not (parts := labeled_metrics(results)):
        return "No results yet: there are no programs on Test and no refinements."
    names = [key for part in list(parts.values())[:1] for key in part["ci95"]]
    lines = [
        "| | " + " | ".join(f"{name} (%)" for name in names) + " | tasks | samples a task |",
        "| --- " * (len(names) + 3) + "|",
    ]
    for label, part in parts.items():
        cells = [percent(part[name], part["ci95"][name]) for name in names]
        lines.append(f"| {label} | " + " | ".join(cells) + f" | {part['n_tasks']} | {part['n_samples']} |")
    if undecided := {label: part["undecided"] for label, part in parts.items() if part["undecided"]}:
        said = ", ".join(f"{label} {count}" for label, count in undecided.items())
        lines += [
            "",
            f"Programs whose tests the judge could not decide (`unsupported_test`), counted as failed: {said}.",
        ]
    return "\n".join(lines)


def source_table(results: Results) -> list[str]:
    """Return a table of the refiner's pass@k and the training examples by feedback source; empty for one source."""
    found = (results["refiner"] or {}).get("by_source") or {}
    if len(found) < 2:
        return []
    names = list(next(iter(found.values()))["ci95"])
    lines = [
        "| feedback | tasks | " + " | ".join(f"refiner {name} (%)" for name in names) + " | trained on |",
        "| --- " * (len(names) + 3) + "|",
    ]
    for source, part in found.items():
        cells = " | ".join(percent(part[name], part["ci95"][name]) for name in names)
        lines.append(f"| {source} | {part['n_tasks']} | {cells} | {results['training_sources'].get(source, 0)} |")
    return ["## By source of feedback", "", *lines, ""]


def mended(outcome: Outcome, tasks: Splits, count: int = 5) -> list[Mended]:
    """Return the first `count` tasks that the refiner solved. They are the first ones, so they are not hand-picked."""
    passed: dict[int, str] = {}
    last = outcome.last
    for p in last.refinements or []:
        if p.verdict.passed:
            passed.setdefault(p.task_id, p.program)
    details = {(p.task_id, p.program): p.verdict.detail or p.verdict.verdict for p in last.samples or []}
    return [
        Mended(
            task_id=f.task_id,
            text=tasks.by_id[f.task_id].text,
            before=f.program,
            detail=details.get((f.task_id, f.program), ""),
            feedback=f.text,
            after=passed[f.task_id],
        )
        for f in last.feedback or []
        if f.task_id in passed
    ][:count]


def next_runs(results: Results) -> list[tuple[str, str]]:
    """Return two to four commands to run next, given this run's results, each with the reason for it."""
    given = {override.partition("=")[0]: override for override in results["overrides"]}

    def command(*changes: str) -> str:
        left_out = {"stages", "output_dir", "select", *(change.partition("=")[0] for change in changes)}
        return installation.command(*changes, *(override for key, override in given.items() if key not in left_out))

    found = []
    n, seed, tests = results["sampling"]["n"], results["seed"], results["counts"]["test_tasks"]
    if results["status"] in ("partial", "failed", "interrupted"):
        missing = [stage for stage, seconds in results["seconds"].items() if seconds is None]
        found.append((command(), f"These stages have not run: {', '.join(missing)}. Finished stages are reused."))
    if results["status"] == "no_training_examples":
        found.append(
            (
                command(f"sampler.n={2 * n}"),
                "There was nothing to train on. With more samples, some refinements may pass.",
            )
        )
    if results["feedback_on_policy"] is False and "feedback.select" not in given:
        found.append(
            (
                command("feedback.select=annotated_and_failed"),
                "The feedback is off-policy. This keeps to the annotated tasks that this policy also fails.",
            )
        )
    name, d = next(iter((results["delta"] or {}).items()), ("", None))
    if d and d["p_value"] >= ALPHA:
        reason = f"{name}: p {p_text(d['p_value'])} on {tests} tasks."
        if d["smallest_detectable"] and d["mean"]:
            needed = math.ceil(tests * (d["smallest_detectable"] / d["mean"]) ** 2)
            reason += f" A true difference of {100 * d['mean']:+.1f} points needs about {needed} tasks to show."
        # If all of Test is used already, more samples make each task's pass rate less noisy.
        more = f"evaluate.n={2 * results['evaluation']['n']}"
        found.append((command("data.limit.test=null" if results.get("test_limit") == tests else more), reason))
    people = results["annotated_policy"] or "human" in results["feedback_cost"]["by_source"]
    refinements = results["annotator"] == "scripted" or people  # the annotator's own
    # An experiment that sweeps the arm would sweep both.
    group, model = ("arm", "ilf") if "arm" in given else ("refinements", "model")
    arms = ["gold", *(["human"] if refinements else []), model, "self", "none"]
    if installation.sources.groups:
        every = command("-m", f"{group}={','.join(arms)}")
        found.append((every, "Compare all arms to see what the gain is due to."))
    found.append(
        (
            command("-m", f"seed={seed},{seed + 1},{seed + 2}"),
            ONE_SEED,
        )
    )
    return found[:4]


def _reservations(results: Results) -> list[str]:
    """Return the caveats to keep in mind when comparing results, one line each."""
    said = {
        "Programs were sampled without seeds, so another run samples other programs.": results["sampling"].get("seeded")
        is False,
        "The annotated programs are another policy's, so the feedback is off-policy.": results["feedback_on_policy"]
        is False,
        "Unmatched: the arms of this comparison may train on different tasks.": not results["matched"],
    }
    return [f"- {line}" for line, holds in said.items() if holds]


def summary(results: Results, mended: Sequence[Mended], plots: Sequence[str]) -> str:
    """Return summary.md: the run's settings and data, its results, programs that were fixed, and what to run next.

    Args:
        results: The content of results.json.
        mended: The fixed programs to show.
        plots: The file names of the plots in the run's `plots/`.
    """
    counts, seconds = results["counts"], results["seconds"]
    arm = results["arm"]
    # Two spaces make a line break in Markdown.
    paragraphs = [delta_text(results).replace("\n", "  \n"), change_text(results), cost_text(results)]
    lines = [
        f"# ILF: {arm}, data {results['data']}, model {model_name(results)}",
        "",
        f"The policy, {model_name(results)}, is fine-tuned on {trained_on(results)} (arm {arm}). "
        f"Data: {results['data']}, with {counts['test_tasks']} Test, {counts['refine_tasks']} Refine and "
        f"{counts['train_tasks']} Train tasks. Feedback: {results['feedback']}; refiner: {results['refiner_kind']}; "
        f"{samples(results)}; seed {results['seed']}.",
        *([f"\n{note}"] if (note := scripted_note([results["refinements"]], [results["annotator"]])) else []),
        "",
        f"Status: **{results['status']}**. {conclusion(results)}",
        "",
        table(results),
        "",
        *(line for text in paragraphs if text for line in (text, "")),
        *(f"![{Path(plot).stem.replace('_', ' ')}](plots/{plot})\n" for plot in plots),
    ]
    lines += source_table(results)
    if mended:
        lines += ["## From failing to passing", "", "The first tasks that the refiner solved.", ""]
    for m in mended:
        said = [("Task", m.text), ("Tests", m.detail), ("Feedback", m.feedback)]
        lines += [f"### Task {m.task_id}", ""]
        lines += [*fence([line for label, text in said if text for line in _wrap(f"{label}: {text}")], "text"), ""]
        lines += [*fence(_diff(m.before, m.after), "diff"), ""]
    lines += ["## What to run next", ""]
    lines += [*fence([line for run, reason in next_runs(results) for line in (f"# {reason}", run)], "bash"), ""]
    lines += ["## Details", ""]
    done = {stage: value for stage, value in seconds.items() if stage != "reused" and value is not None}
    marks = dict.fromkeys(seconds["reused"], " (reused)")
    lines += [
        "- Counts: " + ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in counts.items() if v is not None) + ".",
        "- Seconds: " + ", ".join(f"{stage} {value:.1f}{marks.get(stage, '')}" for stage, value in done.items()) + ".",
    ]
    if (rounds := results["rounds"]) and len(rounds) > 1 and rounds[-1]["finetuned"] is None:
        lines.append(f"- Round {len(rounds)} found no new training examples, so the run stopped there.")
    if results["measure_error"]:
        lines.append(f"- The change of the policy could not be measured: {inline(results['measure_error'])}.")
    lines += _reservations(results)
    if rejected := results["rejected"]:
        shown = min(len(rejected), 10)
        lines += [f"- Rejected rows, {shown} of {len(rejected)} (results.json has all):", ""]
        lines += fence([line for row in rejected[:shown] for line in _wrap(row, 2)], "text")
    return "\n".join([*lines, ""])


def _wrap(text: str, most: int = 6) -> list[str]:
    """Return a text wrapped for a code block, truncated to `most` lines."""
    return textwrap.wrap(text, 110, subsequent_indent="  ", max_lines=most, placeholder=" ...")


def _diff(before: str, after: str, most: int = 30) -> list[str]:
    """Return a diff of two programs, of whose shared prompt only the `def` line is shown."""
    old, new = lines_of(before), lines_of(after)
    differ = (i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b)
    shared = old[: next(differ, min(len(old), len(new)))]
    start = max((i for i, line in enumerate(shared) if line.startswith("def ")), default=0)
    changes = list(difflib.unified_diff(old[start:], new[start:], n=10, lineterm=""))[3:]  # after the heading
    lines = [line if len(line) <= 120 else line[:116] + " ..." for line in changes]
    return lines if len(lines) <= most else [*lines[: most - 1], f"... {len(lines) - most + 1} more lines"]


def plot(results: Results, folder: Path) -> None:
    """Plot a run's pass@k with intervals to pass_at_k.png and, after several rounds, pass@k by round to rounds.png."""
    if not (parts := labeled_metrics(results)):
        return
    names = list(next(iter(parts.values()))["ci95"])
    title = f"{results['arm']}: data {results['data']}, model {model_name(results)}, seed {results['seed']}"
    series = {n: [(p[n], *p["ci95"][n]) for p in parts.values()] for n in names}
    bars(folder / "pass_at_k.png", list(parts), series, title)
    rounds = [results["zero_shot"], *(found["finetuned"] for found in results["rounds"])]
    if len(rounds) > 2 and rounds[0]:
        lines = {n: [(i, r[n], *r["ci95"][n]) for i, r in enumerate(rounds) if r] for n in names}
        curve(folder / "rounds.png", lines, title, "round (0: before any)", "pass@k on Test (%)")
