import copy
import math
import shutil
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from conftest import MINI, lora
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
    """The completions, in the order of the plan."""
    found = dict(sampler.sample(model, tokenizer, plan))
    return [found[draw] for draw in plan]


def test_a_sample_depends_on_its_seed_and_not_on_its_neighbours(mini):
    """Nor on how many go on at once: with 5 places, 18 draws of prompts of three lengths come and go."""
    model, tokenizer, _ = mini
    plan = draws(PROMPTS, 6)
    together = sample(HFSampler(max_new_tokens=40), model, tokenizer, plan)
    few = HFSampler(max_new_tokens=40, batch_size=5)
    assert together == sample(few, model, tokenizer, plan) == sample(few, model, tokenizer, plan[::-1])[::-1]
    assert together == [sample(few, model, tokenizer, [draw])[0] for draw in plan]
    assert together != sample(few, model, tokenizer, draws(PROMPTS, 6, seed=1))
    assert len(set(together)) > 3


def test_a_program_that_is_cut_off_may_end_while_nearly_all_others_go_on(mini):
    """A long one, and twenty-two short ones of which half begin where the others end: it reaches the bound alone."""
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


def test_a_prompt_is_prefilled_once_and_waiting_draws_take_the_places_of_finished_ones(mini):
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
    # Each step goes on with four while draws wait; one at a time after the other would take the longest of each four.
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


def test_near_temperature_zero_we_give_what_generate_gives_greedily(mini):
    """Left padding, positions, sliding windows, the shared prefill, leaving and joining rows change nothing."""
    _, tokenizer, _ = mini
    for model in models():
        model = model.eval()
        model.generation_config = GenerationConfig(eos_token_id=0)
        sampler = HFSampler(temperature=1e-6, max_new_tokens=12, batch_size=3)
        prompts = ["x = 1\n", "a much longer prompt than the first\n"]
        found = sample(sampler, model, tokenizer, draws(prompts, 2))
        for text, prompt in zip(found[::2], prompts, strict=True):
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            greedy = model.generate(ids, do_sample=False, max_new_tokens=12, pad_token_id=0)[0, ids.shape[1] :]
            assert tokenizer.decode(greedy, skip_special_tokens=True).startswith(text)
        assert found[0] == found[1] and found[2] == found[3]


@contextmanager
def uninitialised_memory_is_no_number():
    torch.use_deterministic_algorithms(True)  # which fills it so
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("limit", [12, 150])  # within the room that a batch has for new tokens, and beyond
def test_steps_on_memory_that_stays_give_the_same_samples(mini, limit, monkeypatch):
    """A GPU captures them; here they run as they are captured."""
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
        with uninitialised_memory_is_no_number():
            assert sample(sampler, model, tokenizer, plan) == expected
        assert not shares or model._ilf_tried == (True, True)


def test_a_step_that_a_gpu_can_not_capture_is_computed_without(mini, monkeypatch, caplog):
    model, tokenizer, _ = mini
    sampler, plan = HFSampler(max_new_tokens=20), draws(PROMPTS, 2)
    expected = sample(sampler, model, tokenizer, plan)
    monkeypatch.setattr(model, "_ilf_tried", (True, True))
    monkeypatch.setattr(cuda_graphs, "capturable", lambda tensor: True)  # there is no CUDA to capture anything
    assert sample(sampler, model, tokenizer, plan) == expected
    assert "could not be captured" in caplog.text


def test_a_publishers_generation_settings_are_dropped(mini, tmp_path):
    model, tokenizer, _ = mini
    save(model, tokenizer, tmp_path / "m")
    GenerationConfig(do_sample=True, top_k=1, temperature=0.1, repetition_penalty=1.5).save_pretrained(tmp_path / "m")
    config = load_model(tmp_path / "m", torch.float32).generation_config
    assert (config.top_k, config.repetition_penalty) != (1, 1.5) and config.top_k is None


@pytest.mark.parametrize("change", ["missing", "of another shape"])
def test_weights_that_a_folder_lacks_are_an_error_and_never_random_numbers(tmp_path, change, small_stages):
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


def test_when_memory_runs_out_half_as_many_go_on_and_the_samples_stay(mini):
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


def test_sampling_stops_where_the_function_ends(mini):
    model, tokenizer, _ = mini
    calls = []
    hook = model.register_forward_hook(lambda *a: calls.append(1))
    list(HFSampler(max_new_tokens=500).sample(model, tokenizer, draws(PROMPTS, 4)))
    hook.remove()
    assert len(calls) < 100


@pytest.mark.parametrize("script", [False, True])
def test_samples_are_the_same_where_their_text_is_asked_after_each_token(mini, monkeypatch, script):
    model, tokenizer, _ = mini
    sampler = HFSampler(max_new_tokens=60, temperature=1.3, batch_size=30)  # so hot that much ends oddly
    plan = [replace(draw, script=script) for draw in draws(PROMPTS, 20)]
    asked = []
    text = Continuation.text
    monkeypatch.setattr(Continuation, "text", lambda self, tokens: asked.append(1) or text(self, tokens))
    found = sample(sampler, model, tokenizer, plan)
    few = len(asked)
    monkeypatch.setattr(hf, "ends_line", lambda tokenizer, token: True)
    assert sample(sampler, model, tokenizer, plan) == found
    assert 3 * few < len(asked) - few


def test_implementations_of_attention_agree_and_one_that_a_model_lacks_is_named(mini, tmp_path):
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


def test_lora_is_saved_merged_and_apart(mini, tmp_path):
    _, tokenizer, folder = mini
    model = adapt(load_model(folder, torch.float32), lora())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.1)
    ids = tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    expected = model.eval()(ids).logits
    save(model, tokenizer, tmp_path / "m")
    assert (tmp_path / "m" / "adapter" / "adapter_config.json").exists()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()(ids).logits
    assert torch.allclose(expected, merged, atol=1e-4)
    assert not torch.allclose(merged, load_model(folder, torch.float32)(ids).logits, atol=1e-2)


@pytest.mark.parametrize("adapter", [None, lora()])
def test_weights_are_merged_before_they_are_cast(adapter, mini, tmp_path):
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
