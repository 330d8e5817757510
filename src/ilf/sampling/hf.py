"""Sampling with transformers models: one seed per sample, one prefill per prompt, stopped where the function ends.

A sample depends on its own seed and not on the other samples in its batch: each step takes one uniform number from the
sample's own stream and inverts the cumulative distribution. A finished sample leaves the batch and a waiting one takes
its place, so a long program neither causes computation for finished samples nor delays the waiting ones.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ilf.models.batches import Batch, choose, join, ran_out
from ilf.models.prefill import joinable, prefill
from ilf.models.tokens import Continuation, by_length, check_room, encode_prompts, end_ids, ends_line
from ilf.protocols import Sampler
from ilf.tasks.prompts import cut, ended
from ilf.types import Draw, InputError

log = logging.getLogger(__name__)

# Finished rows are replaced once at most this share of the batch is unfinished. Each change copies the KV cache, and
# new prompts are prefilled while the other rows wait. A GPU also captures the step again, and idle rows cost it little.
_GO_ON = {"cuda": 0.6, "cpu": 0.85}
_PADDING = 1 / 3  # largest share of padding among the tokens of prompts that are read together


@dataclass
class HFSampler(Sampler):
    """A sampler for any causal language model of transformers."""

    whole_plans = True

    def sample(self, model: Any, tokenizer: Any, draws: Sequence[Draw]) -> Iterator[tuple[Draw, str]]:
        """Yield each draw with its completion, cut where the program ends, in the order in which they finish.

        Raises:
            torch.OutOfMemoryError: There is not enough memory for even a single program.
            InputError: A prompt plus the new tokens exceed the model's maximum number of positions.
        """
        left = dict.fromkeys(draws)
        size = min(self.batch_size, len(draws))
        while left:
            try:
                for draw, text in self._decode(model, tokenizer, list(left), size):
                    del left[draw]
                    yield draw, text
            except RuntimeError as error:
                if not ran_out(error) or size == 1:
                    raise
                self.halvings += 1
                log.warning("out of memory with %d programs at once; continuing with %d", size, size // 2)
                size //= 2
            if torch.cuda.is_available() and left:
                torch.cuda.empty_cache()

    @torch.inference_mode()
    def _decode(self, model: Any, tokenizer: Any, draws: Sequence[Draw], size: int) -> Iterator[tuple[Draw, str]]:
        """Sample with at most `size` rows at once."""
        limit, ends = self.max_new_tokens, end_ids(model, tokenizer)
        waiting = _Waiting(model, tokenizer, draws, limit)
        rows: list[_Row] = []
        batch: Batch | None = None
        go_on = _GO_ON.get(model.device.type, _GO_ON["cpu"])
        filling = waiting.joinable  # whether waiting draws replace finished rows one by one, or wait until all finish
        while True:
            going = [i for i, row in enumerate(rows) if not row.done]
            if not going and not waiting.draws:
                return
            if len(going) <= go_on * (size if waiting.draws and filling else len(rows)):
                parts = [(batch, going)] if batch is not None and going else []
                rows = [rows[i] for i in going]
                for part, index, new in waiting.take(size - len(rows)) if filling or not rows else ():
                    parts.append((part, index))
                    rows += [_Row(draw, limit, waiting.continuation(draw.prompt)) for draw in new]
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
                        "model.path",
                        getattr(model, "name_or_path", None),
                        "the model's logits are NaN, from which nothing can be sampled",
                        "Its weights are damaged or diverged, or model.dtype can't hold them: try model.dtype=float32.",
                    )
                if row.add(token, token in ends):
                    yield row.draw, row.completion
            if not all(row.done for row in rows):
                batch.step(model, chosen, torch.tensor([not row.done for row in rows], device=model.device))


@dataclass
class _Row:
    """A sample in progress, as a row of the batch."""

    draw: Draw
    limit: int
    continuation: Continuation
    tokens: list[int] = field(default_factory=list)
    done: bool = False
    _goes_on: bool = False  # whether nothing that follows on the newest line can end the program

    def __post_init__(self) -> None:
        stream = torch.Generator().manual_seed(self.draw.seed)
        self.uniform: list[float] = torch.rand(self.limit, generator=stream, dtype=torch.float32).tolist()

    def add(self, token: int, end: bool) -> bool:
        """Add a token, or the end of the text; return whether the sample is done.

        Decoding is the slowest part of this, so the tokens are only decoded where they may end the program.
        """
        if not end:
            self.tokens.append(token)
        self.done = end or len(self.tokens) == self.limit
        if not self.done and not (self._goes_on and not ends_line(self.continuation.tokenizer, token)):
            text = self.continuation.text(self.tokens)
            last = text[text.rfind("\n") + 1 :]
            self.done = ended(text, self.draw.script)
            self._goes_on = self.draw.script or last[:1].isspace() or last[:1] == "#"
        return self.done

    @property
    def completion(self) -> str:
        """The decoded tokens, up to the end of the program."""
        return cut(self.continuation.text(self.tokens), self.draw.script)


class _Waiting:
    """The draws that have no row yet, and the prompts that have been prefilled for them."""

    def __init__(self, model: Any, tokenizer: Any, draws: Sequence[Draw], limit: int) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.draws, self.joinable = list(draws), joinable(model)
        prompts = list(dict.fromkeys(draw.prompt for draw in draws))
        self.tokens = dict(zip(prompts, encode_prompts(tokenizer, prompts), strict=True))
        check_room(model.config, max(map(len, self.tokens.values()), default=0), limit)
        self._continuations: dict[str, Continuation] = {}
        self._open: dict[str, tuple[Batch, int]] = {}  # prefilled prompts that more draws need: batch and row of each

    def take(self, count: int) -> Iterator[tuple[Batch, list[int], list[Draw]]]:
        """Yield the next `count` draws in groups: a batch of prefilled prompts, the row for each draw, and the draws.

        There are fewer draws if rows of different prompts can't share a batch.
        """
        if not self.joinable:
            several = (i for i, draw in enumerate(self.draws) if draw.prompt != self.draws[0].prompt)
            count = min(count, next(several, count))
        taken, self.draws = self.draws[:count], self.draws[count:]
        new = [prompt for prompt in dict.fromkeys(draw.prompt for draw in taken) if prompt not in self._open]
        for prompts in by_length(new, lambda prompt: len(self.tokens[prompt]), _PADDING):
            prefilled = prefill(self.model, [self.tokens[prompt] for prompt in prompts], self.tokenizer.pad_token_id)
            self._open |= {prompt: (prefilled, i) for i, prompt in enumerate(prompts)}
        by_batch: dict[int, tuple[Batch, list[int], list[Draw]]] = {}
        for draw in taken:
            batch, row = self._open[draw.prompt]
            _, index, draws = by_batch.setdefault(id(batch), (batch, [], []))
            index.append(row)
            draws.append(draw)
        # Only the next draw's prompt is needed again. Its row is copied, so that the rest of the batch can be freed.
        still = {draw.prompt for draw in self.draws[:1]} & set(self._open)
        self._open = {
            prompt: (batch.row(i), 0) for prompt, (batch, i) in self._open.items() if prompt in still and self.joinable
        }
        yield from by_batch.values()

    def continuation(self, prompt: str) -> Continuation:
        """Return the decoder of a prompt's completions."""
        if prompt not in self._continuations:
            self._continuations[prompt] = Continuation(self.tokenizer, self.tokens[prompt])
        return self._continuations[prompt]
