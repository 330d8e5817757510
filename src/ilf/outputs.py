"""Write the outputs of a finished or interrupted run: results.json, summary.md and plots, also to the tracker."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from ilf import distributed
from ilf.analysis import report, results
from ilf.analysis.schema import PARTS, Results
from ilf.files import to_json, write_atomically
from ilf.measurements import measure
from ilf.models.tokens import end_of_text, front_tokens
from ilf.runner import Runner
from ilf.settings import STAGES, Settings
from ilf.types import Inputs, Outcome, Program

log = logging.getLogger(__name__)


def write_outputs(
    runner: Runner,
    inputs: Inputs,
    outcome: Outcome,
    status: str,
    validation: Sequence[Program] | None,
    llm_answers: Mapping[str, Mapping[str, int]],
) -> Results:
    """Run the measurements, write all outputs from the available results, and return the results.

    Args:
        runner: Runner of the run.
        inputs: Inputs of the run.
        outcome: Results of the run.
        status: "complete", "partial", "no_training_examples", "interrupted" or "failed".
        validation: Programs on Refine, if settings are to be selected.
        llm_answers: Counts of the LLM's answers, by their purpose.
    """
    start, settings, folder = time.monotonic(), runner.settings, runner.folder
    tokenizer = runner.tokenizer
    # An aborted run skips measurements: a second error would hide the first, and a signal leaves little time.
    broken_off = status in ("failed", "interrupted")
    asked = replace(settings, measure=[]) if broken_off else settings
    measured = _measured(asked, runner, outcome)
    record = results.Record(
        status=status,
        data_sha256=inputs.data_sha256,
        weights_sha256=runner.weights(runner.model),
        front_tokens=[] if settings.chat else tokenizer.convert_ids_to_tokens(front_tokens(tokenizer)),
        end_of_text=str(tokenizer.convert_ids_to_tokens(end_of_text(tokenizer))),
        dtypes={stage: _dtype(runner, stage) for stage in ("sample", "evaluate")},
        scoring=runner.scoring,
        isolation=asdict(runner.sandbox.isolation),
        processes=distributed.count(),
        halvings=runner.halvings,
        seconds={name: runner.seconds.get(name) for name in STAGES},
        reused=runner.reused,
        entries=runner.entries,
        rejected=runner.rejected,
        fine_tuned=runner.fine_tuned.get("train_policy", {}),
        measured=measured,
        validation=validation,
        transfer_sha256=inputs.transfer_sha256,
        feedback_sha256=inputs.feedback_sha256,
        near_duplicates=inputs.near_duplicates,
        llm_answers={use: dict(counts) for use, counts in llm_answers.items()} or None,
    )
    found = results.of_run(settings, inputs.tasks, outcome, record)
    pictures = folder / "plots"
    pictures.mkdir(parents=True, exist_ok=True)
    if not broken_off:
        report.plot(found, pictures)
    plots = sorted(pictures.glob("*.png"))
    runner.seconds["report"] = found["seconds"]["report"] = round(time.monotonic() - start, 2)
    write_atomically(folder / "results.json", to_json(found, indent=1))
    shown = report.mended(outcome, inputs.tasks)
    write_atomically(folder / "summary.md", report.summary(found, shown, [plot.name for plot in plots]))
    runner.tracker.artifact(folder / "results.json")
    runner.tracker.summary(summary_of(found), plots)
    return found


def _dtype(runner: Runner, stage: str) -> str | None:
    """Return the data type of the policy's weights while a stage samples it; None if a server chooses it."""
    return str(runner.dtype_of(stage, runner.model)) if runner.settings.sampler.casts else None


def _measured(settings: Settings, runner: Runner, outcome: Outcome) -> dict[str, Any]:
    """Return each measurement, or None if it was not requested. An error in one preserves the others."""
    measured: dict[str, Any] = dict.fromkeys((*results.MEASURED, "measure_error"))
    try:
        for name, found in measure(settings, runner, outcome):
            to_json(found)  # raises an error if a value is not a finite number, before it gets into results.json
            measured[name] = found
    except Exception as error:  # such as out of memory: the run itself is complete
        log.exception("a measurement failed; the other results are written. To repeat it, run the same command again")
        measured["measure_error"] = f"{type(error).__name__}: {error}"
    return measured


def summary_of(found: Results) -> dict[str, float]:
    """Return the summary of a run for trackers: metrics with intervals, gains with p-values, and the learning rate."""
    shown: dict[str, float] = {"train_policy/lr": found["training"]["lr"]}
    for part in (*PARTS, "validation"):
        figures: Any = found[part]  # type: ignore[literal-required]
        for name, (low, high) in (figures or {"ci95": {}})["ci95"].items():
            shown |= {f"{part}/{name}": figures[name], f"{part}/{name}_low": low, f"{part}/{name}_high": high}
        if figures:
            shown[f"{part}/one_correct"] = figures["one_correct"]
    for name, gain in (found["delta"] or {}).items():
        low, high = gain["ci95"]
        shown |= {f"delta/{name}": gain["mean"], f"delta/{name}_low": low, f"delta/{name}_high": high}
        shown[f"delta/{name}_p"] = gain["p_value"]
    return shown
