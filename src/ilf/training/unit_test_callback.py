"""A callback that executes the unit tests of sampled programs and logs pass@k."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from ilf import distributed
from ilf.analysis.statistics import mean_pass_at_k
from ilf.executors import Judge
from ilf.files import JsonLines
from ilf.progress import EVERY, time_left
from ilf.sandbox import Limits, Sandbox
from ilf.scoring import score
from ilf.training.mbpp_datamodule import DrawBatch
from ilf.types import Draw, Program, Task, Verdict

log = logging.getLogger(__name__)


def kept_samples(folder: Path | None) -> dict[tuple[int, int], dict[str, Any]]:
    """Return the programs that earlier runs of a stage have stored, by (task, sample), for any earlier world size."""
    return _rows(folder, "samples")


def _rows(folder: Path | None, name: str) -> dict[tuple[int, int], dict[str, Any]]:
    files = sorted(folder.glob(f"{name}*.jsonl")) if folder is not None else []
    return {(row["task_id"], row["sample"]): row for file in files for row in JsonLines(file).read()}


class UnitTestCallback(pl.Callback):
    """Executes the unit tests of programs sampled during validation, test and predict, and logs pass@k.

    Samples are stored in `folder` as they finish, separately from verdicts. A killed run resumes after its last
    complete batch (or after its last sample, if samples don't depend on each other at all), and the same samples can
    be scored again with other scoring settings. If there is a folder, predict also writes its programs there, to
    programs.jsonl.

    Args:
        k: The values of k for pass@k. Values above the number of samples are not logged.
        tests: See `score`.
        sandbox: Executes the programs. None uses a sandbox on this machine.
        tasks: Every task that has draws, by id. None uses the datamodule's tasks.
        stage: Prefix of the logged metrics. None uses the module's.
        folder: Where to store test batches. None stores nothing.
        scoring: A hash of every setting that a verdict depends on. It names the file of verdicts.
        as_paper: See `score`. A program is always stored as it was sampled, whatever was executed.
    """

    changes_results = False  # it only observes a training

    def __init__(
        self,
        k: Sequence[int] = (1,),
        tests: str = "all",
        sandbox: Judge | None = None,
        tasks: Mapping[int, Task] | None = None,
        stage: str | None = None,
        folder: Path | None = None,
        scoring: str = "",
        as_paper: bool = False,
    ) -> None:
        self.k, self.tests, self.stage, self.as_paper = k, tests, stage, as_paper
        self.sandbox = sandbox or Sandbox(Limits())
        self.tasks: Mapping[int, Task] = tasks or {}
        self.folder, self.verdicts_name = folder, f"verdicts-{scoring}"
        self.programs: list[Program] = []
        self._validation: list[tuple[int, bool]] = []

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Take the stage and the tasks from the module and the datamodule if they were not given."""
        self.stage = self.stage or pl_module.stage
        self.tasks = self.tasks or trainer.datamodule.tasks  # type: ignore[attr-defined]

    # ---- test and predict --------------------------------------------------------------------------------------

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Read the samples and verdicts that an earlier run of this stage has stored."""
        self.programs, self._then = [], time.monotonic()
        self._fresh: list[dict[str, Any]] = []
        self._samples, self._verdicts = kept_samples(self.folder), _rows(self.folder, self.verdicts_name)
        self._whole = pl_module.sampler.whole_plans
        loader = trainer.predict_dataloaders if trainer.predicting else trainer.test_dataloaders
        batches = getattr(loader, "dataset", ())
        self._planned = sum(len(batch.missing) for batch in batches if isinstance(batch, DrawBatch))
        self._sampled, self._start, self._at_once = 0, time.monotonic(), pl_module.sampler.batch_size
        pl_module.on_drawn(self._take)
        distributed.gather([])  # no process writes before all have read
        if self._samples:
            log.info("%s: %d stored samples are reused", self.stage, len(self._samples))

    def _take(self, draw: Draw, text: str) -> None:
        """Record a completion. Independent completions are stored soon, others together with their batch."""
        self._fresh.append(vars(draw) | {"completion": text, "program": draw.task_prompt + text})
        self._sampled += 1
        if time.monotonic() > self._then + EVERY:
            self._then = time.monotonic()
            # The programs in progress are half done on average. Without them, the first ones would promise hours.
            left = self._time_left(self._sampled + min(self._at_once, self._planned - self._sampled) / 2)
            log.info("%s: %d of %d programs sampled, %s", self.stage, self._sampled, self._planned, left)
            if not self._whole:
                self._keep()

    def _keep(self) -> None:
        # A batch that is resampled whole may hold programs that are already stored, perhaps with verdicts: keep these.
        rows = [{k: v for k, v in row.items() if k not in ("task_prompt", "script")} for row in self._fresh]
        rows = [row for row in rows if (row["task_id"], row["sample"]) not in self._samples]
        if self.folder is not None:
            self._file("samples").append(rows)
        self._samples |= {(row["task_id"], row["sample"]): row for row in rows}
        self._fresh = []

    def _file(self, name: str) -> JsonLines:
        """Return this process's own file for a base name."""
        rank = distributed.rank()
        assert self.folder is not None
        return JsonLines(self.folder / (f"{name}.{rank}.jsonl" if rank else f"{name}.jsonl"))

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Store and execute the programs of a planned batch, as far as they were sampled."""
        broken = len(outputs["completions"]) < len(batch.missing)
        if broken and self._whole:  # the batch must be resampled, and its samples must not count for another one
            self._fresh = []
        self._keep()
        if broken:  # `raise_together` tells all processes of the error later
            return
        keys = [(draw.task_id, draw.sample) for draw in batch.draws]
        if not all(key in self._verdicts for key in keys):
            verdicts = self._score([self._samples[key]["program"] for key in keys], [t for t, _ in keys])
            found = [
                {"task_id": t, "sample": s, **vars(v), "tests": list(v.tests)}
                for (t, s), v in zip(keys, verdicts, strict=True)
            ]
            if self.folder is not None:
                self._file(self.verdicts_name).append(found)
            self._verdicts.update(zip(keys, found, strict=True))
        self.programs += [Program.from_row(self._samples[key] | self._verdicts[key]) for key in keys]
        batches, passed = trainer.num_test_batches or [0], sum(program.verdict.passed for program in self.programs)
        log.info(
            "%s: %d of %d batches, %d programs, %d passed, %s",
            *(self.stage, batch_idx + 1, sum(batches), len(self.programs), passed, self._time_left(self._sampled)),
        )

    def _time_left(self, done: float) -> str:
        return time_left(done, self._planned, time.monotonic() - self._start)

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Store the samples that don't depend on the missing ones."""
        if getattr(self, "_fresh", None) and not self._whole:
            self._keep()

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Log pass@k over all tasks, including those of the other processes."""
        pl_module.raise_together()
        self._gather()
        passed = [(p.task_id, p.verdict.passed) for p in self.programs]
        pl_module.log_dict(self._pass_at_k(passed, f"{self.stage}/"))

    def _gather(self) -> None:
        self.programs = distributed.gather(self.programs)
        self.programs.sort(key=lambda program: (program.task_id, program.sample))

    def on_predict_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begin as in `on_test_epoch_start`."""
        self.on_test_epoch_start(trainer, pl_module)

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Store and execute a batch as in `on_test_batch_end`."""
        self.on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_predict_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write the programs with their verdicts."""
        pl_module.raise_together()
        self._gather()
        if self.folder is not None and distributed.rank() == 0:
            rows = JsonLines(self.folder / "programs.jsonl")
            rows.path.unlink(missing_ok=True)
            rows.append(program.row() for program in self.programs)

    # ---- validation --------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Discard the validation programs of the last epoch."""
        self._validation = []
        pl_module.on_drawn(lambda draw, text: None)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Execute the programs of a batch of draws. A batch of examples has none."""
        rows = outputs["completions"] if isinstance(batch, DrawBatch) else []
        if rows and len(rows) == len(batch.draws):
            programs = [row["task_prompt"] + row["completion"] for row in rows]
            verdicts = self._score(programs, [row["task_id"] for row in rows])
            self._validation += [(row["task_id"], v.passed) for row, v in zip(rows, verdicts, strict=True)]

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Log pass@k of the validation programs."""
        pl_module.raise_together()
        self._validation = distributed.gather(self._validation)
        if self._validation:
            pl_module.log_dict(self._pass_at_k(self._validation, f"{self.stage}/validation_"))

    def _score(self, programs: Sequence[str], ids: Sequence[int]) -> list[Verdict]:
        tasks = [self.tasks[task_id] for task_id in ids]
        return score(list(zip(programs, tasks, strict=True)), self.sandbox, self.tests, self.as_paper)

    def _pass_at_k(self, passed: Sequence[tuple[int, bool]], prefix: str) -> dict[str, float]:
        by_task: dict[int, list[bool]] = defaultdict(list)
        for task_id, verdict in passed:
            by_task[task_id].append(verdict)
        n = min(map(len, by_task.values()))
        return {f"{prefix}pass@{k}": mean_pass_at_k(list(by_task.values()), k) for k in self.k if k <= n}
