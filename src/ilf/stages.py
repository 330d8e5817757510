"""The lines of Algorithm 1 as named, resumable stages: each collaborator of `algorithm.run`, with the store."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ilf import algorithm, shutdown, training_set
from ilf.analysis.schema import Results
from ilf.annotators import Annotators
from ilf.executors import Judge
from ilf.feedback.source import worked_examples
from ilf.files import JsonLines
from ilf.llm_answers import LLMAnswers
from ilf.measurements import with_reference
from ilf.outputs import write_outputs
from ilf.paths import check_model_folder
from ilf.protocols import Refining
from ilf.refinements import COMPARED
from ilf.runner import NotRequested, Runner
from ilf.settings import STAGES, Settings
from ilf.store import Store
from ilf.tracking import Tracker
from ilf.training.mbpp_datamodule import plan_draws
from ilf.training.trainer import training_device
from ilf.turns import take_turns
from ilf.types import (
    Candidate,
    Example,
    Feedback,
    InputError,
    Inputs,
    NoTrainingExamples,
    Outcome,
    Program,
    Refinement,
    Round,
    Task,
    Turns,
)

log = logging.getLogger(__name__)


class Stages:
    """The collaborators of `algorithm.run` (the protocol `Steps`) for one run.

    Args:
        settings: Settings that config.py has checked.
        inputs: The tasks, and the feedback from before the run.
        model: Folder of the initial policy.
        store: Store of finished stages.
        sandbox: Executes programs.
        tracker: W&B, TensorBoard and CSV.
        llm_folder: Folder of the LLM that writes feedback or refinements, if it is a local model.
    """

    def __init__(
        self,
        settings: Settings,
        inputs: Inputs,
        model: Path,
        store: Store,
        sandbox: Judge,
        tracker: Tracker,
        llm_folder: Path | None = None,
    ) -> None:
        self.settings, self.inputs, self.tasks, self.model = settings, inputs, inputs.tasks, model
        self.runner = Runner(settings, self.tasks.by_id, model, store, sandbox, tracker)
        self.other = LLMAnswers(self.runner, llm_folder)
        self.annotators = Annotators(self.runner, self.tasks, inputs.known, self.other)
        self.folder, self.tracker, self.sandbox = self.runner.folder, tracker, sandbox
        self.tokenizer = self.runner.tokenizer
        self.policy_module: Any = settings.module.policy.resolve()  # the class that fine-tunes the policy
        self.newest = model  # folder of the newest policy, which the next round samples
        self.refiner_folder: Path | None = None  # folder of the newest refiner
        self.samples: list[list[Program]] = []  # the policy's programs on everything but Test, by round
        self.validation: list[Program] | None = None  # programs on Refine for the selection of settings

    def close(self, failed: bool = False) -> None:
        """Stop the sandbox and finish the trackers' runs.

        Args:
            failed: Whether the run failed or was interrupted.
        """
        try:
            self.sandbox.close()
        finally:
            self.tracker.close(failed)

    # ---- the run -----------------------------------------------------------------------------------------------

    def run(self) -> Results:
        """Run the algorithm as far as `stages` requests, write the run's files, and return results.json.

        Raises:
            NoTrainingExamples: No training examples are left. Everything else was written before.
            InputError: A requested stage needs another stage that is neither requested nor finished.
        """
        log.info("executor: %s", self.sandbox.isolation)
        if self.settings.sampler.casts:
            name, device = self.settings.model.dtype, training_device(self.settings.trainer)
            dtypes = (self.runner.dtype_of(stage, self.model) for stage in ("sample", "evaluate"))
            learned, reported = (str(dtype).removeprefix("torch.") for dtype in dtypes)
            said = "sampling on the %s: training programs in %s, reported programs in %s (model.dtype=%s)"
            log.info(said, device.type, learned, reported, name)
        for pattern in ("*_round*.jsonl", "programs/*_round*.jsonl", "plots/*.png"):  # files of an earlier run here
            for file in self.folder.glob(pattern):
                file.unlink()
        outcome, status, missing = Outcome(), "failed", None
        settings = self.settings
        try:
            algorithm.run(
                self,
                self.tasks,
                outcome,
                arm=settings.refinements,
                others=COMPARED,
                seed=settings.seed,
                rounds=settings.rounds,
                from_last=settings.rounds_from == "last",
            )
            status = "complete" if outcome.last.finetuned is not None else "no_training_examples"
            if "train_policy" not in settings.stages and status != "complete":
                status = "partial"
        except NotRequested as stop:
            status, missing = "partial", str(stop)
        finally:
            if shutdown.pending():
                status = "interrupted"
            facts = self.validation, self.other.counts
            try:
                found = write_outputs(self.runner, self.inputs, outcome, status, *facts)
            except shutdown.Interrupted:  # a signal during a measurement, which an interrupted run skips
                write_outputs(self.runner, self.inputs, outcome, "interrupted", *facts)
                raise
        order = list(STAGES)
        undone = [s for s in settings.stages if s not in self.runner.seconds]
        undone = [s for s in undone if missing and order.index(s) > order.index(missing)]
        if missing and undone:
            allowed = f"{undone[0]} needs {missing}, which is not finished in {self.runner.store.root}"
            raise InputError("stages", settings.stages, allowed, f"Add {missing} to stages.")
        if status == "no_training_examples":
            rejected = found["counts"]["rejected"]
            said = f"{rejected} rows were rejected, and `rejected` in results.json has the reasons"
            why = said if rejected else "no refinement passes its tests"
            raise NoTrainingExamples(
                f"no program is left to fine-tune on (refinements={settings.option('refinements')}): {why}. More "
                "programs per task (sampler.n), more tasks or a better refiner may provide some; "
                f"{self.folder} has the sampled programs."
            )
        return found

    # ---- sampling stages ---------------------------------------------------------------------------------------

    def begin_round(self, number: int) -> None:
        """Start a round, or return to one. It samples with its own seeds and writes files with a suffix."""
        self.runner.round = number

    def zero_shot(self, tasks: Sequence[Task]) -> list[Program] | None:
        """Sample the initial policy on reported tasks. Return None if the stage is neither requested nor stored."""
        try:
            return self._draw("zero_shot", self.model, self._prompts(tasks))
        except NotRequested:
            return None

    def to_annotate(self) -> dict[int, list[Program]]:
        """Return the incorrect programs of each task that fails, for people to write feedback on."""
        tasks = self.tasks
        samples = self.sample(None, [*tasks.prompt, *tasks.refine, *tasks.train])
        return self._with_own_targets(self.failing(samples))

    def sample(self, policy: Path | None, tasks: Sequence[Task]) -> list[Program]:
        """Sample the policy on everything but Test."""
        self.newest = policy or self.model
        self.samples.append(self._draw("sample", self.newest, self._prompts(tasks, base=policy is None)))
        return self.samples[-1]

    def refine(self, refiner: Path, feedback: Sequence[Feedback]) -> list[Program]:
        """Sample the refiner, with the prompts that it makes from x0 and f."""
        run, made = self._refining(), self.settings.refiner
        tasks = [self.tasks.by_id[f.task_id] for f in feedback]
        pairs = [(task, made.prompt(f, task, run)) for task, f in zip(tasks, feedback, strict=True)]
        for task, prompt in pairs:
            if not prompt.endswith(task.prompt):
                allowed = f"must return prompts that end with the task's prompt; that of task {task.task_id} does not"
                raise InputError("refiner", self.settings.option("refiner"), allowed, "Fix its `prompt`.")
        return self._draw("refine", refiner, pairs)

    def evaluate(self, policy: Path | None, tasks: Sequence[Task]) -> list[Program]:
        """Sample the fine-tuned policy on reported tasks. None stands for the initial policy."""
        return self._draw("evaluate", policy or self.model, self._prompts(tasks, base=policy is None))

    def take_turns(self, part: str, policy: Path | None, programs: Sequence[Program]) -> Turns | None:
        """Have failing programs on Test rewritten with feedback, and resampled without; None if not requested."""
        evaluate = self.settings.evaluate
        if not evaluate.turns:
            return None
        stage, folder = ("evaluate" if part == "finetuned" else part), policy or self.model
        reviser = folder if evaluate.reviser == "policy" else self.refiner_folder
        if reviser is None:  # the run stopped before it had a refiner
            return None
        prompt, refining = functools.partial(self._prompt, base=policy is None), self._refining()
        try:
            return take_turns(self.runner, self.annotators, refining, stage, folder, reviser, prompt, list(programs))
        except NotRequested:  # the store has the programs, but not their turns
            return None

    def _draw(
        self, stage: str, model: Path, prompts: Sequence[tuple[Task, str]], n: int | None = None
    ) -> list[Program]:
        """Sample `n` programs per prompt. Those of another data set have their own seeds and files."""
        transfer = bool(prompts) and any(prompts[0][0] is task for task in self.tasks.transfer)
        label = "transfer_" * transfer + stage
        draws = plan_draws(prompts, label, n or self.runner.sampler_of(stage).n, self.runner.seed)
        tasks = {task.task_id: task for task, _ in prompts}
        return self.runner.draw(stage, model, draws, label + self.runner.suffix, tasks)

    # ---- feedback ----------------------------------------------------------------------------------------------

    def failing(self, samples: Sequence[Program]) -> dict[int, list[Program]]:
        """Return the incorrect programs of each task that fails: no sample passes, or not all, as `failing` says."""
        fails = algorithm.unsolved if self.settings.failing == "all" else algorithm.not_always_solved
        return fails(samples)

    def annotate(self, failing: dict[int, list[Program]]) -> list[Feedback]:
        """Return feedback on tasks of Refine and Train."""
        return self.annotators.annotate(self._with_own_targets(failing))

    def _with_own_targets(self, failing: dict[int, list[Program]]) -> dict[int, list[Program]]:
        """Return the programs for feedback. On Refine, use sometimes solved tasks if the refiner learns from these."""
        if not (self.settings.refines and self.settings.refiner.learns == "own"):
            return failing
        others = {i: found for i, found in failing.items() if self.tasks.by_id[i].split != "refine"}
        return others | algorithm.sometimes_solved(p for p in self.samples[-1] if p.split == "refine")

    def ask_llm(self, feedback: Sequence[Feedback]) -> list[Program]:
        """Have the LLM refine incorrect programs, or reuse its stored answers, and execute its programs."""
        shots = worked_examples("llm.shots", self.settings.llm.shots, self.annotators.shots)
        return self.other.refine(feedback, shots)

    # ---- fine-tuning stages ------------------------------------------------------------------------------------

    def express(self, candidates: Sequence[Candidate]) -> list[Refinement | None]:
        """Return programs as training examples. Rejected ones are None and are recorded."""
        return training_set.express(self.runner, self.policy_module, candidates)

    def train_refiner(self, feedback: Sequence[Feedback]) -> Path:
        """Train the refiner, and return the folder of pi_Refine."""
        folder = self.settings.refiner.train(feedback, self._refining())
        check_model_folder("refiner", str(folder))
        self.refiner_folder = folder
        return folder

    def _refining(self) -> Refining:
        return Refining(
            tasks=self.tasks,
            seed=self.runner.seed,
            base=self.model,
            policy=self.newest,
            tokenizer=self.tokenizer,
            module=self.settings.module.refiner.resolve(),
            max_length=self.settings.training.max_length,
            worked=self.annotators.shots,
            samples=[p for one in self.samples for p in one],
            rejected=self.runner.rejected,
            fine_tune=self._fine_tune_refiner,
        )

    def _fine_tune_refiner(
        self, training: Sequence[Example], held_out: Sequence[Example], prompts: Sequence[tuple[Task, str]]
    ) -> Path:
        if not training and not self.runner.requested("train_refiner"):
            raise NotRequested("train_refiner")
        if not training:
            advice = "Add annotations on that split (MBPP: ids 111 to 310), or raise data.limit.refine if it is set."
            allowed = "provides no example on the Refine split"
            raise InputError("feedback", self.settings.option("feedback"), allowed, advice)
        draws = plan_draws(prompts, "validate_refiner", self.settings.training.validate_n, self.runner.seed)
        return self.runner.fine_tune("refiner", self.model, examples=training, validation=held_out, draws=draws)

    def train_policy(self, policy: Path | None, examples: Sequence[Refinement], rounds: Sequence[Round]) -> Path:
        """Fine-tune the policy, validate it on Refine, and return the folder of pi_theta*."""
        rows = JsonLines(self.folder / f"training{self.runner.suffix}.jsonl")
        rows.path.unlink(missing_ok=True)
        rows.append(asdict(example) for example in examples)
        self.tracker.artifact(rows.path)
        settings, base = self.settings, policy or self.model
        data = training_set.training_data(self.runner, self.policy_module, self._refining(), examples, rounds)
        encoded = settings.objective.examples(data)
        if not encoded:
            allowed = f"finds nothing to train on in {len(examples)} rows"
            raise InputError("objective", settings.option("objective"), allowed, "See `rejected` in results.json.")
        if settings.objective.needs_reference:
            encoded = with_reference(settings, self.runner, base, encoded)
        prompts = self._prompts(base=False, tasks=self.tasks.refine)
        draws = plan_draws(prompts, "validate_policy", settings.training.validate_n, self.runner.seed)
        teacher = {"base": base, "refiner": self.refiner_folder, None: None}[settings.objective.second_model]
        tuned = self.runner.fine_tune("policy", base, teacher, examples=encoded, validation=[], draws=draws)
        if settings.select:
            all_of_refine = self._prompts(base=False, tasks=self.tasks.validation)
            self.validation = self._draw("validate", tuned, all_of_refine, n=settings.select)
        return tuned

    def _prompts(self, tasks: Sequence[Task], base: bool = True) -> list[tuple[Task, str]]:
        return [(task, self._prompt(task, base)) for task in tasks]

    def _prompt(self, task: Task, base: bool) -> str:
        """Return the prompt of the initial policy (`base`) or of a fine-tuned policy for a task."""
        return task.prompt if base else self.settings.objective.prompt(task)
