"""Loads a model and its tokenizer from a name or folder, and saves them to a folder."""

from __future__ import annotations

import logging
import shutil
import sys
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

from ilf.components import Component
from ilf.disk import naming
from ilf.models.dtypes import compute_dtype
from ilf.models.tokens import end_ids, token_ids
from ilf.types import InputError

# Users can't act on these: bitsandbytes lacks kernels that no run uses, and peft uses an outdated transformers name.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)

if not sys.stderr.isatty():
    transformers.utils.logging.disable_progress_bar()


def resolve(path: str | None, hub: str | None, revision: str | None, key: str = "model.hub") -> Path:
    """Return the model's local folder; download it from the Hub if only a name is given.

    Args:
        path: The folder, if it is known.
        hub: The model's name on the Hub.
        revision: Commit on the Hub.
        key: The setting that names the model.

    Raises:
        InputError: The Hub can't be reached, and the model is not in the local cache.
    """
    if path is not None:
        return Path(path)
    assert hub is not None  # checked with the other settings, before anything loads
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(hub, revision=revision, ignore_patterns=["*.gguf", "*.onnx", "*.msgpack", "*.h5"])
        )
    except Exception as error:  # the client's layers raise different exception classes
        raise InputError(
            key,
            hub,
            f"could not be fetched from the Hugging Face Hub ({type(error).__name__})",
            f"Without a network, give a folder: {'model=local model.path' if key == 'model.hub' else key}=FOLDER.",
        ) from error


def load_tokenizer(folder: Path, bos: bool | None = None, chat: bool = False) -> Any:
    """Return a model folder's tokenizer; it pads with EOS if it has no padding token.

    Args:
        folder: A folder in Hugging Face's layout.
        bos: Whether texts begin with BOS; None follows the folder. The choice is saved with the tokenizer. Of
            transformers' classes, only Code Llama's ignores it when it is loaded again.
        chat: Whether prompts are put into the turns of the chat template; see `tokens.encode_prompts`.

    Raises:
        InputError: The tokenizer has no BOS token, or no chat template.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    if bos is not None:
        if bos and tokenizer.bos_token_id is None:
            allowed = f"the tokenizer of {folder} has no BOS token"
            raise InputError("model.bos", bos, allowed, "model.bos=null does as the tokenizer does.")
        tokenizer.add_bos_token = bos
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = tokenizer.eos_token_id
    if chat and tokenizer.chat_template is None:
        allowed = f"the tokenizer of {folder} has no chat template"
        raise InputError("data.prompt", "chat", allowed, "Use data.prompt=paper, or an instruct model.")
    tokenizer.uses_chat = chat
    return tokenizer


@dataclass(frozen=True)
class Model:
    """A model's folder and how to load it."""

    folder: Path
    weights: str  # hash of the folder
    attention: str
    bos: bool | None
    key: str = "model.path"  # the setting that names it
    chat: bool = False  # whether prompts are put into the turns of its chat template

    @property
    def reading(self) -> dict[str, Any]:
        """The values that decide a text's tokens and the logits of the model."""
        return {"weights": self.weights, "attention": self.attention, "bos": self.bos, "chat": self.chat}

    def tokenizer(self) -> Any:
        """Return the model's tokenizer."""
        return load_tokenizer(self.folder, self.bos, self.chat)


def load_model(
    folder: Path,
    dtype: torch.dtype | str,
    attention: str = "auto",
    quantize: str | None = None,
    device: torch.device | None = None,
    key: str = "model.path",
) -> Any:
    """Return a folder's causal language model. Of its generation settings, only the end-of-text tokens are kept.

    Args:
        folder: A folder in Hugging Face's layout.
        dtype: The dtype of the weights; "auto" as stored.
        attention: The attention implementation; "auto" is transformers' choice.
        quantize: How the linear layers store their weights, except the output layer: "nf4", "int8" or None.
        device: Where the model will be used. Only quantized weights are moved there at once, because bitsandbytes'
            int8 weights can't be moved later.
        key: The setting that names the folder.

    Raises:
        InputError: Weights are missing or don't have the shapes of config.json (the error names them), or the model
            doesn't support the attention implementation.
    """
    options: dict[str, Any] = {}
    if attention != "auto":
        options["attn_implementation"] = attention
    if quantize is not None:
        options |= {
            "quantization_config": _quantization(quantize, compute_dtype(device)),
            "device_map": {"": device or "cpu"},
        }
    try:
        # transformers fills missing weights with random numbers, and only warns.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except ValueError as error:
        if attention == "auto" or "ttention" not in str(error):
            raise
        raise InputError("model.attention", attention, str(error), "Choose model.attention=auto.") from error
    model, found = loaded
    parameters = {name for name, _ in model.named_parameters()}
    wrong = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])} & parameters
    if wrong:
        raise wrong_weights(key, folder, wrong)
    for module in model.modules() if quantize == "nf4" else ():
        # In evaluation mode on a CPU with AVX512-BF16, bitsandbytes would repack and round the weights, which training
        # still needs.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if getattr(model.config, "rescale_every", 0):
        # RWKV would rescale its weights in evaluation, for 16 bits that no run uses, and be saved rescaled.
        model.config.rescale_every = 0
    # A publisher's top-k or repetition penalty would change the sampled distribution. End-of-text tokens are kept: a
    # chat model ends turns and texts with different tokens, and a saved policy must also stop in a server.
    ends = token_ids(
        model.generation_config.eos_token_id, getattr(model.config.get_text_config(), "eos_token_id", None)
    )
    model.generation_config = GenerationConfig(eos_token_id=ends or None)
    return model.eval()


def wrong_weights(key: str, folder: Path, wrong: Collection[str]) -> InputError:
    """Return the error for a folder with missing or wrongly shaped weights."""
    names = ", ".join(sorted(wrong)[:10])
    return InputError(
        key,
        str(folder),
        f"its weights must match its config.json, but {len(wrong)} are missing or of another shape: {names}",
        "Copy or download the complete folder again.",
    )


def _quantization(quantize: str, compute: torch.dtype) -> BitsAndBytesConfig:
    # bitsandbytes warns at every pass that it casts inputs of int8 weights to float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )


def adapt(model: Any, adapter: Component | None) -> Any:
    """Return `model` ready to train: the whole model, or with a peft adapter.

    LoRA on all linear layers excludes routers, unless the adapter sets its own exclusions.

    Raises:
        InputError: The adapter changes only one of two layers that share their weights, which a folder can't represent.
    """
    if adapter is None:
        return model
    from peft import get_peft_model

    if adapter.get("target_modules") == "all-linear" and adapter.get("exclude_modules") is None:
        routers = _routers(model)
        excluded = [name for name, module in model.named_modules() if type(module) in routers]
        adapter = adapter.having(exclude_modules=excluded or None)
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    tied = ends[1] is not None and ends[0].weight is ends[1].weight
    adapted = get_peft_model(model, adapter())
    base = adapted.get_base_model()
    if tied and ends != [base.get_input_embeddings(), base.get_output_embeddings()]:
        raise InputError(
            "adapter.target_modules",
            adapter.get("target_modules"),
            "adapts the input embeddings or the output layer, which share their weights in this model",
            "Leave them out of adapter.target_modules and adapter.modules_to_save.",
        )
    return adapted


def _routers(model: Any) -> set[type]:
    """Return the linear layer classes that return more than a product, as Llama 4's router; LoRA can't adapt them."""
    linear = {type(module): module for module in model.modules() if isinstance(module, torch.nn.Linear)}
    found = set()
    for kind, module in linear.items():
        if not kind.__module__.startswith("transformers."):
            continue
        weights = {name: torch.empty_like(p, device="meta") for name, p in module.named_parameters()}
        states = torch.empty(1, module.in_features, device="meta", dtype=module.weight.dtype)
        if not isinstance(torch.func.functional_call(module, weights, (states,)), torch.Tensor):
            found.add(kind)
    return found


def save(model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a complete Hugging Face folder, or none. LoRA is merged, and also saved separately in `adapter/`.

    LoRA that was trained on a quantized model, or on one in 16 bits, is merged in float32 into the original weights,
    which are loaded again from their folder. Most changes are smaller than the step between two quantized values, so
    merging into the model's own weights would round them away.

    Args:
        model: The model, which is merged and cast in place.
        tokenizer: Its tokenizer.
        folder: Where to write.
        dtype: The dtype of the weights, which are cast after merging; None keeps it. An adapter keeps its dtype.

    Raises:
        InputError: A weight is too large for the dtype.
    """
    scratch = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(scratch, ignore_errors=True)
    with naming(scratch):
        _save(model, tokenizer, scratch, dtype)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


def _save(model: Any, tokenizer: Any, scratch: Path, dtype: torch.dtype | None) -> None:
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(scratch / "adapter")
        if hasattr(model, "hf_quantizer") or model.dtype != torch.float32:
            from peft import PeftModel

            base = load_model(Path(model.name_or_path), torch.float32)
            model = PeftModel.from_pretrained(base, scratch / "adapter", torch_device="cpu")
        model = model.merge_and_unload()
    if dtype is not None:
        model = model.to(dtype)
        if large := [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]:
            name = str(dtype).removeprefix("torch.")
            raise InputError("save.dtype", name, f"can't hold {large[0]}: a weight is too large", "Use bfloat16.")
    model.generation_config.eos_token_id = sorted(end_ids(model, tokenizer))  # plus the learned end token
    model.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
