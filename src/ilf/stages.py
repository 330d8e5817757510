"""Algorithm 1's lines as named, resumable stages: each collaborator of algorithm.run, wrapped with the store."""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ilf import algorithm
from ilf.analysis import report, results
from ilf.analysis.refinements import edit_distance, returns_expected_literal
from ilf.feedback import from_tests, human
from ilf.models.load import adapt, load_model, load_tokenizer, sampling_dtype, save
from ilf.models.sampling import Sampler
from ilf.sandbox import Sandbox
from ilf.settings import Phase, Settings
from ilf.store import Entry, JsonLines, Store, sha256, weights_sha256, write_atomically
from ilf.tasks.prompts import completion_of, few_shot_prompt
from ilf.tracking import Tracker
from ilf.training.fine_tuning import Example, FineTuningModule
from ilf.training.ilf_module import ILFModule
from ilf.training.mbpp_datamodule import MBPPDataModule, plan_draws
from ilf.training.refine_module import RefineModule
from ilf.training.trainer import make_trainer, precision
from ilf.training.unit_test_callback import UnitTestCallback, score
from ilf.types import Draw, Feedback, InputError, NoTrainingExamples, Program, Refinement, Splits, Task, derive_seed

log = logging.getLogger(__name__)

# Raised by one where a stage's code changes what it gives for the same key.
VERSIONS = {
    "sample": 1,
    "zero_shot": 1,
    "annotate": 1,
    "train_refiner": 1,
    "refine": 1,
    "train_policy": 1,
    "evaluate": 1,
}
_RUN_FILES = {"sample": "sample", "zero_shot": "zero_shot", "refine": "refinements", "evaluate": "finetuned"}


class NotRequested(Exception):
    """A stage is needed that `stages` does not name and that is not finished in the store."""


class Stages:
    """The collaborators of `algorithm.run` (its protocol `Steps`) for one run.

    Args:
        settings: Checked by config.py.
        tasks: By split, restricted and limited.
        data_sha256: Of the rows that the tasks come from.
        annotations: What people wrote, where feedback=human; else empty.
        model: Folder of the policy.
        store: Finished stages.
        sandbox: Executes programs.
        tracker: W&B and CSV.
    """

    def __init__(
        self,
        settings: Settings,
        tasks: Splits,
        data_sha256: str,
        annotations: Sequence[Feedback],
        model: Path,
        store: Store,
        sandbox: Sandbox,
        tracker: Tracker,
    ) -> None:
        self.settings, self.tasks, self.annotations, self.model = settings, tasks, list(annotations), model
        self.store, self.sandbox, self.tracker = store, sandbox, tracker
        self.folder = Path(settings.output_dir)
        self.tokenizer = load_tokenizer(model)
        self.sampler = Sampler(settings.sampler)
        executor = settings.executor
        self.scoring = {
            name: getattr(executor, name) for name in ("tests", "compare", "time_limit", "memory_mb", "output_kb")
        }
        self.data_sha256 = data_sha256
        self.seconds: dict[str, float] = {}
        self.reused: list[str] = []
        self.rejected: list[str] = []
        self.optimizer_steps: dict[str, int] = {}
        self.halvings = 0

    # ---- the run -----------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Run the algorithm as far as `stages` asks, write the run's files, and return results.json.

        Raises:
            NoTrainingExamples: After everything was written.
            InputError: A requested stage needs one that is neither requested nor finished.
        """
        outcome, status, missing = algorithm.Outcome(), "failed", None
        refinements = self.settings.refinements
        try:
            algorithm.run(
                self,
                self.tasks,
                outcome,
                arm=refinements.name,
                solved_only=refinements.tasks == "solved",
                seed=self.settings.seed,
            )
            status = "complete" if outcome.finetuned is not None else "no_training_examples"
        except NotRequested as stop:
            status, missing = "partial", str(stop)
        finally:
            found = self._report(outcome, status)
        undone = [s for s in self.settings.stages if s not in self.seconds]
        if missing and undone:
            raise InputError(
                "stages",
                self.settings.stages,
                f"{undone[0]} needs {missing}, which is not finished in {self.store.root}",
                f"Add {missing} to stages.",
            )
        if status == "no_training_examples":
            raise NoTrainingExamples(
                f"no program is left to fine-tune on (refinements={refinements.name}); counts: "
                f"{found['counts']}. Raise sampler.n or data.limit.train; see {self.folder}"
            )
        return found

    def _do(
        self, stage: str, key: dict[str, Any], work: Callable[[Entry], dict[str, Any]], mark: str = "done.json"
    ) -> tuple[Path, dict[str, Any]]:
        """Do a stage, or take it from the store; return its folder and what it was finished with."""
        key = {"stage": stage, "version": VERSIONS[stage], **key}
        if stage not in self.settings.stages and not self.store.is_done(stage, key, mark):
            raise NotRequested(stage)
        with self.store.entry(stage, key, mark) as entry:
            facts = entry.done
            if facts is None:
                log.info("%s: started", stage)
                start = time.monotonic()
                facts = work(entry)
                facts = entry.finish(facts | {"seconds": round(time.monotonic() - start, 2)})
                gc.collect()
            else:
                self.reused.append(stage)
            log.info("%s: %s", stage, "reused" if stage in self.reused else f"done in {facts['seconds']:.1f} s")
        self.seconds[stage] = facts["seconds"]
        return entry.path, facts

    # ---- sampling stages ---------------------------------------------------------------------------------------

    def zero_shot(self, tasks: Sequence[Task]) -> list[Program] | None:
        """Draw the policy's programs on Test; None where this is not asked for and not at hand."""
        try:
            return self._draw("zero_shot", self.model, plan_draws(_task_prompts(tasks), "zero_shot", self.n, self.seed))
        except NotRequested:
            return None

    def sample(self, tasks: Sequence[Task]) -> list[Program]:
        """Draw the policy's programs on Refine and Train."""
        return self._draw("sample", self.model, plan_draws(_task_prompts(tasks), "sample", self.n, self.seed))

    def refine(self, refiner: Path, feedback: Sequence[Feedback]) -> list[Program]:
        """Draw the refiner's programs, given x0 and f."""
        shots = self._shots() if self.settings.refiner.name == "few_shot" else []
        pairs = []
        for f in feedback:
            task = self.tasks.by_id[f.task_id]
            query = RefineModule.prompt(self.tokenizer, f, task, self.settings.refiner.old_code_tokens)
            pairs.append((task, few_shot_prompt(shots, query) if shots else query))
        return self._draw("refine", refiner, plan_draws(pairs, "refine", self.n, self.seed), RefineModule)

    def evaluate(self, policy: Path | None, tasks: Sequence[Task]) -> list[Program]:
        """Draw the fine-tuned policy's programs on Test; None is the policy as it was."""
        draws = plan_draws(_task_prompts(tasks), "evaluate", self.n, self.seed)
        return self._draw("evaluate", policy or self.model, draws)

    @property
    def n(self) -> int:
        """Programs a task."""
        return self.settings.sampler.n

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.settings.seed

    def _draw(
        self, stage: str, model: Path, draws: list[Draw], module: type[FineTuningModule] = ILFModule
    ) -> list[Program]:
        """Sample and execute planned programs by Lightning's test loop, and put them into the run's folder."""
        if not draws:
            raise InputError(
                "data.limit",
                asdict(self.settings.data.limit),
                f"leaves {stage} no task",
                "Raise the limits, or add annotations.",
            )
        settings, scoring = self.settings.sampler, sha256(self.scoring)[:12]
        dtype = sampling_dtype(self.settings.model.dtype)
        key = {
            "weights": self._weights(model),
            "draws": [asdict(draw) for draw in draws],
            "dtype": str(dtype),
            "temperature": settings.temperature,
            "max_new_tokens": settings.max_new_tokens,
            "batch_size": settings.batch_size,
        }
        programs: list[Program] = []
        before = self.sampler.halvings

        def work(entry: Entry) -> dict[str, Any]:
            callback = UnitTestCallback(
                stage,
                self.tasks.by_id,
                self.sandbox,
                self.settings.executor.tests,
                self.settings.evaluate.k,
                entry.path,
                scoring,
            )
            # Samples that are all there only need their verdicts: another scoring of a finished stage loads no model.
            whole = any(entry.path.glob("done-*.json"))
            net = None if whole else load_model(model, dtype)
            data = MBPPDataModule(self.tokenizer, test_draws=draws, sampling_batch_size=settings.batch_size)
            trainer = make_trainer(self.settings.trainer, callbacks=[callback], loggers=self.tracker.loggers)
            trainer.test(self._module(module, net, Phase()), data, verbose=False)
            programs.extend(callback.programs)
            rows = JsonLines(entry.path / f"programs-{scoring}.jsonl")
            rows.path.unlink(missing_ok=True)
            rows.append(program.row() for program in programs)
            return {"halvings": self.sampler.halvings - before}

        path, facts = self._do(stage, key, work, f"done-{scoring}.json")
        self.halvings += facts["halvings"]
        rows = path / f"programs-{scoring}.jsonl"
        target = self.folder / "programs" / f"{_RUN_FILES[stage]}.jsonl"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(rows, target)
        programs = programs or [Program.from_row(row) for row in JsonLines(rows).read()]
        self.tracker.programs(stage, programs)
        return programs

    # ---- feedback ----------------------------------------------------------------------------------------------

    def annotate(self, failing: dict[int, list[Program]]) -> list[Feedback]:
        """Return feedback on tasks of Refine and Train; annotations whose programs don't hold up are rejected."""
        settings = self.settings.feedback
        if settings.name == "human":
            found = human.select(self.annotations, failing, settings.select == "annotated_and_failed")
            found = [f for f in found if f.task_id in self.tasks.by_id]
        else:
            found = from_tests.annotate(failing, settings.name, self.seed)

        def work(entry: Entry) -> dict[str, Any]:
            checked = [f for f in found if f.refinement is not None]
            both = [(text, self.tasks.by_id[f.task_id]) for f in checked for text in (f.program, f.refinement or "")]
            verdicts = score(both, self.sandbox, self.settings.executor.tests)
            bad = {}
            for f, x0, x1 in zip(checked, verdicts[::2], verdicts[1::2], strict=True):
                if x0.passed:
                    bad[f.task_id] = "the wrong program passes its tests"
                elif not x1.passed:
                    bad[f.task_id] = f"the refinement does not pass: {x1.verdict}, {x1.detail}"
            return {"rejected": bad}

        key = {"feedback": [asdict(f) for f in found], "scoring": self.scoring}
        _, facts = self._do("annotate", key, work)
        self.rejected += [f"task {i} (annotation): {reason}" for i, reason in facts["rejected"].items()]
        return [f for f in found if str(f.task_id) not in {str(i) for i in facts["rejected"]}]

    def express(self, task: Task, program: str, source: str, feedback: Feedback) -> Refinement | None:
        """Return a program as a training example, None where it is rejected, which is noted."""
        try:
            target = completion_of(task.prompt, program, task.entry_point)
            row = Refinement(task.task_id, task.prompt, target, source, feedback.parent, feedback.text)
            ILFModule.example(self.tokenizer, row, self.settings.training.max_length)
        except (ValueError, SyntaxError) as error:
            self.rejected.append(f"task {task.task_id} ({source}): {error}")
            return None
        verdict = score([(task.prompt + target, task)], self.sandbox, self.settings.executor.tests)[0]
        if not verdict.passed:
            self.rejected.append(f"task {task.task_id} ({source}): {verdict.verdict}, {verdict.detail}")
            return None
        return row

    # ---- fine-tuning stages ------------------------------------------------------------------------------------

    def train_refiner(self, feedback: Sequence[Feedback]) -> Path:
        """Return the folder of pi_Refine."""
        settings = self.settings.refiner
        if settings.name == "few_shot":
            return self.model
        if settings.name == "local":
            assert settings.path is not None  # checked by config.py
            return Path(settings.path)
        examples = []
        for f in feedback:
            task, limit = self.tasks.by_id[f.task_id], self.settings.training.max_length
            try:
                examples.append(RefineModule.example(self.tokenizer, f, task, settings.old_code_tokens, limit))
            except (ValueError, SyntaxError) as error:
                self.rejected.append(f"task {f.task_id} (refiner): {error}")
        if not examples:
            raise InputError(
                "feedback",
                self.settings.feedback.name,
                "gives no example on the Refine split",
                "Raise data.limit.refine, or give annotations of ids 111 to 310.",
            )
        order = random.Random(derive_seed(self.seed, "held_out")).sample(examples, len(examples))
        held_out, training = order[: len(order) // 5], order[len(order) // 5 :]
        ids = {e.task_id for e in held_out}
        pairs = []
        for f in feedback:
            if f.task_id in ids:
                task = self.tasks.by_id[f.task_id]
                pairs.append((task, RefineModule.prompt(self.tokenizer, f, task, settings.old_code_tokens)))
        draws = plan_draws(pairs, "validate_refiner", self.settings.training.validate_n, self.seed)
        return self._train(RefineModule, training, held_out, draws, self.settings.training.refiner, "refiner")

    def train_policy(self, examples: Sequence[Refinement]) -> Path:
        """Return the folder of pi_theta*, validated on Refine."""
        rows = JsonLines(self.folder / "training.jsonl")
        rows.path.unlink(missing_ok=True)
        rows.append(asdict(example) for example in examples)
        self.tracker.artifact("training-set", "dataset", rows.path)
        training = self.settings.training
        encoded = [ILFModule.example(self.tokenizer, e, training.max_length) for e in examples]
        draws = plan_draws(_task_prompts(self.tasks.refine), "validate_policy", training.validate_n, self.seed)
        return self._train(ILFModule, encoded, [], draws, training.policy, "policy")

    def _train(
        self,
        kind: type[FineTuningModule],
        examples: Sequence[Example],
        validation: Sequence[Example],
        draws: Sequence[Draw],
        phase: Phase,
        name: str,
    ) -> Path:
        """Fine-tune the base on examples; return the folder of the result, also put into the run's as `name`."""
        settings, training = self.settings, self.settings.training
        key = {
            "weights": self._weights(self.model),
            "examples": sha256([asdict(e) for e in examples]),
            "phase": asdict(phase),
            "micro_batch_size": training.micro_batch_size,
            "clip": training.clip,
            "warmup_steps": training.warmup_steps,
            "adapter": asdict(settings.adapter),
            "optimizer": asdict(settings.optimizer),
            "precision": precision(settings.trainer),
            "seed": self.seed,
        }

        def work(entry: Entry) -> dict[str, Any]:
            torch.manual_seed(derive_seed(self.seed, kind.stage))  # LoRA's first matrices are random
            net = adapt(load_model(self.model, torch.float32), settings.adapter)
            module = self._module(kind, net, phase).train()
            callback = UnitTestCallback(kind.stage, self.tasks.by_id, self.sandbox, settings.executor.tests, [1])
            data = MBPPDataModule(
                self.tokenizer,
                training=examples,
                validation=validation,
                validation_draws=draws,
                batch_size=phase.batch_size,
                micro_batch_size=training.micro_batch_size,
                sampling_batch_size=settings.sampler.batch_size,
                seed=self.seed,
            )
            checkpoints = entry.path / "checkpoints"
            trainer = make_trainer(
                settings.trainer,
                callbacks=[callback],
                loggers=self.tracker.loggers,
                epochs=phase.epochs,
                accumulate=data.accumulate,
                clip=training.clip,
                checkpoints=checkpoints,
            )
            if (checkpoints / "last.ckpt").exists():
                log.info("%s: resuming from %s", kind.stage, checkpoints / "last.ckpt")
            trainer.fit(module, data, ckpt_path=_last(checkpoints))
            steps = trainer.global_step
            save(net, self.tokenizer, entry.path / "model")
            shutil.rmtree(checkpoints, ignore_errors=True)
            return {"optimizer_steps": steps, "metrics": {k: float(v) for k, v in trainer.callback_metrics.items()}}

        path, facts = self._do(kind.stage, key, work)
        self.optimizer_steps[kind.stage] = facts["optimizer_steps"]
        shutil.rmtree(self.folder / name, ignore_errors=True)
        shutil.copytree(path / "model", self.folder / name, copy_function=_link_or_copy)
        return path / "model"

    def _module(self, kind: type[FineTuningModule], net: Any, phase: Phase) -> FineTuningModule:
        return kind(
            net, self.tokenizer, self.sampler, self.settings.training, phase, self.settings.optimizer, self.seed
        )

    def _weights(self, folder: Path) -> str:
        return weights_sha256(folder, self.store.root / "weights.json")

    def _shots(self) -> list[tuple[Feedback, Refinement]]:
        """Return the worked examples of the few-shot refiner, from annotations of ids 1 to 10."""
        shots = []
        for f in [a for a in self.annotations if a.split == "prompt"][: self.settings.refiner.shots]:
            task = self.tasks.by_id[f.task_id]
            target = completion_of(task.prompt, f.refinement or task.code, task.entry_point)
            shots.append((f, Refinement(f.task_id, task.prompt, target, f.source)))
        return shots

    # ---- the report --------------------------------------------------------------------------------------------

    def _report(self, outcome: algorithm.Outcome, status: str) -> dict[str, Any]:
        """Write results.json, summary.md and the plot from what there is, and return the results."""
        start = time.monotonic()
        found = self._results(outcome, status)
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "plots" / "pass_at_k.png"
        file.parent.mkdir(exist_ok=True)
        report.plot(found, file)
        self.seconds["report"] = found["seconds"]["report"] = round(time.monotonic() - start, 2)
        write_atomically(self.folder / "results.json", json.dumps(found, indent=1))
        write_atomically(self.folder / "summary.md", report.summary(found))
        self.tracker.artifact("results", "results", self.folder / "results.json")
        figures = {
            f"{part}/{name}": found[part][name]
            for part in ("zero_shot", "refiner", "finetuned")
            if found[part]
            for name in (*found[part]["ci95"], "one_correct")
        }
        self.tracker.summary(figures)
        return found

    def _results(self, outcome: algorithm.Outcome, status: str) -> dict[str, Any]:
        settings, k = self.settings, self.settings.evaluate.k
        refined = results.metrics(outcome.refinements, k)
        if refined and outcome.refinements:
            solved = [p for p in outcome.refinements if p.verdict.passed]
            old = {f.task_id: f.program for f in outcome.feedback or []}
            refined["solved_tasks"] = sorted({p.task_id for p in solved})
            refined["returning_expected_literal"] = sorted(
                {p.task_id for p in solved if returns_expected_literal(p.program, self.tasks.by_id[p.task_id].tests)}
            )
            distances = [edit_distance(old[p.task_id], p.program) for p in solved]
            refined["edit_distance"] = sum(distances) / len(distances) if distances else None
        model_id = settings.model.hub if settings.model.path is None else settings.model.path
        own = settings.feedback.name != "human"
        annotated = settings.feedback.annotated_policy
        samples = outcome.samples
        policy = settings.model.hub or settings.model.name
        return {
            "schema": results.SCHEMA,
            "status": status,
            "arm": settings.arm,
            "study": settings.study,
            "refinements": settings.refinements.name,
            "feedback": settings.feedback.name,
            "refiner_kind": settings.refiner.name,
            "seed": settings.seed,
            "data": settings.data.name,
            "data_sha256": self.data_sha256,
            "model": settings.model.name,
            "model_id": model_id,
            "weights_sha256": self._weights(self.model),
            "scoring": self.scoring,
            "sampling": {
                **asdict(settings.sampler),
                "dtype": str(sampling_dtype(settings.model.dtype)),
                "prompt": settings.data.prompt,
                "halvings": self.halvings,
            },
            "feedback_on_policy": own or annotated == policy,
            "annotated_policy": None if own else annotated,
            "policy_on_annotated": None if own else results.metrics(samples, k),
            "matched": settings.refinements.tasks == "solved",
            "zero_shot": results.metrics(outcome.zero_shot, k),
            "refiner": refined,
            "finetuned": results.metrics(outcome.finetuned, k),
            "delta": results.delta(outcome.zero_shot, outcome.finetuned, k),
            "training_task_ids": None if outcome.examples is None else [e.task_id for e in outcome.examples],
            "counts": {
                "test_tasks": len(self.tasks.test),
                "refine_tasks": len(self.tasks.refine),
                "train_tasks": len(self.tasks.train),
                "failing_tasks": None if outcome.failing is None else len(outcome.failing),
                "annotated": None if outcome.feedback is None else len(outcome.feedback),
                "training_examples": None if outcome.examples is None else len(outcome.examples),
                "rejected": len(self.rejected),
                "selection_samples": None if samples is None else self.n,
                "optimizer_steps": self.optimizer_steps.get("train_policy"),
            },
            "rejected": self.rejected,
            "seconds": {**{name: self.seconds.get(name) for name in (*VERSIONS, "report")}, "reused": self.reused},
            "versions": results.versions(),
        }


def _task_prompts(tasks: Sequence[Task]) -> list[tuple[Task, str]]:
    return [(task, task.prompt) for task in tasks]


def _last(checkpoints: Path) -> str | None:
    file = checkpoints / "last.ckpt"
    return str(file) if file.exists() else None


def _link_or_copy(source: str, target: str) -> None:
    """Hard-link a file: large weights lie on the disk once, and pruning the store leaves the run's copy."""
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)
