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

# Errors come to the last line of this file, which says what they mean, instead of being printed by Hydra.
os.environ.setdefault("HYDRA_FULL_ERROR", "1")

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ilf import ending, ranks
from ilf.cli.config import check_arm, check_device, check_hydra, explain, opened, register, settings_from
from ilf.settings import Settings
from ilf.types import InputError

if sys.platform == "win32":
    sys.exit("ILF executes programs under POSIX limits: run it under WSL, Linux or macOS.")
register()


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(config: DictConfig) -> float | None:
    """Compose, check, hand over; return what a sweeper that searches for settings maximises: pass@1 on Refine."""
    ending.listen()  # the jobs of a launcher don't come to this file's last lines
    hydra_config = HydraConfig.get()
    overrides, sweep = list(hydra_config.overrides.task), hydra_config.mode is RunMode.MULTIRUN
    try:
        check_hydra(hydra_config)
        settings = settings_from(config, overrides, sweep, hydra_config.runtime.choices)
        check_arm(hydra_config.runtime.choices.get("arm"), overrides, Path(__file__).parent / "conf")
        if sweep:
            settings.group = settings.group or settings.study or "_".join(Path(hydra_config.sweep.dir).parts[-2:])
        return _MODES[settings.mode](settings)
    except BaseException as error:
        if (stop := ending.pending()) is not None:
            if sweep:  # Hydra ends without a word to its callbacks
                from ilf.analysis.comparison import write_comparison

                write_comparison(Path(hydra_config.sweep.dir), [Path(hydra_config.sweep.dir)])
            raise stop from error
        # A sweep needs an exception to count the job as failed and go on; a single run needs no traceback.
        if sweep or not isinstance(error, Exception) or (said := explain(error)) is None:
            raise
        sys.exit(f"error: {said}")


def _run(settings: Settings) -> float | None:
    with opened(settings) as stages:
        results = stages.run()
    _show_results(results, Path(settings.output_dir), stages.tracker.upload)
    return results["validation"] and results["validation"]["pass@1"]


def _show_results(results: dict, folder: Path, upload: str | None) -> None:  # type: ignore[type-arg]
    from ilf.analysis.report import delta_text, table

    print(f"\n{table(results)}\n\n{delta_text(results)}\n")
    print(f"{folder / 'summary.md'}")
    for file in sorted((folder / "plots").glob("*.png")):
        print(file)
    if upload:
        print(f"upload to Weights & Biases: {upload}")


def _pretrain(settings: Settings) -> None:
    """Pretrain the mini model, measure it by the stages that need only the policy, and write both on its card."""
    from ilf.training.pretraining import pretrain, write_card

    folder = Path(settings.pretrain.folder)
    facts = pretrain(settings.pretrain, settings.trainer, settings.seed, folder)
    settings.mode, settings.model.path, settings.stages = "run", str(folder), ["zero_shot", "sample"]
    with opened(settings) as stages:
        results = stages.run()
    write_card(folder, settings.pretrain, facts, results)
    print(f"\n{folder / 'README.md'}")


def _check_gpu(settings: Settings) -> None:
    check_device(settings)
    from ilf.training.gpu_checks import run_checks

    def study():  # type: ignore[no-untyped-def]
        settings.mode = "run"
        with opened(settings) as stages:
            return stages.run()

    folder = Path(settings.output_dir)
    page, passed = run_checks(Path(settings.model.path), folder, study)
    print(f"\n{page}\n{folder / 'checks.md'}")
    if not passed:
        sys.exit("error: not all checks passed")


def _annotate(settings: Settings) -> None:
    """Serve the page for feedback on the programs that fail, of a run with these settings."""
    from ilf.annotation.answers import Answers
    from ilf.annotation.server import bind, serve
    from ilf.annotation.work import Work

    if HydraConfig.get().mode is RunMode.MULTIRUN:
        raise InputError("mode", "annotate", "is for one run, and this is a sweep", "Leave out -m and the study.")
    settings.stages, settings.logger = ["sample"], {}
    with bind(settings.annotate) as listener, opened(settings) as stages:
        answers = Answers(Path(settings.annotate.path))
        work = Work(stages.failing(), stages.tasks.by_id, answers, stages.sandbox, settings.executor.tests)
        own = [one for one in settings.overrides if not one.startswith(("mode=", "annotate.", "feedback"))]
        trained = shlex.join([*own, "feedback=human", f"feedback.path={settings.annotate.path}"])
        print(f"\n{len(work.tasks)} tasks without a correct program, {len(work.answered())} of them answered")
        print(f"answers:  {settings.annotate.path}\ntrain:    python run.py {trained}")
        host = f"[{settings.annotate.host}]" if ":" in settings.annotate.host else settings.annotate.host
        print(f"page:     http://{host}:{settings.annotate.port}  (Ctrl-C ends it; nothing is lost)", flush=True)
        serve(work, settings.annotate, listener)


def _export(settings: Settings) -> None:
    from ilf.feedback.human import export

    print(f"{export(settings.feedback.path, settings.export)} annotations: {settings.export}")


def _compare(settings: Settings) -> None:
    from ilf.analysis.comparison import write_comparison
    from ilf.analysis.studies import write_study

    folder, sweeps = Path(settings.output_dir), [Path(sweep) for sweep in settings.compare]
    write_comparison(folder, sweeps)
    study = write_study(folder, [*sweeps, *(sweep / "chosen" for sweep in sweeps)])
    for file in filter(None, (folder / "comparison.md", study)):
        print(f"\n{file.read_text()}\n{file.with_suffix('.png')}")


def _show_store(settings: Settings) -> None:
    from ilf.store import Store

    store = Store(Path(settings.store.dir))
    if settings.store.prune_days is not None:
        print(f"removed {store.prune(settings.store.prune_days)} entries")
    for row in store.describe():
        state = "done" if row["done"] else "unfinished"
        print(f"{row['stage']:14} {row['folder']}  {row['mib']:9.1f} MiB  {row['days']:6.1f} days  {state}")


_MODES = {
    "run": _run,
    "annotate": _annotate,
    "store": _show_store,
    "pretrain": _pretrain,
    "compare": _compare,
    "checks": _check_gpu,
    "export": _export,
}

if __name__ == "__main__":
    ending.command(lambda: ranks.lead(main), explain)
