"""What a run's results mean, in sentences for summary.md and the console."""

from __future__ import annotations

from ilf.analysis.formatting import p_text
from ilf.analysis.schema import Results

ALPHA = 0.05  # p-values below it are significant
ONE_SEED = "One seed does not show how much results vary between seeds."
_TRAINED_ON = {
    "model": "the refiner's programs",
    "human": "the annotator's refinements",
    "gold": "the tasks' gold programs",
    "llm": "an LLM's refinements",
    "model_and_self": "the refiner's programs and its own correct samples",
    "self": "its own correct samples",
    "none": "nothing",
}
_ENOUGH = 50  # programs with feedback, below which the gain per 100 of them is not reported


def trained_on(results: Results) -> str:
    """Return the programs that the policy is fine-tuned on."""
    return _TRAINED_ON.get(results["refinements"], f"programs of refinements={results['refinements']}")


def conclusion(results: Results) -> str:
    """Return in a sentence or two what a run's results mean."""
    name, d = next(iter((results["delta"] or {}).items()), ("", None))
    if d is None:
        return {
            "no_training_examples": "No program was left to fine-tune on, so there is no fine-tuned policy to compare.",
            "interrupted": "The run was interrupted; the same command continues from here.",
        }.get(results["status"], "There is no comparison: the fine-tuned policy was not evaluated.")
    low, high = (100 * bound for bound in d["ci95"])
    interval = f"(95% interval {low:+.1f} to {high:+.1f}, p {p_text(d['p_value'])})"
    action = (
        "Sampling again without fine-tuning"
        if results["refinements"] == "none"
        else f"Fine-tuning on {trained_on(results)}"
    )
    if d["p_value"] < ALPHA:
        verb = "raised" if d["mean"] > 0 else "lowered"
        return f"{action} {verb} {name} by {100 * abs(d['mean']):.1f} points {interval}."
    text = f"{action} changed {name} by {100 * d['mean']:+.1f} points {interval}: no significant difference."
    if d["smallest_detectable"] is not None:
        text += f" With these tasks and samples, {100 * d['smallest_detectable']:.1f} points could be detected."
    return text


def delta_text(results: Results) -> str:
    """Return one line for each k that compares the fine-tuned policy with zero-shot."""
    lines = []
    for name, d in (results["delta"] or {}).items():
        smallest = "unknown" if d["smallest_detectable"] is None else f"{100 * d['smallest_detectable']:.1f}"
        lines.append(
            f"{name}: {100 * d['mean']:+.1f} points, 95% interval [{100 * d['ci95'][0]:+.1f}, "
            f"{100 * d['ci95'][1]:+.1f}], p {p_text(d['p_value'])} (smallest detectable difference: {smallest})"
        )
    return "\n".join(lines)


def change_text(results: Results) -> str:
    """Return a sentence on how fine-tuning changed the policy; empty if that was not measured."""
    weights, kl = results["weight_change"], results["kl"]
    parts = []
    if weights:
        parts.append(f"moved the weights by {100 * weights['all']:.3g}% of their norm")
    if kl:
        low, high = kl["ci95"]
        parts.append(f"the policy by a KL of {kl['mean']:.3g} [{low:.3g}, {high:.3g}] nats a token from the base")
        parts[-1] += f" ({kl['end']['mean']:.3g} where programs end)"
    return f"Fine-tuning {' and '.join(parts)}." if parts else ""


def cost_text(results: Results) -> str:
    """Return a sentence on the cost of the feedback and its benefit; empty without feedback."""
    cost = results["feedback_cost"]
    if not cost["annotations"]:
        return ""
    text = f"Feedback on {cost['annotations']} programs"
    if len(cost["by_source"]) > 1:
        text += f" ({', '.join(f'{source} {count}' for source, count in cost['by_source'].items())})"
    if minutes := cost["minutes"]:
        text += f", {minutes:.0f} minutes for the {cost['timed']} that were timed"
        text += f" ({minutes / cost['timed']:.1f} each)"
    if (points := cost["pass@1_points_per_100"]) and cost["annotations"] >= _ENOUGH:
        low, high = points["ci95"]
        text += f"; {points['mean']:+.1f} points of pass@1 for each 100, 95% interval [{low:+.1f}, {high:+.1f}]"
    return text + "."
