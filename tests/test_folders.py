"""Damaged or unsuitable model folders: an error at the start names the setting, the folder and what to do."""

import json
import shutil
import time

import pytest
import torch
from conftest import MINI, SMALL, compose_settings
from safetensors.torch import load_file, save_file
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertGenerationConfig,
    BertGenerationDecoder,
    BertLMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    RobertaConfig,
    T5Config,
    T5ForConditionalGeneration,
    XLNetConfig,
    XLNetLMHeadModel,
)

from ilf.build import build
from ilf.models.folder import check_model
from ilf.models.load import load_model
from ilf.sampling import HFSampler
from ilf.types import Draw, InputError

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 7632008\n"
TINY = {"vocab_size": 1280, "num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1000])


def edit(file, **changes):
    """Set fields of a JSON object; None removes one."""
    found = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))


def in_shards(folder):
    """Split the weights into two files with an index, like those of large models."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, places = sorted(tensors), {}
    for i, part in enumerate((names[:20], names[20:])):
        save_file({n: tensors[n] for n in part}, folder / f"part{i}.safetensors", {"format": "pt"})
        places |= dict.fromkeys(part, f"part{i}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def as_bin(folder, **options):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin", **options)
    (folder / "model.safetensors").unlink()


def add_token(folder, text, special):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(text, special=special)], special_tokens=special)
    tokenizer.save_pretrained(folder)


def without_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def as_file(folder):
    shutil.rmtree(folder)
    folder.write_text("text")


def as_model(folder, model):
    """Replace the folder's model by another one, which is complete."""
    for file in ("config.json", "model.safetensors"):
        (folder / file).unlink()
    model.save_pretrained(folder)


def bad_index(folder):
    in_shards(folder)
    (folder / "model.safetensors.index.json").write_text("{")


DAMAGE = {
    "a file": (as_file, "folder"),
    "nothing": (shutil.rmtree, "folder"),
    "no config": (lambda f: (f / "config.json").unlink(), "config"),
    "an empty config": (lambda f: (f / "config.json").write_text(""), r"config\.json is empty"),
    "a config that is no JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json is not JSON"),
    "a config that is no object": (lambda f: (f / "config.json").write_text("[]"), "model_type"),
    "a config of nothing": (lambda f: (f / "config.json").write_text("{}"), "model_type"),
    "a config in Git LFS": (lambda f: (f / "config.json").write_text(LFS), "git lfs pull"),
    "a config whose parts don't fit": (lambda f: edit(f / "config.json", hidden_size="wide"), r"config\.json"),
    "an unknown architecture": (lambda f: edit(f / "config.json", model_type="nonesuch"), "'nonesuch'"),
    "an architecture of its own code": (
        lambda f: edit(f / "config.json", model_type="nonesuch", auto_map={"AutoConfig": "own.Config"}),
        "'nonesuch'",
    ),
    "an encoder-decoder": (
        lambda f: as_model(f, T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=8, d_ff=8, num_layers=1))),
        "'t5'.*causal",
    ),
    "an encoder": (lambda f: as_model(f, BertForMaskedLM(BertConfig(**TINY))), "'bert'.*causal"),
    "RoBERTa": (lambda f: as_model(f, AutoModelForMaskedLM.from_config(RobertaConfig(**TINY))), "'roberta'.*causal"),
    "an encoder that is no masked model": (
        lambda f: as_model(f, BertGenerationDecoder(BertGenerationConfig(**TINY))),
        "'bert-generation'.*causal",
    ),
    "a model of permutations": (
        lambda f: as_model(
            f, XLNetLMHeadModel(XLNetConfig(vocab_size=1280, d_model=8, n_layer=1, n_head=2, d_inner=8))
        ),
        "'xlnet'.*causal",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights.*model.safetensors"),
    "truncated weights": (lambda f: truncate(f / "model.safetensors"), r"model\.safetensors is damaged"),
    "half a header": (
        lambda f: (f / "model.safetensors").write_bytes((MINI / "model.safetensors").read_bytes()[:100]),
        r"model\.safetensors is damaged",
    ),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), r"model\.safetensors is empty"),
    "weights in Git LFS": (lambda f: (f / "model.safetensors").write_text(LFS), r"model\.safetensors.*git lfs pull"),
    "a missing tensor": (without_a_tensor, r"1 are missing or of another shape: model\.norm\.weight"),
    "weights of another shape": (lambda f: edit(f / "config.json", intermediate_size=128), "missing or of another"),
    "a missing shard": (lambda f: (in_shards(f), (f / "part1.safetensors").unlink()), r"missing: part1\.safetensors"),
    "a truncated shard": (
        lambda f: (in_shards(f), truncate(f / "part1.safetensors")),
        r"part1\.safetensors is damaged",
    ),
    "a bad index": (bad_index, r"index\.json is not an index"),
    "a truncated .bin": (lambda f: (as_bin(f), truncate(f / "pytorch_model.bin")), r"pytorch_model\.bin is damaged"),
    "a .bin of text": (lambda f: (as_bin(f), (f / "pytorch_model.bin").write_text("x")), r"pytorch_model\.bin"),
    "no tokenizer": (
        lambda f: [(f / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        r"no tokenizer.*tokenizer\.json",
    ),
    "a tokenizer that is no JSON": (lambda f: (f / "tokenizer.json").write_text("{"), "no tokenizer"),
    "a tokenizer without EOS": (lambda f: edit(f / "tokenizer_config.json", eos_token=None), "EOS.*eos_token"),
    "the tokenizer of a larger model": (
        lambda f: edit(f / "tokenizer_config.json", eos_token="<|another|>"),
        "EOS is token 1280.*belongs to another model",
    ),
    "a tokenizer with words of a larger model": (
        lambda f: add_token(f, "wordless", special=False),
        "tokenizer has a token 1280.*belongs to another model",
    ),
}
SETTINGS = {
    "model.path": ["model=local"],
    "refiner.path": ["refiner=local"],
    "llm.model": ["feedback=llm"],
}


@pytest.mark.parametrize("key", SETTINGS)
@pytest.mark.parametrize("name", DAMAGE)
def test_unloadable_model_folder_is_an_error_at_the_start(name, key, tmp_path):
    damage, message = DAMAGE[name]
    folder = tmp_path / "models" / "model"
    shutil.copytree(MINI, folder)
    damage(folder)
    own = [*SMALL, "logger=none", f"store.dir={tmp_path / 'store'}", f"output_dir={tmp_path / 'run'}"]
    with pytest.raises(InputError, match=message) as error:
        build(compose_settings(*own, *SETTINGS[key], f"{key}={folder}"))
    found, value, _, advice = error.value.args
    assert (found, value) == (key, str(folder)) and len(advice) > 20


def test_incomplete_hub_download_is_an_error(tmp_path, monkeypatch):
    """The cache contains an interrupted download."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cache = tmp_path / "models--some--model"
    shutil.copytree(MINI, cache / "snapshots" / "abc", ignore=lambda *_: ["model.safetensors"])
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    own = ["logger=none", f"store.dir={tmp_path / 'store'}", f"output_dir={tmp_path / 'run'}"]
    for key, overrides in (
        ("model.hub", ["model.path=null", "model.hub=some/model"]),
        ("llm.model", ["feedback=llm", "llm.model=some/model"]),
    ):
        with pytest.raises(InputError, match=rf"{key}='.*abc': holds no weights"):
            build(compose_settings(*own, *overrides))


def unchanged(folder):
    """Leave the folder as it is."""


GOOD = {
    "whole": unchanged,
    "in shards": in_shards,
    "a .bin": as_bin,
    "a .bin of torch before 1.6": lambda f: as_bin(f, _use_new_zipfile_serialization=False),
    "a decoder that knows of encoders": lambda f: as_model(f, GPTNeoXForCausalLM(GPTNeoXConfig(**TINY))),
    "a decoder of an encoder's kind": lambda f: as_model(f, BertLMHeadModel(BertConfig(**TINY, is_decoder=True))),
    "a special token of no text beyond the model's": lambda f: add_token(f, "<|image|>", special=True),
    "rows of no token": lambda f: as_model(f, GPTNeoXForCausalLM(GPTNeoXConfig(**TINY | {"vocab_size": 1344}))),
    "weights in 16 bits": lambda f: as_model(f, AutoModelForCausalLM.from_pretrained(MINI, dtype=torch.bfloat16)),
}


@pytest.mark.parametrize("name", GOOD)
def test_loadable_model_folder_passes_the_check(name, tmp_path):
    shutil.copytree(MINI, tmp_path / "model")
    GOOD[name](tmp_path / "model")
    check_model("model.path", tmp_path / "model")
    load_model(tmp_path / "model", torch.float32)


def test_folder_of_a_served_model_needs_no_weights(tmp_path):
    shutil.copytree(MINI, tmp_path / "model", ignore=lambda *_: ["model.safetensors"])
    check_model("model.path", tmp_path / "model", weights=False)


def test_check_reads_only_the_headers_of_weights(tmp_path):
    """The weights are a sparse file of 10 GB."""
    shutil.copytree(MINI, tmp_path / "model")
    edit(tmp_path / "model" / "config.json", vocab_size=13_000_000)
    header, end = {}, 0
    shapes = {name: list(tensor.shape) for name, tensor in load_file(MINI / "model.safetensors").items()}
    shapes["model.embed_tokens.weight"] = [13_000_000, 192]
    for name, shape in shapes.items():
        size = 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (tmp_path / "model" / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    assert end > 9.9e9
    check_model("model.path", MINI)  # so that imports are not timed
    start = time.process_time()
    check_model("model.path", tmp_path / "model")
    assert time.process_time() - start < 0.5


def test_sampled_ids_without_a_token_decode_to_nothing(tmp_path):
    """Embeddings are often padded to a multiple of 64. This model always samples the last row."""
    shutil.copytree(MINI, tmp_path / "model")
    as_model(tmp_path / "model", GPTNeoXForCausalLM(GPTNeoXConfig(**TINY | {"vocab_size": 1344})))
    _, tokenizer = check_model("model.path", tmp_path / "model")
    model = load_model(tmp_path / "model", torch.float32)
    model.get_output_embeddings().bias = torch.nn.Parameter(100.0 * (torch.arange(1344) == 1343))
    draws = [Draw(1, "test", i, i, "x = 1", "") for i in range(3)]
    found = dict(HFSampler(max_new_tokens=4).sample(model, tokenizer, draws))
    assert list(found.values()) == [""] * 3
