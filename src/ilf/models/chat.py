"""Generates the answers of a local transformers chat model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ilf.models.decoding import Decoder, Request
from ilf.models.dtypes import sampling_dtype
from ilf.models.load import load_tokenizer
from ilf.models.onednn_linear import load_packed
from ilf.models.tokens import check_room, encode_chat


def answers(
    folder: Path,
    batches: Sequence[Sequence[dict[str, Any]]],
    parallel: int,
    temperature: float,
    max_tokens: int,
    device: torch.device,
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each query with its answer, the finish reason and the token usage, in the order in which they finish.

    Answers are sampled from the model's own distribution; the sampling settings in its folder are ignored. The model
    is loaded only while it answers.

    Args:
        folder: A folder in Hugging Face's layout. Its tokenizer's chat template converts a conversation to text;
            without a template, the turns follow one another.
        batches: Queries that are answered one after another: the `messages`, and the `seed` of their random numbers.
        parallel: The largest number of queries to answer at once. Where memory runs out, it is halved from there on.
        temperature: The sampling temperature.
        max_tokens: The largest number of tokens of an answer.
        device: The device to compute on.

    Raises:
        InputError: A conversation and its answer exceed the model's number of positions.
        torch.OutOfMemoryError: There is not enough memory for even a single answer.
    """
    if not batches:
        return
    tokenizer = load_tokenizer(folder)

    def request(query: dict[str, Any]) -> Request:
        return Request(tuple(encode_chat(tokenizer, query["messages"])), query["seed"], query)

    planned = [list(map(request, batch)) for batch in batches]
    longest = max(len(request.prompt) for batch in planned for request in batch)
    model = load_packed(folder, sampling_dtype("auto", device), device, key="llm.model")
    check_room(model.config, longest, max_tokens, "a question", "llm.max_tokens", "llm.shots")
    decoder = Decoder(model, tokenizer, max_tokens, temperature, names=("answers (llm.parallel)", "llm.model"))
    for batch in planned:
        for row in decoder.sample(batch, max(1, parallel >> decoder.halvings)):
            yield (
                row.request.about,
                {
                    "answer": row.text,
                    "finish_reason": "stop" if row.stopped else "length",
                    "usage": {"prompt_tokens": len(row.request.prompt), "completion_tokens": len(row.tokens)},
                },
            )
