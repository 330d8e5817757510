"""Run one stage, or reuse its result from the store."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ilf import distributed, executors
from ilf import scoring as scorer
from ilf.code_digest import Code, code_sha256
from ilf.components import Component, key_of
from ilf.executors import Judge
from ilf.files import JsonLines, link_or_copy, sha256, weights_sha256
from ilf.models import load, onednn_linear, policy_change, targets, tokens
from ilf.models.dtypes import sampling_dtype
from ilf.models.load import Model, load_tokenizer
from ilf.protocols import Sampler
from ilf.sandbox import executor, jobs, packages, processes, worker
from ilf.settings import Settings
from ilf.store import Entry, Store
from ilf.tasks import prompts
from ilf.tasks.data import job_of
from ilf.tracking import Tracker
from ilf.training import unit_test_callback
from ilf.training.stage_jobs import CHECKPOINTS, DECODING, JUDGE, METRICS, TAKEN, Drawing, FineTuning
from ilf.training.trainer import training_device
from ilf.types import Draw, InputError, Program, Task, derive_seed

log = logging.getLogger(__name__)

# The code that verdicts depend on, in addition to the settings of the executor.
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
REPORTED = ("zero_shot", "evaluate")  # stages whose programs are reported
_RUN_FILES = {
    "sample": "sample",
    "zero_shot": "zero_shot",
    "refine": "refinements",
    "evaluate": "finetuned",
    "validate": "validation",
}


class NotRequested(Exception):
    """A required stage is not in `stages`, and its result is not in the store."""


class Runner:
    """Runs stages, stores their results, and records their duration and which results were reused.

    Args:
        settings: Settings that config.py has checked.
        tasks: The tasks, by id.
        model: Folder of the initial policy.
        store: Store of finished stages.
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
        self.seconds: dict[str, float] = {}  # by stage, summed over rounds
        self._fresh: dict[str, bool] = {}  # by stage, whether any part of it was computed in this run
        self.entries: dict[str, list[str]] = {}  # by stage, the entries of the store that the run consists of
        self.fine_tuned: dict[str, dict[str, Any]] = {}  # by stage, steps and last metrics of the newest training
        self.halvings = 0
        self.rejected: list[str] = []  # one line per row that could not be used
        self.round = 1  # round of the algorithm, counted from 1

    @property
    def seed(self) -> int:
        """The seed of the current round: the run's seed in the first round, and a derived seed in later rounds."""
        own = self.settings.seed
        return own if self.round == 1 else derive_seed(own, "round", self.round)

    @property
    def suffix(self) -> str:
        """The suffix of the current round's files and metrics; empty in the first round."""
        return f"_round{self.round}" if self.round > 1 else ""

    def do(
        self, stage: str, key: dict[str, Any], work: Callable[[Entry], dict[str, Any]], mark: str = "done.json"
    ) -> tuple[Path, dict[str, Any]]:
        """Run a stage or reuse it from the store. Return its folder and the facts that were stored with it."""
        key = {"stage": stage, **key}
        # During a selection of settings, not even finished programs on Test may be read.
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
                distributed.free_memory()
            log.info("%s: %s", stage, "reused" if reused else f"finished in {facts['seconds']:.1f} s")
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + facts["seconds"], 2)
        self._fresh[stage] = self._fresh.get(stage, False) or not reused
        self.entries.setdefault(stage, []).append(entry.path.name)
        return entry.path, facts

    def requested(self, stage: str) -> bool:
        """Return whether `stages` includes a stage. Programs on Refine belong to the training that they validate."""
        return ("train_policy" if stage == "validate" else stage) in self.settings.stages

    @property
    def reused(self) -> list[str]:
        """The stages that were reused from the store completely."""
        return [stage for stage, fresh in self._fresh.items() if not fresh]

    def measure(self, name: str, key: dict[str, Any], work: Callable[[], Any]) -> Any:
        """Return a measurement on the results of stages, from the store if it exists there."""
        code = code_sha256(policy_change, targets, load, onednn_linear, tokens, *DECODING)
        with self.store.entry("measure", {"measure": name, "code": code, **key}) as entry:
            done = entry.done or entry.finish({"found": work()})
        return done["found"]

    def scoring_of(self, stage: str) -> dict[str, Any]:
        """Return the settings that a stage's verdicts depend on. Only reported programs are scored as in the paper."""
        return self.scoring if stage in REPORTED else self.scoring | {"scoring": "as_written"}

    def sampler_of(self, stage: str) -> Sampler:
        """Return the sampler for a stage."""
        return self.settings.evaluation if stage in REPORTED else self.settings.sampler

    def dtype_of(self, stage: str, model: Path) -> torch.dtype:
        """Return the dtype of a model's weights while a stage samples it.

        By default, fine-tuned models are sampled in float32, in which they are saved, because bfloat16 rounds away most
        of a small update. So are the programs that they are compared with. Training samples may use a faster dtype.
        """
        learns = stage == "sample" and model == self.model
        return sampling_dtype(self.settings.model.dtype, training_device(self.settings.trainer), learns)

    def verdicts_of(self, stage: str, tasks: Iterable[Task]) -> str:
        """Return 12 characters of a digest of what verdicts depend on besides programs: settings and tests."""
        tests = {
            t.task_id: (t.tests, t.setup, t.code, t.inputs, t.outputs, t.compare_output, t.challenge) for t in tasks
        }
        judge, executor = self.settings.callbacks[JUDGE], self.settings.executor
        own = [] if judge.resolve() is unit_test_callback.UnitTestCallback else [judge.key(aside=("k",))]
        if type(executor).__module__ != executors.__name__:  # the framework's own executors give the same verdicts
            own.append(key_of(executor))
        return sha256([self.scoring_of(stage), sorted(tests.items()), code_sha256(*_JUDGING), *own])[:12]

    def draw(
        self,
        stage: str,
        model: Path,
        draws: list[Draw],
        label: str,
        tasks: Mapping[int, Task] | None = None,
        k: Sequence[int] | None = None,
    ) -> list[Program]:
        """Sample and execute planned programs in Lightning's test loop, and copy them to the run's folder.

        Args:
            stage: Name of the stage.
            model: Folder of the model to sample.
            draws: All programs to sample.
            label: The stage's name, with affixes for the round and data set.
            tasks: The tasks by id, if they are not the run's own tasks.
            k: Values of k of the logged pass@k, if there are fewer programs per task than `evaluate.k` needs.
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
            job.sampler.dtype = str(job.dtype).removeprefix("torch.")
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
        """Return the error for no tasks. Only `refine` gets here, because checks found tasks for the other stages."""
        if not self.requested(stage):
            return NotRequested(stage)
        limit = self.settings.data.limit.train
        cut = limit is not None and limit <= sum(task.split == "train" for task in self.tasks.values())
        return InputError(
            "data.limit.train" if cut else "feedback",
            limit if cut else self.settings.option("feedback"),
            f"leaves {stage} no task: the policy solves all Train tasks, or the feedback on them was rejected",
            f"See `rejected` in results.json. {'Raise the limit' if cut else 'Add tasks'}, or add annotations.",
        )

    def _take_from_earlier(self, stage: str, draws: Sequence[Draw], entry: Entry) -> None:
        """Copy the samples of finished stages, so that only additional tasks or samples have to be sampled."""
        taken = JsonLines(entry.path / TAKEN)
        if any(entry.path.glob("samples*.jsonl")):  # a killed run resumes with its own plan
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
            log.info("%s: reusing %d of %d programs, which earlier runs sampled", stage, len(found), len(draws))

    def fine_tune(self, name: str, base: Path, teacher: Path | None = None, **what: Sequence[Any]) -> Path:
        """Fine-tune a model, and return the folder of the result, which is also copied to the run's folder as `name`.

        Args:
            name: "refiner" or "policy".
            base: Folder of the model.
            teacher: Folder of the teacher model, if the objective has one.
            what: Arguments `examples`, `validation` and `draws`; see `FineTuning`.
        """
        stage, draws = f"train_{name}", what.get("draws", ())
        judged = self.verdicts_of(stage, (self.tasks[draw.task_id] for draw in draws))
        second = teacher and self._model(teacher)
        job = FineTuning.of(self.settings, name, self._model(base), teacher=second, judged=judged, **what)

        def work(entry: Entry) -> dict[str, Any]:
            return distributed.call(job.run, self._judge(stage, self.tasks), entry.path, loggers=self.tracker.loggers)

        path, facts = self.do(stage, job.key(), work)
        shutil.rmtree(path / CHECKPOINTS, ignore_errors=True)  # only now, as the stage is finished
        if stage in self.reused:
            self.tracker.replay(JsonLines(path / METRICS).read())
        self.fine_tuned[stage] = facts
        shutil.rmtree(self.folder / name, ignore_errors=True)
        shutil.copytree(path / "model", self.folder / name, copy_function=link_or_copy)
        self.tracker.artifact(self.folder / name)
        return path / "model"

    def _judge(self, stage: str, tasks: Mapping[int, Task]) -> Component:
        """Return the component of the callback that executes a stage's programs."""
        own = {"sandbox": self.sandbox, "tests": self.settings.executor.tests, "tasks": tasks, "stage": stage}
        return self.settings.callbacks[JUDGE].having(**own)

    def _model(self, folder: Path) -> Model:
        """Return the model of a folder with its loading options. A local refiner may have its own tokenizer."""
        settings = self.settings
        local = folder == settings.refiner.folder
        bos, key = (None, "refiner.path") if local else (settings.model.bos, "model.path")
        return Model(folder, self.weights(folder), settings.model.attention, bos, key, settings.chat)

    def weights(self, folder: Path) -> str:
        """Return the hash of a model folder."""
        return weights_sha256(folder, self.store.cache)
