"""The memory plan, compared with measured memory, and the checks that use it."""

import re
from dataclasses import replace

import bitsandbytes as bnb
import pytest
import torch
import warm
from bitsandbytes.functional import QuantState
from conftest import MINI, OPTIMIZERS, ROOT, compose_settings, lora
from transformers import AutoConfig, AutoModelForCausalLM, CodeGenConfig

from ilf.components import Component
from ilf.models import memory
from ilf.models.load import adapt, load_model
from ilf.models.memory import FineTuning, fine_tuning, sampling
from ilf.models.optimizer_state import optimizer_bytes
from ilf.resources import Budget
from ilf.sampling import HFSampler
from ilf.training.gpu_checks import CODEGEN_6B, run_checks
from ilf.types import InputError


def training_work(adapter=(None, None), optimizer="adamw", precision="32-true", rows=2, tokens=16, checkpointing=False):
    part, quantize = adapter
    return FineTuning(part, OPTIMIZERS[optimizer], precision, rows, tokens, checkpointing, quantize=quantize)


def size(tensors):
    return sum(t.numel() * t.itemsize for t in tensors)


FULL, QLORA = (None, None), (lora(16), "nf4")
ADAPTERS = {"full": FULL, "lora": (lora(), None), "nf4": QLORA, "int8": (lora(16), "int8")}


def whole(module):
    """Return the bytes of a module's parameters, including the scales of weights that bitsandbytes quantized."""
    total = size(module.parameters())
    for one in module.modules():
        if isinstance(one, bnb.nn.Linear4bit):
            total += scales(one.weight.quant_state)
        elif isinstance(one, bnb.nn.Linear8bitLt):
            total += size([one.weight.SCB if one.weight.SCB is not None else one.state.SCB])
    return total


def scales(state: QuantState):
    return size([state.code, state.absmax, state.offset, state.state2.absmax, state.state2.code])


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_planned_parameters_gradients_and_states_are_exact(adapter, optimizer):
    plan = fine_tuning(AutoConfig.from_pretrained(MINI), training_work(adapter, optimizer))
    part, quantize = adapter
    model = adapt(load_model(MINI, torch.float32, quantize=quantize), part)
    trained = [p for p in model.parameters() if p.requires_grad]
    made = OPTIMIZERS[optimizer](trained, lr=1e-3)
    model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    made.step()
    assert plan.parameters == whole(model)
    assert plan.gradients == size(p.grad for p in trained)
    states = [t for s in made.state.values() for n, t in s.items() if torch.is_tensor(t) and not n.startswith("qmap")]
    assert plan.optimizer == size(states) > 0


SHAPE = ["--rows", "8", "--tokens", "256", "--batch-size", "64", "--new-tokens", "16"]


@pytest.mark.slow
@pytest.mark.parametrize("work", ["sampling", "full"])
def test_the_plan_is_close_to_the_measured_peak(work, tmp_path):
    """The peak is the maximum resident set size of a separate process. The cache or activations dominate it."""
    done = warm.run(ROOT / "benchmarks" / "memory.py", [*SHAPE, "--only", work], tmp_path)
    measured, config = int(done.stdout.split()[-1]), AutoConfig.from_pretrained(MINI)
    if work == "sampling":
        plan = sampling(config, HFSampler(n=8, batch_size=64, max_new_tokens=16), torch.float32, 256)
        assert plan.cache > 0.5 * plan.total
    else:
        plan = fine_tuning(config, training_work(rows=8, tokens=256))
        assert plan.activations > 0.5 * plan.total
    assert 0.65 < plan.total / measured < 1.33  # the allocator's overhead varies between runs


@pytest.mark.slow
def test_the_plan_includes_the_memory_of_an_optimizer_step(tmp_path):
    """On a CPU, bitsandbytes dequantizes the states of the largest weight. Here, they are most of the memory."""
    config = CodeGenConfig(vocab_size=200_000, n_embd=64, n_layer=1, n_head=4, rotary_dim=8, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "wide")
    shape = ["--model", str(tmp_path / "wide"), "--rows", "1", "--tokens", "16", "--only", "full, adamw_8bit"]
    measured = int(warm.run(ROOT / "benchmarks" / "memory.py", shape, tmp_path).stdout.split()[-1])
    plan = fine_tuning(config, training_work(optimizer="adamw_8bit", rows=1))
    assert plan.activations > 0.5 * plan.total
    assert 0.65 < plan.total / measured < 1.33


def test_6b_model_fits_80_gb_with_full_fine_tuning_and_12_gb_with_qlora():
    eight_bit = fine_tuning(CODEGEN_6B, training_work(FULL, "adamw_8bit", "bf16-mixed", 1, 1024, True))
    assert 70e9 < eight_bit.total < 80e9
    assert fine_tuning(CODEGEN_6B, training_work(FULL, "adamw_8bit", "bf16-mixed", 1, 1024, False)).total > 85e9
    assert fine_tuning(CODEGEN_6B, training_work(QLORA, "adamw", "bf16-mixed", 1, 1024, True)).total < 12e9
    assert eight_bit.parameters == 4 * 7_064_213_504
    paged = fine_tuning(CODEGEN_6B, training_work(FULL, "paged_adamw_8bit", "bf16-mixed", 1, 64, True), device="cpu")
    assert paged.least == paged.total  # on a CPU, states can't be paged out
    assert optimizer_bytes(OPTIMIZERS["paged_adamw_8bit"], [torch.empty(4095)]) == 8 * 4095


TOO_LARGE = {
    "sampling": ["sampler.batch_size=4000"],
    "fine-tuning the policy": ["training.micro_batch_size=4000", "training.policy.batch_size=4000"],
    "asking the LLM": [
        *("feedback=llm", f"llm.model={MINI}", "llm.shots=0", "llm.parallel=4000", "llm.max_tokens=64"),
        "data.limit.train=null",  # the plan counts no more questions than tasks
    ],
}


@pytest.mark.parametrize("work", TOO_LARGE)
def test_a_run_that_exceeds_memory_is_an_error_that_suggests_settings(work, small_stages, caplog, monkeypatch):
    monkeypatch.setattr("ilf.resources.device_memory", lambda trainer: ("a small machine", 2 * 10**9))
    overrides = ["data.limit.train=8", "training.validate_n=0", *TOO_LARGE[work]]
    with pytest.raises(InputError, match=rf"memory='refuse': {work} needs .* GB at its peak") as error:
        small_stages(*overrides)
    fitting = re.findall(r"(?:fit: |; )(.+?) \([\d.]+ GB\)", str(error.value))
    assert fitting, error.value
    small_stages(*overrides, *fitting[0].split())  # the suggested settings fit
    if work != "fine-tuning the policy":
        with caplog.at_level("WARNING"):
            small_stages(*overrides, "memory=warn")
        assert f"memory=warn: {work} needs" in caplog.text and "refuse" not in caplog.text


def test_pair_objectives_and_teachers_add_to_the_planned_memory():
    config = AutoConfig.from_pretrained(MINI)

    def needs(*overrides):
        budget = Budget(compose_settings("training.validate_n=0", *overrides), config, 50)
        return {need.work: need for need in budget.needs()}

    policy, refiner = "fine-tuning the policy", "fine-tuning the refiner"
    rows = ["training.micro_batch_size=2"]
    plain, pairs, twice = needs(*rows), needs(*rows, "objective=dpo"), needs("training.micro_batch_size=4")
    assert pairs[policy] == twice[policy] and pairs[refiner] == plain[refiner]
    taught = needs(*rows, "objective=self_distillation")[policy]
    alone = needs(*rows, "objective=self_distillation", "objective.teacher=policy")[policy]
    assert taught.parameters >= 2 * alone.parameters and taught.gradients == alone.gradients


@pytest.mark.parametrize(("trainer", "optimizer"), [("ddp", "adamw"), ("ddp", "adamw_8bit"), ("fsdp", "adamw")])
def test_suggested_settings_are_valid_with_several_processes(trainer, optimizer, monkeypatch):
    """bitsandbytes does not support sharded models, so trainer=fsdp is not suggested with its optimizers."""
    own = ["training.validate_n=0", f"trainer={trainer}", f"optimizer={optimizer}"]
    for variable in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(variable, "2")
    budget = Budget(compose_settings(*own), AutoConfig.from_pretrained(MINI), 50)
    advice = re.findall(r"(?:fit: |; )(.+?) \([\d.]+ GB\)", budget.advice("fine-tuning the policy", int(1e9)))
    for fitting in advice:
        compose_settings(*own, *fitting.split())  # raises if the suggestion is invalid
    assert advice and any("trainer=fsdp" in one for one in advice) == ((trainer, optimizer) == ("ddp", "adamw"))


def test_the_plan_of_sampling_includes_a_larger_saved_refiner(tmp_path):
    config = AutoConfig.from_pretrained(MINI)
    larger = AutoConfig.from_pretrained(MINI, num_hidden_layers=4 * config.num_hidden_layers)
    larger.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")

    def need(*own):
        return Budget(compose_settings("refiner=local", f"refiner.path={tmp_path}", *own), config, 50).needs(
            "sampling"
        )[0]

    assert need().parameters > 2 * need("stages=[sample,zero_shot]").parameters


def test_the_plan_of_several_processes_has_buckets_and_shards(monkeypatch):
    config = AutoConfig.from_pretrained(MINI)

    def need(trainer, *own):
        budget = Budget(compose_settings("training.validate_n=0", f"trainer={trainer}", *own), config, 50)
        return budget.needs("fine-tuning the policy")[0]

    single = need("auto")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert need("ddp").total == single.total + single.gradients
    # To be sampled, a sharded model is gathered, and a quantized one stays quantized.
    many = ["training.validate_n=1", "sampler.batch_size=2000"]
    assert need("fsdp").parameters < single.parameters <= need("fsdp", *many).parameters
    assert need("ddp", "adapter=qlora", *many).parameters == need("ddp", "adapter=qlora").parameters


def test_only_optimizers_that_need_it_have_memory_for_their_step_on_a_gpu(monkeypatch):
    step = memory._optimizer_step
    monkeypatch.setattr(memory, "_optimizer_step", lambda how, trained, device: step(how, trained, "cuda"))
    config = AutoConfig.from_pretrained(MINI)
    adamw = training_work(FULL, tokens=2)
    sgd, adafactor = (
        replace(adamw, optimizer=Component(f"torch.optim.{name}", {"lr": 1e-3}, True)) for name in ("SGD", "Adafactor")
    )
    whole = fine_tuning(config, adamw)
    assert whole.activations == whole.gradients  # square roots of all states
    assert max(fine_tuning(config, sgd).activations, fine_tuning(config, adafactor).activations) < whole.activations
    shard = fine_tuning(config, adamw, shards=4)
    assert shard.activations < whole.activations and 4 * shard.optimizer >= whole.optimizer


def test_smaller_settings_need_less_and_only_requested_work_is_planned(monkeypatch):
    config = AutoConfig.from_pretrained(MINI)

    def needs(*overrides):
        found = Budget(compose_settings(*overrides), config, 50).needs()
        return {need.work: need.total for need in found}

    whole = needs()
    assert list(whole) == ["sampling", "fine-tuning the refiner", "fine-tuning the policy"]
    assert list(needs("stages=[sample]")) == ["sampling"] and list(needs("refinements=none")) == ["sampling"]
    small = needs("training.gradient_checkpointing=true", "optimizer=adamw_8bit", "sampler.batch_size=20")
    assert all(small[work] < whole[work] for work in whole)
    assert list(needs("sampler=openai", "sampler.url=http://localhost:1/v1")) == list(whole)[1:]
    monkeypatch.setenv("WORLD_SIZE", "4")  # FSDP divides the 16 bytes per parameter among processes
    parts = Budget(compose_settings("trainer=fsdp"), config, 50).needs("fine-tuning the policy")[0]
    assert 4 * parts.parameters == 4 * sum(p.numel() for p in load_model(MINI, torch.float32).parameters())
    # Fine-tuning includes the sampling of validation programs, next to the optimizer states.
    assert needs("training.validate_n=1", "sampler.batch_size=2000")["fine-tuning the policy"] > whole["sampling"]


@pytest.mark.slow
def test_gpu_checks_run_and_report_failures(small_stages, tmp_path, cli):
    """The checks run on the CPU with a small model, which uses too little memory for the memory checks to pass."""
    small = CodeGenConfig(vocab_size=1280, n_embd=64, n_layer=2, n_head=4, rotary_dim=8, n_positions=256, n_ctx=256)
    qlora = training_work(QLORA, tokens=32, checkpointing=True)
    trainings = {"broken": replace(qlora, attention="none such"), "qlora": qlora}
    drawing, ran = HFSampler(n=2, batch_size=4, max_new_tokens=8), []

    def study():
        ran.append(small_stages().run())
        return ran[0]

    folder = tmp_path / "checks"
    options = {"device": "cpu", "config": small, "trainings": trainings, "drawing": drawing, "prompt": 16}
    page, passed = run_checks(MINI, folder, study, **options)
    assert not passed and (folder / "checks.md").read_text() == page and not (folder / "large").exists()
    lines = {line.split(" | ")[0].strip("| "): line for line in page.splitlines()[6:]}
    assert "| broken | FAILED | error" in lines["broken"] and "none such" in lines["broken"]
    planned = [
        line for name, line in lines.items() if name in (f"{w}: memory as planned" for w in ("sampling", "qlora"))
    ]
    assert len(planned) == 2 and all("plan GB" in line and "tokens/s" in line for line in planned)
    assert "passed" in lines["resume from a checkpoint"] and "passed" in lines["a study on mini"]
    assert f"{ran[0]['finetuned']['pass@1']:.3g}" in lines["a study on mini"]
    if not torch.cuda.is_available():
        done = cli("experiment=gpu/checks", f"hydra.run.dir={tmp_path / 'run'}")
        assert done.returncode != 0 and "error: trainer.accelerator='gpu'" in done.stderr
