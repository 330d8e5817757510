"""Pretrains the mini model from scratch on the generated corpus: `python run.py experiment=mini/pretrain`."""

from __future__ import annotations

import logging
import math
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup

from ilf.analysis.schema import Results
from ilf.components import Component
from ilf.files import write_atomically
from ilf.models.load import load_tokenizer, save
from ilf.settings import Pretraining
from ilf.training.mini_corpus import REVISIONS, SHORT, Text, draw_document, wrong_share
from ilf.training.trainer import make_trainer
from ilf.types import derive_seed

log = logging.getLogger(__name__)

_END = "<|end|>"
_TOKENIZER_DOCUMENTS = 4000
_STEPS_PER_EPOCH = 100  # a checkpoint is written after each epoch


def make_tokenizer(vocabulary: int, seed: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of `vocabulary` tokens in which every digit is a token of its own."""
    rng = random.Random(derive_seed(seed, "tokenizer"))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[_END],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(
        ("".join(part.text for part in draw_document(rng)) for _ in range(_TOKENIZER_DOCUMENTS)), trainer
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=_END, pad_token=_END)


class CorpusDataModule(pl.LightningDataModule):
    """Serves batches of documents, which are resampled for each epoch from the seed and the epoch's number.

    Args:
        tokenizer: The tokenizer.
        settings: The pretraining settings, which set the number of documents per batch.
        seed: Seed of the documents.
    """

    def __init__(self, tokenizer: Any, settings: Pretraining, seed: int) -> None:
        super().__init__()
        self.tokenizer, self.settings, self.seed = tokenizer, settings, seed

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the epoch's batches of token ids and labels, (2, B, T), right-padded.

        Labels of -100 are left out of the loss. Each row is one document: with several documents in a row, a model
        this small takes long to learn which one to copy from.
        """
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        rng = random.Random(derive_seed(self.seed, "corpus", epoch))
        size = self.settings.batch_size
        documents = [self._encode(draw_document(rng)) for _ in range(size * _STEPS_PER_EPOCH)]
        documents.sort(key=lambda document: len(document[0]))  # similar lengths together, so that padding is small
        batches = [self._pad(documents[i : i + size]) for i in range(0, len(documents), size)]
        rng.shuffle(batches)
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    def _pad(self, documents: list[tuple[list[int], list[int]]]) -> torch.Tensor:
        end, width = self.tokenizer.eos_token_id, max(len(ids) for ids, _ in documents)
        ids = [row + [end] * (width - len(row)) for row, _ in documents]
        labels = [row + [-100] * (width - len(row)) for _, row in documents]
        return torch.tensor([ids, labels])

    def _encode(self, document: list[Text]) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        labels: list[int] = []
        for part in document:
            tokens = self.tokenizer(part.text, add_special_tokens=False).input_ids
            ids += tokens
            labels += tokens if part.learnt else [-100] * len(tokens)
        end = self.tokenizer.eos_token_id
        return [*ids, end], [*labels, end]


class PretrainModule(pl.LightningModule):
    """Trains next-token prediction on programs and reviews.

    Args:
        model: The untrained model.
        settings: The learning rate and the length of the training.
    """

    def __init__(self, model: Any, settings: Pretraining) -> None:
        super().__init__()
        self.model, self.settings = model, settings
        self.loss = math.nan  # mean loss of the last epoch, in nats per target token

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        """Return the mean loss of a batch (2, B, T), in nats per target token."""
        loss: torch.Tensor = self.model(input_ids=batch[0], labels=batch[1]).loss
        self.log("pretrain/loss", loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the progress and the epoch's loss."""
        self.loss = float(self.trainer.callback_metrics["pretrain/loss"])
        log.info("epoch %d of %d, loss %.4f", self.current_epoch + 1, self.settings.epochs, self.loss)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the epoch's loss, which the card needs even if the run was killed after its last epoch."""
        checkpoint["loss"] = self.loss

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the epoch's loss."""
        self.loss = checkpoint["loss"]

    def configure_optimizers(self) -> Any:
        """Return AdamW with warm-up and cosine decay."""
        optimizer = torch.optim.AdamW(
            self.parameters(),
            lr=self.settings.lr,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            fused=self.trainer.precision == "32-true",  # Lightning can't clip a fused one in mixed precision
        )
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = get_cosine_schedule_with_warmup(optimizer, min(100, steps // 10), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def make_model(settings: Pretraining, tokenizer: Any, seed: int) -> LlamaForCausalLM:
    """Return the untrained model."""
    torch.manual_seed(derive_seed(seed, "weights"))
    end = tokenizer.eos_token_id
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden,
            intermediate_size=settings.intermediate,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.key_value_heads,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def pretrain(settings: Pretraining, configured: Component, seed: int, folder: Path) -> dict[str, Any]:
    """Pretrain the model, write a Hugging Face folder, and return the facts that its card reports on the training.

    A run that is restarted after a kill resumes from the last epoch's checkpoint.

    Args:
        settings: The settings of the model and of its training.
        configured: The configured Lightning Trainer.
        seed: Seed of the weights and of the corpus.
        folder: Where to write the model. Checkpoints are stored beside it until the training has finished.
    """
    checkpoints = folder.with_name(folder.name + ".checkpoints")
    checkpoints.mkdir(parents=True, exist_ok=True)
    if not (checkpoints / "tokenizer.json").exists():
        make_tokenizer(settings.vocabulary, seed).save_pretrained(checkpoints)
    tokenizer = load_tokenizer(checkpoints)
    module = PretrainModule(make_model(settings, tokenizer, seed), settings)
    trainer = make_trainer(configured, epochs=settings.epochs, checkpoints=checkpoints)
    last = checkpoints / "last.ckpt"
    start = time.monotonic()
    trainer.fit(module, CorpusDataModule(tokenizer, settings, seed), ckpt_path=str(last) if last.exists() else None)
    save(module.model, tokenizer, folder)
    shutil.rmtree(checkpoints)
    return {
        "seed": seed,
        "parameters": sum(p.numel() for p in module.model.parameters()),
        "steps": trainer.global_step,
        "loss": module.loss,
        "minutes": (time.monotonic() - start) / 60,
    }


def write_card(folder: Path, settings: Pretraining, facts: dict[str, Any], results: Results) -> None:
    """Write the model card, README.md, from the facts of the training and the results of the first run."""
    zero_shot = results["zero_shot"] or {}
    shares = f"{REVISIONS:.0%} of the incorrect programs come as revisions (before, review, after)"
    shape = f"hidden {settings.hidden}, {settings.layers} layers, {settings.heads} heads, "
    lines = [
        "# The mini model",
        "",
        f"A Llama of {facts['parameters'] / 1e6:.2f} million parameters ({shape}{settings.key_value_heads} key-value "
        f"head(s), byte-level BPE of {settings.vocabulary} tokens, one token per digit). It was pretrained from "
        "scratch on generated Python functions, so that all of ILF runs on a laptop without a network.",
        "",
        f"- **Command**: `python run.py experiment=mini/pretrain seed={facts['seed']}`, {facts['minutes']:.0f} minutes "
        "on the machine that wrote this card.",
        "- **Data**: generated by `ilf/training/mini_corpus.py`; no specification of the mini benchmark occurs in it. "
        f"{wrong_share(facts['seed']):.0%} of its programs are incorrect, with the mistakes in "
        f"`ilf/tasks/mini_parts.py`; {shares}. {SHORT:.0%} of all programs are written as comprehensions.",
        f"- **Training**: {facts['steps']} steps of {settings.batch_size} documents, AdamW, "
        f"peak learning rate {settings.lr}; loss of the last epoch {facts['loss']:.3f} nats per target token (the loss "
        "covers programs and reviews, not prompts).",
        f"- **Results** with {results['sampling']['n']} samples at temperature {results['sampling']['temperature']}: "
        f"on Test, pass@1 is {zero_shot['pass@1']:.3f}, and a share of {zero_shot['one_correct']:.3f} of the "
        f"{zero_shot['n_tasks']} tasks has a correct sample; "
        f"{results['counts']['failing_tasks']} of "
        f"{results['counts']['refine_tasks'] + results['counts']['train_tasks']} Refine and Train tasks have no "
        "correct sample.",
        "- **Use**: The model knows mini's functions and nothing else. ILF's mechanism is built into it: its mistakes "
        "are habits that it learned from its corpus, and a few corrected programs change them. It is no evidence for "
        "claims about large models.",
        "",
    ]
    write_atomically(folder / "README.md", "\n".join(lines))
