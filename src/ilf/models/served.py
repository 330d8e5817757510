"""Draws programs from any OpenAI-compatible server: vLLM, TGI, llama.cpp, `transformers serve`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from ilf.files import whole
from ilf.models.endpoint import KEY, answers
from ilf.settings import Sampling
from ilf.tasks.prompts import cut, function_end
from ilf.types import Draw, InputError

_SAME = 10  # repetitions of programs at once that are no chance


class ServedSampler:
    """Samples from a model that a server holds, by its completions endpoint, as many requests at once as a batch holds.

    A completion is streamed, and broken off where the function ends. The server gets each draw's seed, and decides what
    it does with it.

    Args:
        settings: Address, temperature, bound on new tokens, requests at once, more fields of a request.
        model: Its name on the server.
    """

    whole_plans = False
    halvings = 0

    def __init__(self, settings: Sampling, model: str) -> None:
        self.settings, self.model = settings, model

    def sample(self, model: Any, tokenizer: Any, draws: Sequence[Draw]) -> Iterator[tuple[Draw, str]]:
        """Yield each draw with its completion, cut where the function ends, as they come; the model lies elsewhere.

        Raises:
            InputError: The server can't be reached, does not hold the model, or does not sample; what came was yielded.
        """
        texts: dict[str, set[str]] = defaultdict(set)  # of each prompt
        for draw, text in answers(
            "sampler.url",
            str(self.settings.url),
            self.model,
            draws,
            self._ask,
            self.settings.batch_size,
            f"Have the server hold that folder under this name, set ${KEY} if it asks for a key, and run the same "
            "command again: what is there is kept.",
        ):
            texts[draw.prompt].add(text)
            yield draw, text
        if len(draws) >= len(texts) + _SAME and all(len(found) == 1 for found in texts.values()):
            raise InputError(
                "sampler.extra",
                self.settings.extra,
                "the server gives the same program for every seed, so that it does not sample",
                "Give what it needs to sample by temperature alone, as +sampler.extra.top_k=-1; see docs/servers.md.",
            )

    def _ask(self, client: Any, draw: Draw) -> str:
        text = ""
        with client.completions.create(
            model=self.model,
            prompt=whole(draw.prompt),
            temperature=self.settings.temperature,
            top_p=1.0,
            max_tokens=self.settings.max_new_tokens,
            seed=draw.seed % 2**31,  # some servers take no more
            stream=True,
            extra_body=self.settings.extra,
        ) as stream:
            for part in stream:
                piece = part.choices[0].text if part.choices else ""
                text += piece
                # A function can only have ended where a line has begun in the first column.
                if piece and function_end(text) is not None:
                    break
        return cut(whole(text))
