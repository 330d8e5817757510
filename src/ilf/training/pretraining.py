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
    """Batches of documents; an epoch's are drawn from the seed and its number.

    Args:
        tokenizer: Splits the texts.
        settings: Documents a batch.
        seed: Of the documents.
    """

    def __init__(self, tokenizer: Any, settings: Pretraining, seed: int) -> None:
        super().__init__()
        self.tokenizer, self.settings, self.seed = tokenizer, settings, seed

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the epoch's batches: token ids and labels, (2, B, T), right-padded; labels of -100 are not learnt.

        Each row is one document: with several in a row, a model this small takes long to learn from which one to copy.
        """
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        rng = random.Random(derive_seed(self.seed, "corpus", epoch))
        size = self.settings.batch_size
        documents = [self._encode(draw_document(rng)) for _ in range(size * _STEPS_PER_EPOCH)]
        documents.sort(key=lambda document: len(document[0]))  # like lengths together, so that little is padded
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
    """Next-token prediction on programs and reviews.

    Args:
        model: The model, untrained.
        settings: Learning rate and length of the training.
    """

    def __init__(self, model: Any, settings: Pretraining) -> None:
        super().__init__()
        self.model, self.settings = model, settings
        self.loss = math.nan  # of the last epoch, in nats a learnt token

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        """Return the mean loss of a batch (2, B, T), in nats a learnt token."""
        loss: torch.Tensor = self.model(input_ids=batch[0], labels=batch[1]).loss
        self.log("pretrain/loss", loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        """Say how far it is."""
        self.loss = float(self.trainer.callback_metrics["pretrain/loss"])
        log.info("epoch %d of %d, loss %.4f", self.current_epoch + 1, self.settings.epochs, self.loss)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the epoch's loss, for the card of a run that was killed after its last epoch."""
        checkpoint["loss"] = self.loss

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it up again."""
        self.loss = checkpoint["loss"]

    def configure_optimizers(self) -> Any:
        """Return AdamW with warm-up and cosine decay."""
        optimizer = torch.optim.AdamW(
            self.parameters(),
            lr=self.settings.lr,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            fused=self.trainer.precision == "32-true",  # in mixed precision Lightning clips no gradients of a fused one
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
    """Pretrain, write a Hugging Face folder, and return what its card says of the training.

    Started again after a kill, it goes on from the last epoch's checkpoint.

    Args:
        settings: Of the model and its training.
        configured: Lightning's Trainer.
        seed: Of the weights and of the corpus.
        folder: Where the model is written; checkpoints lie beside it until it is done.
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
    """Write the model's card, README.md, from what its training and its first run gave."""
    zero_shot = results["zero_shot"] or {}
    shares = f"{REVISIONS:.0%} of the wrong ones as revisions (before, review, after), {SHORT:.0%} as comprehensions"
    shape = f"hidden {settings.hidden}, {settings.layers} layers, {settings.heads} heads, "
    lines = [
        "# The mini model",
        "",
        f"A Llama of {facts['parameters'] / 1e6:.2f} million parameters ({shape}{settings.key_value_heads} key-value "
        f"head(s), byte-level BPE of {settings.vocabulary} tokens, every digit one) that was pretrained from scratch "
        "on generated Python functions, so that all of ILF runs on a laptop without a network.",
        "",
        f"- **Command**: `python run.py experiment=mini/pretrain seed={facts['seed']}`, {facts['minutes']:.0f} minutes "
        "on the machine that wrote this card.",
        "- **Data**: generated by `ilf/training/mini_corpus.py`; no specification of the mini benchmark occurs in it. "
        f"{wrong_share(facts['seed']):.0%} of its programs are wrong, by the mistakes in `ilf/tasks/mini_parts.py`; "
        f"{shares}.",
        f"- **Training**: {facts['steps']} steps of {settings.batch_size} documents, AdamW, "
        f"peak learning rate {settings.lr}; loss of the last epoch {facts['loss']:.3f} nats a learnt token (of "
        "programs and reviews; prompts are only read).",
        f"- **Figures**, {results['sampling']['n']} samples at temperature {results['sampling']['temperature']}: "
        f"on Test pass@1 {zero_shot['pass@1']:.3f}, one or more correct "
        f"{zero_shot['one_correct']:.3f} of {zero_shot['n_tasks']} tasks; "
        f"{results['counts']['failing_tasks']} of "
        f"{results['counts']['refine_tasks'] + results['counts']['train_tasks']} Refine and Train tasks without a "
        "correct one.",
        "- **Use**: it knows mini's functions and nothing else. ILF's mechanism is built into it: its mistakes are "
        "habits that it took from its corpus, and that a few corrected programs change. It is no evidence for claims "
        "about large models.",
        "",
    ]
    write_atomically(folder / "README.md", "\n".join(lines))
