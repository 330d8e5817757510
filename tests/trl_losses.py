"""Prints trl_losses.json: the losses that TRL computes on a batch, for test_objectives.py. Needs `pip install trl`.

    python tests/trl_losses.py > tests/trl_losses.json

The policy is the mini model with all weights multiplied by SCALE. The reference is the mini model itself.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

MINI = str(Path(__file__).parent.parent / "src" / "ilf" / "models" / "mini")
SCALE = 1.05
ROWS = [
    ("def f(x):\n", "    return x + 1\n", "    return x\n"),
    ("def total(xs):\n", "    out = 0\n    for x in xs:\n        out += x\n    return out\n", "    return len(xs)\n"),
    ("def g(n):\n", "    return n % 2 == 0\n", "    return n % 2\n"),
    ("def last(xs):\n", "    return xs[-1]\n", "    return xs[0]\n    # first\n"),
]


def models():
    policy, reference = (AutoModelForCausalLM.from_pretrained(MINI, dtype=torch.float32).eval() for _ in range(2))
    with torch.no_grad():
        for p in policy.parameters():
            p.mul_(SCALE)
    return policy, reference


def texts(batch):
    """Return (prompt ids, target ids) of each row of a TRL batch."""
    found = []
    for ids, mask, target in zip(batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True):
        tokens = ids[mask.bool()].tolist()
        count = int(target.sum())
        found.append([tokens[:-count], tokens[-count:]])
    return found


def loss_of(trainer, batch):
    trainer.model.eval()
    with torch.no_grad():
        return float(trainer._compute_loss(trainer.model, dict(batch), False))


def args(config, folder, **more):
    return config(folder, per_device_train_batch_size=8, report_to="none", use_cpu=True, bf16=False, **more)


def dpo(folder):
    rows = Dataset.from_list([dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in ROWS])
    found, batch = {}, None
    for name, more in {
        "sigmoid": {"beta": 0.1, "loss_type": ["sigmoid"]},
        "sigmoid, beta 0.5": {"beta": 0.5, "loss_type": ["sigmoid"]},
        "sigmoid_norm": {"beta": 2.0, "loss_type": ["sigmoid_norm"]},
    }.items():
        policy, reference = models()
        trainer = trl.DPOTrainer(
            policy,
            reference,
            args=args(trl.DPOConfig, folder, **more),
            train_dataset=rows,
            processing_class=AutoTokenizer.from_pretrained(MINI),
        )
        batch = next(iter(trainer.get_train_dataloader()))
        found[name] = loss_of(trainer, batch)
    made = texts(batch)
    return {"chosen": made[: len(ROWS)], "rejected": made[len(ROWS) :], "losses": found}


def kto(folder):
    rows = [(p, c, True) for p, c, _ in ROWS] + [(p, r, False) for p, _, r in ROWS[:2]]
    data = Dataset.from_list([dict(zip(("prompt", "completion", "label"), row, strict=True)) for row in rows])
    policy, reference = models()
    trainer = trl.KTOTrainer(
        policy,
        reference,
        args=args(trl.KTOConfig, folder, beta=0.3, desirable_weight=1.0, undesirable_weight=1.5),
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(MINI),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    other = {name.removeprefix("KL_"): value for name, value in batch.items() if name.startswith("KL_")}
    labels = torch.as_tensor(batch["label"]).bool().tolist()
    return {"texts": texts(batch), "unrelated": texts(other), "desirable": labels, "loss": loss_of(trainer, batch)}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        found = {"trl": trl.__version__, "scale": SCALE, "dpo": dpo(scratch), "kto": kto(scratch)}
    json.dump(found, sys.stdout)
