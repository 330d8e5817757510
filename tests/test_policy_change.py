import copy
import math
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import MINI
from safetensors.torch import load_file, save_file
from transformers import CodeGenConfig, CodeGenForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from ilf.models.load import load_model, load_tokenizer
from ilf.models.policy_change import divergence, perplexity, weight_change
from ilf.models.targets import encode
from ilf.tasks import mini as mini_tasks
from ilf.tasks.mbpp import tasks_from
from ilf.training.ilf_module import ILFModule
from ilf.training.mbpp_datamodule import MBPPDataModule
from ilf.types import InputError, Program, Verdict

SHAPE = {"vocab_size": 64, "bos_token_id": None, "eos_token_id": 0}
SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 12, "num_attention_heads": 2}
SMALL["num_key_value_heads"] = 1
TASKS = tasks_from(mini_tasks.rows()[10:14], None, "paper")[0]
T = 0.8


@pytest.fixture(scope="module")
def base():
    return load_model(MINI, torch.float32)


@pytest.fixture(scope="module")
def tuned():
    """Return the mini model with a small random change to every weight."""
    model, generator = load_model(MINI, torch.float32), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(MINI)


def changed(tmp_path, change):
    """Return a copy of the mini model's folder, with `change` applied to its tensors."""
    tensors = load_file(MINI / "model.safetensors")
    change(tensors)
    shutil.copytree(MINI, tmp_path, dirs_exist_ok=True)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path


def program(task, completion, sample=0):
    text = task.prompt + completion
    return Program(task.task_id, "test", sample, 0, task.prompt, completion, text, Verdict("passed"))


GOLD = [program(task, task.code[task.code.index("\n") + 1 :]) for task in TASKS]


# ---- weights ----------------------------------------------------------------------------------------------------


def test_weight_change_of_a_folder_from_itself_is_zero():
    found, kept = weight_change(MINI, MINI)
    assert kept == 1.0
    assert list(found) == ["all", "embeddings", *(f"layer {i:02d}" for i in range(5)), "norm"]
    assert set(found.values()) == {0.0}


@pytest.mark.parametrize(
    ("part", "group"), [("layers.3.", "layer 03"), ("embed_tokens", "embeddings"), ("model.norm.", "norm")]
)
def test_only_the_scaled_group_has_a_weight_change(tmp_path, part, group):
    def scale(tensors):
        for name in tensors:
            if part in name:
                tensors[name] *= 1.1

    found, _ = weight_change(MINI, changed(tmp_path, scale))
    assert found.pop(group) == pytest.approx(0.1, rel=1e-4)
    assert 0 < found.pop("all") < 0.1 and set(found.values()) == {0.0}


def test_weight_change_is_the_relative_norm_over_all_parameters(tmp_path):
    def move(tensors):
        for i, name in enumerate(sorted(tensors)):
            tensors[name] += 0.001 * i

    found, kept = weight_change(MINI, changed(tmp_path, move))
    assert kept == pytest.approx(1)
    before, after = load_file(MINI / "model.safetensors"), load_file(tmp_path / "model.safetensors")

    def norm(tensors):
        return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))

    assert found["all"] == pytest.approx(norm([after[n] - before[n] for n in before]) / norm(before.values()), rel=1e-5)
    layer = [n for n in before if ".layers.2." in n]
    assert len(layer) > 5
    expected = norm([after[n] - before[n] for n in layer]) / norm([before[n] for n in layer])
    assert found["layer 02"] == pytest.approx(expected, rel=1e-5)


def test_sharding_changes_nothing_and_bfloat16_only_by_rounding(tmp_path, base):
    copy.deepcopy(base).save_pretrained(tmp_path / "shards", max_shard_size="1MB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert set(weight_change(MINI, tmp_path / "shards")[0].values()) == {0.0}
    copy.deepcopy(base).bfloat16().save_pretrained(tmp_path / "half")
    found, _ = weight_change(MINI, tmp_path / "half")
    assert all(0 <= change < 2**-8 for change in found.values()) and found["all"] > 0


@pytest.mark.parametrize(("size", "least", "most"), [(1e-5, 0.0, 0.3), (0.1, 0.99, 1.01)])
def test_rounding_to_bfloat16_removes_only_small_updates(tmp_path, base, size, least, most):
    native = copy.deepcopy(base).bfloat16()
    native.save_pretrained(tmp_path / "base")
    tuned, generator = native.float(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    tuned.save_pretrained(tmp_path / "tuned")
    exact, whole = weight_change(tmp_path / "base", tmp_path / "tuned")
    rounded, kept = weight_change(tmp_path / "base", tmp_path / "tuned", torch.bfloat16)
    assert whole == pytest.approx(1) and least <= kept <= most
    assert rounded["all"] != exact["all"]  # computed on the rounded weights


def codegen():
    return CodeGenForCausalLM(CodeGenConfig(n_embd=32, n_layer=12, n_head=2, rotary_dim=4, n_positions=16, **SHAPE))


def llama():
    return LlamaForCausalLM(LlamaConfig(**SMALL, **SHAPE))


def qwen():
    return Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=True, **SMALL, **SHAPE))


@pytest.mark.parametrize(("make", "head"), [(codegen, {"head"}), (llama, {"head"}), (qwen, set())])
def test_every_tensor_of_codegen_llama_and_qwen_has_a_group(tmp_path, make, head):
    model = make()
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".11." in name:
                parameter *= 3
    model.save_pretrained(tmp_path / "tuned")
    found, _ = weight_change(tmp_path / "base", tmp_path / "tuned")
    assert set(found) == {"all", "embeddings", "norm", *(f"layer {i:02d}" for i in range(12))} | head
    assert found.pop("layer 11") == pytest.approx(2) and found.pop("all") > 0 and set(found.values()) == {0.0}


def test_folders_with_different_parameters_are_an_error_naming_them(tmp_path):
    llama().save_pretrained(tmp_path / "llama")
    with pytest.raises(
        InputError, match=r"model\.embed_tokens\.weight, .*Give a base model and the model that was fine-tuned"
    ):
        weight_change(MINI, tmp_path / "llama")


# ---- divergence -------------------------------------------------------------------------------------------------


def brute_force(base, tuned, tokenizer, program, temperature):
    """Return the divergence at each token of a program, with one forward pass per token, in double precision."""
    prompt = tokenizer(program.prompt, add_special_tokens=False).input_ids
    ids, found = list(prompt), []
    for token in [*tokenizer(program.completion, add_special_tokens=False).input_ids, tokenizer.eos_token_id]:
        with torch.no_grad():
            p, q = (
                torch.softmax(model(torch.tensor([ids])).logits[0, -1].double() / temperature, 0).tolist()
                for model in (tuned, base)
            )
        found.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))
        ids.append(token)
    return found


def test_divergence_of_a_policy_from_itself_is_zero(base, tokenizer):
    found = divergence(base, copy.deepcopy(base), tokenizer, GOLD, T, 150)
    assert list(found) == [task.task_id for task in TASKS]
    # Rounding errors depend on the memory layout.
    assert all(one == pytest.approx((0.0, 0.0), abs=1e-9) for one in found.values())


@pytest.mark.parametrize("temperature", [0.5, T, 1.0])
def test_divergence_matches_a_computation_token_by_token(base, tuned, tokenizer, temperature):
    """Two samples of one task have different lengths. Each token has the same weight, regardless of its sample."""
    task = TASKS[0]
    samples = [program(task, "    return 1"), program(task, GOLD[0].completion, 1)]
    token_kls = [brute_force(base, tuned, tokenizer, sample, temperature) for sample in samples]
    assert len(token_kls[0]) != len(token_kls[1]) and min(map(min, token_kls)) > 0
    for tokens in (1, 1000):
        found = divergence(base, tuned, tokenizer, samples, temperature, tokens)
        assert list(found) == [task.task_id]
        bodies = [kl[:-1] for kl in token_kls]
        assert found[task.task_id].body == pytest.approx(sum(map(sum, bodies)) / sum(map(len, bodies)), rel=1e-3)
        end = (token_kls[0][-1] + token_kls[1][-1]) / 2
        assert found[task.task_id].end == pytest.approx(end, rel=1e-3, abs=1e-6)
    other = divergence(tuned, base, tokenizer, samples, temperature, 1000)[task.task_id]
    assert other.body != pytest.approx(found[task.task_id].body, rel=1e-3)  # not symmetric


def test_an_empty_completion_counts_only_its_end_token(base, tuned, tokenizer):
    sample = replace(program(TASKS[0], ""), prompt="x = ")  # a prompt with many likely continuations
    (kl,) = brute_force(base, tuned, tokenizer, sample, T)
    assert kl > 1e-3
    assert divergence(base, tuned, tokenizer, [sample], T, 1)[TASKS[0].task_id] == pytest.approx((0, kl), rel=1e-3)


def test_divergence_is_positive_and_does_not_depend_on_batches(base, tuned, tokenizer):
    alone = divergence(base, tuned, tokenizer, GOLD, T, 1)
    assert list(alone) == [task.task_id for task in TASKS] and min(one.body for one in alone.values()) > 1e-4
    found = divergence(base, tuned, tokenizer, GOLD[::-1], T, 150)
    assert list(found) == list(alone) and all(found[i] == pytest.approx(alone[i], rel=1e-3, abs=1e-5) for i in alone)


# ---- perplexity -------------------------------------------------------------------------------------------------


def test_perplexity_and_end_loss_add_up_to_the_training_loss(base, tokenizer):
    module = ILFModule(base, tokenizer)
    texts = [(p.prompt, p.completion) for p in GOLD]
    examples = [encode(tokenizer, 0, *text, 1024) for text in texts]
    with torch.no_grad():
        losses = [float(module.losses(MBPPDataModule(tokenizer)._collate([e], 1))) for e in examples]
    found = perplexity(base, tokenizer, texts, 100)
    lengths = [len(e.target_ids) for e in examples]
    both = [(math.log(one.body) * (n - 1) + one.end) / n for one, n in zip(found, lengths, strict=True)]
    assert both == pytest.approx(losses, rel=1e-4)


def test_an_unlikely_end_token_does_not_affect_the_body_perplexity(base, tokenizer):
    other = copy.deepcopy(base)
    other.lm_head.weight = torch.nn.Parameter(other.lm_head.weight.clone())  # the mini model ties it to the embeddings
    with torch.no_grad():
        other.lm_head.weight[tokenizer.eos_token_id] *= -3
    (text,) = [(GOLD[0].prompt, GOLD[0].completion)]
    (known,), (unknown,) = (perplexity(model, tokenizer, [text], 100) for model in (base, other))
    assert unknown.end > known.end + 1 and unknown.body == pytest.approx(known.body, rel=0.02)


def test_perplexity_does_not_depend_on_batches_and_keeps_the_order(base, tokenizer):
    texts = [(p.prompt, p.completion) for p in GOLD] + [("x", "y"), ("x = 1\n" * 40, "")]
    alone = [perplexity(base, tokenizer, [text], 1)[0] for text in texts]
    for tokens in (1, 60, 150, 10_000):
        for order in (1, -1):
            found = perplexity(base, tokenizer, texts[::order], tokens)
            assert all(a == pytest.approx(b, rel=1e-4) for a, b in zip(found, alone[::order], strict=True))
    assert len({one.end for one in alone}) == len(alone) and min(one.body for one in alone) >= 1


def test_earlier_measurements_are_kept_if_memory_runs_out(small_stages, monkeypatch):
    def fail(*arguments):
        raise torch.OutOfMemoryError("no room for a second policy")

    monkeypatch.setattr("ilf.measurements.divergence", fail)
    found = small_stages("refinements=gold", "refinements.tasks=annotated", "training.epochs=1").run()
    assert found["status"] == "complete" and found["finetuned"] and found["kl"] is None
    assert found["weight_change"]["all"] > 0
    assert found["measure_error"] == "OutOfMemoryError: no room for a second policy"
