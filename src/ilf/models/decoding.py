"""Sampling from a transformers model: one seed per text, and one prefill per prompt.

A text depends on its own seed and not on the other texts in its batch: each step takes one uniform number from the
text's own stream and inverts the cumulative distribution. A finished text leaves the batch and a waiting one takes its
place, so a long text neither causes computation for finished texts nor delays the waiting ones.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ilf.models.batches import Batch, choose, join, ran_out
from ilf.models.prefill import joinable, prefill, read_beginning
from ilf.models.tokens import Continuation, by_length, end_ids
from ilf.types import InputError

log = logging.getLogger(__name__)

# Finished rows are replaced once at most this share of the batch is unfinished. Each change copies the KV cache, and
# new prompts are prefilled while the other rows wait. A GPU also captures the step again, and idle rows cost it little.
_GO_ON = {"cuda": 0.6, "cpu": 0.85}
REFILLS = 8  # a batch of texts to sample holds this many times the texts that are sampled at once
PADDING = 1 / 3  # largest share of padding among the tokens of prompts that are read together


@dataclass(frozen=True, eq=False)
class Request:
    """A text to sample."""

    prompt: tuple[int, ...]  # the tokens that it follows
    seed: int
    about: Any  # what the text is for, which only the caller knows


@dataclass
class Row:
    """A text in progress, as a row of the batch. Subclasses decide where it ends, besides the end of the text."""

    request: Request
    limit: int
    continuation: Continuation
    tokens: list[int] = field(default_factory=list)
    done: bool = False
    stopped: bool = False  # whether the model ended the text

    def __post_init__(self) -> None:
        stream = torch.Generator().manual_seed(self.request.seed)
        self.uniform: list[float] = torch.rand(self.limit, generator=stream, dtype=torch.float32).tolist()

    def add(self, token: int, end: bool) -> bool:
        """Add a token, or the end of the text; return whether the text is done."""
        if not end:
            self.tokens.append(token)
        self.stopped = end
        self.done = end or len(self.tokens) == self.limit or self.ends()
        return self.done

    def ends(self) -> bool:
        """Return whether the text ends after its newest token."""
        return False

    @property
    def text(self) -> str:
        """The decoded tokens."""
        return self.continuation.text(self.tokens)


@dataclass
class Decoder:
    """Samples texts from a model in this process.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer, with a padding token.
        limit: The largest number of tokens of a text.
        temperature: The sampling temperature; 0 for greedy decoding.
        top_k: Sample from the k most likely tokens only; 0 for all tokens.
        row: The class of rows.
        names: What messages call the texts, and the setting that names the model.
    """

    model: Any
    tokenizer: Any
    limit: int
    temperature: float
    top_k: int = 0
    row: type[Row] = Row
    names: tuple[str, str] = ("programs", "model.path")
    halvings: int = field(default=0, init=False)  # how often memory ran out and the batch was halved

    def sample(self, requests: Sequence[Request], size: int) -> Iterator[Row]:
        """Yield each text when it is done.

        Args:
            requests: The texts to sample. Those with the same prompt are adjacent.
            size: The largest number of texts to sample at once, halved where memory runs out.

        Raises:
            torch.OutOfMemoryError: There is not enough memory for even a single text.
            InputError: The model's logits are NaN.
        """
        left = dict.fromkeys(requests)
        size = min(size, len(left))
        while left:
            try:
                for row in self._decode(list(left), size):
                    del left[row.request]
                    yield row
            except RuntimeError as error:
                if not ran_out(error) or size == 1:
                    raise
                self.halvings += 1
                log.warning("out of memory with %d %s at once; continuing with %d", size, self.names[0], size // 2)
                size //= 2
            if torch.cuda.is_available() and left:
                torch.cuda.empty_cache()

    @torch.inference_mode()
    def _decode(self, requests: Sequence[Request], size: int) -> Iterator[Row]:
        """Sample with at most `size` rows at once."""
        model, ends = self.model, end_ids(self.model, self.tokenizer)
        waiting = _Waiting(model, self.tokenizer, requests)
        rows: list[Row] = []
        batch: Batch | None = None
        go_on = _GO_ON.get(model.device.type, _GO_ON["cpu"])
        filling = waiting.joinable  # whether waiting texts replace finished rows one by one, or wait until all finish
        while True:
            going = [i for i, row in enumerate(rows) if not row.done]
            if not going and not waiting.requests:
                return
            if len(going) <= go_on * (size if waiting.requests and filling else len(rows)):
                parts = [(batch, going)] if batch is not None and going else []
                rows = [rows[i] for i in going]
                for part, index, new in waiting.take(size - len(rows)) if filling or not rows else ():
                    parts.append((part, index))
                    rows += [self.row(one, self.limit, waiting.continuation(one.prompt)) for one in new]
                batch = join(parts)
            assert batch is not None
            numbers = [0.0 if row.done else row.uniform[len(row.tokens)] for row in rows]
            uniform = torch.tensor(numbers, dtype=torch.float32)  # explicit, as Lightning may change the default dtype
            chosen = choose(batch.logits, uniform.to(model.device), self.temperature, self.top_k)
            for row, token in zip(rows, chosen.tolist(), strict=True):
                if row.done:
                    continue
                if token < 0:
                    raise InputError(
                        self.names[1],
                        getattr(model, "name_or_path", None),
                        "the model's logits are NaN, from which nothing can be sampled",
                        "Its weights are damaged or diverged, or model.dtype can't hold them: try model.dtype=float32.",
                    )
                if row.add(token, token in ends):
                    yield row
            if not all(row.done for row in rows):
                batch.step(model, chosen, torch.tensor([not row.done for row in rows], device=model.device))


class _Waiting:
    """The requests that have no row yet, and the prompts that have been prefilled for them."""

    def __init__(self, model: Any, tokenizer: Any, requests: Sequence[Request]) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.requests, self.joinable = list(requests), joinable(model)
        self._beginning = read_beginning(model, (one.prompt for one in requests))
        self._continuations: dict[tuple[int, ...], Continuation] = {}
        # Prefilled prompts that more requests need: batch and row of each.
        self._open: dict[tuple[int, ...], tuple[Batch, int]] = {}

    def take(self, count: int) -> Iterator[tuple[Batch, list[int], list[Request]]]:
        """Yield the next `count` requests in groups: a batch of prefilled prompts, the row for each request, and they.

        There are fewer if rows of different prompts can't share a batch.
        """
        if not self.joinable:
            several = (i for i, one in enumerate(self.requests) if one.prompt != self.requests[0].prompt)
            count = min(count, next(several, count))
        taken, self.requests = self.requests[:count], self.requests[count:]
        new = [prompt for prompt in dict.fromkeys(one.prompt for one in taken) if prompt not in self._open]
        begun = len(self._beginning.tokens) if self._beginning else 0
        for prompts in by_length(new, lambda prompt: len(prompt) - begun, PADDING):
            prefilled = prefill(self.model, prompts, self.tokenizer.pad_token_id, self._beginning)
            self._open |= {prompt: (prefilled, i) for i, prompt in enumerate(prompts)}
        by_batch: dict[int, tuple[Batch, list[int], list[Request]]] = {}
        for one in taken:
            batch, row = self._open[one.prompt]
            _, index, requests = by_batch.setdefault(id(batch), (batch, [], []))
            index.append(row)
            requests.append(one)
        # Only the next request's prompt is needed again. Its row is copied, so that the rest of the batch can be freed.
        still = {one.prompt for one in self.requests[:1]} & set(self._open)
        self._open = {
            prompt: (batch.row(i), 0) for prompt, (batch, i) in self._open.items() if prompt in still and self.joinable
        }
        yield from by_batch.values()

    def continuation(self, prompt: tuple[int, ...]) -> Continuation:
        """Return the decoder of a prompt's continuations."""
        if prompt not in self._continuations:
            self._continuations[prompt] = Continuation(self.tokenizer, prompt)
        return self._continuations[prompt]
