"""The tiny model: trained in seconds on tiny's tasks, so that everything runs where there is no model at hand.

It has seen right and wrong programs for every task and a refinement for some, and knows nothing else: it shows that the
machinery works. Its figures mean nothing.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, get_linear_schedule_with_warmup

from ilf.models.load import save
from ilf.store import Entry, Store
from ilf.tasks.prompts import completion_of, refine_prompt
from ilf.types import Feedback, Task

log = logging.getLogger(__name__)

_VERSION, _STEPS, _BATCH, _SEED = 1, 400, 8, 0
_WRONG = 0.6  # share of wrong programs in what it is trained on


def train_tiny(store: Store, tasks: Sequence[Task], annotations: Sequence[Feedback]) -> Path:
    """Return the folder of the tiny model, trained where the store does not have it yet.

    Args:
        store: Keeps the model.
        tasks: With gold programs.
        annotations: With a wrong program for each task, if it is to make mistakes.
    """
    documents = _documents(tasks, annotations)
    with store.entry("tiny_model", {"version": _VERSION, "steps": _STEPS, "documents": documents}) as entry:
        if entry.done is None:
            log.info("tiny: training a model on %d programs, once", len(documents))
            _train(documents, entry)
    return entry.path / "model"


def _documents(tasks: Sequence[Task], annotations: Sequence[Feedback]) -> list[tuple[str, str, float]]:
    """Return prompts and what may follow them, with their weights in training."""
    wrong = {a.task_id: a for a in annotations}
    documents = []
    for task in tasks:
        body = completion_of(task.prompt, task.code, task.entry_point)
        share = _WRONG if task.task_id in wrong else 0.0
        documents.append((task.prompt, body, 1 - share))
        if (a := wrong.get(task.task_id)) is not None:
            documents.append((task.prompt, a.program.removeprefix(task.prompt), share))
            documents.append((refine_prompt(a, task.prompt), body, 0.3))
    return documents


def _tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|end|>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def _train(documents: list[tuple[str, str, float]], entry: Entry) -> None:
    torch.manual_seed(_SEED)
    rng = random.Random(_SEED)
    weights = [weight for *_, weight in documents]
    tokenizer = _tokenizer([prompt + body for prompt, body, _ in documents])
    end = tokenizer.eos_token_id
    # Apart, as prompts and completions are tokenised everywhere.
    encoded = [[*tokenizer(prompt).input_ids, *tokenizer(body).input_ids, end] for prompt, body, _ in documents]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
    )
    model = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = get_linear_schedule_with_warmup(optimizer, 20, _STEPS)
    for step in range(_STEPS):
        rows = rng.choices(encoded, weights, k=_BATCH)
        width = max(map(len, rows))
        ids = torch.tensor([row + [end] * (width - len(row)) for row in rows])
        labels = torch.tensor([row + [-100] * (width - len(row)) for row in rows])
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0:
            log.info("tiny: step %d of %d, loss %.3f", step + 1, _STEPS, loss.item())
    save(model.eval(), tokenizer, entry.path / "model")
    entry.finish({"loss": loss.item()})
