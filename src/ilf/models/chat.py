"""Generates the answers of a local transformers chat model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from ilf.models.batches import ran_out
from ilf.models.dtypes import sampling_dtype
from ilf.models.load import load_tokenizer
from ilf.models.onednn_linear import load_packed
from ilf.models.tokens import Continuation, encode_chat, end_ids

log = logging.getLogger(__name__)


@torch.inference_mode()
def answers(
    folder: Path,
    batches: Sequence[tuple[Sequence[list[dict[str, str]]], int]],
    temperature: float,
    max_tokens: int,
    device: torch.device,
) -> Iterator[list[dict[str, Any]]]:
    """Yield the answers to each batch of conversations, with the finish reason and the token usage of each.

    Answers are sampled from the model's own distribution; the sampling settings in its folder are ignored. The run's
    memory plan doesn't include this model, which is loaded only while it answers.

    Args:
        folder: A folder in Hugging Face's layout. Its tokenizer's chat template converts a conversation to text;
            without a template, the turns follow one another.
        batches: Conversations to answer together, and the seed of their random numbers. Where memory runs out, this
            and all later batches are answered in smaller parts.
        temperature: The sampling temperature.
        max_tokens: The largest number of tokens of an answer.
        device: The device to compute on.

    Raises:
        torch.OutOfMemoryError: There is not enough memory for even a single answer.
    """
    if not batches:
        return
    tokenizer = load_tokenizer(folder)
    model = load_packed(folder, sampling_dtype("auto", device), device, key="llm.model")
    config = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_tokens,
        eos_token_id=sorted(end_ids(model, tokenizer)),
        pad_token_id=tokenizer.pad_token_id,
    )
    size = max(len(conversations) for conversations, _ in batches)
    for conversations, seed in batches:
        prompts = [encode_chat(tokenizer, turns) for turns in conversations]
        found: list[dict[str, Any]] = []
        torch.manual_seed(seed)
        while len(found) < len(prompts):
            part = prompts[len(found) : len(found) + size]
            try:
                found += _together(model, tokenizer, part, config)
            except RuntimeError as error:
                if not ran_out(error) or len(part) == 1:
                    raise
                size = len(part) // 2
                log.warning("out of memory with %d answers at once (llm.parallel); trying %d", len(part), size)
            if device.type == "cuda" and len(found) < len(prompts):
                torch.cuda.empty_cache()
        yield found


def _together(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], config: GenerationConfig
) -> list[dict[str, Any]]:
    """Return the answers to several prompts, given as token ids, that are generated in one batch."""
    inputs = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
    rows = model.generate(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], generation_config=config
    )
    found = []
    for row, prompt in zip(rows[:, inputs["input_ids"].shape[1] :].tolist(), prompts, strict=True):
        length = next((i for i, token in enumerate(row) if token in config.eos_token_id), len(row))
        found.append(
            {
                "answer": Continuation(tokenizer, prompt).text(row[:length]),
                "finish_reason": "stop" if length < len(row) else "length",
                "usage": {"prompt_tokens": len(prompt), "completion_tokens": length},
            }
        )
    return found
