"""Samples programs on validation and test, executes their unit tests, and logs pass@k."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from ilf import ranks
from ilf.analysis.statistics import mean_pass_at_k
from ilf.files import JsonLines
from ilf.sandbox import Sandbox
from ilf.scoring import score
from ilf.training.fine_tuning import EVERY
from ilf.training.mbpp_datamodule import DrawBatch
from ilf.types import Draw, InputError, Program, Task, Verdict

log = logging.getLogger(__name__)

TAKEN = "samples.taken.jsonl"  # of a stage's folder: what earlier stages had drawn


class UnitTestCallback(pl.Callback):
    """Draws each batch's programs from the module and executes their unit tests.

    Samples are kept in `folder` as they come, apart from verdicts: a killed run goes on after its last whole batch (or,
    where samples do not depend on each other at all, after its last sample), and other scoring settings score the same
    samples.

    Args:
        stage: Prefix of the logged metrics.
        tasks: By id, every task that draws are on.
        sandbox: Executes programs.
        tests: See `score`.
        k: The k of pass@k; those above the number of samples are not logged.
        folder: Where test batches are kept; None keeps nothing.
        scoring: Names the file of verdicts: a hash of every setting that a verdict depends on.
        as_paper: See `score`. A program is stored as it was sampled, whatever was executed.
    """

    def __init__(
        self,
        stage: str,
        tasks: Mapping[int, Task],
        sandbox: Sandbox,
        tests: str,
        k: Sequence[int],
        folder: Path | None = None,
        scoring: str = "",
        as_paper: bool = False,
    ) -> None:
        self.stage, self.tasks, self.sandbox, self.k = stage, tasks, sandbox, k
        self.tests, self.as_paper = tests, as_paper
        self.folder, self.verdicts_name = folder, f"verdicts-{scoring}"
        self.programs: list[Program] = []
        self._error: InputError | None = None  # of this process, until all have come to where they tell each other

    def _raise_together(self) -> None:
        """Raise in every process what was raised in one: the others would wait for it."""
        errors = ranks.gather([self._error] if self._error else [])
        self._error = None
        if errors:
            raise errors[0]

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Read back what an earlier run of this stage has finished, in however many processes."""
        self.programs = []
        self._samples, self._samples_file = self._kept("samples")
        self._verdicts, self._verdicts_file = self._kept(self.verdicts_name)
        ranks.gather([])  # nobody writes before all have read
        if self._samples:
            log.info("%s: %d samples were drawn before and are kept", self.stage, len(self._samples))

    def _kept(self, name: str) -> tuple[dict[tuple[int, int], dict[str, Any]], JsonLines | None]:
        """Return the rows of all processes' files of a name, by task and sample, and the file of this process."""
        if self.folder is None:
            return {}, None
        rows = [row for file in sorted(self.folder.glob(f"{name}*.jsonl")) for row in JsonLines(file).read()]
        rank = ranks.rank()
        own = JsonLines(self.folder / (f"{name}.{rank}.jsonl" if rank else f"{name}.jsonl"))
        return {(row["task_id"], row["sample"]): row for row in rows}, own

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Draw and execute one planned batch, unless that was done before."""
        if self._error is None:
            try:
                self._take(trainer, pl_module, batch.draws, batch_idx)
            except InputError as error:
                self._error = error

    def _take(self, trainer: pl.Trainer, pl_module: Any, batch: Sequence[Draw], batch_idx: int) -> None:
        keys = [(draw.task_id, draw.sample) for draw in batch]
        if missing := [draw for draw, key in zip(batch, keys, strict=True) if key not in self._samples]:
            self._draw(pl_module, batch if pl_module.sampler.whole_plans else missing)
        if not all(key in self._verdicts for key in keys):
            verdicts = self._score([self._samples[key]["program"] for key in keys], batch)
            found = [
                {"task_id": t, "sample": s, **vars(v), "tests": list(v.tests)}
                for (t, s), v in zip(keys, verdicts, strict=True)
            ]
            if self._verdicts_file:
                self._verdicts_file.append(found)
            self._verdicts.update(zip(keys, found, strict=True))
        for key in keys:
            self.programs.append(Program.from_row(self._samples[key] | self._verdicts[key]))
        passed = sum(program.verdict.passed for program in self.programs)
        log.info(
            "%s: %d of %d batches, %d programs, %d passed",
            self.stage,
            batch_idx + 1,
            sum(trainer.num_test_batches),
            len(self.programs),
            passed,
        )

    def _draw(self, pl_module: Any, draws: Sequence[Draw]) -> None:
        """Draw programs and keep them: those that don't depend on each other as they come, else all at the end."""
        whole, drawn, then = pl_module.sampler.whole_plans, 0, time.monotonic()
        rows: list[dict[str, Any]] = []
        try:
            for d, text in pl_module.sample(draws):
                row = {"task_id": d.task_id, "split": d.split, "sample": d.sample, "seed": d.seed, "prompt": d.prompt}
                rows.append(row | {"completion": text, "program": d.task_prompt + text})
                drawn += 1
                if time.monotonic() > then + EVERY:
                    then = time.monotonic()
                    log.info("%s: %d of this batch's %d programs are drawn", self.stage, drawn, len(draws))
                    if not whole:
                        self._keep(rows)
                        rows = []
        finally:  # also where a server ends
            if not whole or drawn == len(draws):
                self._keep(rows)

    def _keep(self, rows: list[dict[str, Any]]) -> None:
        # A plan that is drawn again whole may hold programs that are kept, perhaps with their verdicts: these stay.
        rows = [row for row in rows if (row["task_id"], row["sample"]) not in self._samples]
        if self._samples_file:
            self._samples_file.append(rows)
        self._samples |= {(row["task_id"], row["sample"]): row for row in rows}

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Log pass@k over all tasks, those of the other processes too."""
        self._raise_together()
        self.programs = ranks.gather(self.programs)
        self.programs.sort(key=lambda program: (program.task_id, program.sample))
        passed = [(p.task_id, p.verdict.passed) for p in self.programs]
        pl_module.log_dict(self._pass_at_k(passed, f"{self.stage}/"))

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Forget the last epoch's validation programs."""
        self._validation: list[tuple[int, bool]] = []

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Draw and execute one batch of draws; a batch of examples is the module's."""
        if not isinstance(batch, DrawBatch) or not batch.draws or self._error is not None:
            return
        try:
            with trainer.precision_plugin.forward_context():  # weights in 32 bits may be for passes in 16
                draws, texts = zip(*pl_module.sample(batch.draws), strict=True)
        except InputError as error:
            self._error = error
            return
        verdicts = self._score([d.task_prompt + text for d, text in zip(draws, texts, strict=True)], draws)
        self._validation += [(d.task_id, v.passed) for d, v in zip(draws, verdicts, strict=True)]

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Log pass@k of the validation programs."""
        self._raise_together()
        self._validation = ranks.gather(self._validation)
        if self._validation:
            pl_module.log_dict(self._pass_at_k(self._validation, f"{self.stage}/validation_"))

    def _score(self, programs: Sequence[str], draws: Sequence[Draw]) -> list[Verdict]:
        tasks = [self.tasks[draw.task_id] for draw in draws]
        return score(list(zip(programs, tasks, strict=True)), self.sandbox, self.tests, self.as_paper)

    def _pass_at_k(self, passed: Sequence[tuple[int, bool]], prefix: str) -> dict[str, float]:
        by_task: dict[int, list[bool]] = defaultdict(list)
        for task_id, verdict in passed:
            by_task[task_id].append(verdict)
        n = min(map(len, by_task.values()))
        return {f"{prefix}pass@{k}": mean_pass_at_k(list(by_task.values()), k) for k in self.k if k <= n}
