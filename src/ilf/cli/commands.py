"""The commands, one function for each value of `mode`. Heavy imports are deferred until they are needed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from ilf.analysis.schema import Results
from ilf.build import check_device
from ilf.cli.config import opened
from ilf.installation import command
from ilf.settings import Settings
from ilf.types import InputError


def run(settings: Settings) -> float | None:
    """Run the requested stages, print the plan and the results, and return pass@1 on Refine if it was measured."""
    with opened(settings) as stages:
        from ilf.cli.console import show_plan, show_results

        if alone := HydraConfig.get().mode is not RunMode.MULTIRUN:
            show_plan(settings, stages.tasks)
        results = stages.run()
    show_results(results, Path(settings.output_dir), stages.tracker.upload, alone)
    return float(results["validation"]["pass@1"]) if results["validation"] else None


def pretrain(settings: Settings) -> None:
    """Pretrain the mini model, evaluate it with the stages that only need the policy, and write a card with both."""
    from ilf.training import pretraining

    folder = Path(settings.pretrain.folder)
    facts = pretraining.pretrain(settings.pretrain, settings.trainer, settings.seed, folder)
    settings.mode, settings.model.path, settings.stages = "run", str(folder), ["zero_shot", "sample"]
    with opened(settings) as stages:
        results = stages.run()
    pretraining.write_card(folder, settings.pretrain, facts, results)
    print(f"\n{folder / 'README.md'}")


def check_gpu(settings: Settings) -> None:
    """Run the checks for a new GPU, and write their report."""
    check_device(settings)
    from ilf.training.gpu_checks import run_checks

    def study() -> Results:
        settings.mode = "run"
        with opened(settings) as stages:
            return stages.run()

    folder = Path(settings.output_dir)
    page, passed = run_checks(Path(str(settings.model.path)), folder, study)
    print(f"\n{page}\n{folder / 'checks.md'}")
    if not passed:
        sys.exit("error: not all checks passed")


def annotate(settings: Settings) -> None:
    """Serve the annotation page, which collects feedback on the failing programs of a run with these settings."""
    from ilf.annotation.answers import Answers
    from ilf.annotation.assignments import Work
    from ilf.annotation.server import bind, serve

    if HydraConfig.get().mode is RunMode.MULTIRUN:
        raise InputError("mode", "annotate", "is for a single run, but this is a sweep", "Leave out -m and the study.")
    settings.stages, settings.logger = ["sample"], {}
    with bind(settings.annotate) as listener, opened(settings) as stages:
        answers = Answers(Path(settings.annotate.path))
        work = Work(stages.to_annotate(), stages.tasks.by_id, answers, stages.sandbox, settings.executor.tests)
        own = [one for one in settings.overrides if not one.startswith(("mode=", "annotate.", "feedback"))]
        trained = command(*own, "feedback=human", f"feedback.path={settings.annotate.path}")
        print(f"\n{len(work.tasks)} failing tasks, {len(work.answered())} of them answered")
        print(f"answers:  {settings.annotate.path}\ntrain:    {trained}")
        host = f"[{settings.annotate.host}]" if ":" in settings.annotate.host else settings.annotate.host
        print(f"page:     http://{host}:{settings.annotate.port}  (Ctrl-C ends it; nothing is lost)", flush=True)
        serve(work, settings.annotate, listener)


def export(settings: Settings) -> None:
    """Export the pairs of a run as a data set, or convert an annotation file to another format."""
    from ilf.analysis.pairs import export_pairs
    from ilf.feedback.human import export

    if settings.run is not None:
        rows, left_out = export_pairs(settings.run, str(settings.export))
        said = f" ({left_out} left out: their wrong programs do not go on from the prompt)" if left_out else ""
        print(f"{rows} pairs{said}: {settings.export}")
        return
    print(f"{export(str(settings.feedback.path), str(settings.export))} annotations: {settings.export}")


def compare(settings: Settings) -> None:
    """Compare the jobs of earlier sweeps: write the comparison, and the table of their study."""
    from ilf.analysis.comparison import write_comparison
    from ilf.analysis.studies import write_study
    from ilf.cli.console import show_comparison, show_page

    folder, sweeps = Path(settings.output_dir), [Path(sweep) for sweep in settings.compare.folders]
    write_comparison(folder, sweeps, settings.compare.pairs)
    study = write_study(folder, [*sweeps, *(sweep / "chosen" for sweep in sweeps)])
    show_comparison(folder)
    if study:
        show_page(study)


def show_store(settings: Settings) -> None:
    """Prune the store if store.prune_days is set, and list the remaining entries."""
    from ilf.store import Store

    store = Store(Path(settings.store.dir))
    if settings.store.prune_days is not None:
        print(f"removed {store.prune(settings.store.prune_days)} entries")
    for row in store.describe():
        state = "done" if row["done"] else "unfinished"
        print(f"{row['stage']:14} {row['folder']}  {row['mib']:9.1f} MiB  {row['days']:6.1f} days  {state}")


COMMANDS: dict[str, Callable[[Settings], float | None]] = {
    "run": run,
    "annotate": annotate,
    "store": show_store,
    "pretrain": pretrain,
    "compare": compare,
    "checks": check_gpu,
    "export": export,
}
