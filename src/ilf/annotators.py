"""Line 2 of the algorithm: who writes feedback for a run, from one source or several; what another model refines."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from ilf.code_digest import code_sha256
from ilf.feedback import from_tests, human, llm, other_model, scripted, transforms
from ilf.feedback.other_model import OtherModel
from ilf.files import JsonLines
from ilf.models import chat, endpoint, load
from ilf.runner import NotRequested, Runner
from ilf.store import Entry
from ilf.training.trainer import training_device
from ilf.training.unit_test_callback import score
from ilf.types import Feedback, InputError, Program, Splits, Verdict

T = TypeVar("T")


class Annotators:
    """Those who write feedback, and the other model where it refines too.

    Args:
        runner: Does stages through the store.
        tasks: By split, restricted and limited.
        annotations: What people wrote, where they are the source of feedback, or on ids 1 to 10, where another model
            is; else empty.
        llm_folder: Of the model that writes feedback or refinements, where it is a local one.
    """

    def __init__(
        self, runner: Runner, tasks: Splits, annotations: Sequence[Feedback], llm_folder: Path | None = None
    ) -> None:
        self.runner, self.settings, self.tasks = runner, runner.settings, tasks
        self.annotations = list(annotations)
        temperature, device = self.settings.sampler.temperature, training_device(self.settings.trainer)
        self.other = OtherModel(self.settings.llm, temperature, llm_folder, device)
        self.llm_answers: dict[str, Counter[str]] = {}  # by what they are for
        self.shots: list[Feedback] = []  # on tasks of the Prompt split
        self.examples: list[tuple[Feedback, Verdict]] | None = None  # on these, by the data's annotator

    def annotate(self, failing: dict[int, list[Program]]) -> list[Feedback]:
        """Return feedback on tasks of Refine and Train; annotations whose programs don't hold up are rejected."""
        settings = self.settings.feedback
        if settings.source == "human" and settings.path is None and "drop" not in settings.transform:
            raise NotRequested("annotate")  # or the checks would have asked for the file
        found = self._mixed(failing) if settings.source == "mixed" else self._feedback_of(settings.source, failing)

        def work(entry: Entry) -> dict[str, Any]:
            checked = [f for f in found if f.refinement is not None or f.source == "human"]
            texts = [(f, text) for f in checked for text in (f.program, f.refinement or f.program)]
            both = [(text, self.tasks.by_id[f.task_id]) for f, text in texts]
            verdicts = score(both, self.runner.sandbox, self.settings.executor.tests)
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
        self.runner.rejected += [f"task {i} (annotation): {reason}" for i, reason in facts["rejected"].items()]
        found = [f for f in found if str(f.task_id) not in facts["rejected"]]
        if "shuffle" in settings.transform:
            splits = ("train",) if settings.apply == "refine" else ("refine", "train")
            found = transforms.shuffle(found, splits, self.runner.seed)
        if "one_bug" in settings.transform:
            found = transforms.one_bug(found)
        if "drop" in settings.transform:
            found = transforms.drop(found)
        rows = JsonLines(self.runner.folder / f"feedback{self.runner.suffix}.jsonl")
        rows.path.unlink(missing_ok=True)
        rows.append(asdict(f) for f in found)
        # A later round's policy may solve some of these tasks; what was said of them before is still an example.
        seen = {one.task_id for one in self.shots}
        shots = [f for f in found if f.split == "prompt" and f.task_id not in seen]
        self.shots += [f for f in shots if f.refinement or self.tasks.by_id[f.task_id].code]
        return found

    def ask_llm(self, feedback: Sequence[Feedback]) -> list[Program]:
        """Have the other model refine wrong programs, or take its stored answers, and execute what it wrote."""
        shots, tasks = self.worked_examples("llm.shots", self.settings.llm.shots, self.shots), self.tasks.by_id
        queries = llm.plan_refinements(
            self.settings.llm.refinement, feedback, tasks, shots, self.settings.sampler.n, self.runner.seed
        )
        key = self._llm_key("refinement", queries)
        # Another scoring asks nothing anew.
        scoring = self.runner.verdicts_of("refine", [tasks[f.task_id] for f in feedback])

        def work(entry: Entry) -> dict[str, Any]:
            answers = JsonLines(entry.path / "answers.jsonl")
            self.other.answer("refinement", queries, answers)
            programs = llm.programs(queries, answers.read())
            texts = [(p.program, self.tasks.by_id[p.task_id]) for p in programs]
            verdicts = score(texts, self.runner.sandbox, self.settings.executor.tests)
            rows = JsonLines(entry.path / f"programs-{scoring}.jsonl")
            rows.path.unlink(missing_ok=True)
            rows.append(replace(p, verdict=v).row() for p, v in zip(programs, verdicts, strict=True))
            return {}

        path, _ = self.runner.do("refine", key, work, f"done-{scoring}.json")
        self._take_answers("refinement", path, "llm_answers")
        rows = self.runner.folder / "programs" / f"llm{self.runner.suffix}.jsonl"
        shutil.copyfile(path / f"programs-{scoring}.jsonl", rows)
        self.runner.tracker.artifact(rows)
        return [Program.from_row(row) for row in JsonLines(rows).read()]

    def worked_examples(self, key: str, count: int, shots: list[T]) -> list[T]:
        """Return `count` of what is known of the Prompt split; `key` is the setting that asks for so many."""
        if len(shots) < count:
            allowed = f"needs as many programs of ids 1 to 10 (the Prompt split) with feedback: {len(shots)} are there"
            raise InputError(key, count, allowed, "Lower it, raise data.limit.prompt, or annotate more of these tasks.")
        return shots[:count]

    def _feedback_of(self, source: str, failing: dict[int, list[Program]]) -> list[Feedback]:
        if source == "llm":
            return self._llm_feedback(failing)
        if source == "human" and self.annotations:
            known = [a for a in self.annotations if a.task_id in self.tasks.by_id]
            return human.select(known, failing, self.settings.feedback.select == "annotated_and_failed")
        if source == "scripted":
            known_to_it = self.settings.data.specifications()
            return scripted.annotate(failing, self.tasks.by_id, known_to_it, self.runner.seed)
        return from_tests.annotate(failing, self.tasks.by_id, self.runner.seed)

    def _mixed(self, failing: dict[int, list[Program]]) -> list[Feedback]:
        """Return feedback of several sources, each task's of one; another model is asked only where it is its turn."""
        settings = self.settings.feedback
        given = {s: {f.task_id: f for f in self._feedback_of(s, failing)} for s in settings.sources if s != "llm"}
        by_task = {
            i: [s for s in settings.sources if i in given.get(s, failing)]
            for i in sorted({*failing, *(i for found in given.values() for i in found)})
        }
        chosen = transforms.share_out(
            by_task, dict(zip(settings.sources, settings.shares, strict=True)), self.runner.seed
        )
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
        programs = from_tests.choose({i: found for i, found in failing.items() if i not in taken}, self.runner.seed)
        queries = llm.plan_feedback(settings.feedback, programs, tasks, examples, self.runner.seed)

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
                self.runner.rejected.append(f"task {p.task_id} (feedback): the other model's answer {reason}")
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
                known = scripted.annotate(few, self.tasks.by_id, self.settings.data.specifications(), self.runner.seed)
            wrong = [(f.program, self.tasks.by_id[f.task_id]) for f in known]
            verdicts = score(wrong, self.runner.sandbox, self.settings.executor.tests)
            self.examples = [(f, v) for f, v in zip(known, verdicts, strict=True) if not v.passed]
        return self.worked_examples("llm.shots", self.settings.llm.shots, self.examples)

    def _llm_key(self, use: str, queries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return everything that decides the other model's answers."""
        folder = self.other.folder
        code = code_sha256(llm, other_model, endpoint, *([chat, load] if folder else []))
        return {
            "code": code,
            "llm": self.other.key(use, self.runner.weights(folder) if folder else None),
            "queries": queries,
        }

    def _take_answers(self, use: str, path: Path, name: str) -> list[dict[str, Any]]:
        """Put a stage's answers of the other model into the run's folder, count them, and return them."""
        target = self.runner.folder / "programs" / f"{name}{self.runner.suffix}.jsonl"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path / "answers.jsonl", target)
        answers = JsonLines(target).read()
        self.llm_answers.setdefault(use, Counter()).update(llm.summed(answers))
        return answers
