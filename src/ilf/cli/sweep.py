"""Hydra's callbacks: checks before a run or a sweep starts, and the comparison and selection of a sweep's jobs."""

from __future__ import annotations

import logging
import shutil
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from ilf import distributed
from ilf.analysis.jobs import FIELDS, job_folders, setting_of
from ilf.cli.config import check_hydra, explain, loggers_of, opened, settings_from
from ilf.cli.search_path import record_sources
from ilf.disk import check_writable
from ilf.files import read_json, to_json, write_atomically
from ilf.run_folder import FolderTaken, check_settled
from ilf.settings import STAGES
from ilf.tracking import check_wandb
from ilf.types import InputError

log = logging.getLogger(__name__)


def select_and_report(sweep: Path) -> list[str]:
    """Evaluate each arm's best setting on Refine once on Test, by runs in the sweep's folder `chosen`.

    A setting is everything that a job overrides except its arm and seed; seeds are averaged. Among equally good
    settings, the one that trains least is chosen: the lowest learning rate, then the fewest epochs, then the largest
    batch. ILF uses gold's best setting if gold was swept too, as in the paper's appendix A.1.

    Returns:
        One line for each run that failed, or for which there is no job.
    """
    tried = []  # results, folder, setting
    for folder in job_folders(sweep):
        if not (folder / "failed.json").exists():
            found = read_json(folder / "results.json")
            if found["validation"]:
                tried.append((found, folder, str(setting_of(found["overrides"]))))
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    least: dict[str, tuple[float, ...]] = {}  # sort key by setting: how much it trains
    for found, _, setting in tried:
        scores[found["arm"]][setting].append(found["validation"]["pass@1"])
        least[setting] = (found["training"]["lr"], found["training"]["epochs"], -found["training"]["batch_size"])
    best = {}
    for arm, by_setting in scores.items():
        best[arm] = min(by_setting, key=lambda setting: (-fmean(by_setting[setting]), least[setting]))
    failures = []
    shutil.rmtree(sweep / "chosen", ignore_errors=True)
    for arm in best:
        setting = best["gold"] if arm in ("ilf", "model") and "gold" in best else best[arm]
        # A search may try a setting twice.
        jobs = {found["seed"]: (found, folder) for found, folder, own in tried if (found["arm"], own) == (arm, setting)}
        if not jobs:
            failures.append(f"{arm}: no job with gold's best setting was successful, so the arm was not evaluated")
        for found, folder in jobs.values():
            target = sweep / "chosen" / f"{arm}_seed{found['seed']}"
            try:
                _run_chosen(folder, target, found["overrides"])
            except Exception as error:  # the other arms' runs are still valid
                log.exception("%s: evaluating the chosen setting failed", target)
                failures.append(f"{target.name}: {error}")
                write_atomically(target / "failed.json", to_json({"error": str(error)}, indent=1))
    return failures


def _run_chosen(folder: Path, target: Path, overrides: list[str]) -> None:
    """Run all stages of a search's job, in a folder of its own."""
    target.mkdir(parents=True)
    saved = OmegaConf.load(folder / ".hydra" / "config.yaml")
    saved.merge_with({"output_dir": str(target), "stages": list(STAGES), "select": 0})
    chosen = OmegaConf.load(folder / ".hydra" / "hydra.yaml").hydra.runtime.choices
    settings = settings_from(saved, chosen=chosen)  # type: ignore[arg-type]
    settings.overrides = [one for one in overrides if setting_of([one]) or one.startswith(("arm=", "refinements="))]
    with opened(settings) as stages:
        stages.run()


def _groups(config: DictConfig) -> dict[str, str]:
    """Return the options and the annotator of a job without results."""
    found = {str(field): str(config.hydra.runtime.choices.get(group)) for field, group in FIELDS.items()}
    annotator = str(config.feedback.get("writer", found["feedback"]))
    if found["feedback"] == "annotator":
        found["feedback"] = annotator
    return {"annotator": annotator, **found}


@contextmanager
def _told() -> Iterator[None]:
    """Exit with a message on an error that can be explained, as Hydra only warns of exceptions in callbacks."""
    try:
        yield
    except Exception as error:
        if (said := explain(error)) is None:
            raise
        sys.exit(f"error: {said}")


def _forget_frames(error: BaseException | None) -> None:
    """Release the objects in an error's frames, as Hydra keeps the errors of all jobs and with them whole models."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    distributed.free_memory()


class JobCallback(Callback):
    """A callback that checks a run or sweep before it starts, and writes a sweep's comparison.* after each job.

    A failed or killed job therefore does not lose the results of the others.
    """

    _began = 0.0  # when the sweep started

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the run's folder before Hydra writes its configuration to it."""
        HydraConfig.instance().set_config(config)
        with _told():
            check_hydra(config.hydra)
            check_writable("hydra.run.dir", Path(config.hydra.run.dir))
            if config.mode == "run":
                own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
                own.output_dir = config.hydra.run.dir
                check_settled(settings_from(own, config.hydra.overrides.task, chosen=config.hydra.runtime.choices))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check everything that would make a whole sweep fail."""
        from ilf.checks import check_planned

        self._began = time.time()
        with _told():
            check_hydra(config.hydra)
            check_writable("hydra.sweep.dir", Path(config.hydra.sweep.dir))
            check_planned(OmegaConf.to_object(config.compare.pairs))  # type: ignore[arg-type]
            if config.mode == "run":
                check_wandb(loggers_of(config), sweep=True)
            if config.select and "submitit" in str(config.hydra.launcher._target_):
                allowed = "evaluates the chosen settings on this machine, and hydra/launcher submits the jobs to others"
                advice = "Start the sweep inside one Slurm job, without hydra/launcher, or use select=0."
                raise InputError("select", config.select, allowed, advice)
            if "optuna" in str(config.hydra.sweeper._target_) and not config.select:
                allowed = "hydra/sweeper=optuna chooses settings by programs on Refine, and none would be sampled"
                advice = "Add select=4 'stages=[sample,annotate,train_refiner,refine,train_policy]'."
                raise InputError("select", 0, allowed, advice)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Write failed.json if the job failed, and compare the sweep's finished jobs."""
        if config.mode != "run":
            return
        from ilf.analysis.studies import write_study

        file, sweeps = Path(config.hydra.runtime.output_dir) / "failed.json", "MULTIRUN" in str(config.hydra.mode)
        if isinstance(job_return._return_value, FolderTaken):
            return
        if job_return.status is JobStatus.FAILED:
            error = job_return._return_value
            log.error("%s", explain(error) or "the job failed", exc_info=None if explain(error) else error)
            _forget_frames(job_return._return_value)
            # A job that failed early has no results.json, so the facts about its arm are recorded here.
            facts: dict[str, Any] = {
                "error": str(job_return._return_value) or repr(job_return._return_value),
                "arm": config.arm or config.hydra.runtime.choices.get("refinements"),
                "seed": config.seed,
                **_groups(config),
            }
            write_atomically(file, to_json(facts, indent=1))
            if "basic_sweeper" in str(OmegaConf.select(config, "hydra.sweeper._target_")) and sweeps:
                # It would raise the first job's error before `on_multirun_end`, which reports all of them.
                job_return.status, job_return.return_value = JobStatus.COMPLETED, None
        else:
            file.unlink(missing_ok=True)
        if sweeps:
            from ilf.analysis.comparison import write_comparison

            sweep = Path(config.hydra.sweep.dir)
            write_comparison(sweep, [sweep], config.compare.pairs)
            write_study(sweep, [sweep])
        else:
            with _told():
                study = write_study(file.parent, [file.parent])
            if study:
                from ilf.cli.console import show_page

                show_page(study)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Evaluate the best settings if `select` is set, and print the comparison and the study of the sweep."""
        from ilf.analysis.studies import write_study
        from ilf.cli.console import show_comparison, show_page

        folder = Path(config.hydra.sweep.dir)
        record_sources(config.hydra)
        failures = self._failed(folder) + (select_and_report(folder) if config.select else [])
        study = None
        try:
            study = write_study(folder, [folder, folder / "chosen"])
        except InputError as error:  # the user's own study function failed
            failures.append(str(error))
        show_comparison(folder, config.hydra.overrides.task)
        if study is not None and study.exists():
            show_page(study)
        if failures:
            sys.exit("error: " + "; ".join(failures))  # Hydra would only warn of an exception

    def _failed(self, sweep: Path) -> list[str]:
        """Return the errors of the jobs that failed since the sweep started."""
        files = [folder / "failed.json" for folder in job_folders(sweep)]
        new = [file for file in files if file.exists() and file.stat().st_mtime >= self._began]
        return [f"{file.parent.name}: {read_json(file)['error']}" for file in new]
