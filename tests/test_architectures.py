"""Sampling, memory plans, fine-tuning and saving of each architecture of a list.

The tests compare their findings with the table in docs/how-to/models.md.
"""

import math
from dataclasses import replace

import pytest
import torch
from architectures import ARCHITECTURES, config_of, folder_of, make_tokenizer, model_of, read_table
from conftest import ADAMW, ROOT, compose_settings, lora
from peft import PeftModel

from ilf.models.batches import choose
from ilf.models.folder import check_model
from ilf.models.load import adapt, load_model, save
from ilf.models.memory import FineTuning, fine_tuning, sampling
from ilf.models.onednn_linear import load_packed
from ilf.models.policy_change import perplexity
from ilf.models.prefill import joinable, read_beginning, tried
from ilf.models.targets import encode
from ilf.sampling import ContinuousSampler, HFSampler
from ilf.sampling.continuous import check_continuous
from ilf.training.dry_run import check_training
from ilf.training.ilf_module import ILFModule
from ilf.training.mbpp_datamodule import MBPPDataModule
from ilf.types import Draw, InputError, Splits

FAMILIES = pytest.mark.parametrize("family", ARCHITECTURES)
# Prompts of three lengths, and five draws for four rows, so that rows join and leave the batch.
PROMPTS = [
    "".join(f" t{7 * i % 290 + 3}" for i in range(start, start + length))
    for start, length in ((1, 3), (9, 7), (20, 14))
]
DRAWS = [Draw(t, "test", s, 7 * t + s, PROMPTS[t], "") for t, s in ((2, 0), (2, 1), (1, 0), (0, 0), (0, 1))]
TABLE = read_table(ROOT / "docs" / "how-to" / "models.md")
ADAPTERS = {"full": (None, None), "LoRA": (lora(), None), "QLoRA": (lora(), "nf4")}
SETTINGS = dict(zip(ADAPTERS, map(compose_settings, ("adapter=full", "adapter=lora", "adapter=qlora")), strict=True))
# Only the paged cache shows at the first prompt that it does not fit these.
REFUSED_LATER = {"BERT decoder", "DeepSeek-V3", "GPT-BigCode", "GPT-NeoX", "OPT", "RoBERTa decoder"}
STEPS = 10
SAMPLING = HFSampler(max_new_tokens=STEPS, batch_size=4)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@torch.inference_mode()
def sample_uncached(model, tokenizer, draw):
    """Return the start of a draw's program, sampled alone and without a cache.

    It ends where the random number is so close to the border between two tokens that rounding decides.
    """
    numbers = torch.rand(STEPS, generator=torch.Generator().manual_seed(draw.seed))
    prompt = tokenizer(draw.prompt, add_special_tokens=False).input_ids
    ids = list(prompt)
    for number in numbers:
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[:, -1]
        if (torch.softmax(logits / SAMPLING.temperature, -1).cumsum(-1) - number).abs().min() < 1e-5:
            break
        ids.append(int(choose(logits, number[None], SAMPLING.temperature)))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)


@FAMILIES
def test_samples_match_uncached_decoding(family, tokenizer):
    model = model_of(family)
    found = dict(SAMPLING.sample(model, tokenizer, DRAWS))
    expected = {draw: sample_uncached(model, tokenizer, draw) for draw in DRAWS}
    assert all(found[draw].startswith(text) for draw, text in expected.items())
    assert TABLE[family]["sampling"] == ("together" if joinable(model) else "a prompt at a time")
    assert len(set(found.values())) > 3 and sum(text.count(" ") for text in expected.values()) > 2 * STEPS


@FAMILIES
def test_samples_of_prompts_with_the_same_beginning_match_uncached_decoding(family, tokenizer):
    """If the model allows it, the beginning, such as worked examples, is read only once."""
    model = model_of(family)
    beginning = "".join(f" t{i}" for i in range(40, 75))
    draws = [replace(draw, prompt=beginning + draw.prompt) for draw in DRAWS]
    found = dict(SAMPLING.sample(model, tokenizer, draws))
    assert all(found[draw].startswith(sample_uncached(model, tokenizer, draw)) for draw in draws)
    prompts = [tuple(tokenizer(draw.prompt, add_special_tokens=False).input_ids) for draw in draws]
    with torch.inference_mode():
        shared = read_beginning(model, prompts)
    assert (shared is not None) == tried(model)[0]
    assert shared is None or shared.tokens == tuple(tokenizer(beginning, add_special_tokens=False).input_ids)


@FAMILIES
def test_perplexity_matches_a_full_forward_pass(family, tokenizer):
    model, texts = model_of(family), [(p, q) for p in PROMPTS[:2] for q in (" t9", " t8 t7 t200")]
    for found, (prompt, target) in zip(perplexity(model, tokenizer, texts, 1000), texts, strict=True):
        example = encode(tokenizer, 0, prompt, target, 1000)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*example.prompt_ids, *example.target_ids]]), use_cache=False).logits
        logs = torch.log_softmax(logits[0, len(example.prompt_ids) - 1 : -1], -1)
        own = torch.tensor(example.target_ids)
        *body, end = (-logs.gather(1, own[:, None])[:, 0]).tolist()
        assert found == pytest.approx((math.exp(sum(body) / len(body)), end), rel=1e-3)


@FAMILIES
def test_the_memory_plan_counts_memory_or_logs_that_it_cannot(family, caplog):
    """It counts the cache of models that sample several prompts together, and of the others logs that it can't."""
    config = config_of(family)
    drawing = sampling(config, SAMPLING, torch.float32, 4)
    training = fine_tuning(config, FineTuning(None, ADAMW, "32-true", 1, 4, False))
    model = model_of(family)
    assert training.parameters == sum(p.numel() * 4 for p in model.parameters())
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    packed = 4 * head.weight.numel() if head.weight is embeddings.weight and joinable(model) else 0
    assert drawing.parameters == training.parameters + packed
    counted = joinable(model_of(family)), "it is sampled" not in caplog.text
    assert counted[0] == counted[1] == (drawing.cache > 0)
    assert "it is fine-tuned" in caplog.text or training.activations > 2 * training.optimizer / 100


@FAMILIES
def test_packed_weights_match_the_logits_of_the_model(family, tmp_path):
    folder = folder_of(family, tmp_path)
    ids = torch.arange(3, 15).view(2, 6)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        own = load_model(folder, dtype)
        packed = load_packed(folder, dtype, torch.device("cpu"))
        linear = any(type(module) is torch.nn.Linear for module in own.modules())
        some = any(type(module).__name__ == "_PackedLinear" for module in packed.modules())
        assert some == (linear and joinable(own))
        with torch.inference_mode():
            expected, found = (one(input_ids=ids, use_cache=False).logits.float() for one in (own, packed))
        assert (found - expected).norm() <= tolerance * expected.norm()


def loss(model, tokenizer, examples):
    module = ILFModule(model, tokenizer)
    return module.losses(MBPPDataModule(tokenizer)._collate(examples)).mean()


@FAMILIES
def test_adapters_accepted_at_startup_can_be_trained_and_saved(family, tokenizer, tmp_path):
    """The table lists the others as refused."""
    folder = folder_of(family, tmp_path / "base")
    config, _ = check_model("model.path", folder)
    examples = [encode(tokenizer, i, PROMPTS[i], target, 100) for i, target in enumerate((" t9 t8", " t200 t44 t5"))]
    for name, adapter in ADAPTERS.items():
        try:
            check_training(SETTINGS[name], config, Splits((), (), ()))
        except InputError as error:
            assert error.args[0] == "adapter"
            assert TABLE[family][name] == "refused"
            continue
        assert TABLE[family][name] == "yes"
        check_training_and_saving(folder, adapter, tokenizer, examples, tmp_path / "tuned")


def check_training_and_saving(folder, adapter, tokenizer, examples, tuned):
    part, quantize = adapter
    model = adapt(load_model(folder, torch.float32, quantize=quantize), part).train()
    optimizer = ADAMW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        losses.append(loss(model, tokenizer, examples))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    save(model.eval(), tokenizer, tuned)
    if quantize:  # the adapter was trained on quantized weights; apply it to the original weights
        model = PeftModel.from_pretrained(load_model(folder, torch.float32), tuned / "adapter").eval()
    with torch.no_grad():
        found, expected = (float(loss(m, tokenizer, examples)) for m in (load_model(tuned, torch.float32), model))
    assert found == pytest.approx(expected, rel=1e-2)  # merging in 32 bits may change a choice of experts


@FAMILIES
def test_startup_accepts_or_refuses_continuous_batching_as_listed(family):
    if TABLE[family]["continuous"] == "yes" or family in REFUSED_LATER:
        check_continuous(config_of(family))
        return
    with pytest.raises(InputError, match=type(model_of(family)).__name__) as error:
        check_continuous(config_of(family))
    assert error.value.args[:2] == ("sampler", "continuous")


@pytest.mark.slow
@FAMILIES
def test_continuous_batching_matches_greedy_decoding_or_is_rejected(family, tokenizer):
    model, drawing = model_of(family), {"temperature": 1e-6, "max_new_tokens": STEPS, "batch_size": 2}
    expected = dict(HFSampler(**drawing).sample(model, tokenizer, DRAWS[:3]))
    try:
        check_continuous(model.config)
        found = dict(ContinuousSampler(**drawing).sample(model, tokenizer, DRAWS[:3]))
    except InputError as error:
        assert type(model).__name__ in str(error) and "sampler=hf" in str(error)
        assert TABLE[family]["continuous"] == "refused"
    else:
        assert found == expected and TABLE[family]["continuous"] == "yes"


def test_the_table_lists_each_family_once():
    assert list(TABLE) == list(ARCHITECTURES)
