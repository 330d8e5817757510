"""Checks whether a model can be loaded from a folder, by its small files and the headers of its weights.

No weights are read. The check takes milliseconds for a model of any size, so that a model that is used hours later is
checked at the start of a run.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, AutoConfig

from ilf.models.load import load_tokenizer, wrong_weights
from ilf.models.meta_tensors import empty_model
from ilf.models.tokens import check_code
from ilf.types import InputError

_WHOLE = "Copy or download the complete folder again."
_OTHER = "Choose a causal language model that transformers knows, in its own layout (`save_pretrained`)."
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in transformers' search order
_LFS = b"version https://git-lfs"
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the beginning of files from torch before 1.6


def check_model(
    key: str, folder: Path, weights: bool = True, bos: bool | None = None, chat: bool = False
) -> tuple[Any, Any]:
    """Check that a causal language model and its tokenizer can be loaded from a folder; return config and tokenizer.

    Args:
        key: The setting that names the folder.
        folder: A folder in Hugging Face's layout.
        weights: Whether weights are needed: if a server holds the model, its folder may lack them.
        bos: See `load_tokenizer`.
        chat: See `load_tokenizer`.

    Raises:
        InputError: A file is missing, damaged, or of another kind of model. The error names it.
    """
    if not folder.is_dir():
        reason = "is a file, but must be a folder" if folder.exists() else "there is no such folder"
        raise InputError(key, str(folder), reason, f"Give a folder in Hugging Face's layout: {key}=FOLDER.")
    config = _config(key, folder)
    if weights:
        _check_shapes(key, folder, config, _weights(key, folder))
    try:
        tokenizer = load_tokenizer(folder, bos, chat)
    except InputError:
        raise
    except Exception as error:  # tokenizers raise different exception classes
        reason = f"no tokenizer can be loaded from it ({_short(error)})"
        raise InputError(key, str(folder), reason, f"{_WHOLE} It needs tokenizer.json.") from error
    if tokenizer.eos_token_id is None:
        reason = "its tokenizer has no EOS token, which must end every training target and sample"
        raise InputError(key, str(folder), reason, "Set eos_token in its tokenizer_config.json.")
    if tokenizer.eos_token_id >= (size := getattr(config.get_text_config(), "vocab_size", math.inf)):
        reason = (
            f"its tokenizer's EOS is token {tokenizer.eos_token_id}, but its config.json has a vocab_size of {size}"
        )
        raise InputError(key, str(folder), reason, f"The tokenizer belongs to another model. {_WHOLE}")
    vocabulary, special = tokenizer.get_vocab(), set(tokenizer.all_special_ids)
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    largest = max([tokenizer.pad_token_id, *(i for i in vocabulary.values() if i not in special)])
    if largest >= size:  # unused special tokens may be out of range; fewer tokens than embedding rows are common
        reason = f"its tokenizer has a token {largest}, but its config.json has a vocab_size of {size}"
        raise InputError(key, str(folder), reason, f"The tokenizer belongs to another model. {_WHOLE}")
    try:
        check_code(tokenizer)
    except ValueError as error:
        reason = f"its tokenizer changes code: {error}"
        raise InputError(key, str(folder), reason, "Choose a model that was trained on code.") from error
    return config, tokenizer


def _config(key: str, folder: Path) -> Any:
    """Return the folder's transformers configuration if it is a causal language model's."""
    file = folder / "config.json"
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(key, str(folder), f"its config.json can't be read: {error.strerror}", _WHOLE) from error
    except ValueError as error:
        raise InputError(key, str(folder), f"its config.json is {_kind(file, 'not JSON')}: {error}", _WHOLE) from error
    if not isinstance(read, dict) or "model_type" not in read:
        raise InputError(key, str(folder), "its config.json has no model_type", _WHOLE)
    kind = read["model_type"]
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # configurations raise different exception classes
        reason = f"transformers can't read its config.json (model_type {kind!r}): {_short(error)}"
        raise InputError(key, str(folder), reason, _OTHER) from error
    encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", True)
    permuted = getattr(config, "attn_type", None) == "bi"  # XLNet, whose tokens attend to later ones
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or config.is_encoder_decoder or encoder or permuted:
        raise _not_causal(key, folder, kind)
    return config


def _not_causal(key: str, folder: Path, kind: str) -> InputError:
    reason = f"holds a model of type {kind!r}, which is not a causal (decoder-only) language model"
    return InputError(key, str(folder), reason, _OTHER)


def _check_shapes(key: str, folder: Path, config: Any, stored: dict[str, list[int]]) -> None:
    """Check that a model is causal, and that the stored weights have the shapes of its configuration.

    Weights are checked only if they are stored under the model's own names.
    """
    try:
        model = empty_model(config, torch.float32, "auto")
    except Exception as error:  # models raise different exception classes
        reason = f"transformers can't build the model of its config.json: {_short(error)}"
        raise InputError(key, str(folder), reason, _WHOLE) from error
    if any(not getattr(module, "is_decoder", True) for module in model.modules()):  # its tokens attend to later ones
        raise _not_causal(key, folder, config.model_type)
    if not stored or not set(stored) <= set(model.state_dict()):  # unknown shapes, or transformers will rename them
        return
    places: dict[int, list[str]] = defaultdict(list)  # one of several tied weights is enough
    shapes = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places[id(parameter)].append(name)
        shapes[name] = list(parameter.shape)
    wrong = [names[0] for names in places.values() if not any(stored.get(name) == shapes[name] for name in names)]
    if wrong:
        raise wrong_weights(key, folder, wrong)


def _weights(key: str, folder: Path) -> dict[str, list[int]]:
    """Check the files that transformers would load weights from; return the shapes, as far as they are known."""
    for name in _WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return _shapes(key, folder, folder / name)
        if index.is_file():
            try:
                files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                reason = f"its {index.name} is {_kind(index, 'not an index of weights')}: {_short(error)}"
                raise InputError(key, str(folder), reason, _WHOLE) from error
            absent = [file for file in files if not (folder / file).is_file()]
            if absent or not files:
                some = ", ".join(absent[:5]) + ", ..." * (len(absent) > 5)
                reason = f"its {index.name} names {len(files)} files, of which {len(absent)} are missing: {some}"
                raise InputError(key, str(folder), reason, _WHOLE)
            return {name: shape for file in files for name, shape in _shapes(key, folder, folder / file).items()}
    raise InputError(key, str(folder), f"holds no weights: none of {', '.join(_WEIGHTS)}, nor their index", _WHOLE)


def _shapes(key: str, folder: Path, file: Path) -> dict[str, list[int]]:
    """Return the shapes in a weights file from its checked header; nothing for torch's own format."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:  # checks the header, and the file's length against it
                return {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
        if zipfile.is_zipfile(file):
            zipfile.ZipFile(file).close()
            return {}
        with file.open("rb") as opened:
            if opened.read(len(_OLD_TORCH)) == _OLD_TORCH:
                return {}
        raise ValueError("it is truncated, or torch.save did not write it")
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
        reason = f"its {file.name} is {_kind(file, 'damaged')}: {_short(error)}"
        raise InputError(key, str(folder), reason, _WHOLE) from error


def _kind(file: Path, otherwise: str) -> str:
    """Return a description of a file that could not be read."""
    try:
        with file.open("rb") as opened:
            begin = opened.read(len(_LFS))
    except OSError:  # the error says this already
        return "unreadable"
    if begin == _LFS:
        return "a Git LFS pointer instead of the file (`git lfs pull` fetches it)"
    return otherwise if begin else "empty"


def _short(error: Exception) -> str:
    """Return the beginning of an error's message, on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
