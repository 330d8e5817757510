"""Algorithm 1's lines as named, resumable stages: each collaborator of algorithm.run, wrapped with the store."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ilf import algorithm
from ilf.algorithm import Candidate
from ilf.analysis import report, results
from ilf.feedback import from_tests, human, scripted, transforms
from ilf.models.load import sampling_dtype
from ilf.runner import VERSIONS, NotRequested, Runner
from ilf.sandbox import Sandbox
from ilf.settings import Settings
from ilf.store import Entry, JsonLines, Store, write_atomically
from ilf.tasks import mini
from ilf.tasks.prompts import completion_of, few_shot_prompt
from ilf.tracking import Tracker
from ilf.training.ilf_module import ILFModule
from ilf.training.mbpp_datamodule import plan_draws
from ilf.training.refine_module import RefineModule
from ilf.training.unit_test_callback import score
from ilf.types import (
    Feedback,
    InputError,
    NoTrainingExamples,
    Outcome,
    Program,
    Refinement,
    Splits,
    Task,
    derive_seed,
)

log = logging.getLogger(__name__)


class Stages:
    """The collaborators of `algorithm.run` (its protocol `Steps`) for one run.

    Args:
        settings: Checked by config.py.
        tasks: By split, restricted and limited.
        data_sha256: Of the rows that the tasks come from.
        annotations: What people wrote, where they are the source of feedback; else empty.
        model: Folder of the policy.
        store: Finished stages.
        sandbox: Executes programs.
        tracker: W&B, TensorBoard and CSV.
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
        self.settings, self.tasks, self.data_sha256 = settings, tasks, data_sha256
        self.annotations, self.model = list(annotations), model
        self.runner = Runner(settings, tasks.by_id, model, store, sandbox, tracker)
        self.folder, self.tracker, self.sandbox = self.runner.folder, tracker, sandbox
        self.tokenizer = self.runner.tokenizer
        self.rejected: list[str] = []

    # ---- the run -----------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Run the algorithm as far as `stages` asks, write the run's files, and return results.json.

        Raises:
            NoTrainingExamples: After everything was written.
            InputError: A requested stage needs one that is neither requested nor finished.
        """
        log.info("executor: %s", self.sandbox.isolation)
        outcome, status, missing = Outcome(), "failed", None
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
        undone = [s for s in self.settings.stages if s not in self.runner.seconds]
        if missing and undone:
            raise InputError(
                "stages",
                self.settings.stages,
                f"{undone[0]} needs {missing}, which is not finished in {self.runner.store.root}",
                f"Add {missing} to stages.",
            )
        if status == "no_training_examples":
            raise NoTrainingExamples(
                f"no program is left to fine-tune on (refinements={refinements.name}); counts: "
                f"{found['counts']}. Raise sampler.n or data.limit.train; see {self.folder}"
            )
        return found

    # ---- sampling stages ---------------------------------------------------------------------------------------

    def zero_shot(self, tasks: Sequence[Task]) -> list[Program] | None:
        """Draw the policy's programs on Test; None where this is not asked for and not at hand."""
        try:
            return self.runner.draw(
                "zero_shot", self.model, plan_draws(_task_prompts(tasks), "zero_shot", self.n, self.seed)
            )
        except NotRequested:
            return None

    def sample(self, tasks: Sequence[Task]) -> list[Program]:
        """Draw the policy's programs on Refine and Train."""
        return self.runner.draw("sample", self.model, plan_draws(_task_prompts(tasks), "sample", self.n, self.seed))

    def refine(self, refiner: Path, feedback: Sequence[Feedback]) -> list[Program]:
        """Draw the refiner's programs, given x0 and f."""
        shots = self._shots() if self.settings.refiner.name == "few_shot" else []
        pairs = []
        for f in feedback:
            task = self.tasks.by_id[f.task_id]
            query = RefineModule.prompt(self.tokenizer, f, task, self.settings.refiner.old_code_tokens)
            pairs.append((task, few_shot_prompt(shots, query) if shots else query))
        return self.runner.draw("refine", refiner, plan_draws(pairs, "refine", self.n, self.seed), RefineModule)

    def evaluate(self, policy: Path | None, tasks: Sequence[Task]) -> list[Program]:
        """Draw the fine-tuned policy's programs on Test; None is the policy as it was."""
        draws = plan_draws(_task_prompts(tasks), "evaluate", self.n, self.seed)
        return self.runner.draw("evaluate", policy or self.model, draws)

    @property
    def n(self) -> int:
        """Programs a task."""
        return self.settings.sampler.n

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.settings.seed

    # ---- feedback ----------------------------------------------------------------------------------------------

    def annotate(self, failing: dict[int, list[Program]]) -> list[Feedback]:
        """Return feedback on tasks of Refine and Train; annotations whose programs don't hold up are rejected."""
        settings = self.settings.feedback
        if self.annotations:
            found = human.select(self.annotations, failing, settings.select == "annotated_and_failed")
            found = [f for f in found if f.task_id in self.tasks.by_id]
        elif settings.source == "scripted":
            found = scripted.annotate(failing, self.tasks.by_id, mini.specifications(), self.seed)
        else:
            found = from_tests.annotate(failing, self.seed)

        def work(entry: Entry) -> dict[str, Any]:
            checked = [f for f in found if f.refinement is not None]
            both = [(text, self.tasks.by_id[f.task_id]) for f in checked for text in (f.program, f.refinement or "")]
            verdicts = score(both, self.sandbox, self.settings.executor.tests)
            bad = {}  # by id, as text: the keys of a JSON object
            for f, x0, x1 in zip(checked, verdicts[::2], verdicts[1::2], strict=True):
                if x0.passed:
                    bad[str(f.task_id)] = "the wrong program passes its tests"
                elif not x1.passed:
                    bad[str(f.task_id)] = f"the refinement does not pass: {x1.verdict}, {x1.detail}"
            return {"rejected": bad}

        key = {"feedback": [asdict(f) for f in found], "scoring": self.runner.scoring}
        _, facts = self.runner.do("annotate", key, work)
        self.rejected += [f"task {i} (annotation): {reason}" for i, reason in facts["rejected"].items()]
        found = [f for f in found if str(f.task_id) not in facts["rejected"]]
        if "shuffle" in settings.transform:
            splits = ("train",) if settings.apply == "refine" else ("refine", "train")
            found = transforms.shuffle(found, splits, self.seed)
        return transforms.drop(found) if "drop" in settings.transform else found

    def express(self, candidates: Sequence[Candidate]) -> list[Refinement | None]:
        """Return programs as training examples, None where one is rejected, which is noted."""
        rows: list[Refinement | None] = []
        for c in candidates:
            parent, text = (c.feedback.parent, c.feedback.text) if c.feedback else (None, None)
            try:
                target = completion_of(c.task.prompt, c.program, c.task.entry_point)
                row = Refinement(c.task.task_id, c.task.prompt, target, c.source, parent, text)
                ILFModule.example(self.tokenizer, row, self.settings.training.max_length)
                rows.append(row)
            except (ValueError, SyntaxError) as error:
                self.rejected.append(f"task {c.task.task_id} ({c.source}): {error}")
                rows.append(None)
        kept = [row for row in rows if row is not None]
        programs = [(row.prompt + row.target, self.tasks.by_id[row.task_id]) for row in kept]
        failed = set()
        for row, verdict in zip(kept, score(programs, self.sandbox, self.settings.executor.tests), strict=True):
            if not verdict.passed:
                self.rejected.append(f"task {row.task_id} ({row.source}): {verdict.verdict}, {verdict.detail}")
                failed.add(row)
        return [None if row in failed else row for row in rows]

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
        return self.runner.fine_tune(RefineModule, training, held_out, draws, self.settings.training.refiner, "refiner")

    def train_policy(self, examples: Sequence[Refinement]) -> Path:
        """Return the folder of pi_theta*, validated on Refine."""
        rows = JsonLines(self.folder / "training.jsonl")
        rows.path.unlink(missing_ok=True)
        rows.append(asdict(example) for example in examples)
        self.tracker.artifact(rows.path)
        training = self.settings.training
        encoded = [ILFModule.example(self.tokenizer, e, training.max_length) for e in examples]
        draws = plan_draws(_task_prompts(self.tasks.refine), "validate_policy", training.validate_n, self.seed)
        return self.runner.fine_tune(ILFModule, encoded, [], draws, training.policy, "policy")

    def _shots(self) -> list[tuple[Feedback, Refinement]]:
        """Return the worked examples of the few-shot refiner, from annotations of ids 1 to 10."""
        shots = []
        for f in [a for a in self.annotations if a.split == "prompt"][: self.settings.refiner.shots]:
            task = self.tasks.by_id[f.task_id]
            target = completion_of(task.prompt, f.refinement or task.code, task.entry_point)
            shots.append((f, Refinement(f.task_id, task.prompt, target, f.source)))
        return shots

    # ---- the report --------------------------------------------------------------------------------------------

    def _report(self, outcome: Outcome, status: str) -> dict[str, Any]:
        """Write results.json, summary.md and the plot from what there is, and return the results."""
        start = time.monotonic()
        record = results.Record(
            status=status,
            data_sha256=self.data_sha256,
            weights_sha256=self.runner.weights(self.model),
            dtype=str(sampling_dtype(self.settings.model.dtype)),
            scoring=self.runner.scoring,
            isolation=asdict(self.sandbox.isolation),
            halvings=self.runner.halvings,
            seconds={name: self.runner.seconds.get(name) for name in (*VERSIONS, "report")},
            reused=self.runner.reused,
            rejected=self.rejected,
            optimizer_steps=self.runner.optimizer_steps.get("train_policy"),
        )
        found = results.of_run(self.settings, self.tasks, outcome, record)
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "plots" / "pass_at_k.png"
        file.parent.mkdir(exist_ok=True)
        report.plot(found, file)
        plots = sorted(file.parent.glob("*.png"))
        self.runner.seconds["report"] = found["seconds"]["report"] = round(time.monotonic() - start, 2)
        write_atomically(self.folder / "results.json", json.dumps(found, indent=1))
        write_atomically(
            self.folder / "summary.md",
            report.summary(found, report.mended(outcome, self.tasks), [p.name for p in plots]),
        )
        self.tracker.artifact(self.folder / "results.json")
        figures = {
            f"{part}/{name}": found[part][name]
            for part in ("zero_shot", "refiner", "finetuned")
            if found[part]
            for name in (*found[part]["ci95"], "one_correct")
        }
        self.tracker.summary(figures, plots)
        return found


def _task_prompts(tasks: Sequence[Task]) -> list[tuple[Task, str]]:
    return [(task, task.prompt) for task in tasks]
