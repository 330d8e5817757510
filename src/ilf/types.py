"""The nouns of an ILF experiment, as frozen records that every room shares.

Data walks one way: Task -> Program (with its Verdict) -> Feedback -> Refinement -> fine-tuned policy.
This module imports only the standard library, so that every other one may import it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class InputError(ValueError):
    """Input that can't be used. The message names the key, its value, what is allowed and what to do.

    Args:
        key: The setting, or `FILE:LINE` for a row of a file.
        value: What was given.
        allowed: What would be accepted.
        advice: The next thing to try.
    """

    def __init__(self, key: str, value: object, allowed: str, advice: str) -> None:
        super().__init__(key, value, allowed, advice)  # all of them, from which another process makes it again

    def __str__(self) -> str:
        key, value, allowed, advice = self.args
        return f"{key}={'null' if value is None else repr(value)}: {allowed}. {advice}"


class NoTrainingExamples(RuntimeError):
    """No program is left to fine-tune the policy on. Raised after everything that was found is written."""


@dataclass(frozen=True)
class Task:
    """A task t with its unit tests u."""

    task_id: int
    split: str  # "prompt", "test", "refine" or "train"
    text: str  # the description, newlines as \n
    code: str  # the gold program, newlines as \n, indentation as published; empty where there is none
    entry_point: str  # name of the function that the tests call; empty where programs read and write
    tests: tuple[str, ...]  # one assert statement each; HumanEval's are one group of statements; or there are inputs
    setup: str  # code to run after the program and before the tests
    # What the policy is given; ends with the entry point's `def` line (HumanEval: docstring) and a newline, and where
    # programs read and write with a docstring and an empty line.
    prompt: str
    shown: int = 1  # how many of the tests or inputs, the first ones, the prompt shows
    inputs: tuple[str, ...] = ()  # where programs read and write: what each run is given on standard input
    outputs: tuple[str, ...] = ()  # and what it is to write on standard output
    compare_output: str = "tokens"  # or "exact"; see `ilf.sandbox.Job`
    gold: str = ""  # the gold program as a run trains on it, where that is not `code`
    challenge: tuple[str, ...] = ()  # harder tests, which executor.tests=challenge scores by in place of `tests`

    @property
    def checks(self) -> int:
        """How many tests or inputs decide whether a program is right."""
        return len(self.tests or self.inputs)

    @property
    def in_words(self) -> tuple[str, ...]:
        """Each test, or each input with its output, as a reader is shown it."""
        pairs = zip(self.inputs, self.outputs, strict=True)
        return self.tests or tuple(f"Input:\n{given}\nOutput:\n{expected}" for given, expected in pairs)


@dataclass(frozen=True)
class Draw:
    """One program to be sampled: everything that decides it besides the model."""

    task_id: int
    split: str
    sample: int  # 0-based index among the task's samples
    seed: int  # 63-bit, derived from (run seed, stage, task, sample)
    prompt: str  # what the model is given
    task_prompt: str  # the head of the program: the end of `prompt`
    script: bool = False  # whether what is sampled is a whole program rather than the body of a function


@dataclass(frozen=True)
class Verdict:
    """What executing a program on its unit tests gave."""

    # "passed", "failed", "crashed", "unsupported_test" (the judge can't decide it), or the limit that was
    # exceeded: "timed_out", "memory", "processes", "output" or "disk".
    verdict: str
    # The first failing assert with the result, or the exception with its line; of programs that read and write, after
    # the number of the input. At most 500 characters.
    detail: str = ""
    tests: tuple[bool, ...] = ()  # one outcome an assert, or an input, in order
    seconds: float = 0.0  # processor time of the program's process; of several, one for each input, the longest

    @property
    def passed(self) -> bool:
        """Eval(x, t) = 1."""
        return self.verdict == "passed"


@dataclass(frozen=True)
class Program:
    """A sampled program x with its verdict; one line of `programs/*.jsonl`."""

    task_id: int
    split: str
    sample: int
    seed: int
    prompt: str
    completion: str  # the sampled text, cut where the function ends
    program: str  # the task's prompt and the completion
    verdict: Verdict

    def row(self) -> dict[str, Any]:
        """Return the flat mapping that `programs/*.jsonl` holds."""
        flat = {name: value for name, value in vars(self).items() if name != "verdict"}
        return flat | {**vars(self.verdict), "tests": list(self.verdict.tests)}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Program:
        """Return the program that `row` was made from."""
        verdict = Verdict(row["verdict"], row["detail"], tuple(row["tests"]), row["seconds"])
        own = ("task_id", "split", "sample", "seed", "prompt", "completion", "program")
        return cls(**{name: row[name] for name in own}, verdict=verdict)


@dataclass(frozen=True)
class Feedback:
    """Feedback f on one wrong program x0, and, where the annotator made one, a refinement x1."""

    task_id: int
    split: str
    program: str  # x0, whole
    text: str  # f, in plain words; empty for feedback=none
    source: str  # who wrote it: "human", "scripted", "llm", "unit_tests", "none", or a source of a user's
    refinement: str | None = None  # the annotator's x1, whole
    bugs: int | None = None  # how many mistakes f addresses, where the annotator said so
    categories: tuple[str, ...] = ()  # of these mistakes, in the annotator's words
    annotator: str | None = None  # who, of several people
    seconds: float | None = None  # that they were at work on the task

    @property
    def parent(self) -> str:
        """SHA-256 of x0, in hexadecimal."""
        return hashlib.sha256(self.program.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Refinement:
    """One example that pi_theta* is fine-tuned on; one line of `training.jsonl`."""

    task_id: int
    prompt: str  # what the policy is given
    target: str  # what it is to write, without EOS
    source: str  # "model", "human" (the annotator), "gold", "self", "llm", or what an arm of a user's is called
    parent: str | None = None  # SHA-256 of x0
    feedback: str | None = None  # f
    feedback_source: str | None = None  # who wrote f
    wrong_program: str | None = None  # x0, whole


@dataclass(frozen=True)
class Example:
    """A prompt and the target that the model is to write after it, as token ids, with what an objective adds."""

    task_id: int
    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]  # ends with EOS
    value: float = 1.0  # what an objective makes of it: a weight, an advantage, or whether it is desirable
    focus: tuple[bool, ...] | None = None  # for each target token, whether an objective counts it; None for all
    reference: tuple[float, ...] | None = None  # log-probability of each target token before the training
    other: Example | None = None  # a second text that is read with it, such as the rejected one of a pair

    @property
    def length(self) -> int:
        """Tokens of the longest of its texts, EOS included."""
        own = len(self.prompt_ids) + len(self.target_ids)
        return own if self.other is None else max(own, self.other.length)


@dataclass(frozen=True)
class Candidate:
    """A program that may become a training example."""

    task: Task
    program: str | None  # None where nobody wrote the one that its arm trains on
    source: str
    feedback: Feedback | None = None


@dataclass(frozen=True)
class Found:
    """What there is on a task of Train that the policy fails: what an arm takes the task's example from."""

    task: Task
    feedback: Feedback
    refined: Sequence[Program]  # the refiner's correct programs
    by_llm: Sequence[Program]  # the correct ones of another model, where it is asked
    seed: int


@dataclass(frozen=True)
class Splits:
    """The tasks of one run, by the paper's splits."""

    test: tuple[Task, ...]
    refine: tuple[Task, ...]
    train: tuple[Task, ...]
    prompt: tuple[Task, ...] = ()
    transfer: tuple[Task, ...] = ()  # of another data set, evaluated only; their ids are its own
    validation: tuple[Task, ...] = ()  # Refine without the restriction to what is annotated: settings are chosen by it
    by_id: dict[int, Task] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        everything = (*self.prompt, *self.test, *self.refine, *self.train)
        object.__setattr__(self, "by_id", {task.task_id: task for task in everything})


@dataclass(frozen=True)
class Inputs:
    """What a run reads."""

    tasks: Splits  # restricted and limited
    data_sha256: str  # of the rows that they come from
    transfer_sha256: str | None = None  # of those of another data set
    near_duplicates: Mapping[int, int] | None = None  # tasks that are left out, each with the one of Test it repeats
    known: Mapping[str, Sequence[Feedback]] = field(default_factory=dict)  # from before the run, by its source's name


@dataclass
class Round:
    """What one round of the algorithm has found so far; None where it has not come that far."""

    samples: list[Program] | None = None
    failing: dict[int, list[Program]] | None = None
    feedback: list[Feedback] | None = None
    refinements: list[Program] | None = None
    llm_refinements: list[Program] | None = None  # another model's, for the arm that trains on them
    expressed: list[Refinement] | None = None  # the programs of every arm on the tasks that are trained on
    examples: list[Refinement] | None = None  # what the policy is fine-tuned on, earlier rounds' included
    finetuned: list[Program] | None = None


@dataclass
class Turns:
    """Programs on Test after 0, 1, 2 ... turns: the same n of each task each time, those that passed unchanged."""

    feedback: list[list[Program]]  # written anew with words on what failed
    fresh: list[list[Program]]  # drawn anew without


@dataclass
class Outcome:
    """What a run has found so far."""

    zero_shot: list[Program] | None = None
    rounds: list[Round] = field(default_factory=list)
    transfer_zero_shot: list[Program] | None = None
    transfer_finetuned: list[Program] | None = None
    policy: Any = None  # pi_theta*, of the last round that trained one
    turns: dict[str, Turns] = field(default_factory=dict)  # at test time, of "zero_shot" and "finetuned"

    @property
    def last(self) -> Round:
        """The last round that came to a policy, else the last one that began."""
        finished = [one for one in self.rounds if one.finetuned is not None]
        return (finished or self.rounds or [Round()])[-1]


def different(programs: Sequence[Program], seed: int, most: int | None) -> list[str]:
    """Return the texts of a task's different programs, at most so many: the one of `pick` first, others by the seed."""
    first = pick(programs, seed)
    others = sorted({p.program for p in programs} - {first})
    order = random.Random(derive_seed(seed, "different", programs[0].task_id)) if programs else random.Random(0)
    found = [*([] if first is None else [first]), *order.sample(others, len(others))]
    return found[:most]


def pick(programs: Sequence[Program], seed: int) -> str | None:
    """Return one of the distinct texts of a task's programs, as the run's seed decides; None where there is none.

    Each text is as likely as any other, however often it was sampled: the paper's authors choose so, too.
    """
    texts = sorted({p.program for p in programs})
    if not texts:
        return None
    return random.Random(derive_seed(seed, "choose", programs[0].task_id)).choice(texts)


def derive_seed(seed: int, *path: object) -> int:
    """Return a 63-bit seed that depends on the run's seed and on every part of `path`, and on nothing else.

    >>> derive_seed(0, "sample", 11, 0) == derive_seed(0, "sample", 11, 0) != derive_seed(0, "sample", 11, 1)
    True
    """
    text = "/".join(map(str, (seed, *path)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
