"""Base classes for components that an option may name. Derive from these for components of your own."""

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
    """A sampler samples programs from a model. To write your own, derive a dataclass whose fields are its arguments.

    Args:
        n: Number of programs per task.
        temperature: Sampling temperature. Evaluation may set it to 0 for greedy decoding.
        max_new_tokens: Maximum tokens per program; sampling stops earlier, at the end of the function.
        batch_size: Number of concurrent programs or requests; halved when memory runs out.
        top_k: Sample from the k most likely tokens only; 0 for all tokens.
    """

    n: Positive = 30
    temperature: AboveZero = 0.8
    max_new_tokens: Positive = 512
    batch_size: Positive = 32
    top_k: Natural = 0
    halvings: int = field(default=0, init=False)  # how often memory ran out and the batch was halved
    dtype: str = field(default="float32", init=False)  # of the weights, or bfloat16; set before `ready` is called

    # Whether the last bits of a sample depend on the rest of its batch. If so, only a plan that is sampled as a whole
    # is reproducible. Otherwise, each program is saved as soon as it is finished.
    whole_plans: ClassVar[bool] = False
    local: ClassVar[bool] = True  # whether the model is loaded in this process; otherwise `sample` receives its folder
    changes_nothing: ClassVar[tuple[str, ...]] = ("n",)  # arguments that no single program depends on

    @property
    def greedy(self) -> bool:
        """Whether decoding is greedy, so that all programs of a task are the same."""
        return self.temperature == 0 or self.top_k == 1

    def check(self) -> None:  # noqa: B027
        """Raise InputError if something that the sampler needs is missing. This runs before anything loads."""

    def check_model(self, config: Any) -> None:  # noqa: B027
        """Raise InputError if the sampler can't sample a model with the transformers configuration `config`."""

    @property
    def casts(self) -> bool:
        """Whether the weights have the data type that `model.dtype` asks for; otherwise a server chooses it."""
        return self.local

    @contextmanager
    def ready(self, model: Path, folder: Path) -> Iterator[None]:
        """Keep whatever sampling needs, such as a server, running inside the context; by default nothing.

        Args:
            model: The model's folder.
            folder: The run's folder, for printed output.
        """
        yield

    @abstractmethod
    def sample(self, model: Any, tokenizer: Any, draws: Sequence[Draw]) -> Iterator[tuple[Draw, str]]:
        """Yield each draw with its completion, truncated at the end of the program, in any order.

        `ilf.tasks.prompts.cut` finds this end, given whether the draw is of a whole program (`draw.script`).

        Args:
            model: A causal language model from transformers, on any device, or its folder if `local` is false.
            tokenizer: Its tokenizer, with a padding token.
            draws: The programs to sample. Draws with the same prompt are adjacent. Each has its own seed.
        """


@dataclass(frozen=True)
class TrainingData:
    """The data of a run from which an objective makes training examples.

    All of it is on the tasks of the training set, which are the same for every objective.
    """

    rows: Sequence[Refinement]  # the training set: task t, incorrect program x0, feedback f, correct program x1
    samples: Mapping[int, Sequence[Program]]  # the policy's programs with their verdicts, by task
    refinements: Mapping[int, Sequence[Program]]  # the refiner's programs, if the arm trains on them; otherwise empty
    tasks: Mapping[int, Task]
    seed: int  # of the round of the algorithm
    example: Callable[[Refinement], Example]  # converts a row to the policy module's example: x1 after t
    encode: Callable[[int, str, str], Example]  # encodes any target after any prompt, given the task's id
    prompt_ids: Callable[[str], tuple[int, ...]]  # tokenizes a prompt
    old_code: Callable[[str], str]  # truncates an incorrect program to the space in refine prompts
    # returns the refiner's prompt for a row, which ends with the task's prompt
    refine_prompt: Callable[[Refinement], str]
    max_length: int  # maximum tokens of an example
    rejected: list[str]  # one line per row that can't be trained on; append to it

    def programs(self, task_id: int) -> list[Program]:
        """Return all programs sampled for a task: the policy's and the refiner's."""
        return [*self.samples.get(task_id, ()), *self.refinements.get(task_id, ())]

    def each(self, make: Callable[[Refinement], Iterable[Example]]) -> list[Example]:
        """Return the examples that `make` returns for each row, and report rows for which it raises ValueError."""
        found: list[Example] = []
        for row in self.rows:
            try:
                found += make(row)
            except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
                self.rejected.append(f"task {row.task_id} (objective): {error}")
        return found


@dataclass(frozen=True)
class Objective(ABC):
    """The loss that fine-tuning the policy minimizes. To write your own, derive a dataclass with its arguments."""

    changes_nothing: ClassVar[tuple[str, ...]] = ()
    needs_feedback: ClassVar[bool] = False  # whether each row needs feedback; arms without feedback can't use it then
    texts: ClassVar[int] = 1  # texts per example that a forward pass with gradients reads

    @property
    def needs_reference(self) -> bool:
        """Whether examples need the log-probabilities of their targets under the policy before the training."""
        return False

    @property
    def second_model(self) -> Literal["base", "refiner"] | None:
        """The `teacher` model of the module: the policy before the training, the refiner, or None."""
        return None

    def check(self, settings: Any) -> None:  # noqa: B027
        """Raise InputError if these settings lack something that the objective needs, before anything loads."""

    def examples(self, data: TrainingData) -> list[Example]:
        """Return the training examples: by default, the correct program of each row after the task's prompt."""
        return data.each(lambda row: [data.example(row)])

    def prompt(self, task: Task) -> str:
        """Return the fine-tuned policy's prompt for a task, which ends with the task's own prompt."""
        return task.prompt

    def before_step(self, module: Any, batch: Sequence[dict[str, torch.Tensor]]) -> None:  # noqa: B027
        """Add what the losses need from the whole optimizer step to its micro-batches; by default nothing."""

    @abstractmethod
    def losses(self, module: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the loss of each example, (B,).

        Args:
            module: A FineTuningModule, with `model`, `tokenizer`, `logits` and `teacher_logits`.
            batch: `input_ids`, `attention_mask` and `labels`, each (R, T), right-padded; labels of -100 are ignored.
                R is B, or 2 B if each example has another text; these texts then follow in the same order. `value` is
                (B,). `focus` and `reference` are (R, T), if the examples have them. See `ilf.types.Example`.
        """


@dataclass(frozen=True)
class Refining:
    """The state of a run that is passed to a refiner."""

    tasks: Splits
    seed: int  # of the round of the algorithm
    base: Path  # folder of the policy with which the run started
    policy: Path  # folder of the newest policy
    tokenizer: Any  # the policy's
    module: Any  # RefineModule, the class that fine-tunes refiners: it makes their prompts and targets
    max_length: int  # maximum tokens of a training example
    worked: Sequence[Feedback]  # worked examples on the Prompt split, each with a refinement or a gold program
    samples: Sequence[Program]  # the policy's programs of all rounds so far
    rejected: list[str]  # one line per row that can't be learned from; append to it
    # Fine-tunes the base with the settings training.refiner and stores the result. Takes the training examples, the
    # validation examples, and tasks with prompts to sample validation programs. Returns the model's folder.
    fine_tune: Callable[[Sequence[Any], Sequence[Any], Sequence[tuple[Task, str]]], Path]


@dataclass
class Refiner(ABC):
    """A refiner fixes incorrect programs by feedback. To write your own, derive a dataclass with its arguments.

    Args:
        old_code_tokens: Maximum tokens of the incorrect program in the refine prompt; longer ones are truncated.
    """

    old_code_tokens: Positive = 512

    name: ClassVar[str]  # used if no option gives one; by default the name of the class
    trains: ClassVar[bool] = False  # whether it is fine-tuned, with the settings training.refiner
    reads_program: ClassVar[bool] = True  # whether its prompts contain the incorrect program

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "name" not in vars(cls):
            cls.name = cls.__name__

    @property
    def learns(self) -> Literal["annotator", "gold", "own"]:
        """Whose programs are its training targets. "own": the policy's, on Refine tasks that it sometimes solves."""
        return "annotator"

    def trained_on(self, tasks: int) -> int:
        """Return how many of this many tasks it is trained on; the others are held out."""
        return tasks

    @property
    def folder(self) -> Path | None:
        """The folder of a model that existed before the run, or None."""
        return None

    @property
    def worked_examples(self) -> int:
        """The number of worked examples in each prompt."""
        return 0

    def check(self, settings: Any) -> None:  # noqa: B027
        """Raise InputError if these settings lack something that the refiner needs, before anything loads."""

    @abstractmethod
    def train(self, feedback: Sequence[Feedback], run: Refining) -> Path:
        """Return the folder of the model that writes refinements, in Hugging Face format.

        Args:
            feedback: Feedback on tasks of Prompt and Refine, of all rounds so far.
            run: The state of the run.
        """

    def prompt(self, feedback: Feedback, task: Task, run: Refining) -> str:
        """Return the refiner's prompt for one incorrect program, which ends with the task's prompt."""
        prompt: str = run.module.prompt(run.tokenizer, feedback, task, self.old_code_tokens)
        return prompt

    def prompt_with_program(self, feedback: Feedback, task: Task, run: Refining) -> str:
        """Return `prompt`, or the paper's prompt if the refiner's own prompts contain no program."""
        return self.prompt(feedback, task, run) if self.reads_program else Refiner.prompt(self, feedback, task, run)
