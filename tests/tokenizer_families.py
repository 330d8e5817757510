"""Tokenizers of the families that code models use, trained in a second: they differ in spaces, bytes and BOS."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CodeLlamaTokenizer, GemmaTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

SPECIAL = ["<|bos|>", "<|end|>", "<|user|>"]  # also spelled out in texts; <|end|> is EOS
_VOCABULARY = 700


def _corpus() -> Iterator[str]:
    return (file.read_text() for file in sorted((Path(__file__).parent.parent / "src" / "ilf").glob("*.py"))[:12])


def _named(**names: Any) -> dict[str, Any]:
    return {"bos_token": "<|bos|>", "eos_token": "<|end|>", "extra_special_tokens": ["<|user|>"], **names}


def _byte_level(prefix: bool = False, bos: bool = False, eos: bool = False, whitespace: bool = False) -> Any:
    """Return a tokenizer like that of GPT-2, Qwen and Llama 3: bytes as characters, spaces as the start of words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        _corpus(),
        trainers.BpeTrainer(
            vocab_size=_VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    if bos or eos:
        template = f"{'<|bos|> ' * bos}$A{' <|end|>' * eos}"
        tokenizer.post_processor = processors.TemplateProcessing(
            template, special_tokens=[("<|bos|>", 0), ("<|end|>", 1)]
        )
    if whitespace:  # like CodeGen's: runs of spaces are added tokens, but not special tokens
        tokenizer.add_tokens([" " * n for n in range(16, 1, -1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_named())


@cache
def _sentence_piece(across: bool) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return a vocabulary with byte fallback, and its merges; with `across`, they cross words and lines."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    if not across:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁+[^▁\n]*|[^▁\n]+|\n"), "isolated")
    special = ["<unk>", *SPECIAL, *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=_VOCABULARY + 256, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(_corpus(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def _of_class(kind: Callable[..., Any], across: bool = False, **options: Any) -> Any:
    vocabulary, merges = _sentence_piece(across)
    return kind(vocab=vocabulary, merges=merges, **_named(unk_token="<unk>"), **options)


def _metaspace(scheme: str) -> Any:
    """Return a tokenizer like Mistral's: it is like Llama's, but uses the library's Metaspace decoder."""
    vocabulary, merges = _sentence_piece(False)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme, split=False), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_named(unk_token="<unk>"))


def _legacy() -> Any:
    """Return a tokenizer like Llama 2's published tokenizer.json, whose normalizer adds the space in front."""
    vocabulary, merges = _sentence_piece(False)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing("<|bos|> $A", special_tokens=[("<|bos|>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_named(unk_token="<unk>"))


FAMILIES: dict[str, Callable[[], Any]] = {
    "byte-level (GPT-2, Qwen)": _byte_level,
    "byte-level with BOS (Llama 3)": partial(_byte_level, bos=True),
    "byte-level with BOS and EOS": partial(_byte_level, bos=True, eos=True),
    "byte-level with a space in front": partial(_byte_level, prefix=True),
    "byte-level with runs of spaces (CodeGen)": partial(_byte_level, whitespace=True),
    "Llama 2, as published": _legacy,
    "Llama": partial(_of_class, LlamaTokenizer, add_bos_token=True),
    "Llama, legacy": partial(_of_class, LlamaTokenizer, legacy=True),
    "Llama, words merged": partial(_of_class, LlamaTokenizer, across=True),
    "Code Llama": partial(_of_class, CodeLlamaTokenizer),
    "Gemma": partial(_of_class, GemmaTokenizer, pad_token="<unk>", mask_token="<unk>"),
    "Gemma, words merged": partial(_of_class, GemmaTokenizer, across=True, pad_token="<unk>", mask_token="<unk>"),
    "Metaspace in front of all (Mistral)": partial(_metaspace, "always"),
    "Metaspace in front of the first": partial(_metaspace, "first"),
}


@cache
def family(name: str) -> Any:
    """Return the tokenizer of a family, with the padding token that ILF sets."""
    tokenizer = FAMILIES[name]()
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = tokenizer.eos_token_id
    return tokenizer
