"""Training examples, each a prompt and its target as tokens, and a model's loss on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from ilf.models.batches import takes
from ilf.models.tokens import encode_continuation, encode_prompts, end_of_text
from ilf.types import Example


def collate(examples: Sequence[Example], pad: int) -> dict[str, torch.Tensor]:
    """Return `input_ids`, `attention_mask` and `labels`, (R, T), right-padded, and `value`, (B,).

    Only target tokens have labels. The examples' other texts come after all examples, in the same order. `focus` and
    `reference`, (R, T), are included if the examples have them.

    Args:
        examples: B examples; either all or none have another text.
        pad: Id of the padding token.
    """
    texts = [*examples, *(e.other for e in examples if e.other is not None)]
    shape = (len(texts), max(len(e.prompt_ids) + len(e.target_ids) for e in texts))
    ids, mask = torch.full(shape, pad), torch.zeros(shape, dtype=torch.long)
    labels, focus, reference = torch.full(shape, -100), torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
    for row, text in enumerate(texts):
        start, end = len(text.prompt_ids), len(text.prompt_ids) + len(text.target_ids)
        ids[row, :end] = torch.tensor([*text.prompt_ids, *text.target_ids])
        labels[row, start:end] = torch.tensor(text.target_ids)
        mask[row, :end] = 1
        if text.focus is not None:
            focus[row, start:end] = torch.tensor(text.focus)
        if text.reference is not None:
            reference[row, start:end] = torch.tensor(text.reference)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    batch["value"] = torch.tensor([e.value for e in examples])
    if any(e.focus is not None for e in texts):
        batch["focus"] = focus
    if any(e.reference is not None for e in texts):
        batch["reference"] = reference
    return batch


def encode(tokenizer: Any, task_id: int, prompt: str, target: str, max_length: int) -> Example:
    """Tokenize prompt and target separately, as in the paper and in sampling, and append the end-of-text token.

    See `end_of_text` for that token, which is called EOS here.

    Raises:
        ValueError: Together they are longer than `max_length` tokens. Such a row is rejected rather than cut, because
            a cut row would lose its EOS, and the model would learn never to stop.
    """
    (prompt_ids,) = encode_prompts(tokenizer, [prompt])
    target_ids = (*encode_continuation(tokenizer, target), end_of_text(tokenizer))
    example = Example(task_id, tuple(prompt_ids), target_ids)
    if example.length > max_length:
        raise ValueError(f"{example.length} tokens with EOS; training.max_length is {max_length}")
    return example


def all_logits(model: Any, ids: torch.Tensor, mask: torch.Tensor, options: dict[str, int]) -> torch.Tensor:
    """Return a model's logits, (B, T, V), on token rows, (B, T), with their mask, (B, T)."""
    logits: torch.Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False, **options).logits
    return logits


def last_logits(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, keep: int, forward: Callable[..., Any] = all_logits
) -> torch.Tensor:
    """Return the logits of the last `keep` positions, (B, keep, V), computed by `forward`, which may be compiled."""
    options = {"logits_to_keep": keep} if takes(model, "logits_to_keep") else {}
    logits: torch.Tensor = forward(model, ids, mask, options)
    return logits[:, -keep:]  # some models return all positions


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each label but the first, (B, T - 1), in nats; 0 where a label is -100.

    Args:
        logits: (B, T, V), of any dtype; converted to float32.
        labels: (B, T).
    """
    following = functional.pad(labels[:, 1:], (0, 1), value=-100)
    # Flat, because cross-entropy with more dimensions has no deterministic version on a GPU.
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), following.flatten(), ignore_index=-100, reduction="none"
    )
    return losses.view_as(labels)[:, :-1]
