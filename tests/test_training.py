import re

import pytest
import pytorch_lightning as pl
import torch
from conftest import ADAMW, CPU, MINI, OPTIMIZERS, lora, wrong_programs
from hypothesis import given
from hypothesis import strategies as st

from ilf.components import Component
from ilf.feedback.scripted import annotate
from ilf.models.load import adapt, load_model, load_tokenizer
from ilf.models.targets import encode
from ilf.tasks import mini
from ilf.tasks.mbpp import tasks_from
from ilf.training.fine_tuning import LINEAR
from ilf.training.ilf_module import ILFModule
from ilf.training.mbpp_datamodule import Contents, MBPPDataModule, micro_batches, plan_draws
from ilf.training.refine_module import RefineModule
from ilf.training.stage_jobs import _Rows
from ilf.training.trainer import make_trainer
from ilf.types import Example, Feedback, InputError, Refinement, Task

FULL, NF4, INT8 = (None, None), (lora(), "nf4"), (lora(), "int8")  # adapter, and quantization of the base model
TASK = Task(311, "train", "t", "def f(x):\n    return 1", "f", ("assert f(1) == 1",), "", '"""\nt\n"""\n\ndef f(x):\n')


@pytest.fixture(scope="module")
def folder():
    return MINI


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


def examples(tokenizer, n):
    rows = [Refinement(i, TASK.prompt, f"    return {'x + ' * (i % 4)}{i}", "gold") for i in range(n)]
    return [ILFModule.example(tokenizer, row, 1024) for row in rows]


def fit(
    folder,
    tokenizer,
    n=10,
    epochs=2,
    batch_size=4,
    micro=4,
    checkpoints=None,
    resume=None,
    optimizer="adamw",
    adapter=FULL,
    lr=1e-3,
    scheduler=LINEAR,
    trainer=CPU,
    compile=False,
):
    torch.manual_seed(0)
    part, quantize = adapter
    model = adapt(load_model(folder, torch.float32, quantize=quantize), part)
    module = ILFModule(
        model,
        tokenizer,
        None,
        (OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer).having(lr=lr),
        scheduler,
    ).train()
    if compile:
        module.compile_forward()
    data = MBPPDataModule(tokenizer, Contents(examples(tokenizer, n)), batch_size=batch_size, micro_batch_size=micro)
    trainer = make_trainer(trainer, epochs=epochs, checkpoints=checkpoints)
    trainer.fit(module, data, ckpt_path=resume)
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]), trainer


def test_loss_covers_only_target_tokens_including_eos(folder, tokenizer):
    model = load_model(folder, torch.float32)
    module = ILFModule(model, tokenizer)
    data = MBPPDataModule(tokenizer)
    rows = examples(tokenizer, 3)
    batch = data._collate(rows)
    for example, loss in zip(rows, module.losses(batch).tolist(), strict=True):
        ids = torch.tensor([[*example.prompt_ids, *example.target_ids]])
        logs = torch.log_softmax(model(ids).logits[0], -1)
        assert example.target_ids[-1] == tokenizer.eos_token_id
        start = len(example.prompt_ids)
        expected = -sum(logs[i - 1, ids[0, i]] for i in range(start, ids.shape[1])) / len(example.target_ids)
        assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
    batch["labels"][1] = -100
    with pytest.raises(ValueError, match="without a target"):
        module.losses(batch)


def test_encode_rejects_rows_longer_than_max_length(tokenizer):
    length = len(tokenizer("abc").input_ids) + len(tokenizer("xyz").input_ids) + 1
    assert encode(tokenizer, 1, "abc", "xyz", length).target_ids[-1] == tokenizer.eos_token_id
    with pytest.raises(ValueError, match="max_length"):
        encode(tokenizer, 1, "abc", "xyz", length - 1)


def test_micro_batch_size_does_not_affect_the_trained_weights(folder, tokenizer, monkeypatch):
    """Ten examples in steps of four: the last step of each epoch has two. With padding, eight fit one forward pass."""
    whole, trainer = fit(folder, tokenizer, micro=4)
    for micro in (1, 3):
        parts, _ = fit(folder, tokenizer, micro=micro)
        assert torch.allclose(whole, parts, atol=2e-5)
    assert trainer.global_step == 6
    assert not torch.allclose(whole, fit(folder, tokenizer, epochs=1)[0], atol=1e-4)
    single, _ = fit(folder, tokenizer, n=8, batch_size=8, micro=1)
    monkeypatch.setattr("ilf.training.mbpp_datamodule.PADDING", 1.0)
    padded, _ = fit(folder, tokenizer, n=8, batch_size=8, micro=8)
    assert torch.allclose(single, padded, atol=2e-5) and not torch.equal(single, padded)


def check_micro_batches(rows, size):
    groups = micro_batches(rows, size)
    assert sorted(map(id, rows)) == sorted(id(row) for group in groups for row in group)
    for group in groups:
        assert len(group) <= size
        tokens = len(group) * max(row.length for row in group)
        assert 20 * (tokens - sum(row.length for row in group)) <= tokens  # 5%
    return groups


@given(st.lists(st.integers(1, 1024), max_size=64), st.integers(1, 16))
def test_micro_batches_have_at_most_five_percent_padding(lengths, size):
    groups = check_micro_batches([Example(i, (), (0,) * n) for i, n in enumerate(lengths)], size)
    if len(set(lengths)) == 1:  # as few micro-batches as possible
        assert len(groups) == -(-len(lengths) // size)


def test_training_on_mini_has_at_most_five_percent_padding(tokenizer):
    tasks = [task for task in tasks_from(mini.rows(), None, "paper")[0] if 111 <= task.task_id <= 310]
    by_id = {task.task_id: task for task in tasks}
    feedback = annotate(wrong_programs(tasks), by_id, mini.specifications(), 0)
    rows = [RefineModule.example(tokenizer, f, by_id[f.task_id], 512, 1024) for f in feedback]
    data = MBPPDataModule(tokenizer, Contents(rows), batch_size=32, micro_batch_size=8)
    steps = list(data.train_dataloader())
    masks = [part["attention_mask"] for step in steps for part in step]
    assert 1 - sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks) <= 0.05
    assert len(rows) > 150 and len(masks) < len(rows) / 2  # single examples would have no padding either
    for step in steps:
        assert sum(len(part["labels"]) * float(part["share"]) for part in step) == pytest.approx(1)


def test_training_lowers_the_loss(folder, tokenizer):
    _, before = fit(folder, tokenizer, epochs=1)
    _, after = fit(folder, tokenizer, epochs=12)
    assert after.callback_metrics["train_policy/loss"] < 0.5 * before.callback_metrics["train_policy/loss"]


@pytest.mark.parametrize(
    ("optimizer", "adapter"), [("adamw", FULL), ("adamw_8bit", FULL), ("paged_adamw_8bit", NF4), ("adamw", INT8)]
)
def test_resumed_training_matches_uninterrupted_training(folder, tokenizer, tmp_path, optimizer, adapter):
    options = {"optimizer": optimizer, "adapter": adapter}
    uninterrupted, _ = fit(folder, tokenizer, epochs=3, **options)

    class Stop(Exception):
        pass

    original = ILFModule.on_train_epoch_start

    def killed(self):
        original(self)
        if self.current_epoch == 2:
            raise Stop

    ILFModule.on_train_epoch_start = killed
    try:
        with pytest.raises(Stop):
            fit(folder, tokenizer, epochs=3, checkpoints=tmp_path, **options)
    finally:
        del ILFModule.on_train_epoch_start
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    assert sum(tensor.numel() for tensor in saved.values()) == uninterrupted.numel()  # only trainable parameters
    resumed, _ = fit(folder, tokenizer, epochs=3, checkpoints=tmp_path, resume="last", **options)
    assert torch.equal(uninterrupted, resumed)
    assert not torch.equal(uninterrupted, fit(folder, tokenizer, epochs=1, **options)[0])


def gradients(folder, tokenizer, adapter, **options):
    """Return the gradients of one batch, and the number of forward passes of the first layer."""
    torch.manual_seed(0)
    part, quantize = adapter
    model = adapt(load_model(folder, torch.float32, quantize=quantize), part)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:  # initially zero, which would make the gradients of lora_A zero
                p.normal_(0, 0.1)
    module = ILFModule(model, tokenizer, **options).train()
    module.setup("fit")
    calls = []
    layer = next(m for n, m in model.named_modules() if n.endswith("layers.0.mlp"))
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    torch.manual_seed(1)
    module.losses(MBPPDataModule(tokenizer)._collate(examples(tokenizer, 3), 3)).sum().backward()
    return [p.grad for p in model.parameters() if p.requires_grad], len(calls)


@pytest.mark.parametrize("adapter", [FULL, (lora(lora_dropout=0.5), None), NF4, INT8])
def test_gradient_checkpointing_recomputes_layers_with_equal_gradients(folder, tokenizer, adapter):
    kept, once = gradients(folder, tokenizer, adapter)
    again, twice = gradients(folder, tokenizer, adapter, gradient_checkpointing=True)
    assert (once, twice) == (1, 2) and all(bool(g.any()) for g in kept)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def test_compiling_changes_neither_parameter_names_nor_weights(folder, tokenizer, tmp_path):
    """The compiler takes minutes and is not run here; benchmarks/training.py runs it."""
    weights, plain = fit(folder, tokenizer, n=6, epochs=1)
    with torch.compiler.set_stance("force_eager"):
        compiled, trainer = fit(folder, tokenizer, n=6, epochs=1, compile=True, checkpoints=tmp_path)
    assert torch.equal(weights, compiled)
    assert trainer.lightning_module.state_dict().keys() == plain.lightning_module.state_dict().keys()
    names = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"].keys()
    assert names == {name for name, _ in plain.lightning_module.named_parameters()}


def test_each_epoch_has_every_example_once_in_a_new_order(tokenizer):
    data = MBPPDataModule(tokenizer, Contents(examples(tokenizer, 11)), batch_size=4, micro_batch_size=2)
    orders = []
    for epoch in range(2):
        data.trainer = type("T", (), {"current_epoch": epoch, "global_rank": 0, "world_size": 1})()
        steps = list(data.train_dataloader())
        orders.append([{tuple(row[row != -100].tolist()) for b in step for row in b["labels"]} for step in steps])
        assert [sum(len(b["labels"]) for b in step) for step in steps] == [4, 4, 3]
        # Each example has the same weight in the gradient, and an equal share of its step's mean loss.
        assert {float(b["weight"]) for step in steps for b in step} == {1 / 4}
        assert [round(1 / float(b["share"])) for step in steps for b in step[-1:]] == [4, 4, 3]
        # The micro-batch size does not affect which examples a step has.
        data.micro_batch_size = 1
        assert orders[-1] == [
            {tuple(b["labels"][0][b["labels"][0] != -100].tolist()) for b in step} for step in data.train_dataloader()
        ]
    assert set.union(*orders[0]) == set.union(*orders[1]) and len(set.union(*orders[0])) == 11
    assert orders[0] != orders[1]


def test_examples_of_a_short_last_step_have_the_same_weight(folder, tokenizer):
    """Of 5 examples in steps of 4, the last one would otherwise have four times the weight of the others."""
    once = {
        "epochs": 1,
        "optimizer": Component("torch.optim.SGD"),
        "scheduler": None,
        "trainer": CPU.without("gradient_clip_val"),
    }
    start, _ = fit(folder, tokenizer, n=1, lr=1e-30, **once)
    moved = {size: fit(folder, tokenizer, n=5, batch_size=size, lr=1e-3, **once)[0] - start for size in (4, 5)}
    # To first order, both are the same sum over the examples, divided by the batch size.
    assert float((4 * moved[4] - 5 * moved[5]).norm() / (5 * moved[5]).norm()) < 0.1


def test_a_warmup_longer_than_training_is_an_error(folder, tokenizer):
    with pytest.raises(InputError, match=r"scheduler\.num_warmup_steps=7.*6"):
        fit(folder, tokenizer, scheduler=LINEAR.having(num_warmup_steps=7))


def test_divergence_is_an_error_with_the_step_and_learning_rate(folder, tokenizer):
    what = r"the (loss|gradient norm) of optimizer step \d+ is (nan|inf)"
    with pytest.raises(InputError, match=rf"training\.policy\.lr=1e\+30: the training diverged: {what}.*Lower"):
        fit(folder, tokenizer, n=4, epochs=2, lr=1e30)


def test_non_finite_weights_after_the_last_step_are_an_error(folder, tokenizer, monkeypatch):
    step = torch.optim.AdamW.step

    def step_with_inf(self, closure=None):
        done = step(self, closure)
        self.param_groups[0]["params"][-1].data.view(-1)[3] = torch.inf
        return done

    monkeypatch.setattr(torch.optim.AdamW, "step", step_with_inf)
    with pytest.raises(InputError, match=r"training\.policy\.lr=0\.001.*after the last step, 1 weights are not finite"):
        fit(folder, tokenizer, n=4, epochs=1)


def test_an_interrupted_checkpoint_write_keeps_the_previous_checkpoint(folder, tokenizer, tmp_path, monkeypatch):
    fit(folder, tokenizer, epochs=1, checkpoints=tmp_path)
    before = (tmp_path / "last.ckpt").read_bytes()

    def partial_save(checkpoint, file):
        file.write(before[:1000])
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", partial_save)
    with pytest.raises(SystemExit):  # Lightning converts the KeyboardInterrupt
        fit(folder, tokenizer, epochs=2, checkpoints=tmp_path, resume=str(tmp_path / "last.ckpt"))
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_a_training_that_a_callback_stopped_is_not_continued(folder, tokenizer, tmp_path):
    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            trainer.should_stop = True

    def run(resume=None):
        torch.manual_seed(0)
        module = ILFModule(load_model(folder, torch.float32), tokenizer, optimizer=ADAMW.having(lr=1e-3)).train()
        data = MBPPDataModule(tokenizer, Contents(examples(tokenizer, 8)), batch_size=4)
        trainer = make_trainer(CPU, epochs=5, callbacks=[] if resume else [Stop()], checkpoints=tmp_path)
        trainer.fit(module, data, ckpt_path=resume)
        return trainer.global_step, {**module.earlier["metrics"]}, module.model.state_dict()

    steps, _, stopped = run()
    again, metrics, resumed = run(str(tmp_path / "last.ckpt"))
    assert steps == again == 2 and "train_policy/loss" in metrics
    assert all(torch.equal(resumed[name], weights) for name, weights in stopped.items())


def test_16_bit_training_does_not_round_rotary_frequencies(folder, tokenizer):
    """Evaluation reads the frequencies in 32 bits."""
    model = load_model(folder, torch.float32)
    expected = {name: buffer.clone() for name, buffer in model.named_buffers()}
    module = ILFModule(model, tokenizer)
    data = MBPPDataModule(tokenizer, Contents(examples(tokenizer, 2)), batch_size=2)
    trainer = make_trainer(CPU.having(precision="bf16-true"), epochs=1)
    trainer.fit(module, data)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    found = dict(model.named_buffers())
    assert expected and all(torch.equal(found[name], expected[name]) for name in expected)


def test_fine_tuning_logs_its_progress(folder, tokenizer, monkeypatch, caplog):
    monkeypatch.setattr("ilf.training.fine_tuning.EVERY", 0.0)
    with caplog.at_level("INFO"):
        fit(folder, tokenizer)
    matches = [re.search(r"train_policy: (\d) of (\d) steps, loss \d+\.\d{3}", line) for line in caplog.messages]
    assert [found.groups() for found in matches if found] == [(str(step), "6") for step in range(1, 7)]


def test_gradients_of_a_fused_optimizer_are_clipped_in_mixed_precision(folder, tokenizer):
    clipping = CPU.having(precision="bf16-mixed", gradient_clip_val=1e-4)
    first, second = (
        fit(folder, tokenizer, optimizer=ADAMW.having(fused=fused), trainer=clipping)[0] for fused in (True, None)
    )
    assert torch.allclose(first, second, atol=1e-5)
    unclipped = fit(folder, tokenizer, trainer=CPU.having(precision="bf16-mixed"))[0]
    assert not torch.allclose(first, unclipped, atol=1e-4)


def test_metrics_that_json_can_not_represent_are_left_out(tmp_path):
    rows = _Rows(tmp_path / "metrics.jsonl")
    rows.log_metrics({"own": float("nan"), "large": float("inf"), "loss": torch.tensor(0.5)}, 3)
    assert rows.rows.read() == [{"step": 3, "metrics": {"loss": 0.5}}]


def test_max_time_does_not_replace_the_number_of_epochs():
    assert make_trainer(CPU.having(max_time="00:00:01:00"), epochs=3).max_epochs == 3


@pytest.mark.parametrize(
    ("warmup", "shares"),
    [
        (0, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]),
        (2, [0, 1 / 2, 1, 3 / 4, 1 / 2, 1 / 4, 0]),
        (6, [0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 0]),
    ],
)
def test_learning_rate_warms_up_linearly_and_decays_to_zero(folder, tokenizer, warmup, shares):
    schedule = LINEAR.having(num_warmup_steps=warmup)
    module = ILFModule(folder, tokenizer, optimizer=ADAMW.having(lr=1e-3), scheduler=schedule)
    module.trainer = type("T", (), {"estimated_stepping_batches": 6})()
    found = module.configure_optimizers()
    optimizer, schedule = found["optimizer"], found["lr_scheduler"]["scheduler"]
    found = []
    for _ in shares:
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert found == pytest.approx([1e-3 * share for share in shares])


def test_refiner_examples_truncate_old_code_and_train_on_the_prompt(tokenizer):
    x0 = TASK.prompt + "    y = 0\n" * 200 + "    return 0"
    feedback = Feedback(311, "train", x0, "Return one.", "human", TASK.prompt + "    return 1")
    prompt = RefineModule.prompt(tokenizer, feedback, TASK, 60)
    assert prompt.startswith("OLD CODE:\n" + TASK.prompt) and prompt.endswith("REFINEMENT:\n" + TASK.prompt)
    assert "FEEDBACK:\nReturn one.\n\n" in prompt
    assert len(tokenizer(prompt.split("\n\nFEEDBACK")[0]).input_ids) < 80
    example = RefineModule.example(tokenizer, feedback, TASK, 60, 1024)
    assert tokenizer.decode(example.prompt_ids).endswith("REFINEMENT:\n")
    assert tokenizer.decode(example.target_ids[:-1]) == TASK.prompt + "    return 1"


def test_draws_get_distinct_seeds_per_stage_run_seed_and_sample(tokenizer):
    plan = plan_draws([(TASK, TASK.prompt)], "sample", 4, 0)
    seeds = {
        d.seed for stage in ("sample", "evaluate") for seed in (0, 1) for d in plan_draws([(TASK, "p")], stage, 4, seed)
    }
    assert len(seeds) == 16 and [d.seed for d in plan] == [d.seed for d in plan_draws([(TASK, "q")], "sample", 4, 0)]
    many = plan_draws([(TASK, TASK.prompt)], "sample", 20, 0)  # a batch holds eight times sampling_batch_size
    batches = MBPPDataModule(tokenizer, sampling_batch_size=1).draw_batches(many)
    assert [d.sample for b in batches for d in b] == list(range(20)) and [len(b) for b in batches] == [8, 8, 4]
