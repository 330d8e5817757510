"""The Lightning classes without Hydra, settings or store: they behave as Lightning users expect."""

import json
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from conftest import MINI, ROOT, lora

from ilf.components import Component
from ilf.models.load import adapt, load_model, load_tokenizer
from ilf.sampling import HFSampler
from ilf.tasks import MBPP, Mini
from ilf.tasks.data import Limit
from ilf.training import ILFModule, MBPPDataModule, UnitTestCallback
from ilf.types import InputError

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(scope="module")
def cells():
    found = {}
    for cell in json.loads((ROOT / "docs" / "lightning.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), found)
    return found


def test_notebook_runs_and_evaluates_every_test_task(cells):
    assert {"train_policy/pass@1", "train_policy/pass@2"} == set(cells["tested"])
    assert {"train_policy/validation_pass@1", "train_policy/validation_pass@2"} == set(cells["validated"])
    assert len(cells["judge"].programs) == sum(len(batch["completions"]) for batch in cells["predictions"]) == 12
    rows = [json.loads(line) for line in (cells["folder"] / "programs.jsonl").read_text().splitlines()]
    assert {row["task_id"] for row in rows} == {
        task.task_id for task in cells["data"].tasks.values() if task.split == "test"
    }


def test_checkpoint_restores_the_modules_hyperparameters(cells):
    again = cells["again"]
    assert isinstance(again.sampler, HFSampler) and again.sampler.max_new_tokens == 64
    assert again.hparams["optimizer"]["lr"] == 2e-4 and again.hparams["model"] == cells["model"]


def fit(trainer, **module):
    data = MBPPDataModule(MINI, data=Mini(limit=Limit(test=1, refine=1, train=7)), batch_size=2, micro_batch_size=2)
    torch.manual_seed(0)
    own = {"sampler": HFSampler(max_new_tokens=4), "optimizer": partial(torch.optim.SGD, lr=1e-2), "scheduler": None}
    module = ILFModule(MINI, **own | module)
    trainer = pl.Trainer(callbacks=[UnitTestCallback()], enable_checkpointing=False, **QUIET, **trainer)
    trainer.fit(module, data)
    return module, trainer


@pytest.mark.parametrize(
    ("trainer", "steps"),
    [
        ({"fast_dev_run": True}, 1),
        ({"max_epochs": None, "max_steps": 3}, 3),
        ({"max_epochs": 2, "limit_train_batches": 2}, 4),
        ({"max_epochs": 1, "accumulate_grad_batches": 2}, 2),
        ({"max_epochs": 1, "precision": "bf16-mixed", "limit_val_batches": 0}, 4),
    ],
)
def test_trainer_arguments_determine_the_number_of_steps(trainer, steps):
    assert fit(trainer)[1].global_step == steps


def test_gradient_accumulation_matches_a_larger_batch():
    """With SGD without momentum, a step on the mean of two batches of two equals a step on a batch of four."""

    def weights(batch_size, accumulated):
        data = MBPPDataModule(MINI, data=Mini(limit=Limit(train=8, refine=1, test=1)), batch_size=batch_size)
        own = {"optimizer": partial(torch.optim.SGD, lr=1e-2), "scheduler": None}
        module = ILFModule(MINI, sampler=HFSampler(max_new_tokens=4), **own)
        trainer = pl.Trainer(
            max_epochs=1, accumulate_grad_batches=accumulated, limit_val_batches=0, enable_checkpointing=False, **QUIET
        )
        trainer.fit(module, data)
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    assert torch.allclose(weights(4, 1), weights(2, 2), atol=1e-6)
    assert not torch.allclose(weights(4, 1), weights(2, 1), atol=1e-6)


def test_the_trainer_clips_gradients():
    free, clipped = fit({"max_steps": 1})[0], fit({"max_steps": 1, "gradient_clip_val": 1e-6})[0]
    start = load_model(MINI, torch.float32).state_dict()
    moved = [
        sum(float((p - start[n.removeprefix("model.")]).norm()) for n, p in one.named_parameters())
        for one in (free, clipped)
    ]
    assert moved[0] > 100 * moved[1] > 0


def test_data_module_applies_the_settings_of_the_data(mbpp_file):
    def targets(**own):
        data = MBPPDataModule(MINI, data=MBPP(path=str(mbpp_file), **own))
        data.setup("fit")
        return {example.task_id: tuple(example.target_ids) for example in data.contents.training}

    usual = targets()
    assert usual.keys() - targets(near_duplicates="drop").keys() >= {347, 411}
    assert all(targets(**own) != usual for own in ({"reindent": True}, {"newlines": "published"}))


def test_schedule_without_an_end_of_training_is_an_error():
    with pytest.raises(InputError, match="sets no end to the training"):
        fit({"max_epochs": -1}, scheduler=Component("ilf.training.schedules.linear"))


def test_checkpoint_of_a_model_object_holds_only_trained_weights(tmp_path):
    net = adapt(load_model(MINI, torch.float32), lora())
    module = ILFModule(net, load_tokenizer(MINI), sampler=HFSampler(max_new_tokens=4))
    data = MBPPDataModule(MINI, data=Mini(limit=Limit(test=1, refine=1, train=2)))
    trainer = pl.Trainer(
        max_steps=1, limit_val_batches=0, default_root_dir=tmp_path, enable_checkpointing=False, **QUIET
    )
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "lora.ckpt")
    other = adapt(load_model(MINI, torch.float32), lora())
    loaded = ILFModule.load_from_checkpoint(tmp_path / "lora.ckpt", model=other, tokenizer=load_tokenizer(MINI))
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    saved = torch.load(tmp_path / "lora.ckpt")
    assert saved["state_dict"].keys() == trained.keys() and "model" not in saved["hyper_parameters"]
    assert trained and all(torch.equal(p, dict(loaded.named_parameters())[n]) for n, p in trained.items())
