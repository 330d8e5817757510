"""Draws programs from any OpenAI-compatible server: vLLM, TGI, llama.cpp, `transformers serve`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ilf.models.endpoint import KEY, answers
from ilf.settings import Sampling
from ilf.tasks.prompts import cut, function_end
from ilf.types import Draw


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
            InputError: The server can't be reached or does not hold the model; what came before was yielded.
        """
        yield from answers(
            "sampler.url",
            str(self.settings.url),
            self.model,
            draws,
            self._ask,
            self.settings.batch_size,
            f"Have the server hold that folder under this name, set ${KEY} if it asks for a key, and run the same "
            "command again: what is there is kept.",
        )

    def _ask(self, client: Any, draw: Draw) -> str:
        text = ""
        with client.completions.create(
            model=self.model,
            prompt=draw.prompt,
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
        return cut(text)
