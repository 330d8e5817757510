import copy
import functools
import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import ADAMW, CPU, MINI, ROOT, SMALL, compose_settings
from hypothesis import given
from hypothesis import strategies as st

from ilf.cli.config import opened
from ilf.files import JsonLines
from ilf.measurements import with_reference
from ilf.models.load import load_model, load_tokenizer
from ilf.models.policy_change import target_logps
from ilf.models.targets import collate, encode
from ilf.models.tokens import encode_prompts
from ilf.protocols import TrainingData
from ilf.tasks.feedback_prompts import critique_prompt, refine_prompt
from ilf.training.ilf_module import ILFModule
from ilf.training.mbpp_datamodule import Contents, MBPPDataModule
from ilf.training.objectives import (
    DPO,
    KTO,
    SFT,
    Critique,
    FeedbackConditional,
    FocusedDPO,
    Multitask,
    RefinerDistillation,
    SelfDistillation,
    Weighted,
)
from ilf.training.objectives.preference import changed
from ilf.training.objectives.self_distillation import divergence
from ilf.training.trainer import make_trainer
from ilf.types import Example, Feedback, InputError, Program, Refinement, Task, Verdict

TRL = json.loads((ROOT / "tests" / "trl_losses.json").read_text())
NAMES = sorted(file.stem for file in (ROOT / "conf" / "objective").glob("*.yaml"))
OBJECTIVES = {
    "sft": SFT(),
    "dpo": DPO(sft_weight=0.5, label_smoothing=0.1),
    "dpo, length-normalized": DPO(length_normalised=True),
    "focused_dpo": FocusedDPO(sft_weight=0.1),
    "kto": KTO(sft_weight=0.2),
    "weighted": Weighted(baseline="group", negatives=2),
    "weighted, clipped": Weighted(baseline="group", negatives=2, clip=0.2),
    "critique": Critique(),
    "multitask": Multitask(explain=2.0),
    "feedback_conditional": FeedbackConditional(),
    "self_distillation": SelfDistillation(),
    "refiner_distillation": RefinerDistillation(alpha=1.0),
    "self_distillation, x1": SelfDistillation(context="refinement", alpha=0.0),
}


def test_every_objective_option_is_tested():
    assert {name.partition(",")[0] for name in OBJECTIVES} == set(NAMES)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(MINI)


def task(i):
    prompt = f'"""\nAdd {i}.\n"""\n\ndef f(x):\n'
    return Task(i, "train", f"Add {i}.", f"{prompt}    return x + {i}", "f", (f"assert f(0) == {i}",), "", prompt)


def program(i, sample, body, passed):
    prompt = task(i).prompt
    return Program(i, "train", sample, 0, prompt, body, prompt + body, Verdict("passed" if passed else "failed"))


def right(i):
    return f"    return x + {i}" if i % 2 else f"    y = x + {i}\n    return y"


BODIES = ["    return x", "    y = x\n    return y - 1", "    return 1 + x * 2"]


def data(tokenizer, count=5, **more):
    """Return a training set of `count` tasks with samples of the policy and of the refiner."""
    tasks = {i: task(i) for i in range(311, 311 + count)}
    rows = [
        Refinement(i, t.prompt, right(i), "model", "", f"It adds {i % 3}.", "human", t.prompt + BODIES[i % 3])
        for i, t in tasks.items()
    ]
    encoding = partial(encode, tokenizer, max_length=1024)

    def prompt(row):
        return refine_prompt(Feedback(row.task_id, "train", row.wrong_program, row.feedback, "human"), row.prompt)

    given = {
        "rows": rows,
        "samples": {i: [program(i, s, BODIES[s], False) for s in range(3)] for i in tasks},
        "refinements": {i: [program(i, 0, right(i), True), program(i, 1, f"    return x - {i}", False)] for i in tasks},
        "tasks": tasks,
        "seed": 0,
        "example": lambda row: ILFModule.example(tokenizer, row, 1024),
        "encode": lambda i, prompt, target: encoding(i, prompt, target),
        "prompt_ids": lambda text: tuple(encode_prompts(tokenizer, [text])[0]),
        "old_code": lambda text: text,
        "refine_prompt": prompt,
        "max_length": 1024,
        "rejected": [],
    }
    return TrainingData(**given | more)


MODEL = functools.cache(lambda: load_model(MINI, torch.float32).eval())


def policy(scale=1.0):
    model = copy.deepcopy(MODEL())
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale)
    return model


def add_reference(examples, model, tokenizer):
    """Return examples with reference log-probabilities, as `with_reference` does, but without a run."""

    def given(example):
        (logps,) = target_logps(model, tokenizer, [example], 4096)
        return replace(example, reference=tuple(logps), other=example.other and given(example.other))

    return [given(example) for example in examples]


def examples_of(objective, tokenizer, **more):
    made = objective.examples(data(tokenizer, **more))
    return add_reference(made, policy(), tokenizer) if objective.needs_reference else made


class SingleProcessModule:
    """The interface of a module that objectives use, for one process."""

    device = torch.device("cpu")

    def __init__(self, model):
        self.model = model

    def logits(self, batch, keep):
        return self.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, -keep:]

    def teacher_logits(self, batch, keep):
        with torch.no_grad():
            return self.logits(batch, keep)

    def average(self, value):
        return value


def losses(objective, model, examples, tokenizer, size=None):
    """Return the losses of a step's examples, in micro-batches of `size`."""
    size = size or len(examples)
    parts = [collate(examples[i : i + size], tokenizer.pad_token_id) for i in range(0, len(examples), size)]
    parts = [part | {"share": torch.tensor(1 / len(examples))} for part in parts]
    module = SingleProcessModule(model)
    objective.before_step(module, parts)
    return torch.cat([objective.losses(module, part) for part in parts])


# ---- all objectives --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_do_not_depend_on_padding_or_micro_batches(name, tokenizer):
    objective, model = OBJECTIVES[name], policy(1.02)
    examples = examples_of(objective, tokenizer)
    assert len({e.length for e in examples}) > 1  # some are padded
    whole = losses(objective, model, examples, tokenizer)
    assert whole.shape == (len(examples),)
    for size in (1, 3):
        assert torch.allclose(whole, losses(objective, model, examples, tokenizer, size), atol=1e-4)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_are_summed_in_32_bits_if_16_bits_are_the_default(name, tokenizer):
    """Lightning sets the default dtype to bfloat16 with trainer.precision=bf16-true."""
    objective, model = OBJECTIVES[name], policy(1.02)
    examples = examples_of(objective, tokenizer)
    expected = losses(objective, model, examples, tokenizer)
    part = collate(examples, tokenizer.pad_token_id) | {"share": torch.tensor(1 / len(examples))}
    torch.set_default_dtype(torch.bfloat16)
    try:
        objective.before_step(SingleProcessModule(model), [part])
        found = objective.losses(SingleProcessModule(model), part)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32 and torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_match_finite_differences(name, tokenizer):
    """Compare along a random direction, in double precision.

    Values that the objective treats as constant stay constant here, too.
    """
    objective = OBJECTIVES[name]
    examples, model = examples_of(objective, tokenizer, count=3), policy(1.02).double()
    generator = torch.Generator().manual_seed(0)
    parameter = model.model.layers[2].mlp.down_proj.weight
    direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    part = collate(examples, tokenizer.pad_token_id) | {"share": torch.tensor(1 / len(examples))}
    module = SingleProcessModule(model)
    objective.before_step(module, [part])
    held, read = {}, module.teacher_logits
    module.teacher_logits = lambda *what: held.setdefault("teacher", read(*what))

    def loss():
        return objective.losses(module, part).double().mean()

    value = loss()
    (gradient,) = torch.autograd.grad(value, parameter)
    step, found = 1e-4, []
    for sign in (1, -1):
        with torch.no_grad():
            parameter += sign * step * direction
        with torch.enable_grad():
            found.append(float(loss().detach()))
        with torch.no_grad():
            parameter -= sign * step * direction
    expected = (found[0] - found[1]) / (2 * step)
    assert expected != 0 and float((gradient * direction).sum()) == pytest.approx(expected, rel=0.02, abs=1e-4)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_targets_end_with_the_eos_token(name, tokenizer):
    for example in examples_of(OBJECTIVES[name], tokenizer):
        unrelated = isinstance(OBJECTIVES[name], KTO)
        for text in (example, example.other):
            assert text is None or unrelated or text.target_ids[-1] == tokenizer.eos_token_id
        assert example.target_ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_lowers_the_loss_with_one_step_per_batch(name, tokenizer):
    objective = OBJECTIVES[name]
    examples = examples_of(objective, tokenizer)
    module = ILFModule(policy(), tokenizer, None, ADAMW.having(lr=1e-4), None, objective).train()
    contents = MBPPDataModule(tokenizer, Contents(examples), batch_size=len(examples), micro_batch_size=2)
    before = losses(objective, module.model, examples, tokenizer).mean()
    trainer = make_trainer(CPU, epochs=4)
    trainer.fit(module, contents)
    assert trainer.global_step == 4
    assert losses(objective, module.model, examples, tokenizer).mean() < before


# ---- single objectives -----------------------------------------------------------------------------------------------


def as_example(pair, **more):
    return Example(311, tuple(pair[0]), tuple(pair[1]), **more)


@pytest.mark.parametrize(
    ("name", "objective"),
    [("sigmoid", DPO()), ("sigmoid, beta 0.5", DPO(beta=0.5)), ("sigmoid_norm", DPO(beta=2.0, length_normalised=True))],
)
def test_dpo_loss_matches_trl(name, objective, tokenizer):
    pairs = zip(TRL["dpo"]["chosen"], TRL["dpo"]["rejected"], strict=True)
    examples = [as_example(chosen, other=as_example(rejected)) for chosen, rejected in pairs]
    found = losses(objective, policy(TRL["scale"]), add_reference(examples, policy(), tokenizer), tokenizer)
    assert float(found.detach().mean()) == pytest.approx(TRL["dpo"]["losses"][name], rel=1e-3)


def test_kto_loss_matches_trl(tokenizer):
    kto = TRL["kto"]
    rows = zip(kto["texts"], kto["unrelated"], kto["desirable"], strict=True)
    examples = [as_example(text, value=1.0 if good else -1.5, other=as_example(other)) for text, other, good in rows]
    found = losses(KTO(beta=0.3), policy(TRL["scale"]), add_reference(examples, policy(), tokenizer), tokenizer)
    assert float(found.detach().mean()) == pytest.approx(kto["loss"], rel=1e-3)


def test_preference_losses_of_an_unchanged_policy_are_constants(tokenizer):
    """If the weights have not changed, every ratio is 1 for any beta."""
    for objective, expected in ((DPO(beta=3.0), math.log(2)), (FocusedDPO(), math.log(2)), (KTO(), 0.5)):
        examples = [replace(e, value=math.copysign(1, e.value)) for e in examples_of(objective, tokenizer)]
        found = losses(objective, policy(), examples, tokenizer)
        assert torch.allclose(found, torch.full_like(found, expected), atol=1e-4)


def test_label_smoothing_mixes_in_the_loss_of_swapped_pairs(tokenizer):
    examples, model = examples_of(DPO(), tokenizer), policy(1.03)
    swapped = [replace(e.other, other=replace(e, other=None)) for e in examples]
    plain, other = (losses(DPO(), model, rows, tokenizer) for rows in (examples, swapped))
    found = losses(DPO(label_smoothing=0.2), model, examples, tokenizer)
    assert torch.allclose(found, 0.8 * plain + 0.2 * other, atol=1e-4)


@pytest.mark.parametrize("kind", [DPO, FocusedDPO, partial(KTO, desirable_weight=2.0)])
def test_sft_weight_adds_the_sft_loss_of_the_correct_programs(kind, tokenizer):
    examples, model = examples_of(kind(), tokenizer), policy(1.03)
    both, one = (losses(kind(sft_weight=weight), model, examples, tokenizer) for weight in (0.7, 0.0))
    sft = losses(SFT(), model, [replace(e, value=1.0, other=None, focus=None) for e in examples], tokenizer)
    correct = [e.value > 0 for e in examples]
    assert set(correct) == ({True} if isinstance(kind(), DPO) else {True, False})
    assert torch.allclose(both - one, 0.7 * sft * torch.tensor(correct), atol=1e-4)


@given(st.lists(st.integers(1, 5), max_size=12), st.lists(st.integers(1, 5), max_size=12))
def test_changed_marks_tokens_in_both_texts_iff_they_differ(new, old):
    new_marks, old_marks = changed([*new, 9], [*old, 9])
    assert (any(new_marks) or any(old_marks)) == (new != old)
    if new != old:  # both texts have marked tokens
        assert any(new_marks) and any(old_marks)
    assert new != old or not any((*new_marks, *old_marks))


def test_focused_dpo_ignores_tokens_that_both_programs_share(tokenizer):
    rows = [replace(data(tokenizer).rows[0], wrong_program=task(311).prompt + "    return x")]
    (pair,) = FocusedDPO().examples(data(tokenizer, rows=rows))
    assert focused_text(tokenizer, pair) == " + 311" and focused_text(tokenizer, pair.other) == tokenizer.eos_token
    made = FocusedDPO().examples(data(tokenizer))
    assert sum(sum(e.focus) for e in made) < sum(len(e.target_ids) for e in made)
    everything = [focused_on_all(e, other=focused_on_all(e.other)) for e in made]
    model, reference = policy(1.03), policy()
    whole = losses(FocusedDPO(), model, add_reference(everything, reference, tokenizer), tokenizer)
    assert torch.allclose(whole, losses(DPO(), model, examples_of(DPO(), tokenizer), tokenizer), atol=1e-4)


def focused_on_all(text, **more):
    return replace(text, focus=(True,) * len(text.target_ids), **more)


def focused_text(tokenizer, text):
    return tokenizer.decode([token for token, counts in zip(text.target_ids, text.focus, strict=True) if counts])


def test_kto_uses_each_distinct_program_once_and_balances_both_kinds(tokenizer):
    found = KTO().examples(data(tokenizer))
    texts = [(e.task_id, tokenizer.decode(e.target_ids), e.value > 0) for e in found]
    assert len(set(texts)) == len(texts)
    counts = [sum(good == passed for *_, good in texts) for passed in (True, False)]
    assert counts == [5, 20]  # the refiner's correct program is the same as the row's
    assert sum(e.value for e in found) == pytest.approx(0)
    assert len(KTO(programs=1).examples(data(tokenizer))) == 10
    assert all(e.other.prompt_ids == e.prompt_ids and e.other.target_ids != e.target_ids for e in found)


def test_the_default_weighted_objective_equals_sft(tokenizer):
    plain, weighted = (objective.examples(data(tokenizer)) for objective in (SFT(), Weighted()))
    assert plain == weighted
    model = policy(1.03)
    assert torch.equal(*(losses(objective, model, plain, tokenizer) for objective in (SFT(), Weighted())))


def test_advantages_are_rewards_minus_the_mean_reward(tokenizer):
    some = {i: [program(i, 0, BODIES[0], False), program(i, 1, BODIES[1], True)] for i in range(311, 316)}
    values = {e.value for e in Weighted(negatives=5).examples(data(tokenizer, samples=some))}
    assert values == {0.5, -0.5}
    grouped = Weighted(baseline="group", negatives=1).examples(data(tokenizer))  # 1 of 5 passes
    assert sorted({round(e.value, 6) for e in grouped}) == [-0.2, 0.8] and len(grouped) == 10


def test_clipping_stops_updates_only_for_tokens_beyond_the_range(tokenizer):
    text = [Example(1, (5, 6), (7, 8, 0), reference=(-1.0, -1.0, -1.0))]

    class Fixed:
        def __init__(self, ratios):
            self.logps = (torch.tensor(ratios).log() - 1).requires_grad_()

        def logits(self, batch, keep):
            logits = torch.full((1, 5, 9), -30.0)
            for place, (token, logp) in enumerate(zip((7, 8, 0), self.logps, strict=True)):
                logits[0, 1 + place, token] = logp
                logits[0, 1 + place, 4] = torch.log1p(-logp.exp())
            return logits[:, -keep:]

    ratios = [1.5, 1.1, 0.5]
    for advantage, moving in ((1.0, [False, True, True]), (-1.0, [True, True, False])):
        module = Fixed(ratios)
        batch = collate([replace(text[0], value=advantage)], 0)
        loss = Weighted(clip=0.2).losses(module, batch)
        loss.sum().backward()
        expected = [min(r * advantage, max(0.8, min(1.2, r)) * advantage) for r in ratios]
        assert float(loss.detach()) == pytest.approx(-sum(expected) / 3, rel=1e-3)
        assert [bool(g.abs() > 1e-6) for g in module.logps.grad] == moving


def test_critique_and_multitask_train_on_feedback_after_x0(tokenizer):
    for example, row in zip(Critique().examples(data(tokenizer)), data(tokenizer).rows, strict=True):
        assert tokenizer.decode(example.prompt_ids) == critique_prompt(row.wrong_program)
        assert tokenizer.decode(example.target_ids[:-1]) == row.feedback
    made = Multitask(explain=2.0).examples(data(tokenizer))
    assert len(made) == 15 and sum(e.value for e in made) == pytest.approx(15)
    row = data(tokenizer).rows[0]
    assert tokenizer.decode(made[2].target_ids[:-1]) == f"{row.feedback}\n\nREFINEMENT:\n{row.prompt}{row.target}"
    alone = Multitask(explain=0.0, explain_and_refine=0.0).examples(data(tokenizer))
    assert alone == SFT().examples(data(tokenizer))


def test_feedback_conditional_trains_and_samples_after_praise(tokenizer):
    objective = FeedbackConditional(praise="Well done.")
    right, wrong = objective.examples(data(tokenizer))[:2]
    one = task(311)
    assert tokenizer.decode(right.prompt_ids) == objective.prompt(one) == f"FEEDBACK:\nWell done.\n\n{one.prompt}"
    assert tokenizer.decode(wrong.prompt_ids) == f"FEEDBACK:\nIt adds 2.\n\n{one.prompt}"
    assert tokenizer.decode(wrong.target_ids[:-1]) == BODIES[311 % 3]


def test_feedback_conditional_rejects_rows_that_the_feedback_makes_too_long(tokenizer):
    whole = FeedbackConditional().examples(data(tokenizer))
    longest = max(e.length for e in whole)
    found = FeedbackConditional().examples(given := data(tokenizer, max_length=longest - 1))
    assert 0 < len(found) < len(whole) and all(e.length < longest for e in found)
    assert len(given.rejected) == (len(whole) - len(found)) / 2
    assert f"{longest} tokens with the feedback; training.max_length is {longest - 1}" in given.rejected[0]


def test_self_distillation_is_zero_if_the_teacher_reads_the_same_text(tokenizer):
    same = [replace(e, other=replace(e, other=None)) for e in SelfDistillation().examples(data(tokenizer))]
    assert torch.allclose(losses(SelfDistillation(), policy(), same, tokenizer), torch.zeros(5), atol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_divergence_matches_hand_computed_values(alpha):
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    m = (1 - alpha) * p + alpha * q

    def kl(a, b):
        return float((a * (a / b).log()).sum())

    expected = {0.0: kl(q, p), 1.0: kl(p, q)}.get(alpha, (1 - alpha) * kl(p, m) + alpha * kl(q, m))
    assert float(divergence(p.log(), q.log(), alpha)) == pytest.approx(expected, rel=1e-4)


# ---- unusable rows and missing requirements --------------------------------------------------------------------------


def test_dpo_replaces_an_unusable_x0_by_a_sample_of_the_policy(tokenizer):
    rows = [replace(row, wrong_program="def f(:") for row in data(tokenizer).rows]
    found = data(tokenizer, rows=rows)
    made = DPO().examples(found)
    assert len(made) == 5 and not found.rejected
    none = data(tokenizer, rows=rows, samples={})
    assert DPO().examples(none) == [] and len(none.rejected) == 5 and "no incorrect program" in none.rejected[0]


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if OBJECTIVES[name].needs_feedback])
def test_rows_and_arms_without_feedback_are_rejected(name, tokenizer):
    rows = [replace(row, feedback="", wrong_program=None) for row in data(tokenizer).rows]
    found = data(tokenizer, rows=rows, samples={})
    assert OBJECTIVES[name].examples(found) == [] and len(found.rejected) == 5
    option = name.partition(",")[0]
    for arm in ("refinements=self", "feedback=none"):
        with pytest.raises(InputError, match=rf"objective='{option}': needs feedback on each training program.*{arm}"):
            compose_settings(f"objective={option}", arm)


FEW = ["measure=[]", "data.limit.test=2", "data.limit.train=16", "training.validate_n=0", "training.epochs=1"]
COMMON = ("sample", "annotate", "train_refiner", "refine")  # stages before the training of the policy


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Return the override for a store with the common stages, and the tasks that the refiner solves."""
    folder = tmp_path_factory.mktemp("shared")
    own = [
        f"store.dir={folder / 'store'}",
        f"output_dir={folder / 'run'}",
        "logger=none",
        f"stages=[{','.join(COMMON)}]",
    ]
    with opened(compose_settings(*SMALL, *FEW, *own)) as stages:
        stages.run()
    rows = JsonLines(folder / "run" / "programs" / "refinements.jsonl").read()
    return own[0], sorted({row["task_id"] for row in rows if row["verdict"] == "passed"})


@pytest.mark.parametrize("name", NAMES)
def test_each_objective_trains_on_the_tasks_that_the_refiner_solves(name, small_stages, shared):
    store, solved = shared
    results = small_stages(store, *FEW, f"objective={name}").run()
    assert results["objective"] == name and results["status"] == "complete" and not results["rejected"]
    assert set(COMMON) <= set(results["seconds"]["reused"])
    assert results["training_task_ids"] == solved != []


def test_reference_log_probabilities_are_computed_once_and_stored(small_stages, shared, monkeypatch):
    shared_store, _ = shared
    stages = small_stages(shared_store, "objective=dpo", *FEW)
    stages.run()
    monkeypatch.setattr("ilf.measurements.target_logps", lambda *_: pytest.fail("computed again"))
    again = small_stages(shared_store, "objective=dpo", "objective.beta=0.3", *FEW)
    assert again.run()["status"] == "complete"
    rows = stages.settings.objective.examples(data(stages.tokenizer, count=1))
    monkeypatch.undo()
    (found,) = with_reference(stages.settings, stages.runner, stages.model, rows)
    assert len(found.reference) == len(found.target_ids) and len(found.other.reference) == len(found.other.target_ids)
