"""From a name or folder to a model and its tokenizer, and back to a folder."""

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
from ilf.models.tokens import end_ids, token_ids
from ilf.types import InputError

# What users can do nothing about: bitsandbytes misses kernels that no run uses, peft asks transformers by an old name.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)

if not sys.stderr.isatty():
    transformers.utils.logging.disable_progress_bar()

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve(path: str | None, hub: str | None, revision: str | None, key: str = "model.hub") -> Path:
    """Return the model's local folder, fetched from the Hub where only a name is given.

    Args:
        path: The folder, where it is known.
        hub: The model's name on the Hub.
        revision: Commit on the Hub.
        key: The setting that names the model.

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
            key,
            hub,
            f"could not be fetched from the Hugging Face Hub ({type(error).__name__})",
            f"Without a network, give a folder: {'model=local model.path' if key == 'model.hub' else key}=FOLDER.",
        ) from error


def has_bfloat16(device: torch.device | None) -> bool:
    """Return whether a device is a GPU that computes in bfloat16: older ones only emulate it."""
    return device is not None and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def sampling_dtype(name: str, device: torch.device, learns: bool = True) -> torch.dtype:
    """Return the dtype of weights while sampling.

    Args:
        name: float32 | bfloat16 | auto: bfloat16 where the device computes in it, for what is only learned from.
        device: What samples.
        learns: Whether the programs are only learned from, rather than a fine-tuned model's or those of the figures.
    """
    if name != "auto":
        return _DTYPES[name]
    native = has_bfloat16(device) or (device.type == "cpu" and _cpu_has_bfloat16())
    return torch.bfloat16 if native and learns else torch.float32


def _cpu_has_bfloat16() -> bool:
    """Return whether the processor multiplies in bfloat16, as x86 does by AVX512-BF16 or AMX."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def load_tokenizer(folder: Path, bos: bool | None = None, chat: bool = False) -> Any:
    """Return the tokenizer of a model folder, padding with EOS where it has no padding token.

    Args:
        folder: In Hugging Face's layout.
        bos: Whether texts begin with BOS; None does as the folder says. It is saved with the tokenizer, and of
            transformers' classes only Code Llama's does otherwise when it is loaded again.
        chat: Whether prompts are put into the turns of its chat template; see `tokens.encode_prompts`.

    Raises:
        InputError: There is no BOS to begin with, or no chat template.
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
    """A model's folder, and how it is loaded."""

    folder: Path
    weights: str  # hash of the folder
    attention: str
    bos: bool | None
    key: str = "model.path"  # the setting that names it
    chat: bool = False  # whether it is asked in the turns of its chat template

    @property
    def reading(self) -> dict[str, Any]:
        """What decides how texts become its tokens, and the logits that it gives for them."""
        return {"weights": self.weights, "attention": self.attention, "bos": self.bos, "chat": self.chat}

    def tokenizer(self) -> Any:
        """Return its tokenizer."""
        return load_tokenizer(self.folder, self.bos, self.chat)


def load_model(
    folder: Path,
    dtype: torch.dtype | str,
    attention: str = "auto",
    quantize: str | None = None,
    device: torch.device | None = None,
    key: str = "model.path",
) -> Any:
    """Return the causal language model of a folder, without the generation settings that it came with but for its ends.

    Args:
        folder: In Hugging Face's layout.
        dtype: Of its weights; "auto" as they are stored.
        attention: Which implementation of attention; "auto" is transformers' choice.
        quantize: How its linear layers keep their weights, all but the output layer: "nf4", "int8" or None.
        device: Where it will be used. Only quantised weights are put there at once, as bitsandbytes' int8 weights do
            not survive being moved.
        key: The setting that names the folder.

    Raises:
        InputError: Weights are missing or of another shape than config.json says; names them. Or the model has no
            such implementation of attention.
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
        # transformers fills what is missing with random numbers, and only warns.
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
        # In evaluation mode on a CPU with AVX512-BF16, bitsandbytes would repack and round the weights that training
        # goes on with.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if getattr(model.config, "rescale_every", 0):
        # RWKV would divide its weights while it is evaluated, for 16 bits that no run uses, and be saved divided.
        model.config.rescale_every = 0
    # A publisher's top-k or repetition penalty would change the distribution that is sampled. What ends a text stays:
    # a chat model ends its turns by other tokens than its texts, and a saved policy is to end in a server too.
    ends = token_ids(
        model.generation_config.eos_token_id, getattr(model.config.get_text_config(), "eos_token_id", None)
    )
    model.generation_config = GenerationConfig(eos_token_id=ends or None)
    return model.eval()


def wrong_weights(key: str, folder: Path, wrong: Collection[str]) -> InputError:
    """Return the error that a folder lacks weights."""
    names = ", ".join(sorted(wrong)[:10])
    return InputError(
        key,
        str(folder),
        f"its weights must be those of its config.json, and {len(wrong)} are missing or of another shape: {names}",
        "Copy or fetch the folder again, whole.",
    )


def compute_dtype(device: torch.device | None) -> torch.dtype:
    """Return the dtype that NF4 weights are multiplied in: bfloat16 on a GPU that has it, else float32."""
    return torch.bfloat16 if has_bfloat16(device) else torch.float32


def _quantization(quantize: str, compute: torch.dtype) -> BitsAndBytesConfig:
    # It says at every pass that it casts what it multiplies with int8 weights to float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )


def adapt(model: Any, adapter: Component | None) -> Any:
    """Return `model` ready to train: whole, or behind an adapter of peft's.

    LoRA on all linear layers leaves out routers, unless the adapter says itself what to leave out.
    """
    if adapter is None:
        return model
    from peft import get_peft_model

    if adapter.get("target_modules") == "all-linear" and adapter.get("exclude_modules") is None:
        routers = _routers(model)
        excluded = [name for name, module in model.named_modules() if type(module) in routers]
        adapter = adapter.having(exclude_modules=excluded or None)
    return get_peft_model(model, adapter())


def _routers(model: Any) -> set[type]:
    """Return the kinds of linear layers that give more than a product, as Llama 4's router: LoRA can't add to that."""
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


def saving_dtype(name: str, base: Any) -> torch.dtype:
    """Return what `save.dtype` names, where `base` is the configuration of the model that was fine-tuned."""
    return (base.dtype or torch.float32) if name == "base" else _DTYPES[name]


def save(model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a whole Hugging Face folder, LoRA merged and also kept apart in `adapter/`; complete or absent.

    LoRA that was trained on a quantised model is merged into the weights that this was made of, read again from its
    folder, in float32: most changes are smaller than the step between two values of a quantised weight, which would
    round them away.

    Args:
        model: It is merged and cast in place.
        tokenizer: Its tokenizer.
        folder: Where to write.
        dtype: Of the weights, which are merged before they are cast; None as they are. An adapter stays as it is.

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
        if hasattr(model, "hf_quantizer"):
            from peft import PeftModel

            base = load_model(Path(model.name_or_path), torch.float32)
            model = PeftModel.from_pretrained(base, scratch / "adapter", torch_device="cpu")
        model = model.merge_and_unload()
    if dtype is not None:
        model = model.to(dtype)
        if large := [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]:
            name = str(dtype).removeprefix("torch.")
            raise InputError("save.dtype", name, f"can't hold {large[0]}: a weight is too large", "Use bfloat16.")
    model.generation_config.eos_token_id = sorted(end_ids(model, tokenizer))  # what it has learnt to end by, too
    model.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
