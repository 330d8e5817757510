"""From a name or folder to a model and its tokenizer, and back to a folder."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ilf.settings import Adapter
from ilf.types import InputError

if not sys.stderr.isatty():
    transformers.utils.logging.disable_progress_bar()

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve(path: str | None, hub: str | None, revision: str | None) -> Path:
    """Return the model's local folder, fetched from the Hub where only a name is given.

    Raises:
        InputError: The Hub can't be reached and has nothing in its local cache.
    """
    if path is not None:
        return Path(path)
    assert hub is not None  # checked with the other settings, before anything loads
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(hub, revision=revision, ignore_patterns=["*.gguf", "*.onnx", "*.msgpack", "*.h5"])
        )
    except Exception as error:  # each layer of the client raises its own class
        raise InputError(
            "model.hub",
            hub,
            f"could not be fetched from the Hugging Face Hub ({type(error).__name__})",
            "Without a network, give a folder: model=local model.path=FOLDER.",
        ) from error


def sampling_dtype(name: str) -> torch.dtype:
    """Return the dtype of weights while sampling: "auto" is bfloat16 on a GPU that has it, else float32."""
    if name == "auto":
        on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if on_gpu else torch.float32
    return _DTYPES[name]


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a model folder, padding with EOS where it has no padding token."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = tokenizer.eos_token_id
    return tokenizer


def load_model(folder: Path, dtype: torch.dtype | str) -> Any:
    """Return the causal language model of a folder, without the generation settings that it came with.

    Args:
        folder: In Hugging Face's layout.
        dtype: Of its weights; "auto" as they are stored.

    Raises:
        InputError: Weights are missing or of another shape than config.json says; names them.
    """
    # transformers fills what is missing with random numbers, and only warns.
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
    )
    model, found = loaded
    parameters = {name for name, _ in model.named_parameters()}
    wrong = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])} & parameters
    if wrong:
        names = ", ".join(sorted(wrong)[:10])
        raise InputError(
            "model.path",
            str(folder),
            f"its weights must be those of its config.json, and {len(wrong)} are missing or of another shape: {names}",
            "Copy or fetch the folder again, whole.",
        )
    # A publisher's top-k or repetition penalty would change the distribution that is sampled.
    model.generation_config = GenerationConfig(eos_token_id=model.config.eos_token_id)
    return model.eval()


def adapt(model: Any, adapter: Adapter) -> Any:
    """Return `model` ready to train: whole, or behind LoRA matrices on all its linear layers."""
    if adapter.name == "full":
        return model
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model,
        LoraConfig(
            r=adapter.rank,
            lora_alpha=adapter.alpha,
            lora_dropout=adapter.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a whole Hugging Face folder, LoRA merged and also kept apart in `adapter/`; complete or absent."""
    scratch = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(scratch, ignore_errors=True)
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(scratch / "adapter")
        model = model.merge_and_unload()
    model.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
