"""LoRA on a quantized base model: layers, training, sampling and saving. test_training.py tests resuming."""

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from conftest import MINI
from peft import PeftModel
from test_training import INT8, NF4, fit
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from ilf.models.load import adapt, load_model, load_tokenizer, save
from ilf.sampling import HFSampler
from ilf.types import Draw

IDS = torch.arange(100, 130)[None]
NF4_AND_INT8 = pytest.mark.parametrize("adapter", [NF4, INT8], ids=["nf4", "int8"])


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(MINI)


def linears(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, Linear4bit | Linear8bitLt)}


def values(module):
    """Return the dequantized weights of a layer, and the bytes of their quantized form with its scales."""
    weight = module.weight
    if isinstance(module, Linear8bitLt):
        scale = module.state.SCB if weight.SCB is None else weight.SCB  # per row
        return weight.data * scale[:, None] / 127, weight.nbytes + scale.nbytes
    state = weight.quant_state
    kept = weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    return dequantize_4bit(weight.data, state), kept


@NF4_AND_INT8
def test_all_linear_layers_except_the_output_are_quantized_and_frozen(adapter):
    base = dict(load_model(MINI, torch.float32).named_modules())
    model = adapt(load_model(MINI, torch.float32, quantize=adapter[1]), adapter[0])
    found = linears(model)
    assert len(found) == 7 * base["model"].config.num_hidden_layers
    error, bits = (0.1, 4.2) if adapter is NF4 else (0.01, 8.5)  # with the scales, which nf4 quantizes, too
    for name, module in found.items():
        assert module.weight.dtype == (torch.uint8 if adapter is NF4 else torch.int8)
        original = base[name.removeprefix("base_model.model.").removesuffix(".base_layer")].weight
        kept, size = values(module)
        assert 0 < (kept - original).norm() < error * original.norm()
        assert size * 8 < bits * original.numel()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert model.lm_head.weight.dtype == torch.float32


@NF4_AND_INT8
def test_training_lowers_the_loss_keeps_the_base_and_saves_float32(adapter, tokenizer, tmp_path):
    _, before = fit(MINI, tokenizer, epochs=1, adapter=adapter)
    _, after = fit(MINI, tokenizer, epochs=8, adapter=adapter)
    assert after.callback_metrics["train_policy/loss"] < 0.7 * before.callback_metrics["train_policy/loss"]
    model = after.lightning_module.model
    untrained = linears(load_model(MINI, torch.float32, quantize=adapter[1]))
    for name, module in linears(model).items():
        same = untrained[name.removeprefix("base_model.model.").removesuffix(".base_layer")]
        assert torch.equal(module.weight.data, same.weight.data)

    draws = [Draw(1, "test", i, i, "def f(x):\n", "def f(x):\n") for i in range(3)]
    texts = dict(HFSampler(max_new_tokens=8).sample(model.eval(), tokenizer, draws))
    assert len(set(texts.values())) > 1
    assert texts == dict(HFSampler(max_new_tokens=8).sample(model, tokenizer, draws))

    save(model, tokenizer, tmp_path / "policy")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert linears(saved) == {} and {p.dtype for p in saved.parameters()} == {torch.float32}
    base = load_model(MINI, torch.float32)
    untouched = base(IDS).logits
    apart = PeftModel.from_pretrained(base, tmp_path / "policy" / "adapter").eval()(IDS).logits
    assert torch.allclose(saved.eval()(IDS).logits, apart, atol=1e-4)
    assert not torch.allclose(untouched, apart, atol=0.1)
    original = load_model(MINI, torch.float32).state_dict()
    for name, p in saved.named_parameters():
        assert torch.equal(p, original[name]) != ("_proj" in name)  # only layers with LoRA changed


@NF4_AND_INT8
def test_sizes_not_divisible_by_the_block_size_are_quantized_correctly(adapter, tmp_path):
    torch.manual_seed(0)
    shape = {"hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=200, **shape)).save_pretrained(tmp_path)
    original = load_model(tmp_path, torch.float32)
    model = adapt(load_model(tmp_path, torch.float32, quantize=adapter[1]), adapter[0]).train()
    for name, module in linears(model).items():
        weight = original.get_submodule(name.removeprefix("base_model.model.").removesuffix(".base_layer")).weight
        assert (values(module)[0] - weight).norm() < 0.15 * weight.norm()
    model(IDS).logits.sum().backward()
    assert torch.allclose(model(IDS).logits, original(IDS).logits, atol=0.05)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_evaluation_does_not_repack_the_quantized_weights(monkeypatch):
    """On a CPU with AVX512-BF16, bitsandbytes repacks weights by default. The test simulates such a CPU on others."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    model = load_model(MINI, torch.float32, quantize="nf4")
    before = {name: values(module)[0] for name, module in linears(model).items()}
    with torch.no_grad():
        model.eval()(IDS)
    assert all(torch.equal(values(module)[0], before[name]) for name, module in linears(model).items())


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit"])
def test_8_bit_optimizers_keep_states_of_large_weights_in_uint8(optimizer, tokenizer):
    _, trainer = fit(MINI, tokenizer, epochs=1, optimizer=optimizer)
    (made,) = trainer.optimizers
    large = {p: state for p, state in made.state.items() if p.numel() >= 4096}
    assert made.is_paged == optimizer.startswith("paged") and len(large) == 36  # all weights except the norms
    assert all(state[key].dtype == torch.uint8 for state in large.values() for key in ("state1", "state2"))
