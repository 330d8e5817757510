"""Whether a model can be loaded from a folder: seen in its small files and in the headers of its weights.

No weights are read, so that a model of any size takes milliseconds, and one that is used hours later is checked at the
start of a run.
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

_WHOLE = "Copy or fetch the folder again, whole."
_OTHER = "Choose a causal language model that transformers knows, in its own layout (`save_pretrained`)."
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in the order in which transformers looks for them
_LFS = b"version https://git-lfs"
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch before 1.6 begin


def check_model(
    key: str, folder: Path, weights: bool = True, bos: bool | None = None, chat: bool = False
) -> tuple[Any, Any]:
    """Check that a causal language model and its tokenizer can be loaded from a folder; return config and tokenizer.

    Args:
        key: The setting that names it.
        folder: In Hugging Face's layout.
        weights: Whether weights are needed: where a server holds the model, its folder may lack them.
        bos: See `load_tokenizer`.
        chat: See `load_tokenizer`.

    Raises:
        InputError: Something is missing, damaged, or of another kind of model; names it.
    """
    if not folder.is_dir():
        reason = "is a file, and must be a folder" if folder.exists() else "there is no such folder"
        raise InputError(key, str(folder), reason, f"Give a folder in Hugging Face's layout: {key}=FOLDER.")
    config = _config(key, folder)
    if weights:
        _check_shapes(key, folder, config, _weights(key, folder))
    try:
        tokenizer = load_tokenizer(folder, bos, chat)
    except InputError:
        raise
    except Exception as error:  # each kind of tokenizer raises its own
        reason = f"no tokenizer can be loaded from it ({_short(error)})"
        raise InputError(key, str(folder), reason, f"{_WHOLE} It needs tokenizer.json.") from error
    if tokenizer.eos_token_id is None:
        reason = "its tokenizer has no EOS token, which ends every program that is learnt and sampled"
        raise InputError(key, str(folder), reason, "Name one as eos_token in its tokenizer_config.json.")
    if tokenizer.eos_token_id >= (size := getattr(config.get_text_config(), "vocab_size", math.inf)):
        reason = (
            f"its tokenizer's EOS is token {tokenizer.eos_token_id}, and its config.json has a vocab_size of {size}"
        )
        raise InputError(key, str(folder), reason, f"Its tokenizer is another model's. {_WHOLE}")
    vocabulary, special = tokenizer.get_vocab(), set(tokenizer.all_special_ids)
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    largest = max([tokenizer.pad_token_id, *(i for i in vocabulary.values() if i not in special)])
    if largest >= size:  # a token of no text may be there in vain; fewer tokens than rows are common
        reason = f"its tokenizer has a token {largest}, and its config.json has a vocab_size of {size}"
        raise InputError(key, str(folder), reason, f"Its tokenizer is another model's. {_WHOLE}")
    try:
        check_code(tokenizer)
    except ValueError as error:
        reason = f"its tokenizer keeps no code as it is: {error}"
        raise InputError(key, str(folder), reason, "Choose a model that was trained on code.") from error
    return config, tokenizer


def _config(key: str, folder: Path) -> Any:
    """Return the folder's configuration, of transformers, where it is a causal language model's."""
    file = folder / "config.json"
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(key, str(folder), f"its config.json can't be read: {error.strerror}", _WHOLE) from error
    except ValueError as error:
        raise InputError(key, str(folder), f"its config.json is {_kind(file, 'no JSON')}: {error}", _WHOLE) from error
    if not isinstance(read, dict) or "model_type" not in read:
        raise InputError(key, str(folder), "its config.json names no model_type", _WHOLE)
    kind = read["model_type"]
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # each model's configuration raises its own
        reason = f"transformers can't read its config.json (model_type {kind!r}): {_short(error)}"
        raise InputError(key, str(folder), reason, _OTHER) from error
    encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", True)
    permuted = getattr(config, "attn_type", None) == "bi"  # XLNet, whose tokens see those after them
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or config.is_encoder_decoder or encoder or permuted:
        raise _not_causal(key, folder, kind)
    return config


def _not_causal(key: str, folder: Path, kind: str) -> InputError:
    reason = f"holds a model of type {kind!r}, which is not a causal (decoder-only) language model"
    return InputError(key, str(folder), reason, _OTHER)


def _check_shapes(key: str, folder: Path, config: Any, stored: dict[str, list[int]]) -> None:
    """Check that a model is causal, and that weights are those of its configuration.

    Those are looked at where they are stored under the names of the model itself.
    """
    try:
        model = empty_model(config, torch.float32, "auto")
    except Exception as error:  # each model raises its own
        reason = f"transformers can't make the model that its config.json describes: {_short(error)}"
        raise InputError(key, str(folder), reason, _WHOLE) from error
    if any(not getattr(module, "is_decoder", True) for module in model.modules()):  # its tokens see those after them
        raise _not_causal(key, folder, config.model_type)
    if not stored or not set(stored) <= set(model.state_dict()):  # unknown, or transformers will rename them
        return
    places: dict[int, list[str]] = defaultdict(list)  # of tied weights, one is enough
    shapes = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places[id(parameter)].append(name)
        shapes[name] = list(parameter.shape)
    wrong = [names[0] for names in places.values() if not any(stored.get(name) == shapes[name] for name in names)]
    if wrong:
        raise wrong_weights(key, folder, wrong)


def _weights(key: str, folder: Path) -> dict[str, list[int]]:
    """Check the files that transformers would load weights from; return what shapes they hold, as far as is known."""
    for name in _WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return _shapes(key, folder, folder / name)
        if index.is_file():
            try:
                files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                reason = f"its {index.name} is {_kind(index, 'no index of weights')}: {_short(error)}"
                raise InputError(key, str(folder), reason, _WHOLE) from error
            absent = [file for file in files if not (folder / file).is_file()]
            if absent or not files:
                some = ", ".join(absent[:5]) + ", ..." * (len(absent) > 5)
                reason = f"its {index.name} names {len(files)} files, of which {len(absent)} are missing: {some}"
                raise InputError(key, str(folder), reason, _WHOLE)
            return {name: shape for file in files for name, shape in _shapes(key, folder, folder / file).items()}
    raise InputError(key, str(folder), f"holds no weights: none of {', '.join(_WEIGHTS)}, nor their index", _WHOLE)


def _shapes(key: str, folder: Path, file: Path) -> dict[str, list[int]]:
    """Return the shapes in a file of weights from its header, which is checked; none of torch's own format."""
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
    """Return what a file is that could not be read."""
    try:
        with file.open("rb") as opened:
            begin = opened.read(len(_LFS))
    except OSError:  # which is what the error says
        return "unreadable"
    if begin == _LFS:
        return "a pointer of Git LFS in place of the file (`git lfs pull` fetches it)"
    return otherwise if begin else "empty"


def _short(error: Exception) -> str:
    """Return the begin of an error's text, on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
