"""How one stage is done, or taken from the store."""

from __future__ import annotations

import gc
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ilf import distributed
from ilf import scoring as scorer
from ilf.code_digest import Code, code_sha256
from ilf.components import Component
from ilf.executors import Judge
from ilf.files import JsonLines, link_or_copy, sha256, weights_sha256
from ilf.models import load, onednn_linear, policy_change, targets, tokens
from ilf.models.load import Model, load_tokenizer, sampling_dtype
from ilf.protocols import Sampler
from ilf.sandbox import executor, jobs, packages, processes, worker
from ilf.settings import Settings
from ilf.store import Entry, Store
from ilf.tasks import prompts
from ilf.tasks.data import job_of
from ilf.tracking import Tracker
from ilf.training import unit_test_callback
from ilf.training.stage_jobs import DECODING, JUDGE, METRICS, TAKEN, Drawing, FineTuning
from ilf.training.trainer import training_device
from ilf.types import Draw, InputError, Program, Task, derive_seed

log = logging.getLogger(__name__)

# The code that makes verdicts, besides the settings of the executor.
_WORKER = sorted(Path(worker.__file__).parent.glob("*.py"))
_JUDGING: tuple[Code, ...] = (
    scorer,
    job_of,
    unit_test_callback,
    prompts,
    executor,
    processes,
    jobs,
    packages,
    *_WORKER,
)
REPORTED = ("zero_shot", "evaluate")  # stages whose programs are those of the figures
_RUN_FILES = {
    "sample": "sample",
    "zero_shot": "zero_shot",
    "refine": "refinements",
    "evaluate": "finetuned",
    "validate": "validation",
}


class NotRequested(Exception):
    """A stage is needed that `stages` does not name and that is not finished in the store."""


class Runner:
    """Does stages through the store, and notes how long they took and what was reused.

    Args:
        settings: Checked by config.py.
        tasks: By id.
        model: Folder of the policy.
        store: Finished stages.
        sandbox: Executes programs.
        tracker: W&B, TensorBoard and CSV.
    """

    def __init__(
        self, settings: Settings, tasks: dict[int, Task], model: Path, store: Store, sandbox: Judge, tracker: Tracker
    ) -> None:
        self.settings, self.tasks, self.model = settings, tasks, model
        self.store, self.sandbox, self.tracker = store, sandbox, tracker
        self.folder = Path(settings.output_dir)
        self.tokenizer = load_tokenizer(model, settings.model.bos, settings.chat)
        self.scoring = settings.executor.rules
        self.seconds: dict[str, float] = {}  # a stage, all its rounds together
        self._fresh: dict[str, bool] = {}  # whether any part of a stage was done in this run
        self.entries: dict[str, list[str]] = {}  # of the store, by stage: what the run is made of
        self.fine_tuned: dict[str, dict[str, Any]] = {}  # steps and last metrics of the newest training, by stage
        self.halvings = 0
        self.rejected: list[str] = []  # a line on each row that could not be used
        self.round = 1  # of the algorithm, counted from 1

    @property
    def seed(self) -> int:
        """The run's seed; each round after the first has one of its own."""
        own = self.settings.seed
        return own if self.round == 1 else derive_seed(own, "round", self.round)

    @property
    def suffix(self) -> str:
        """What tells a round's files and metrics from those of the first."""
        return f"_round{self.round}" if self.round > 1 else ""

    def do(
        self, stage: str, key: dict[str, Any], work: Callable[[Entry], dict[str, Any]], mark: str = "done.json"
    ) -> tuple[Path, dict[str, Any]]:
        """Do a stage, or take it from the store; return its folder and what it was finished with."""
        key = {"stage": stage, **key}
        # Where settings are to be chosen, not even finished programs on Test are looked at.
        finished = not self.settings.select and self.store.is_done(stage, key, mark)
        if not (self.requested(stage) or finished):
            raise NotRequested(stage)
        with self.store.entry(stage, key, mark) as entry:
            facts = entry.done
            reused = facts is not None
            if facts is None:
                log.info("%s: started", stage)
                start = time.monotonic()
                facts = work(entry)
                facts = entry.finish(facts | {"seconds": round(time.monotonic() - start, 2)})
                gc.collect()
            log.info("%s: %s", stage, "reused" if reused else f"done in {facts['seconds']:.1f} s")
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + facts["seconds"], 2)
        self._fresh[stage] = self._fresh.get(stage, False) or not reused
        self.entries.setdefault(stage, []).append(entry.path.name)
        return entry.path, facts

    def requested(self, stage: str) -> bool:
        """Return whether `stages` names a stage; programs on Refine are drawn with the training that they validate."""
        return ("train_policy" if stage == "validate" else stage) in self.settings.stages

    @property
    def reused(self) -> list[str]:
        """Stages that were taken from the store, all of them."""
        return [stage for stage, fresh in self._fresh.items() if not fresh]

    def measure(self, name: str, key: dict[str, Any], work: Callable[[], Any]) -> Any:
        """Return what is measured on the results of stages, from the store where that was done before."""
        code = code_sha256(policy_change, targets, load, onednn_linear, tokens, *DECODING)
        with self.store.entry("measure", {"measure": name, "code": code, **key}) as entry:
            done = entry.done or entry.finish({"found": work()})
        return done["found"]

    def scoring_of(self, stage: str) -> dict[str, Any]:
        """Return the settings that a stage's verdicts depend on: only what is reported is scored as the paper does."""
        return self.scoring if stage in REPORTED else self.scoring | {"scoring": "as_written"}

    def sampler_of(self, stage: str) -> Sampler:
        """Return what draws a stage's programs."""
        return self.settings.evaluation if stage in REPORTED else self.settings.sampler

    def dtype_of(self, stage: str, model: Path) -> torch.dtype:
        """Return the dtype of a model's weights while a stage samples it.

        By default what was fine-tuned is sampled in float32, in which it is saved: bfloat16 rounds most of a small
        update away. So are the programs that it is compared with. What the policy only learns from may be faster.
        """
        learns = stage == "sample" and model == self.model
        return sampling_dtype(self.settings.model.dtype, training_device(self.settings.trainer), learns)

    def verdicts_of(self, stage: str, tasks: Iterable[Task]) -> str:
        """Return in 12 characters all that verdicts depend on besides the programs: settings, and the tasks' tests."""
        tests = {
            t.task_id: (t.tests, t.setup, t.code, t.inputs, t.outputs, t.compare_output, t.challenge) for t in tasks
        }
        return sha256([self.scoring_of(stage), sorted(tests.items()), code_sha256(*_JUDGING)])[:12]

    def draw(
        self,
        stage: str,
        model: Path,
        draws: list[Draw],
        label: str,
        tasks: Mapping[int, Task] | None = None,
        k: Sequence[int] | None = None,
    ) -> list[Program]:
        """Sample and execute planned programs by Lightning's test loop, and put them into the run's folder.

        Args:
            stage: Its name.
            model: Folder of what is sampled from.
            draws: Every program to sample.
            label: The stage's name with what tells its rounds and data sets apart.
            tasks: By id, where the draws are on other tasks than the run's.
            k: Of the logged pass@k, where the draws are not so many for each task as `evaluate.k` needs.
        """
        if not draws:
            raise self._nothing_to_draw(stage)
        by_id = tasks or self.tasks
        scoring = self.verdicts_of(stage, (by_id[draw.task_id] for draw in draws))
        job = Drawing(
            self._model(model),
            draws,
            replace(self.sampler_of(stage)),
            self.dtype_of(stage, model),
            self.settings.module.policy,
            self.settings.datamodule,
            self.settings.trainer,
        )
        judge = self._judge(label, by_id).having(scoring=scoring, as_paper=self.scoring_of(stage)["scoring"] == "paper")
        judge = judge if k is None else judge.having(k=list(k))
        programs: list[Program] = []

        def work(entry: Entry) -> dict[str, Any]:
            self._take_from_earlier(stage, draws, entry)
            needed = job.samples(job.taken(entry.path))
            with job.sampler.ready(job.model.folder, self.folder) if needed else nullcontext():
                found, halvings = distributed.call(job.run, judge, entry.path, loggers=self.tracker.loggers)
            programs.extend(found)
            rows = JsonLines(entry.path / f"programs-{scoring}.jsonl")
            rows.path.unlink(missing_ok=True)
            rows.append(program.row() for program in programs)
            return {"halvings": halvings}

        path, facts = self.do(stage, job.key(), work, f"done-{scoring}.json")
        self.halvings += facts["halvings"]
        rows = path / f"programs-{scoring}.jsonl"
        target = self.folder / "programs" / f"{label.replace(stage, _RUN_FILES[stage])}.jsonl"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(rows, target)
        programs = programs or [Program.from_row(row) for row in JsonLines(rows).read()]
        self.tracker.programs(label, programs)
        self.tracker.artifact(target)
        return programs

    def _nothing_to_draw(self, stage: str) -> Exception:
        """Return why: only `refine` comes to this, as the checks found tasks for the other stages."""
        if not self.requested(stage):
            return NotRequested(stage)
        limit = self.settings.data.limit.train
        cut = limit is not None and limit <= sum(task.split == "train" for task in self.tasks.values())
        return InputError(
            "data.limit.train" if cut else "feedback",
            limit if cut else self.settings.option("feedback"),
            f"leaves {stage} no task: the policy solves those of Train, or what was said of them was rejected",
            f"See `rejected` in results.json. {'Raise the limit' if cut else 'Add tasks'}, or add annotations.",
        )

    def _take_from_earlier(self, stage: str, draws: Sequence[Draw], entry: Entry) -> None:
        """Copy what finished stages have drawn: with more tasks or samples than they had, only new ones are drawn."""
        taken = JsonLines(entry.path / TAKEN)
        if any(entry.path.glob("samples*.jsonl")):  # a killed run goes on with what it had planned
            return
        wanted = {(d.task_id, d.sample, d.seed, d.prompt) for d in draws}
        found = {}
        for folder in self.store.like(entry, but="draws"):
            for file in sorted(folder.glob("samples*.jsonl")):
                for row in JsonLines(file).read():
                    if (which := (row["task_id"], row["sample"], row["seed"], row["prompt"])) in wanted:
                        found[which] = row
        if found:
            taken.append(found.values())
            log.info("%s: %d of %d programs were drawn by earlier runs and are taken", stage, len(found), len(draws))

    def fine_tune(self, name: str, base: Path, teacher: Path | None = None, **what: Sequence[Any]) -> Path:
        """Fine-tune a folder's model; return the result's folder, also put into the run's as `name`.

        Args:
            name: "refiner" or "policy".
            base: The folder.
            teacher: That of a model to learn from, where the objective has one.
            what: `examples`, `validation` and `draws`; see `FineTuning`.
        """
        job = FineTuning.of(self.settings, name, self._model(base), teacher=teacher and self._model(teacher), **what)
        stage = f"train_{name}"

        def work(entry: Entry) -> dict[str, Any]:
            return distributed.call(job.run, self._judge(stage, self.tasks), entry.path, loggers=self.tracker.loggers)

        path, facts = self.do(stage, job.key(), work)
        if stage in self.reused:
            self.tracker.replay(JsonLines(path / METRICS).read())
        self.fine_tuned[stage] = facts
        shutil.rmtree(self.folder / name, ignore_errors=True)
        shutil.copytree(path / "model", self.folder / name, copy_function=link_or_copy)
        self.tracker.artifact(self.folder / name)
        return path / "model"

    def _judge(self, stage: str, tasks: Mapping[int, Task]) -> Component:
        """Return what makes the callback that executes the programs of a stage."""
        own = {"sandbox": self.sandbox, "tests": self.settings.executor.tests, "tasks": tasks, "stage": stage}
        return self.settings.callbacks[JUDGE].having(**own)

    def _model(self, folder: Path) -> Model:
        """Return how the model of a folder is loaded; a local refiner may have a tokenizer of its own."""
        settings = self.settings
        local = folder == settings.refiner.folder
        bos, key = (None, "refiner.path") if local else (settings.model.bos, "model.path")
        return Model(folder, self.weights(folder), settings.model.attention, bos, key, settings.chat)

    def weights(self, folder: Path) -> str:
        """Return the hash of a model folder."""
        return weights_sha256(folder, self.store.cache)
