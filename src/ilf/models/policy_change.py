"""Measures how far fine-tuning has moved a policy: in its weights, in its samples, and on given programs."""

from __future__ import annotations

import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from ilf.models.batches import join
from ilf.models.load import load_model
from ilf.models.prefill import joinable, prefill
from ilf.models.targets import encode
from ilf.types import Example, InputError, Program

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")
_OUTSIDE = {  # tensors outside the blocks, by the beginning of their names after `model.` or `transformer.`
    "embeddings": ("embed_tokens.", "wte.", "wpe."),
    "norm": ("norm.", "ln_f."),
    "head": ("lm_head.",),
}


class Parted(NamedTuple):
    """A metric of programs, for their tokens and for the token that ends them, which a base model may hardly know."""

    body: float
    end: float


def weight_change(base: Path, tuned: Path, dtype: torch.dtype = torch.float32) -> tuple[dict[str, float], float]:
    """Return how far the weights moved, by group, and how much of the update is left after rounding to `dtype`.

    The first result is ||tuned - base|| / ||base||, the Frobenius norm over all parameters of a group, after both
    were rounded to `dtype`. The second is the share of the update that rounding leaves: the projection of the rounded
    update on the exact one, divided by the length of the exact one. It is 1 if nothing is lost.

    The groups are "all", "embeddings", "head" if it has its own weights, "layer 00" and so on for each transformer
    block, "norm" for the final norm, and "other" for tensors without a name that Llama, Qwen, GPT or CodeGen use.

    Args:
        base: A Hugging Face folder.
        tuned: Another folder of the same architecture; the dtypes may differ.
        dtype: The dtype of the weights during sampling.

    Raises:
        InputError: The two have different parameters. The error names them.
    """
    # Load through the model classes: Hub folders differ in files, in names and in whether they store tied weights.
    before, after = (dict(load_model(folder, "auto").named_parameters()) for folder in (base, tuned))
    shapes, others = ({name: tuple(p.shape) for name, p in one.items()} for one in (before, after))
    if different := [name for name in {**shapes, **others} if shapes.get(name) != others.get(name)]:
        allowed = f"must have the parameters of {base}, but differs in {', '.join(different[:10])}"
        raise InputError("tuned", str(tuned), allowed, "Give a base model and the model that was fine-tuned from it.")
    squares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])  # squared norms of rounded change and base
    along, exact = 0.0, 0.0  # <rounded, exact> and <exact, exact> of the update
    for name in before:
        old, new = before[name].detach().float(), after[name].detach().float()
        rounded = new.to(dtype).float() - old.to(dtype).float()
        along += float((rounded * (new - old)).sum())
        exact += float((new - old).square().sum())
        # Not vector_norm: in float32 its error is a hundredth and more on tensors of an embedding's size.
        found = [float(tensor.square().sum()) for tensor in (rounded, old)]
        for group in (_group(name), "all"):
            squares[group] = [total + one for total, one in zip(squares[group], found, strict=True)]
    groups = {name: math.sqrt(change / size) if size else math.inf for name, (change, size) in sorted(squares.items())}
    return groups, along / exact if exact else 1.0


def _group(name: str) -> str:
    if block := _BLOCK.search(name):
        return f"layer {int(block[1]):02d}"
    outside = name.removeprefix("model.").removeprefix("transformer.")
    return next((group for group, starts in _OUTSIDE.items() if outside.startswith(starts)), "other")


def divergence(
    base: Any, tuned: Any, tokenizer: Any, programs: Sequence[Program], temperature: float, tokens: int
) -> dict[int, Parted]:
    """Return KL(tuned || base), in nats, between the two policies' sampling distributions, by task.

    At each token of a program that `tuned` has sampled, the divergence of the two distributions over the whole
    vocabulary is exact. `body` is its mean over all tokens of a task's programs, `end` its mean over the positions
    after them, where a program's end is decided.

    Args:
        base: The policy before fine-tuning, in eval mode.
        tuned: The policy after fine-tuning, in eval mode, on the same device.
        tokenizer: The tokenizer of both.
        programs: Samples of `tuned`: on another policy's samples the average is not this divergence.
        temperature: The sampling temperature. The distributions are complete, also if sampling was limited to few
            tokens (top-k).
        tokens: The largest number of target tokens of a forward pass, with padding; a longer program goes alone.
    """
    times = Counter((p.task_id, p.prompt, p.completion) for p in programs)  # repeated samples are read once
    examples = [encode(tokenizer, *one, sys.maxsize) for one in times]
    counts = list(times.values())
    body: dict[int, float] = defaultdict(float)
    end: dict[int, float] = defaultdict(float)
    places: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for i, logits in _target_logits([base, tuned], tokenizer, examples, tokens):
        q, p = (torch.log_softmax(one.float() / temperature, dim=-1) for one in logits)
        at = functional.kl_div(q, p, reduction="none", log_target=True).sum(dim=-1)
        task = examples[i].task_id
        body[task] += counts[i] * float(at[:-1].sum())
        end[task] += counts[i] * float(at[-1])
        places[task] = [places[task][0] + counts[i] * (len(at) - 1), places[task][1] + counts[i]]
    return {task: Parted(body[task] / max(places[task][0], 1), end[task] / places[task][1]) for task in sorted(body)}


def target_logps(model: Any, tokenizer: Any, examples: Sequence[Example], tokens: int) -> list[list[float]]:
    """Return the log-probability of each target token of each example, in nats.

    Args:
        model: A causal transformers model, in eval mode.
        tokenizer: Its tokenizer.
        examples: The examples.
        tokens: The largest number of target tokens of a forward pass, with padding; a longer target goes alone.
    """
    found: list[list[float]] = [[] for _ in examples]
    for i, (logits,) in _target_logits([model], tokenizer, examples, tokens):
        targets = torch.tensor(examples[i].target_ids, device=logits.device)
        found[i] = (-functional.cross_entropy(logits.float(), targets, reduction="none")).tolist()
    return found


def perplexity(model: Any, tokenizer: Any, texts: Sequence[tuple[str, str]], tokens: int) -> list[Parted]:
    """Return the perplexity of each target given its prompt.

    `body` is exp of the mean negative log-likelihood of the target's tokens; `end` is the negative log-likelihood, in
    nats, of the token that ends it.

    Args:
        model: A causal transformers model, in eval mode.
        tokenizer: Its tokenizer.
        texts: (prompt, target) pairs.
        tokens: The largest number of target tokens of a forward pass, with padding; a longer target goes alone.
    """
    examples = [encode(tokenizer, 0, prompt, target, sys.maxsize) for prompt, target in texts]
    found = target_logps(model, tokenizer, examples, tokens)
    return [Parted(math.exp(-sum(one[:-1]) / max(len(one) - 1, 1)), -one[-1]) for one in found]


@torch.inference_mode()
def _target_logits(
    models: Sequence[Any], tokenizer: Any, examples: Sequence[Example], tokens: int
) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """Yield each example's index, and each model's logits for its target tokens, (T, V).

    A prompt is read once for all of its targets in a batch. The longest prompts come first, so that memory fails
    early.
    """
    order = sorted(range(len(examples)), key=lambda i: (-len(examples[i].prompt_ids), examples[i].prompt_ids))
    batches: list[list[int]] = []
    for i in order:
        both = [*batches[-1], i] if batches else []
        if both and len(both) * max(len(examples[j].target_ids) for j in both) <= tokens:
            batches[-1] = both
        else:
            batches.append([i])
    for batch in batches:
        prompts = list(dict.fromkeys(tuple(examples[i].prompt_ids) for i in batch))
        rows = [prompts.index(tuple(examples[i].prompt_ids)) for i in batch]
        targets = [torch.tensor(examples[i].target_ids) for i in batch]
        ids = pad_sequence(targets, batch_first=True, padding_value=tokenizer.pad_token_id)  # right-padded
        mask = pad_sequence([torch.ones_like(target) for target in targets], batch_first=True)
        first, others = [], []  # logits of the target's first token, and after each of its tokens
        for model in models:
            if not joinable(model):
                one, rest = _uncached(model, [examples[i] for i in batch], tokenizer.pad_token_id)
                first.append(one)
                others.append(rest)
                continue
            seen = join([(prefill(model, prompts, tokenizer.pad_token_id), rows)])
            first.append(seen.logits)
            others.append(seen.go_on(model, ids.to(model.device), mask.to(model.device)))
        for row, i in enumerate(batch):
            last = len(targets[row]) - 1  # nothing is predicted after it
            pairs = zip(first, others, strict=True)
            yield i, [torch.cat([one[row : row + 1], rest[row, :last]]) for one, rest in pairs]


def _uncached(model: Any, examples: Sequence[Example], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of each target's first token, (B, V), and after each of its tokens, (B, T, V).

    The texts are read without a cache and padded on the right, where causal models don't look.
    """
    texts = [torch.tensor([*e.prompt_ids, *e.target_ids]) for e in examples]
    ids = pad_sequence(texts, batch_first=True, padding_value=pad).to(model.device)
    logits = model(input_ids=ids, use_cache=False).logits
    longest = max(len(e.target_ids) for e in examples)
    begins = [len(e.prompt_ids) for e in examples]
    others = [functional.pad(row[n : n + longest], (0, 0, 0, longest)) for row, n in zip(logits, begins, strict=True)]
    first = torch.stack([row[n - 1] for row, n in zip(logits, begins, strict=True)])
    return first, torch.stack([row[:longest] for row in others])
