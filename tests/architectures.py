"""Tiny models of many architectures with random weights, each created in milliseconds from its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import Fuse
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Split
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

VOCABULARY = 300
POSITIONS = 128
# Names of settings differ between families, so only those that a configuration has are set.
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "attention_hidden_size", "lru_width"), 32),
    **dict.fromkeys(("word_embed_proj_dim",), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), POSITIONS),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "mamba_n_groups"), 1),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "mamba_d_state", "state_size"), 8),
    **dict.fromkeys(("sliding_window", "attention_window_size", "head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("rotary_dim", "qk_rope_head_dim", "mamba_chunk_size", "chunk_size", "time_step_rank"), 4),
    "num_experts_per_tok": 2,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_ssm": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HALF = {"layer_types": ["linear_attention", "full_attention"]}
_MLA = {"head_dim": 4, "num_key_value_heads": 4}
_VISION = {**dict.fromkeys(("hidden_size", "intermediate_size"), 16), "num_attention_heads": 2}
_VISION |= {"num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
_DECODER = {"is_decoder": True}
# By family: the model_type in transformers, and other settings that it needs.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "Bamba": ("bamba", {"attn_layer_indices": [1]}),
    "BART decoder": (
        "bart",
        {"is_encoder_decoder": False, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48},
    ),
    "BERT decoder": ("bert", _DECODER),
    "BLOOM": ("bloom", {}),
    "CodeGen": ("codegen", {}),
    "DeepSeek-V3": ("deepseek_v3", _MLA),
    "Falcon": ("falcon", {}),
    "Falcon with ALiBi": ("falcon", {"alibi": True}),
    "Falcon-H1": ("falcon_h1", {}),
    "Gemma": ("gemma", {}),
    "Gemma 2": ("gemma2", {}),
    "Gemma 3": ("gemma3_text", {}),
    "Gemma 3 with vision": ("gemma3", {"vision_config": _VISION, "mm_tokens_per_image": 4, "image_token_index": 299}),
    "GPT": ("openai-gpt", {}),
    "GPT-2": ("gpt2", {}),
    "GPT-BigCode": ("gpt_bigcode", {}),
    "GPT-J": ("gptj", {}),
    "GPT-Neo": ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": 4}),
    "GPT-NeoX": ("gpt_neox", {}),
    "GPT-OSS": ("gpt_oss", {}),
    "GraniteMoeHybrid": ("granitemoehybrid", {"layer_types": ["mamba", "attention"]}),
    "Jamba": ("jamba", {"attn_layer_period": 2, "attn_layer_offset": 1}),
    "LFM2": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "Llama": ("llama", {}),
    "Llama 4": ("llama4_text", {}),
    "Mamba": ("mamba", {}),
    "Mamba 2": ("mamba2", {"num_heads": 8, "n_groups": 1}),
    "MiniMax": ("minimax", _HALF),
    "Mistral": ("mistral", {}),
    "Mixtral": ("mixtral", {}),
    "MPT": ("mpt", {}),
    "OPT": ("opt", {}),
    "Phi-3": ("phi3", {}),
    "Qwen2": ("qwen2", {}),
    "Qwen2-MoE": ("qwen2_moe", {}),
    "Qwen3": ("qwen3", {}),
    "Qwen3-Next": ("qwen3_next", _HALF),
    "RecurrentGemma": ("recurrent_gemma", {"block_types": ["recurrent", "attention"]}),
    "RoBERTa decoder": ("roberta", _DECODER),
    "RWKV": ("rwkv", {"rescale_every": 1}),
    "StarCoder2": ("starcoder2", {}),
}


def config_of(family: str, **changes: Any) -> Any:
    """Return the configuration of a tiny model of a family."""
    kind, own = ARCHITECTURES[family]
    default = AutoConfig.for_model(kind)
    text = default.get_text_config()
    known = {**vars(text), **text.to_dict(), **getattr(text, "attribute_map", {})}
    sizes = {name: size for name, size in _SIZES.items() if name in known} | changes
    if text is default:
        return AutoConfig.for_model(kind, **sizes | own | changes)
    return AutoConfig.for_model(kind, text_config=sizes | {"model_type": text.model_type}, **own)


def model_of(family: str, **changes: Any) -> Any:
    """Return a tiny float32 model of a family, whose next token depends on all previous tokens and their order.

    With weights as small as those of a newly initialized model, the logits would hardly depend on the text.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(family, **changes), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter *= 4
    model.generation_config = GenerationConfig(eos_token_id=2)
    return model


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of " t3 t4 ...". Each text has only one tokenization, so it identifies the tokens."""
    special = ["<pad>", "<bos>", "<eos>"]
    words = {**{token: i for i, token in enumerate(special)}, **{f" t{i}": i for i in range(3, VOCABULARY)}}
    made = Tokenizer(WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = Split(Regex(r" t\d+"), "isolated")
    made.decoder = Fuse()
    named = dict(zip(("pad_token", "bos_token", "eos_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, **named)


def folder_of(family: str, folder: Path, **changes: Any) -> Path:
    """Write a tiny model and its tokenizer as a folder in Hugging Face's layout, and return it."""
    model_of(family, **changes).save_pretrained(folder)
    letters = ["<pad>", "<bos>", "<eos>", *ByteLevel.alphabet()]  # a run needs a tokenizer that can encode code
    made = Tokenizer(BPE({letter: i for i, letter in enumerate(letters)}, []))
    made.pre_tokenizer, made.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    named = dict(zip(("pad_token", "bos_token", "eos_token"), letters, strict=False))
    PreTrainedTokenizerFast(tokenizer_object=made, **named).save_pretrained(folder)
    return folder


def read_table(page: Path) -> dict[str, dict[str, str]]:
    """Return the rows of the table in a Markdown page, by the text in their first column."""
    lines = [line.strip("| ") for line in page.read_text().splitlines() if line.startswith("|")]
    names, _, *rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    return {row[0]: dict(zip(names[1:], row[1:], strict=True)) for row in rows}
