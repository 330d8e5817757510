"""What a run leaves at its end, or where it broke off: results.json, summary.md, plots, and the same in the tracker."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from ilf.analysis import report, results
from ilf.measures import measure
from ilf.models.load import sampling_dtype
from ilf.runner import VERSIONS
from ilf.store import write_atomically
from ilf.types import Outcome

if TYPE_CHECKING:
    from ilf.stages import Stages


def write_outputs(stages: Stages, outcome: Outcome, status: str) -> dict[str, Any]:
    """Measure, write everything from what there is, and return the results.

    Args:
        stages: Of the run.
        outcome: What it has found.
        status: "complete", "partial", "no_training_examples" or "failed".
    """
    start, settings, runner = time.monotonic(), stages.settings, stages.runner
    # A run that broke off has something to say, which a second failure here must not hide.
    asked = settings if status != "failed" else replace(settings, measure=[])
    measured, failure = measure(replace(asked, measure=[]), runner, outcome), None
    try:
        measured = measure(asked, runner, outcome)
    except Exception as error:  # raised once everything else is written
        failure = error
    record = results.Record(
        status=status,
        data_sha256=stages.data_sha256,
        weights_sha256=runner.weights(stages.model),
        dtype=str(sampling_dtype(settings.model.dtype)),
        scoring=runner.scoring,
        isolation=asdict(stages.sandbox.isolation),
        halvings=runner.halvings,
        seconds={name: runner.seconds.get(name) for name in (*VERSIONS, "report")},
        reused=runner.reused,
        rejected=stages.rejected,
        fine_tuned=runner.fine_tuned.get("train_policy", {}),
        measured=measured,
    )
    found = results.of_run(settings, stages.tasks, outcome, record)
    pictures = stages.folder / "plots"
    pictures.mkdir(parents=True, exist_ok=True)
    report.plot(found, pictures)
    plots = sorted(pictures.glob("*.png"))
    runner.seconds["report"] = found["seconds"]["report"] = round(time.monotonic() - start, 2)
    write_atomically(stages.folder / "results.json", json.dumps(found, indent=1))
    shown = report.mended(outcome, stages.tasks)
    write_atomically(stages.folder / "summary.md", report.summary(found, shown, [plot.name for plot in plots]))
    stages.tracker.artifact(stages.folder / "results.json")
    figures = {
        f"{part}/{name}": found[part][name]
        for part in ("zero_shot", "refiner", "finetuned")
        if found[part]
        for name in (*found[part]["ci95"], "one_correct")
    }
    stages.tracker.summary(figures, plots)
    if failure is not None:
        raise failure
    return found
