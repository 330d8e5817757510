"""Sampling from models, attention implementations, and loading and saving of models."""

import copy
import math
import shutil
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from conftest import MINI, lora
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    CodeGenConfig,
    CodeGenForCausalLM,
    GenerationConfig,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from ilf.models import cuda_graphs, prefill
from ilf.models.batches import choose
from ilf.models.load import adapt, load_model, load_tokenizer, save
from ilf.models.prefill import tried
from ilf.models.tokens import Continuation
from ilf.sampling import HFSampler, hf
from ilf.tasks import mini as mini_tasks
from ilf.tasks.mbpp import tasks_from
from ilf.types import Draw, InputError, derive_seed


@pytest.fixture(scope="module")
def mini():
    return load_model(MINI, torch.float32), load_tokenizer(MINI), MINI


def draws(prompts, n, seed=0):
    return [Draw(t, "test", s, derive_seed(seed, t, s), p, "") for t, p in enumerate(prompts) for s in range(n)]


PROMPTS = [task.prompt for task in tasks_from(mini_tasks.rows()[10:13], None, "paper")[0]]


def sample(sampler, model, tokenizer, plan):
    """Return the completions in the order of the plan."""
    found = dict(sampler.sample(model, tokenizer, plan))
    return [found[draw] for draw in plan]


def test_a_sample_depends_on_its_seed_and_not_on_its_batch(mini):
    """With batch_size=5, 18 draws of prompts of three lengths join and leave the batch."""
    model, tokenizer, _ = mini
    plan = draws(PROMPTS, 6)
    together = sample(HFSampler(max_new_tokens=40), model, tokenizer, plan)
    few = HFSampler(max_new_tokens=40, batch_size=5)
    assert together == sample(few, model, tokenizer, plan) == sample(few, model, tokenizer, plan[::-1])[::-1]
    assert together == [sample(few, model, tokenizer, [draw])[0] for draw in plan]
    assert together != sample(few, model, tokenizer, draws(PROMPTS, 6, seed=1))
    assert len(set(together)) > 3


def test_a_truncated_program_leaves_the_batch_without_affecting_others(mini):
    """The batch has 12 places, for one long program and 22 short ones.

    Half of the short ones start when the other half end. The long one reaches the token limit soon after that.
    """
    model, tokenizer, _ = mini
    greedy = {"temperature": 1e-6, "batch_size": 12}
    texts = dict(HFSampler(**greedy, max_new_tokens=96).sample(model, tokenizer, draws(PROMPTS, 1)))
    lengths = {draw.prompt: len(tokenizer(text).input_ids) + 1 for draw, text in texts.items()}
    *_, short = sorted(lengths, key=lengths.__getitem__, reverse=True)
    long, bound = max(lengths, key=lengths.__getitem__), lengths[short] + 4
    assert bound < lengths[long]
    plan = draws([long], 1) + draws([short], 22, seed=1)
    found = sample(HFSampler(**greedy, max_new_tokens=bound), model, tokenizer, plan)
    assert set(found[1:]) == {text for draw, text in texts.items() if draw.prompt == short}
    assert len(tokenizer(found[0]).input_ids) <= bound


def test_prompts_are_prefilled_once_and_waiting_draws_fill_free_places(mini):
    model, tokenizer, _ = mini
    calls = []
    hook = model.register_forward_hook(
        lambda module, args, kwargs, output: calls.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    sampler, plan = HFSampler(max_new_tokens=96, batch_size=4), draws(PROMPTS, 12)
    found = dict(sampler.sample(model, tokenizer, plan))
    hook.remove()
    assert sum(rows for rows, width in calls if width > 1) == len(PROMPTS)
    steps = [rows for rows, width in calls if width == 1]
    lengths = [len(tokenizer(text).input_ids) for text in found.values()]
    assert max(steps) == 4
    # Each step has four rows while draws wait. Separate batches of four would each take as long as their longest draw.
    assert len(steps) < 1.25 * sum(lengths) / 4 + max(lengths)


@pytest.mark.parametrize("temperature", [0.5, 0.8, 2.0])
def test_samples_follow_the_models_distribution(temperature):
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -math.inf])
    n = 20_000
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(3))
    counts = Counter(choose(logits.expand(n, 5), uniform, temperature).tolist())
    expected = torch.softmax(logits / temperature, 0)
    chi2 = sum((counts[i] - n * p) ** 2 / (n * p) for i, p in enumerate(expected.tolist()) if p > 0)
    assert chi2 < 16.3  # 0.1% of chi-squared with 3 degrees of freedom
    assert counts[4] == 0


def models():
    shape = {"vocab_size": 1280, "bos_token_id": None, "eos_token_id": 0}
    torch.manual_seed(0)
    yield CodeGenForCausalLM(CodeGenConfig(n_embd=64, n_layer=2, n_head=4, rotary_dim=8, n_positions=256, **shape))
    small = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    yield LlamaForCausalLM(LlamaConfig(**small, **shape))
    yield MistralForCausalLM(MistralConfig(**small, num_key_value_heads=2, sliding_window=5, **shape))


def test_sampling_near_zero_temperature_matches_greedy_generate(mini, monkeypatch):
    """Covers left padding, positions, sliding windows, the shared prefill, and rows that join and leave the batch."""
    _, tokenizer, _ = mini
    monkeypatch.setattr(hf, "ended", lambda *_: False)  # untrained models write no function, so most would be cut
    monkeypatch.setattr(hf, "cut", lambda text, script: text)
    for model in models():
        model = model.eval()
        model.generation_config = GenerationConfig(eos_token_id=0)
        sampler = HFSampler(temperature=1e-6, max_new_tokens=12, batch_size=3)
        prompts = ["x = 1\n", "a much longer prompt than the first\n"]
        found = sample(sampler, model, tokenizer, draws(prompts, 2))
        for text, prompt in zip(found[::2], prompts, strict=True):
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            greedy = model.generate(ids, do_sample=False, max_new_tokens=12, pad_token_id=0)[0, ids.shape[1] :]
            assert text == tokenizer.decode(greedy, skip_special_tokens=True)
        assert found[0] == found[1] != "" and found[2] == found[3]


@contextmanager
def uninitialized_memory_is_nan():
    torch.use_deterministic_algorithms(True)  # fills uninitialized memory with NaN
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("limit", [12, 150])  # below and above a batch's initial room for new tokens
def test_steps_in_fixed_memory_give_the_same_samples(mini, limit, monkeypatch):
    """On a GPU, these steps are captured as CUDA graphs. Here, the same code runs without capture."""
    _, tokenizer, _ = mini
    for model in models():
        model = model.eval()
        model.generation_config = GenerationConfig(eos_token_id=0)
        sampler = HFSampler(max_new_tokens=limit, batch_size=3)
        plan = draws(["x = 1\n", "a much longer prompt than the first\n"], 3)
        expected = sample(sampler, model, tokenizer, plan)
        shares, _ = tried(model)
        del model._ilf_tried
        prefill._tried.clear()
        monkeypatch.setattr(prefill, "capturable", lambda tensor: True)
        with uninitialized_memory_is_nan():
            assert sample(sampler, model, tokenizer, plan) == expected
        assert not shares or model._ilf_tried == (True, True)


def test_autocast_does_not_decide_whether_prompts_are_shared_without_it(monkeypatch):
    monkeypatch.setattr(prefill, "_tried", {})
    with torch.autocast("cpu", torch.bfloat16):
        assert tried(load_model(MINI, torch.float32).eval()) == (True, False)  # its logits differ by rounding only
    assert tried(load_model(MINI, torch.float32).eval()) == (True, False) and len(prefill._tried) == 2


def test_sampling_continues_if_cuda_graph_capture_fails(mini, monkeypatch, caplog):
    model, tokenizer, _ = mini
    sampler, plan = HFSampler(max_new_tokens=20), draws(PROMPTS, 2)
    expected = sample(sampler, model, tokenizer, plan)
    monkeypatch.setattr(model, "_ilf_tried", (True, True))
    monkeypatch.setattr(cuda_graphs, "capturable", lambda tensor: True)  # capture is tried, and fails without CUDA
    assert sample(sampler, model, tokenizer, plan) == expected
    assert "could not be captured" in caplog.text


def test_generation_config_of_a_model_folder_is_ignored(mini, tmp_path):
    model, tokenizer, _ = mini
    save(model, tokenizer, tmp_path / "m")
    GenerationConfig(do_sample=True, top_k=1, temperature=0.1, repetition_penalty=1.5).save_pretrained(tmp_path / "m")
    config = load_model(tmp_path / "m", torch.float32).generation_config
    assert (config.top_k, config.repetition_penalty) != (1, 1.5) and config.top_k is None


@pytest.mark.parametrize("change", ["missing", "of another shape"])
def test_missing_or_mismatched_weights_are_input_errors(tmp_path, change, small_stages):
    folder = tmp_path / "model"
    shutil.copytree(MINI, folder)
    tensors = load_file(MINI / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    if change == "of another shape":
        tensors["model.norm.weight"] = norm[:-1].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    message = r"\.path=.*but 1 are missing or of another shape: model\.norm\.weight"
    with pytest.raises(InputError, match="model" + message):
        load_model(folder, torch.float32)
    with pytest.raises(InputError, match="refiner" + message):
        small_stages("refiner=local", f"refiner.path={folder}").run()


def test_out_of_memory_halves_the_batch_and_keeps_the_samples(mini):
    model, tokenizer, _ = mini
    sampler = HFSampler(max_new_tokens=40)
    plan = draws(PROMPTS, 4)
    expected = sample(sampler, model, tokenizer, plan)

    def full(module, args, kwargs):
        if kwargs["input_ids"].shape[0] > 3:
            raise torch.OutOfMemoryError("out of memory")

    hook = model.register_forward_pre_hook(full, with_kwargs=True)
    assert sample(sampler, model, tokenizer, plan) == expected
    assert sampler.halvings == 2
    hook.remove()

    def broken(module, args, kwargs):
        raise RuntimeError("something else")

    hook = model.register_forward_pre_hook(broken, with_kwargs=True)
    with pytest.raises(RuntimeError, match="something else"):
        sample(sampler, model, tokenizer, plan)
    hook.remove()


def test_sampling_stops_at_the_end_of_the_function(mini):
    model, tokenizer, _ = mini
    calls = []
    hook = model.register_forward_hook(lambda *a: calls.append(1))
    list(HFSampler(max_new_tokens=500).sample(model, tokenizer, draws(PROMPTS, 4)))
    hook.remove()
    assert len(calls) < 100


@pytest.mark.parametrize("script", [False, True])
def test_decoding_only_at_line_ends_does_not_change_samples(mini, monkeypatch, script):
    model, tokenizer, _ = mini
    sampler = HFSampler(max_new_tokens=60, temperature=1.3, batch_size=30)  # a high temperature gives unusual endings
    plan = [replace(draw, script=script) for draw in draws(PROMPTS, 20)]
    asked = []
    text = Continuation.text
    monkeypatch.setattr(Continuation, "text", lambda self, tokens: asked.append(1) or text(self, tokens))
    found = sample(sampler, model, tokenizer, plan)
    few = len(asked)
    monkeypatch.setattr(hf, "ends_line", lambda tokenizer, token: True)
    assert sample(sampler, model, tokenizer, plan) == found
    assert 3 * few < len(asked) - few


def test_attention_implementations_agree_and_unsupported_ones_are_errors(mini, tmp_path):
    model, tokenizer, folder = mini
    tokenized = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    expected = model(**tokenized).logits[tokenized.attention_mask.bool()]
    for attention in ("eager", "sdpa"):
        other = load_model(folder, torch.float32, attention)
        assert other.config._attn_implementation == attention
        assert torch.allclose(other(**tokenized).logits[tokenized.attention_mask.bool()], expected, atol=1e-4)
    config = GPTNeoConfig(vocab_size=64, hidden_size=8, num_layers=2, attention_types=[[["global"], 2]], num_heads=2)
    GPTNeoForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"model\.attention='sdpa'.*GPTNeo.*model\.attention=auto"):
        load_model(tmp_path, torch.float32, "sdpa")


def adapted(folder, dtype, size):
    """Return a model with LoRA whose weights have random changes of a given size."""
    model = adapt(load_model(folder, dtype), lora())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, size)
    return model


def test_lora_is_saved_merged_and_as_an_adapter(mini, tmp_path):
    _, tokenizer, folder = mini
    model = adapted(folder, torch.float32, 0.1)
    ids = tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    expected = model.eval()(ids).logits
    save(model, tokenizer, tmp_path / "m")
    assert (tmp_path / "m" / "adapter" / "adapter_config.json").exists()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()(ids).logits
    assert torch.allclose(expected, merged, atol=1e-4)
    assert not torch.allclose(merged, load_model(folder, torch.float32)(ids).logits, atol=1e-2)


def test_an_adapter_of_a_16_bit_model_is_merged_in_float32(mini, tmp_path):
    _, tokenizer, folder = mini
    model = adapted(folder, torch.bfloat16, 1e-3)
    save(model, tokenizer, tmp_path / "m", torch.float32)
    base, merged = load_model(folder, torch.float32), load_model(tmp_path / "m", torch.float32)
    expected = PeftModel.from_pretrained(base, tmp_path / "m" / "adapter").merge_and_unload().state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in merged.state_dict().items())


@pytest.mark.parametrize("own", [{"target_modules": ["q_proj", "lm_head"]}, {"modules_to_save": ["embed_tokens"]}])
def test_adapting_one_of_two_layers_that_share_weights_is_an_error(own):
    assert load_model(MINI, torch.float32).config.tie_word_embeddings
    with pytest.raises(InputError, match="share their weights"):
        adapt(load_model(MINI, torch.float32), lora().having(**own))


@pytest.mark.parametrize("adapter", [None, lora()])
def test_saved_weights_are_merged_before_casting_and_must_not_overflow(adapter, mini, tmp_path):
    _, tokenizer, folder = mini
    model = adapt(load_model(folder, torch.float32), adapter)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 1e-2 * torch.randn(p.shape)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        save(copy.deepcopy(model), tokenizer, tmp_path / str(dtype), dtype)
    whole = load_file(tmp_path / "torch.float32" / "model.safetensors")
    for dtype in (torch.bfloat16, torch.float16):
        found = load_file(tmp_path / str(dtype) / "model.safetensors")
        assert found.keys() == whole.keys() and all(torch.equal(found[n], whole[n].to(dtype)) for n in whole)
        assert AutoModelForCausalLM.from_pretrained(tmp_path / str(dtype)).dtype == dtype
    with torch.no_grad():
        next(p for p in model.parameters() if not p.requires_grad or adapter is None)[0] = 1e5
    with pytest.raises(InputError, match=r"save\.dtype='float16'.*Use bfloat16"):
        save(model, tokenizer, tmp_path / "large", torch.float16)
    assert not (tmp_path / "large").exists()
