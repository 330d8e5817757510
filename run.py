#!/usr/bin/env python3
"""Run an ILF experiment: `python run.py [group=option] [key=value]`; see README.md and `python run.py --help`."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))
# Where the jobs of a launcher, which unpickle what they do, find it too.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sys.path[0], os.environ.get("PYTHONPATH")]))

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ilf import ranks
from ilf.config import build, check_arm, check_device, register, settings_from
from ilf.types import InputError, NoTrainingExamples

if sys.platform == "win32":
    sys.exit("ILF executes programs under POSIX limits: run it under WSL, Linux or macOS.")
register()


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(config: DictConfig) -> float | None:
    """Compose, check, hand over; return what a sweeper that searches for settings maximises: pass@1 on Refine."""
    try:
        settings = settings_from(config)
        hydra_config = HydraConfig.get()
        check_arm(hydra_config.runtime.choices.arm, list(hydra_config.overrides.task), Path(__file__).parent / "conf")
        settings.overrides = list(hydra_config.overrides.task)
        if hydra_config.mode is RunMode.MULTIRUN:
            settings.group = settings.group or settings.study or "_".join(Path(hydra_config.sweep.dir).parts[-2:])
        if settings.mode == "store":
            _show_store(settings)
            return None
        if settings.mode == "pretrain":
            _pretrain(settings)
            return None
        if settings.mode == "checks":
            _check_gpu(settings)
            return None
        if settings.mode == "annotate":
            _annotate(settings)
            return None
        if settings.mode == "compare":
            _compare(settings)
            return None
        if settings.mode == "export":
            from ilf.feedback.human import export

            print(f"{export(settings.feedback.path, settings.export)} annotations: {settings.export}")
            return None
        stages = build(settings)
        try:
            results = stages.run()
        finally:
            upload = stages.tracker.close()
        _show_results(results, Path(settings.output_dir), upload)
        return results["validation"] and results["validation"]["pass@1"]
    except (InputError, NoTrainingExamples) as error:
        # A sweep needs an exception to count the job as failed and go on; a single run needs no traceback.
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            raise
        sys.exit(f"error: {error}")


def _show_results(results: dict, folder: Path, upload: str | None) -> None:  # type: ignore[type-arg]
    from ilf.analysis.report import delta_text, table

    print(f"\n{table(results)}\n\n{delta_text(results)}\n")
    print(f"{folder / 'summary.md'}")
    for file in sorted((folder / "plots").glob("*.png")):
        print(file)
    if upload:
        print(f"upload to Weights & Biases: {upload}")


def _pretrain(settings) -> None:  # type: ignore[no-untyped-def]
    """Pretrain the mini model, measure it by the stages that need only the policy, and write both on its card."""
    from ilf.training.pretraining import pretrain, write_card

    folder = Path(settings.pretrain.folder)
    facts = pretrain(settings.pretrain, settings.trainer, settings.seed, folder)
    settings.mode, settings.model.path, settings.stages = "run", str(folder), ["zero_shot", "sample"]
    stages = build(settings)
    try:
        results = stages.run()
    finally:
        stages.tracker.close()
    write_card(folder, settings.pretrain, facts, results)
    print(f"\n{folder / 'README.md'}")


def _check_gpu(settings) -> None:  # type: ignore[no-untyped-def]
    check_device(settings)
    from ilf.training.gpu_checks import run_checks

    def study():  # type: ignore[no-untyped-def]
        settings.mode = "run"
        stages = build(settings)
        try:
            return stages.run()
        finally:
            stages.tracker.close()

    folder = Path(settings.output_dir)
    page, passed = run_checks(Path(settings.model.path), folder, study)
    print(f"\n{page}\n{folder / 'checks.md'}")
    if not passed:
        sys.exit("error: not all checks passed")


def _annotate(settings) -> None:  # type: ignore[no-untyped-def]
    """Serve the page for feedback on the programs that fail, of a run with these settings."""
    from ilf.annotation.answers import Answers
    from ilf.annotation.server import bind, serve
    from ilf.annotation.work import Work

    if HydraConfig.get().mode is RunMode.MULTIRUN:
        raise InputError("mode", "annotate", "is for one run, and this is a sweep", "Leave out -m and the study.")
    settings.stages, settings.logger.wandb = ["sample"], False
    with bind(settings.annotate) as listener:
        stages = build(settings)
        try:
            answers = Answers(Path(settings.annotate.path))
            work = Work(stages.failing(), stages.tasks.by_id, answers, stages.sandbox, settings.executor.tests)
            own = [one for one in settings.overrides if not one.startswith(("mode=", "annotate.", "feedback"))]
            trained = shlex.join([*own, "feedback=human", f"feedback.path={settings.annotate.path}"])
            print(f"\n{len(work.tasks)} tasks without a correct program, {len(work.answered())} of them answered")
            print(f"answers:  {settings.annotate.path}\ntrain:    python run.py {trained}")
            host = f"[{settings.annotate.host}]" if ":" in settings.annotate.host else settings.annotate.host
            print(f"page:     http://{host}:{settings.annotate.port}  (Ctrl-C ends it; nothing is lost)", flush=True)
            serve(work, settings.annotate, listener)
        finally:
            stages.tracker.close()


def _compare(settings) -> None:  # type: ignore[no-untyped-def]
    from ilf.analysis.comparison import write_comparison
    from ilf.analysis.studies import write_study

    folder, sweeps = Path(settings.output_dir), [Path(sweep) for sweep in settings.compare]
    write_comparison(folder, sweeps)
    study = write_study(folder, [*sweeps, *(sweep / "chosen" for sweep in sweeps)])
    for file in filter(None, (folder / "comparison.md", study)):
        print(f"\n{file.read_text()}\n{file.with_suffix('.png')}")


def _show_store(settings) -> None:  # type: ignore[no-untyped-def]
    from ilf.store import Store

    store = Store(Path(settings.store.dir))
    if settings.store.prune_days is not None:
        print(f"removed {store.prune(settings.store.prune_days)} entries")
    for row in store.describe():
        state = "done" if row["done"] else "unfinished"
        print(f"{row['stage']:14} {row['folder']}  {row['mib']:9.1f} MiB  {row['days']:6.1f} days  {state}")


if __name__ == "__main__":
    ranks.lead(main)
