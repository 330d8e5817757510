"""What parts of a run ask of the classes that an option may name: derive from these for parts of your own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from ilf.ranges import AboveZero, Positive
from ilf.types import Draw

if TYPE_CHECKING:
    import torch


@dataclass
class Sampler(ABC):
    """Draws programs. Derive from it for a sampler of your own: a dataclass whose fields are its arguments.

    Args:
        n: Programs a task.
        temperature: Of the softmax.
        max_new_tokens: A bound; sampling stops where the function ends.
        batch_size: Programs, or requests, at once; halved when memory runs out.
    """

    n: Positive = 30
    temperature: AboveZero = 0.8
    max_new_tokens: Positive = 512
    batch_size: Positive = 32
    halvings: int = field(default=0, init=False)  # how often memory ran out and half as many programs went on at once

    # Whether what is drawn depends, in its last bits, on what is computed beside it: then only a plan that is drawn
    # whole is drawn again alike. Else each program is kept as it comes.
    whole_plans: ClassVar[bool] = False
    local: ClassVar[bool] = True  # whether the model is loaded here; else `sample` gets its folder
    changes_nothing: ClassVar[tuple[str, ...]] = ("n",)  # of one program

    def check(self) -> None:  # noqa: B027
        """Raise InputError where something that the sampler needs is not there, before anything loads."""

    def check_model(self, config: Any) -> None:  # noqa: B027
        """Raise InputError where a model can't be sampled so; `config` is its configuration, of transformers."""

    @abstractmethod
    def sample(self, model: Any, tokenizer: Any, draws: Sequence[Draw]) -> Iterator[tuple[Draw, str]]:
        """Yield each draw with its completion, cut where the function ends (`cut`), in any order.

        Args:
            model: A causal language model of transformers, on any device; where `local` is false its folder.
            tokenizer: Its tokenizer, with a padding token.
            draws: Those of one prompt side by side. Each has a seed of its own.
        """


@dataclass(frozen=True)
class Objective(ABC):
    """A loss over examples. Derive from it for an objective of your own: a dataclass whose fields are its arguments."""

    changes_nothing: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def losses(self, module: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the loss of each example, (B,).

        Args:
            module: A FineTuningModule: its `model`, `tokenizer`, and `logits`.
            batch: `input_ids`, `attention_mask` and `labels`, each (B, T), right-padded; labels of -100 don't count.
        """
