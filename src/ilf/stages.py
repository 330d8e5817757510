"""Algorithm 1's lines as named, resumable stages: each collaborator of algorithm.run, wrapped with the store."""

from __future__ import annotations

import logging
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from ilf import algorithm
from ilf.algorithm import Candidate
from ilf.feedback import from_tests, human, llm, scripted, transforms
from ilf.feedback.other_model import OtherModel
from ilf.outputs import write_outputs
from ilf.runner import NotRequested, Runner
from ilf.sandbox import Sandbox
from ilf.settings import STAGES, Settings
from ilf.store import Entry, JsonLines, Store
from ilf.tasks import mini
from ilf.tasks.prompts import completion_of, few_shot_prompt
from ilf.tracking import Tracker
from ilf.training.fine_tuning import FineTuningModule
from ilf.training.ilf_module import ILFModule
from ilf.training.mbpp_datamodule import plan_draws
from ilf.training.refine_module import RefineModule
from ilf.training.trainer import training_device
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
    Verdict,
    derive_seed,
)

log = logging.getLogger(__name__)
T = TypeVar("T")


class Stages:
    """The collaborators of `algorithm.run` (its protocol `Steps`) for one run.

    Args:
        settings: Checked by config.py.
        tasks: By split, restricted and limited.
        data_sha256: Of the rows that the tasks come from.
        transfer_sha256: Of those of the other data set, None without one.
        annotations: What people wrote, where they are the source of feedback, or on ids 1 to 10, where another model
            is; else empty.
        model: Folder of the policy.
        store: Finished stages.
        sandbox: Executes programs.
        tracker: W&B, TensorBoard and CSV.
        llm_folder: Of the model that writes feedback or refinements, where it is a local one.
    """

    def __init__(
        self,
        settings: Settings,
        tasks: Splits,
        data_sha256: str,
        transfer_sha256: str | None,
        annotations: Sequence[Feedback],
        model: Path,
        store: Store,
        sandbox: Sandbox,
        tracker: Tracker,
        llm_folder: Path | None = None,
    ) -> None:
        self.settings, self.tasks, self.data_sha256 = settings, tasks, data_sha256
        self.transfer_sha256 = transfer_sha256
        self.annotations, self.model = list(annotations), model
        self.runner = Runner(settings, tasks.by_id, model, store, sandbox, tracker)
        self.folder, self.tracker, self.sandbox = self.runner.folder, tracker, sandbox
        self.tokenizer = self.runner.tokenizer
        device = training_device(settings.trainer)
        self.other = OtherModel(settings.llm, settings.sampler.temperature, llm_folder, device)
        self.llm_answers: dict[str, Counter[str]] = {}  # by what they are for
        self.rejected: list[str] = []
        self.round = 1
        self.shots: list[Feedback] = []  # on tasks of the Prompt split
        self.examples: list[tuple[Feedback, Verdict]] | None = None  # on these, by the data's annotator
        self.newest = model  # of the policies: each round samples it
        self.validation: list[Program] | None = None  # on Refine, to choose settings by

    # ---- the run -----------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Run the algorithm as far as `stages` asks, write the run's files, and return results.json.

        Raises:
            NoTrainingExamples: After everything was written.
            InputError: A requested stage needs one that is neither requested nor finished.
        """
        log.info("executor: %s", self.sandbox.isolation)
        for pattern in ("*_round*.jsonl", "programs/*_round*.jsonl", "plots/*.png"):  # of an earlier run in this folder
            for file in self.folder.glob(pattern):
                file.unlink()
        outcome, status, missing = Outcome(), "failed", None
        settings = self.settings
        try:
            algorithm.run(
                self,
                self.tasks,
                outcome,
                arm=settings.refinements.name,
                solved_only=settings.refinements.tasks == "solved",
                seed=settings.seed,
                limit=settings.refinements.limit,
                rounds=settings.rounds,
                from_last=settings.rounds_from == "last",
            )
            status = "complete" if outcome.last.finetuned is not None else "no_training_examples"
            if "train_policy" not in settings.stages and status != "complete":
                status = "partial"
        except NotRequested as stop:
            status, missing = "partial", str(stop)
        finally:
            found = write_outputs(self, outcome, status)
        order = list(STAGES)
        undone = [s for s in settings.stages if s not in self.runner.seconds]
        undone = [s for s in undone if missing and order.index(s) > order.index(missing)]
        if missing and undone:
            raise InputError(
                "stages",
                self.settings.stages,
                f"{undone[0]} needs {missing}, which is not finished in {self.runner.store.root}",
                f"Add {missing} to stages.",
            )
        if status == "no_training_examples":
            raise NoTrainingExamples(
                f"no program is left to fine-tune on (refinements={settings.refinements.name}); counts: "
                f"{found['counts']}. Raise sampler.n or data.limit.train; see {self.folder}"
            )
        return found

    # ---- sampling stages ---------------------------------------------------------------------------------------

    def begin_round(self, number: int) -> None:
        """Give what follows to a round: its draws have seeds of their own, and its files a suffix."""
        self.round = number

    def zero_shot(self, tasks: Sequence[Task]) -> list[Program] | None:
        """Draw the policy's programs on tasks to report; None where this is not asked for and not at hand."""
        try:
            return self._draw("zero_shot", self.model, _task_prompts(tasks))
        except NotRequested:
            return None

    def failing(self) -> dict[int, list[Program]]:
        """Return the programs of each task that the policy fails, for people to write feedback on."""
        tasks = self.tasks
        return algorithm.failing(self.sample(None, [*tasks.prompt, *tasks.refine, *tasks.train]))

    def sample(self, policy: Path | None, tasks: Sequence[Task]) -> list[Program]:
        """Draw the policy's programs on everything but Test."""
        self.newest = policy or self.model
        return self._draw("sample", self.newest, _task_prompts(tasks))

    def refine(self, refiner: Path, feedback: Sequence[Feedback]) -> list[Program]:
        """Draw the refiner's programs, given x0 and f; with refiner=policy, given only the task."""
        settings = self.settings.refiner
        shots = self._few_shot() if settings.name == "few_shot" else []
        tasks = [self.tasks.by_id[f.task_id] for f in feedback]
        if settings.name == "policy":
            return self._draw("refine", refiner, _task_prompts(tasks))
        pairs = []
        for task, f in zip(tasks, feedback, strict=True):
            query = RefineModule.prompt(self.tokenizer, f, task, settings.old_code_tokens)
            pairs.append((task, few_shot_prompt(shots, query) if shots else query))
        return self._draw("refine", refiner, pairs, RefineModule)

    def ask_llm(self, feedback: Sequence[Feedback]) -> list[Program]:
        """Have the other model refine wrong programs, or take its stored answers, and execute what it wrote."""
        shots, tasks = self._worked_examples("llm.shots", self.settings.llm.shots, self.shots), self.tasks.by_id
        queries = llm.plan_refinements(self.settings.llm.refinement, feedback, tasks, shots, self.n, self.seed)
        key = self._llm_key("refinement", queries)
        # Another scoring asks nothing anew.
        scoring = self.runner.verdicts_of("refine", [tasks[f.task_id] for f in feedback])

        def work(entry: Entry) -> dict[str, Any]:
            answers = JsonLines(entry.path / "answers.jsonl")
            self.other.answer("refinement", queries, answers)
            programs = llm.programs(queries, answers.read())
            texts = [(p.program, self.tasks.by_id[p.task_id]) for p in programs]
            verdicts = score(texts, self.sandbox, self.settings.executor.tests)
            rows = JsonLines(entry.path / f"programs-{scoring}.jsonl")
            rows.path.unlink(missing_ok=True)
            rows.append(replace(p, verdict=v).row() for p, v in zip(programs, verdicts, strict=True))
            return {}

        path, _ = self.runner.do("refine", key, work, f"done-{scoring}.json")
        self._take_answers("refinement", path, "llm_answers")
        rows = self.folder / "programs" / f"llm{self._suffix}.jsonl"
        shutil.copyfile(path / f"programs-{scoring}.jsonl", rows)
        self.tracker.artifact(rows)
        return [Program.from_row(row) for row in JsonLines(rows).read()]

    def _llm_key(self, use: str, queries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return everything that decides the other model's answers."""
        folder = self.other.folder
        return {"llm": self.other.key(use, self.runner.weights(folder) if folder else None), "queries": queries}

    def _take_answers(self, use: str, path: Path, name: str) -> list[dict[str, Any]]:
        """Put a stage's answers of the other model into the run's folder, count them, and return them."""
        target = self.folder / "programs" / f"{name}{self._suffix}.jsonl"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path / "answers.jsonl", target)
        answers = JsonLines(target).read()
        self.llm_answers.setdefault(use, Counter()).update(llm.summed(answers))
        return answers

    def evaluate(self, policy: Path | None, tasks: Sequence[Task]) -> list[Program]:
        """Draw the fine-tuned policy's programs on tasks to report; None is the policy as it was."""
        return self._draw("evaluate", policy or self.model, _task_prompts(tasks))

    def _draw(
        self,
        stage: str,
        model: Path,
        prompts: Sequence[tuple[Task, str]],
        module: type[FineTuningModule] = ILFModule,
        n: int | None = None,
    ) -> list[Program]:
        """Draw `n` programs for each prompt; those of another data set have seeds and files of their own."""
        label = "transfer_" * (bool(prompts) and prompts[0][0] in self.tasks.transfer) + stage
        draws = plan_draws(prompts, label, n or self.n, self.seed)
        tasks = {task.task_id: task for task, _ in prompts}
        return self.runner.draw(stage, model, draws, label + self._suffix, tasks, module)

    @property
    def _suffix(self) -> str:
        return f"_round{self.round}" if self.round > 1 else ""

    @property
    def n(self) -> int:
        """Programs a task."""
        return self.settings.sampler.n

    @property
    def seed(self) -> int:
        """The run's seed; each round after the first has one of its own."""
        own = self.settings.seed
        return own if self.round == 1 else derive_seed(own, "round", self.round)

    # ---- feedback ----------------------------------------------------------------------------------------------

    def annotate(self, failing: dict[int, list[Program]]) -> list[Feedback]:
        """Return feedback on tasks of Refine and Train; annotations whose programs don't hold up are rejected."""
        settings = self.settings.feedback
        if settings.source == "human" and settings.path is None and "drop" not in settings.transform:
            raise NotRequested("annotate")  # or checks.py would have asked for the file
        found = self._mixed(failing) if settings.source == "mixed" else self._feedback_of(settings.source, failing)

        def work(entry: Entry) -> dict[str, Any]:
            checked = [f for f in found if f.refinement is not None or f.source == "human"]
            texts = [(f, text) for f in checked for text in (f.program, f.refinement or f.program)]
            both = [(text, self.tasks.by_id[f.task_id]) for f, text in texts]
            verdicts = score(both, self.sandbox, self.settings.executor.tests)
            bad = {}  # by id, as text: the keys of a JSON object
            for f, x0, x1 in zip(checked, verdicts[::2], verdicts[1::2], strict=True):
                if x0.passed:
                    bad[str(f.task_id)] = "the wrong program passes its tests"
                elif f.refinement is not None and not x1.passed:
                    bad[str(f.task_id)] = f"the refinement does not pass: {x1.verdict}, {x1.detail}"
            return {"rejected": bad}

        tasks = [self.tasks.by_id[f.task_id] for f in found]
        programs = [(f.task_id, f.program, f.refinement, f.source) for f in found]
        key = {"feedback": programs, "scoring": self.runner.verdicts_of("annotate", tasks)}
        _, facts = self.runner.do("annotate", key, work)
        self.rejected += [f"task {i} (annotation): {reason}" for i, reason in facts["rejected"].items()]
        found = [f for f in found if str(f.task_id) not in facts["rejected"]]
        if "shuffle" in settings.transform:
            splits = ("train",) if settings.apply == "refine" else ("refine", "train")
            found = transforms.shuffle(found, splits, self.seed)
        if "one_bug" in settings.transform:
            found = transforms.one_bug(found)
        if "drop" in settings.transform:
            found = transforms.drop(found)
        rows = JsonLines(self.folder / f"feedback{self._suffix}.jsonl")
        rows.path.unlink(missing_ok=True)
        rows.append(asdict(f) for f in found)
        # A later round's policy may solve some of these tasks; what was said of them before is still an example.
        seen = {one.task_id for one in self.shots}
        shots = [f for f in found if f.split == "prompt" and f.task_id not in seen]
        self.shots += [f for f in shots if f.refinement or self.tasks.by_id[f.task_id].code]
        return found

    def _feedback_of(self, source: str, failing: dict[int, list[Program]]) -> list[Feedback]:
        if source == "llm":
            return self._llm_feedback(failing)
        if source == "human" and self.annotations:
            known = [a for a in self.annotations if a.task_id in self.tasks.by_id]
            return human.select(known, failing, self.settings.feedback.select == "annotated_and_failed")
        if source == "scripted":
            return scripted.annotate(failing, self.tasks.by_id, mini.specifications(), self.seed)
        return from_tests.annotate(failing, self.tasks.by_id, self.seed)

    def _mixed(self, failing: dict[int, list[Program]]) -> list[Feedback]:
        """Return feedback of several sources, each task's of one; another model is asked only where it is its turn."""
        settings = self.settings.feedback
        given = {s: {f.task_id: f for f in self._feedback_of(s, failing)} for s in settings.sources if s != "llm"}
        by_task = {
            i: [s for s in settings.sources if i in given.get(s, failing)]
            for i in sorted({*failing, *(i for found in given.values() for i in found)})
        }
        chosen = transforms.share_out(by_task, dict(zip(settings.sources, settings.shares, strict=True)), self.seed)
        if "llm" in chosen.values():  # its worked examples are on tasks of the Prompt split, whosever turn it is there
            asked = {i for i, source in chosen.items() if source == "llm" or self.tasks.by_id[i].split == "prompt"}
            own = self._feedback_of("llm", {i: programs for i, programs in failing.items() if i in asked})
            given["llm"] = {f.task_id: f for f in own}
        return [given[source][i] for i, source in chosen.items() if i in given.get(source, {})]

    def _llm_feedback(self, failing: dict[int, list[Program]]) -> list[Feedback]:
        """Have the other model write feedback on a program of each failing task, or take its stored answers.

        The worked examples that it was shown come first. A task whose answer is empty or not there is rejected.
        """
        settings, tasks = self.settings.llm, self.tasks.by_id
        examples = self._examples_for_llm(failing)
        taken = {f.task_id for f, _ in examples}
        programs = from_tests.choose({i: found for i, found in failing.items() if i not in taken}, self.seed)
        queries = llm.plan_feedback(settings.feedback, programs, tasks, examples, self.seed)

        def work(entry: Entry) -> dict[str, Any]:
            self.other.answer("feedback", queries, JsonLines(entry.path / "answers.jsonl"))
            return {}

        path, _ = self.runner.do("annotate", self._llm_key("feedback", queries), work)
        texts = {row["task_id"]: row["answer"] for row in self._take_answers("feedback", path, "llm_feedback")}
        found = [f for f, _ in examples]
        for p in programs:
            if text := texts.get(p.task_id, "").strip():
                found.append(Feedback(p.task_id, p.split, p.program, text, "llm"))
            else:
                reason = "is empty" if p.task_id in texts else "is not among the stored ones"
                self.rejected.append(f"task {p.task_id} (feedback): the other model's answer {reason}")
        return found

    def _examples_for_llm(self, failing: dict[int, list[Program]]) -> list[tuple[Feedback, Verdict]]:
        """Return worked examples by the data's annotator, on ids 1 to 10, with what executing their programs gives.

        In every round they are those of the first, when the policy has failed most.
        """
        if self.examples is None:
            ids = {task.task_id for task in self.tasks.prompt}
            known = [a for a in self.annotations if a.task_id in ids]
            if not known and self.settings.data.annotator == "scripted":
                few = {i: programs for i, programs in failing.items() if i in ids}
                known = scripted.annotate(few, self.tasks.by_id, mini.specifications(), self.seed)
            wrong = [(f.program, self.tasks.by_id[f.task_id]) for f in known]
            verdicts = score(wrong, self.sandbox, self.settings.executor.tests)
            self.examples = [(f, v) for f, v in zip(known, verdicts, strict=True) if not v.passed]
        return self._worked_examples("llm.shots", self.settings.llm.shots, self.examples)

    def express(self, candidates: Sequence[Candidate]) -> list[Refinement | None]:
        """Return programs as training examples, None where one is rejected, which is noted."""
        rows: list[Refinement | None] = []
        for c in candidates:
            f = c.feedback
            parent, text, source = (f.parent, f.text, f.source) if f else (None, None, None)
            try:
                if c.program is None:
                    raise ValueError(
                        "nobody wrote one, as for other tasks; refinements.tasks=annotated needs no such match"
                    )
                target = completion_of(c.task.prompt, c.program, c.task.entry_point)
                row = Refinement(c.task.task_id, c.task.prompt, target, c.source, parent, text, source)
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
        if settings.name in ("few_shot", "policy"):
            return self.newest if settings.name == "policy" else self.model
        if settings.name == "local":
            assert settings.path is not None  # checked by config.py
            return Path(settings.path)
        examples = []
        feedback = [f for f in feedback if f.split == "refine"]
        for f in feedback:
            task, limit = self.tasks.by_id[f.task_id], self.settings.training.max_length
            try:
                examples.append(RefineModule.example(self.tokenizer, f, task, settings.old_code_tokens, limit))
            except (ValueError, SyntaxError) as error:
                self.rejected.append(f"task {f.task_id} (refiner): {error}")
        if not examples and not self.runner.requested("train_refiner"):
            raise NotRequested("train_refiner")
        if not examples:
            raise InputError(
                "feedback",
                self.settings.feedback.name,
                "gives no example on the Refine split",
                "Raise data.limit.refine, or give annotations of that split (MBPP: ids 111 to 310).",
            )
        # By task, as several rounds may have feedback on the same one.
        found = list(dict.fromkeys(e.task_id for e in examples))
        order = random.Random(derive_seed(self.seed, "held_out")).sample(found, len(found))
        ids = set(order[: len(order) // 5])
        held_out = [e for i in order for e in examples if e.task_id == i and i in ids]
        training = [e for i in order for e in examples if e.task_id == i and i not in ids]
        pairs = []
        for f in feedback:
            if f.task_id in ids:
                task = self.tasks.by_id[f.task_id]
                pairs.append((task, RefineModule.prompt(self.tokenizer, f, task, settings.old_code_tokens)))
        draws = plan_draws(pairs, "validate_refiner", self.settings.training.validate_n, self.seed)
        phase = self.settings.training.refiner
        return self.runner.fine_tune(RefineModule, self.model, training, held_out, draws, phase, "refiner")

    def train_policy(self, policy: Path | None, examples: Sequence[Refinement]) -> Path:
        """Return the folder of pi_theta*, validated on Refine."""
        rows = JsonLines(self.folder / f"training{self._suffix}.jsonl")
        rows.path.unlink(missing_ok=True)
        rows.append(asdict(example) for example in examples)
        self.tracker.artifact(rows.path)
        training = self.settings.training
        encoded = [ILFModule.example(self.tokenizer, e, training.max_length) for e in examples]
        draws = plan_draws(_task_prompts(self.tasks.refine), "validate_policy", training.validate_n, self.seed)
        tuned = self.runner.fine_tune(ILFModule, policy or self.model, encoded, [], draws, training.policy, "policy")
        if n := self.settings.select:
            self.validation = self._draw("validate", tuned, _task_prompts(self.tasks.refine), n=n)
        return tuned

    def _worked_examples(self, key: str, count: int, shots: list[T]) -> list[T]:
        """Return `count` of what is known of the Prompt split; `key` is the setting that asks for so many."""
        if len(shots) < count:
            allowed = (
                f"needs as many programs of the Prompt split (MBPP: ids 1 to 10) with feedback: {len(shots)} are there"
            )
            raise InputError(
                key,
                count,
                allowed,
                "Lower it, raise data.limit.prompt, or annotate more of these tasks.",
            )
        return shots[:count]

    def _few_shot(self) -> list[tuple[Feedback, Refinement]]:
        """Return the worked examples of the few-shot refiner."""
        found = []
        for f in self._worked_examples("refiner.shots", self.settings.refiner.shots, self.shots):
            task = self.tasks.by_id[f.task_id]
            target = completion_of(task.prompt, f.refinement or task.code, task.entry_point)
            found.append((f, Refinement(f.task_id, task.prompt, target, f.source)))
        return found


def _task_prompts(tasks: Sequence[Task]) -> list[tuple[Task, str]]:
    return [(task, task.prompt) for task in tasks]
