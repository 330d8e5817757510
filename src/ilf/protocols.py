"""What parts of a run ask of the classes that an option may name: derive from these for parts of your own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ilf.ranges import AboveZero, Natural, Positive
from ilf.types import Draw, Example, Feedback, Program, Refinement, Splits, Task

if TYPE_CHECKING:
    import torch


@dataclass
class Sampler(ABC):
    """Draws programs. Derive from it for a sampler of your own: a dataclass whose fields are its arguments.

    Args:
        n: Programs a task.
        temperature: Of the softmax. Evaluation may set it to 0, which takes the most likely token.
        max_new_tokens: A bound; sampling stops where the function ends.
        batch_size: Programs, or requests, at once; halved when memory runs out.
        top_k: Only the k most likely tokens are drawn from; 0 for all.
    """

    n: Positive = 30
    temperature: AboveZero = 0.8
    max_new_tokens: Positive = 512
    batch_size: Positive = 32
    top_k: Natural = 0
    halvings: int = field(default=0, init=False)  # how often memory ran out and half as many programs went on at once

    # Whether what is drawn depends, in its last bits, on what is computed beside it: then only a plan that is drawn
    # whole is drawn again alike. Else each program is kept as it comes.
    whole_plans: ClassVar[bool] = False
    local: ClassVar[bool] = True  # whether the model is loaded here; else `sample` gets its folder
    changes_nothing: ClassVar[tuple[str, ...]] = ("n",)  # of one program

    @property
    def greedy(self) -> bool:
        """Whether the most likely tokens are taken, so that all programs of a task are the same."""
        return self.temperature == 0 or self.top_k == 1

    def check(self) -> None:  # noqa: B027
        """Raise InputError where something that the sampler needs is not there, before anything loads."""

    def check_model(self, config: Any) -> None:  # noqa: B027
        """Raise InputError where a model can't be sampled so; `config` is its configuration, of transformers."""

    @contextmanager
    def ready(self, model: Path, folder: Path) -> Iterator[None]:
        """Have what sampling a model needs running meanwhile; by default nothing.

        Args:
            model: Its folder.
            folder: The run's, for what is printed.
        """
        yield

    @abstractmethod
    def sample(self, model: Any, tokenizer: Any, draws: Sequence[Draw]) -> Iterator[tuple[Draw, str]]:
        """Yield each draw with its completion, cut where the program ends, in any order.

        Where that is `ilf.tasks.prompts.cut` knows, given whether the draw is of a whole program (`draw.script`).

        Args:
            model: A causal language model of transformers, on any device; where `local` is false its folder.
            tokenizer: Its tokenizer, with a padding token.
            draws: Those of one prompt side by side. Each has a seed of its own.
        """


@dataclass(frozen=True)
class TrainingData:
    """What a run has to fine-tune its policy on, given to an objective.

    Everything is on the tasks of the training set, which are the same for every objective.
    """

    rows: Sequence[Refinement]  # the training set: task t, wrong program x0, feedback f, correct program x1
    samples: Mapping[int, Sequence[Program]]  # the policy's programs with their verdicts, by task
    refinements: Mapping[int, Sequence[Program]]  # the refiner's, where the arm trains on them; else empty
    tasks: Mapping[int, Task]
    seed: int  # of the round of the algorithm
    example: Callable[[Refinement], Example]  # a row as the policy's module trains on it: x1 after t
    encode: Callable[[int, str, str], Example]  # any target after any prompt, by task
    prompt_ids: Callable[[str], tuple[int, ...]]  # a prompt's tokens
    old_code: Callable[[str], str]  # a wrong program, cut to what refine prompts have room for
    refine_prompt: Callable[[Refinement], str]  # what the refiner is given for a row; ends with the task's prompt
    max_length: int  # tokens of an example
    rejected: list[str]  # a line on each row that can't be trained on; append to it

    def programs(self, task_id: int) -> list[Program]:
        """Return all that was sampled on a task: the policy's programs, and the refiner's."""
        return [*self.samples.get(task_id, ()), *self.refinements.get(task_id, ())]

    def each(self, make: Callable[[Refinement], Iterable[Example]]) -> list[Example]:
        """Return the examples that `make` gives for each row; a row that it refuses by ValueError is named."""
        found: list[Example] = []
        for row in self.rows:
            try:
                found += make(row)
            except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
                self.rejected.append(f"task {row.task_id} (objective): {error}")
        return found


@dataclass(frozen=True)
class Objective(ABC):
    """What the policy's fine-tuning minimises. Derive from it for one of your own: a dataclass with its arguments."""

    changes_nothing: ClassVar[tuple[str, ...]] = ()
    needs_feedback: ClassVar[bool] = False  # on each row, so that an arm without any can't be trained by it
    texts: ClassVar[int] = 1  # of an example, that a forward pass with gradients reads

    @property
    def needs_reference(self) -> bool:
        """Whether examples need the log-probabilities of their targets under the policy before training."""
        return False

    @property
    def second_model(self) -> Literal["base", "refiner"] | None:
        """The module's `teacher` while the policy is trained: the policy as it was, the refiner, or no second model."""
        return None

    def check(self, settings: Any) -> None:  # noqa: B027
        """Raise InputError where a run with these settings lacks what the objective needs, before anything loads."""

    def examples(self, data: TrainingData) -> list[Example]:
        """Return the training examples; by default each row's correct program after the task's prompt."""
        return data.each(lambda row: [data.example(row)])

    def prompt(self, task: Task) -> str:
        """Return what the policy is given for a task after the training; it ends with the task's prompt."""
        return task.prompt

    def before_step(self, module: Any, batch: Sequence[dict[str, torch.Tensor]]) -> None:  # noqa: B027
        """Add to an optimizer step's micro-batches what their losses need of the whole step; by default nothing."""

    @abstractmethod
    def losses(self, module: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the loss of each example, (B,).

        Args:
            module: A FineTuningModule: its `model`, `tokenizer`, `logits` and `teacher_logits`.
            batch: `input_ids`, `attention_mask` and `labels`, each (R, T), right-padded; labels of -100 don't count.
                R is B, or 2 B where each example has another text, which then follow in the same order. `value`, (B,);
                `focus` and `reference`, (R, T), where examples have them. See `ilf.types.Example`.
        """


@dataclass(frozen=True)
class Refining:
    """What only a run knows of, given to a refiner."""

    tasks: Splits
    seed: int  # of the round of the algorithm
    base: Path  # folder of the policy that the run started with
    policy: Path  # folder of the newest one
    tokenizer: Any  # the policy's
    module: Any  # the class that fine-tunes refiners, RefineModule: what it is given, and learns to write
    max_length: int  # tokens of a training example
    worked: Sequence[Feedback]  # on tasks of the Prompt split, each with a refinement or a gold program
    samples: Sequence[Program]  # the policy's, of all rounds so far
    rejected: list[str]  # a line on each row that can't be learnt from; append to it
    # Fine-tunes the base by training.refiner, through the store: on examples, validated on others and on programs that
    # are drawn for tasks with their prompts. Returns the folder.
    fine_tune: Callable[[Sequence[Any], Sequence[Any], Sequence[tuple[Task, str]]], Path]


@dataclass
class Refiner(ABC):
    """Mends wrong programs as feedback says. Derive from it for one of your own: a dataclass with its arguments.

    Args:
        old_code_tokens: The wrong program is cut to this many tokens in the refine prompt.
    """

    old_code_tokens: Positive = 512

    name: ClassVar[str]  # where no option says it; by default the class's
    trains: ClassVar[bool] = False  # whether it is fine-tuned, by training.refiner
    reads_program: ClassVar[bool] = True  # whether its prompts hold the wrong program

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "name" not in vars(cls):
            cls.name = cls.__name__

    @property
    def learns(self) -> Literal["annotator", "gold", "own"]:
        """Whose programs it is trained to write; "own": the policy's, on tasks of Refine that it sometimes solves."""
        return "annotator"

    def trained_on(self, tasks: int) -> int:
        """Return how many of the tasks that there are it is trained on; the others are held out."""
        return tasks

    @property
    def folder(self) -> Path | None:
        """The folder of a model that was there before the run."""
        return None

    @property
    def worked_examples(self) -> int:
        """How many worked examples each prompt holds."""
        return 0

    def check(self, settings: Any) -> None:  # noqa: B027
        """Raise InputError where a run with these settings lacks what the refiner needs, before anything loads."""

    @abstractmethod
    def train(self, feedback: Sequence[Feedback], run: Refining) -> Path:
        """Return the folder of the model that writes refinements, in Hugging Face's layout.

        Args:
            feedback: On tasks of Prompt and Refine, of all rounds so far.
            run: What only the run knows of.
        """

    def prompt(self, feedback: Feedback, task: Task, run: Refining) -> str:
        """Return what the model is given for one wrong program; it ends with the task's prompt."""
        prompt: str = run.module.prompt(run.tokenizer, feedback, task, self.old_code_tokens)
        return prompt

    def prompt_with_program(self, feedback: Feedback, task: Task, run: Refining) -> str:
        """Return `prompt`, or the paper's where the refiner's own prompts hold no program."""
        return self.prompt(feedback, task, run) if self.reads_program else Refiner.prompt(self, feedback, task, run)
