"""The data types of an ILF experiment, which all packages share, and the seeded choices among them.

Data flows in one direction: Task -> Program (with its Verdict) -> Feedback -> Refinement -> fine-tuned policy.
This module imports only the standard library, so that every other module can import it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class InputError(ValueError):
    """An error about input that can't be used. The message names the key, its value, what is allowed, and what to do.

    Args:
        key: The setting, or `FILE:LINE` for a row of a file.
        value: The value that was given.
        allowed: The accepted values, or the problem with this one.
        advice: The next thing to try.
    """

    def __init__(self, key: str, value: object, allowed: str, advice: str) -> None:
        super().__init__(key, value, allowed, advice)  # all of them, so that another process can unpickle the error

    def __str__(self) -> str:
        key, value, allowed, advice = self.args
        return f"{key}={'null' if value is None else repr(value)}: {allowed}. {advice}"


class NoTrainingExamples(RuntimeError):
    """Raised if no program is left to fine-tune the policy on, after all results have been written."""


@dataclass(frozen=True)
class Task:
    """A task t with its unit tests u."""

    task_id: int
    split: str  # "prompt", "test", "refine" or "train"
    text: str  # the description, with \n as newline
    code: str  # the gold program, with \n as newline and its published indentation; empty if there is none
    entry_point: str  # name of the function that the tests call; empty if programs use standard input and output
    tests: tuple[str, ...]  # one assert statement each (HumanEval: one group of statements); empty if there are inputs
    setup: str  # code that runs after the program and before the tests
    # The policy's prompt. It ends with the entry point's `def` line (HumanEval: docstring) and a newline, or, for
    # programs that use standard input and output, with a docstring and an empty line.
    prompt: str
    shown: int = 1  # how many of the tests or inputs the prompt shows; these are always the first ones
    inputs: tuple[str, ...] = ()  # the standard input of each execution
    outputs: tuple[str, ...] = ()  # the expected standard output for each input
    compare_output: str = "tokens"  # or "exact"; see `ilf.sandbox.Job`
    gold: str = ""  # the gold program as a training target, if it differs from `code`
    challenge: tuple[str, ...] = ()  # harder tests that replace `tests` with executor.tests=challenge

    @property
    def checks(self) -> int:
        """The number of tests or inputs that decide whether a program is correct."""
        return len(self.tests or self.inputs)

    @property
    def in_words(self) -> tuple[str, ...]:
        """Each test, or each input with its output, as text for a reader."""
        pairs = zip(self.inputs, self.outputs, strict=True)
        return self.tests or tuple(f"Input:\n{given}\nOutput:\n{expected}" for given, expected in pairs)


@dataclass(frozen=True)
class Draw:
    """One program to sample, with everything that determines it except the model."""

    task_id: int
    split: str
    sample: int  # 0-based index among the task's samples
    seed: int  # 63 bits, derived from (run seed, stage, task, sample)
    prompt: str  # the model's prompt
    task_prompt: str  # the beginning of the program, with which `prompt` ends
    script: bool = False  # whether the model writes a whole program rather than the body of a function

    @classmethod
    def of(cls, task: Task, sample: int, prompt: str, stage: str, seed: int) -> Draw:
        """Return a draw for a task with a seed of its own.

        Args:
            task: The task.
            sample: The index among the task's samples.
            prompt: The prompt that the model is given.
            stage: Part of the seed, so that no two stages share random numbers.
            seed: The run's seed.
        """
        own = derive_seed(seed, stage, task.task_id, sample)
        return cls(task.task_id, task.split, sample, own, prompt, task.prompt, bool(task.inputs))


@dataclass(frozen=True)
class Verdict:
    """The result of executing a program on its unit tests."""

    # "passed", "failed", "crashed", "unsupported_test" (the judge can't decide the test), or the limit that was
    # exceeded: "timed_out", "memory", "processes", "output" or "disk".
    verdict: str
    # The first failing assert with its result, or the exception with its line. For programs that use standard input
    # and output, the number of the input precedes it. At most 500 characters.
    detail: str = ""
    tests: tuple[bool, ...] = ()  # whether each assert, or each input, passed, in order
    seconds: float = 0.0  # processor time of the program's process; with one process per input, of the longest

    @property
    def passed(self) -> bool:
        """Eval(x, t) = 1."""
        return self.verdict == "passed"


@dataclass(frozen=True)
class Program:
    """A sampled program x with its verdict: one line of `programs/*.jsonl`."""

    task_id: int
    split: str
    sample: int
    seed: int
    prompt: str
    completion: str  # the sampled text, truncated at the end of the function
    program: str  # the task's prompt followed by the completion
    verdict: Verdict

    def row(self) -> dict[str, Any]:
        """Return the program as one row of `programs/*.jsonl`."""
        flat = {name: value for name, value in vars(self).items() if name != "verdict"}
        return flat | {**vars(self.verdict), "tests": list(self.verdict.tests)}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Program:
        """Return the program that was written as `row`."""
        verdict = Verdict(row["verdict"], row["detail"], tuple(row["tests"]), row["seconds"])
        own = ("task_id", "split", "sample", "seed", "prompt", "completion", "program")
        return cls(**{name: row[name] for name in own}, verdict=verdict)


@dataclass(frozen=True)
class Feedback:
    """Feedback f on one incorrect program x0, with a refinement x1 if the annotator wrote one."""

    task_id: int
    split: str
    program: str  # x0, the whole program
    text: str  # f, in natural language; empty for feedback=none
    source: str  # the feedback source: "human", "scripted", "llm", "unit_tests", "none", or one of the user's
    refinement: str | None = None  # the annotator's x1, the whole program
    bugs: int | None = None  # number of mistakes that f addresses, if the annotator counted them
    categories: tuple[str, ...] = ()  # categories of these mistakes, in the annotator's words
    annotator: str | None = None  # which annotator wrote f, if there are several
    seconds: float | None = None  # how long the annotator worked on the task

    @property
    def parent(self) -> str:
        """SHA-256 of x0, in hexadecimal."""
        return hashlib.sha256(self.program.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Refinement:
    """One example on which pi_theta* is fine-tuned: one line of `training.jsonl`."""

    task_id: int
    prompt: str  # the policy's prompt
    target: str  # the text that the policy learns to write, without EOS
    source: str  # "model", "human" (the annotator), "gold", "self", "llm", or the name of the user's own arm
    parent: str | None = None  # SHA-256 of x0
    feedback: str | None = None  # f
    feedback_source: str | None = None  # source of f
    wrong_program: str | None = None  # x0, the whole program


@dataclass(frozen=True)
class Example:
    """A prompt and the target that the model learns to write, as token ids, with what an objective needs."""

    task_id: int
    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]  # ends with EOS
    value: float = 1.0  # a number for the objective: a weight, an advantage, or whether the example is desirable
    focus: tuple[bool, ...] | None = None  # which target tokens count for the objective; None for all
    reference: tuple[float, ...] | None = None  # log-probability of each target token before the training
    other: Example | None = None  # a second text for the loss, such as the rejected one of a pair

    @property
    def length(self) -> int:
        """The number of tokens of the longest of its texts, including EOS."""
        own = len(self.prompt_ids) + len(self.target_ids)
        return own if self.other is None else max(own, self.other.length)


@dataclass(frozen=True)
class Candidate:
    """A program that may become a training example."""

    task: Task
    program: str | None  # None if the arm's source provides no program for this task
    source: str
    feedback: Feedback | None = None


@dataclass(frozen=True)
class Found:
    """Everything that was collected on a failing Train task. An arm chooses the task's training examples from it."""

    task: Task
    feedback: Feedback
    refined: Sequence[Program]  # the refiner's correct programs
    by_llm: Sequence[Program]  # the correct programs of an LLM, if the run asks one
    seed: int


@dataclass(frozen=True)
class Splits:
    """The tasks of a run in the paper's splits."""

    test: tuple[Task, ...]
    refine: tuple[Task, ...]
    train: tuple[Task, ...]
    prompt: tuple[Task, ...] = ()
    transfer: tuple[Task, ...] = ()  # of another data set, for evaluation only; the ids are those of that data set
    validation: tuple[Task, ...] = ()  # all Refine tasks, annotated or not, by which settings are selected
    by_id: dict[int, Task] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        everything = (*self.prompt, *self.test, *self.refine, *self.train)
        object.__setattr__(self, "by_id", {task.task_id: task for task in everything})


@dataclass(frozen=True)
class Inputs:
    """The inputs of a run."""

    tasks: Splits  # after the restriction to annotated tasks and the limits
    data_sha256: str  # digest of the rows of the data set
    transfer_sha256: str | None = None  # digest of the rows of the transfer data set
    feedback_sha256: str | None = None  # digest of the annotation file
    near_duplicates: Mapping[int, int] | None = None  # tasks that are left out, each with the Test task that it repeats
    known: Mapping[str, Sequence[Feedback]] = field(default_factory=dict)  # earlier feedback, by source name


@dataclass
class Round:
    """The results of one round of the algorithm so far. A field is None until the round has reached it."""

    samples: list[Program] | None = None
    failing: dict[int, list[Program]] | None = None
    feedback: list[Feedback] | None = None
    refinements: list[Program] | None = None
    llm_refinements: list[Program] | None = None  # an LLM's refinements, for the arm that trains on them
    expressed: list[Refinement] | None = None  # the programs of every arm on the tasks of the training set
    examples: list[Refinement] | None = None  # the policy's training set, including examples of earlier rounds
    policy: Any = None  # pi_theta*, if the round trains one
    finetuned: list[Program] | None = None


@dataclass
class Turns:
    """The programs on Test after 0, 1, 2 ... turns: always n per task. Programs that passed stay unchanged."""

    feedback: list[list[Program]]  # programs that failed are rewritten with feedback
    fresh: list[list[Program]]  # programs that failed are resampled without feedback


@dataclass
class Outcome:
    """The results of a run so far."""

    zero_shot: list[Program] | None = None
    rounds: list[Round] = field(default_factory=list)
    transfer_zero_shot: list[Program] | None = None
    transfer_finetuned: list[Program] | None = None
    policy: Any = None  # pi_theta* of the last round that trained one
    turns: dict[str, Turns] = field(default_factory=dict)  # feedback at test time, for "zero_shot" and "finetuned"

    @property
    def last(self) -> Round:
        """The last round that evaluated a policy, or else the last round that started."""
        finished = [one for one in self.rounds if one.finetuned is not None]
        return (finished or self.rounds or [Round()])[-1]


def different(programs: Sequence[Program], seed: int, most: int | None) -> list[str]:
    """Return up to `most` distinct programs of a task: the one that `pick` returns, then others in seeded order."""
    first = pick(programs, seed)
    others = sorted({p.program for p in programs} - {first})
    order = random.Random(derive_seed(seed, "different", programs[0].task_id)) if programs else random.Random(0)
    found = [*([] if first is None else [first]), *order.sample(others, len(others))]
    return found[:most]


def pick(programs: Sequence[Program], seed: int) -> str | None:
    """Return one of a task's distinct programs, chosen by the run's seed, or None if there is none.

    Each distinct text is equally likely, however often it was sampled. The paper's authors choose in the same way.
    """
    texts = sorted({p.program for p in programs})
    if not texts:
        return None
    return random.Random(derive_seed(seed, "choose", programs[0].task_id)).choice(texts)


def derive_seed(seed: int, *path: object) -> int:
    """Return a 63-bit seed that depends only on the run's seed and on every part of `path`.

    >>> derive_seed(0, "sample", 11, 0) == derive_seed(0, "sample", 11, 0) != derive_seed(0, "sample", 11, 1)
    True
    """
    text = "/".join(map(str, (seed, *path)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
