"""Sampling programs with transformers models, stopped where the function ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ilf.models.decoding import Decoder, Request, Row
from ilf.models.tokens import check_room, encode_prompts, ends_line
from ilf.protocols import Sampler
from ilf.tasks.prompts import cut, ended
from ilf.types import Draw


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
        if not draws:  # all are stored, and no model is loaded
            return
        prompts = list(dict.fromkeys(draw.prompt for draw in draws))
        tokens = {prompt: tuple(ids) for prompt, ids in zip(prompts, encode_prompts(tokenizer, prompts), strict=True)}
        check_room(model.config, max(map(len, tokens.values()), default=0), self.max_new_tokens)
        requests = [Request(tokens[draw.prompt], draw.seed, draw) for draw in dict.fromkeys(draws)]
        decoder = Decoder(model, tokenizer, self.max_new_tokens, self.temperature, self.top_k, _Program)
        try:
            for row in decoder.sample(requests, self.batch_size):
                draw: Draw = row.request.about
                yield draw, cut(row.text, draw.script)
        finally:
            self.halvings += decoder.halvings


class _Program(Row):
    """A program in progress."""

    _goes_on = False  # whether nothing that follows on the newest line can end the program

    def ends(self) -> bool:
        """Return whether the newest token ends the program.

        Decoding is the slowest part of this, so the tokens are only decoded where they may end the program.
        """
        if self._goes_on and not ends_line(self.continuation.tokenizer, self.tokens[-1]):
            return False
        text, script = self.text, self.request.about.script
        last = text[text.rfind("\n") + 1 :]
        self._goes_on = script or last[:1].isspace() or last[:1] == "#"
        return ended(text, script)
