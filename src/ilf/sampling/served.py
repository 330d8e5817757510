"""Sampling from any OpenAI-compatible server: vLLM, TGI, llama.cpp, `transformers serve`."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from ilf.files import whole
from ilf.models.endpoint import KEY, RETRIES, Incomplete, answers
from ilf.models.tokens import encode_prompts, loses_space, spells_special, uses_chat
from ilf.protocols import Sampler
from ilf.tasks.prompts import cut, ended, function_end
from ilf.types import Draw, InputError

_SAME = 10  # number of repeated programs that cannot be a coincidence


@dataclass
class ServedSampler(Sampler):
    """A sampler that uses the completions endpoint of a server.

    Completions are streamed, and stopped where the function ends. Requests contain each draw's seed; how the server
    uses it is up to the server. The server must serve the model under the absolute path of its folder.

    Args:
        n: Programs per task.
        temperature: Temperature of the softmax.
        max_new_tokens: Upper limit; sampling stops where the function ends.
        batch_size: Number of concurrent requests.
        top_k: Sample only from the k most likely tokens; 0 for all, unless the server limits them itself.
        url: URL of an OpenAI-compatible server, such as http://localhost:8000/v1. The key is read from $OPENAI_API_KEY.
        extra: More fields of each request, such as {top_k: -1}.
        takes_tokens: Whether the server accepts prompts as token ids. Prompts of data.prompt=chat are sent that way.
        seeded: Whether each request has its draw's seed. Some engines can't take one: vLLM crashes on some CPUs.
    """

    url: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    takes_tokens: bool = True
    seeded: bool = True

    local = False
    retries: ClassVar[int] = RETRIES
    changes_nothing: ClassVar[tuple[str, ...]] = ("n", "url")

    def check(self) -> None:
        """Raise InputError if there is no URL of a server."""
        if not str(self.url).startswith(("http://", "https://")):
            advice = "Give sampler.url=http://HOST:PORT/v1."
            raise InputError(
                "sampler.url", self.url, "sampler=openai needs the address of an OpenAI-compatible server", advice
            )

    def sample(self, model: Any, tokenizer: Any, draws: Sequence[Draw]) -> Iterator[tuple[Draw, str]]:
        """Yield each draw with its completion, cut where the program ends, in the order in which they finish.

        Args:
            model: The folder of the model, which the server has loaded.
            tokenizer: The model's tokenizer.
            draws: The draws, in any order.

        Raises:
            InputError: The server can't be reached, does not serve the model, or does not sample. Completions that
                were received before have been yielded.
        """
        texts: dict[str, set[str]] = defaultdict(set)  # of each prompt
        found = self._answers(model, tokenizer, draws)
        for draw, text in self._whole(found) if loses_space(tokenizer) else found:
            texts[draw.prompt].add(text)
            yield draw, text
        if self.greedy or len(draws) < len(texts) + _SAME or any(len(found) > 1 for found in texts.values()):
            return
        # A model may be certain enough to repeat a program, but no model is that certain after a meaningless prompt.
        senseless = tokenizer.decode(range(0, len(tokenizer), len(tokenizer) // 20 + 1), skip_special_tokens=True)
        probes = [replace(draws[0], prompt=senseless, seed=seed) for seed in range(4)]
        wild = replace(self, temperature=2.0, max_new_tokens=16)
        if len({text for _, text in wild._answers(model, tokenizer, probes)}) == 1:
            raise InputError(
                "sampler.extra",
                self.extra,
                "the server returns the same program for every seed, so it does not sample",
                "Add the fields that make it sample by temperature alone, such as +sampler.extra.top_k=-1; "
                "see docs/how-to/servers.md.",
            )

    @property
    def _of_seeds(self) -> str:
        """The advice that an error message adds if the requests' seeds may be the cause."""
        return (
            " If it crashed on a request's seed, as vLLM does on some CPUs: sampler.seeded=false."
            if self.seeded
            else ""
        )

    def _answers(self, model: Any, tokenizer: Any, draws: Sequence[Draw]) -> Iterator[tuple[Draw, str]]:
        """Yield each draw with the server's completion for it, in the order in which they finish."""
        name = str(Path(model).absolute())
        tokens = {
            prompt: encode_prompts(tokenizer, [prompt])[0]
            for prompt in {draw.prompt for draw in draws}
            if uses_chat(tokenizer) or spells_special(tokenizer, prompt)
        }
        more = self.fields(tokenizer)
        return answers(
            "sampler.url",
            str(self.url),
            name,
            draws,
            lambda client, draw: self._ask(client, name, draw, tokens.get(draw.prompt, whole(draw.prompt)), more),
            self.batch_size,
            f"Have the server serve that folder under this name, set ${KEY} if it asks for a key, and run the same "
            "command again: received completions are stored." + self._of_seeds,
            self.retries,
        )

    def _whole(self, found: Iterator[tuple[Draw, str]]) -> Iterator[tuple[Draw, str]]:
        """Yield the completions after checking that they have not lost their first space.

        Raises:
            InputError: The server decodes completions without their prompts, and therefore loses the first space.
        """
        short: list[tuple[Draw, str]] = []  # completions that parse only with one more space
        for draw, text in found:
            as_it_is, with_space = (_parses(draw.task_prompt + space + text) for space in ("", " "))
            if with_space and not as_it_is:
                short.append((draw, text))
            elif as_it_is and not with_space:  # proves that this server does not drop the first space
                yield from (*short, (draw, text))
                yield from found
                return
            else:
                yield draw, text
            if len(short) == _SAME:
                raise InputError(
                    "sampler.url",
                    self.url,
                    "the server drops the space that a completion begins with, as `transformers serve` does with the "
                    "tokenizer of this model",
                    "Use a server that decodes a completion after its prompt, such as vLLM, or sampler=hf.",
                )
        yield from short

    def fields(self, tokenizer: Any) -> dict[str, Any]:
        """Return the extra fields of a request; subclasses may need the tokenizer for the model's special tokens."""
        return self.extra

    def _ask(self, client: Any, name: str, draw: Draw, prompt: str | list[int], more: dict[str, Any]) -> str:
        import openai

        text, finished = "", False
        stream = client.completions.create(
            model=name,
            prompt=prompt,
            temperature=self.temperature,
            top_p=1.0,
            max_tokens=self.max_new_tokens,
            stream=True,
            extra_body=more
            | ({"top_k": self.top_k} if self.top_k and "$top_k" not in str(self.extra) else {})
            | ({"seed": draw.seed % 2**31} if self.seeded else {}),  # some servers accept no larger seeds
        )
        with stream:
            try:
                for part in stream:
                    piece = part.choices[0].text if part.choices else ""
                    text += piece
                    finished = finished or bool(part.choices and part.choices[0].finish_reason)
                    if piece and (ended(text, True) if draw.script else function_end(text) is not None):
                        finished = True
                        break
            except openai.APIConnectionError as error:
                raise Incomplete(f"the connection broke: {error}") from error
        if not finished:
            raise Incomplete("the completion ended without a finish_reason")
        return cut(whole(text), draw.script)


def _parses(program: str) -> bool:
    try:
        ast.parse(program)
    except (SyntaxError, ValueError):
        return False
    return True
