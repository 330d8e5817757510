"""Examples per second and peak memory of fine-tuning: ours, and transformers' Trainer as the authors set it up.

    python benchmarks/training.py                                                      # mini
    python benchmarks/training.py --model FOLDER --mbpp mbpp.jsonl --annotations FILE  # any model, people's refinements
    python benchmarks/training.py --ours adapter=lora --ours adapter=qlora training.gradient_checkpointing=true

The authors use micro-batches of one example, padded to the full length, with gradient accumulation up to the batch
size; `unpadded` is the same without the padding. Ours trains like a run, once for each set of overrides given by
--ours. All fine-tune the same model on the same examples in the same precision, each in its own process, so that their
memory peaks are separate. The first optimizer step is a warm-up (`compile` compiles in it) and is not timed. Peak
memory is that of the whole process, with model, optimizer and libraries; on a GPU it is that of the tensors. The last
line of output is one JSON object.
"""

import argparse
import contextlib
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

MINI = ROOT / "src" / "ilf" / "models" / "mini"
OURS = [
    [],
    ["training.micro_batch_size=8"],
    ["training.micro_batch_size=8", "training.gradient_checkpointing=true"],
    ["training.micro_batch_size=8", "training.compile=true"],
    ["training.micro_batch_size=8", "trainer.precision=bf16-mixed"],
    ["training.micro_batch_size=8", "model.attention=eager"],
    ["training.micro_batch_size=8", "optimizer=adamw_8bit"],
    ["training.micro_batch_size=8", "adapter=lora"],
    ["training.micro_batch_size=8", "adapter=qlora"],
    ["training.micro_batch_size=8", "adapter=qlora", "training.quantize=int8"],
]


def read_examples(args: argparse.Namespace, tokenizer: Any) -> list[Any]:
    """Return the training examples: people's refinements if annotations are given, else gold programs."""
    from ilf.feedback.human import load_annotations
    from ilf.tasks import mini
    from ilf.tasks.mbpp import IDS, read_rows, tasks_from
    from ilf.tasks.prompts import completion_of
    from ilf.training.ilf_module import ILFModule
    from ilf.types import Refinement

    rows = read_rows(args.mbpp, "") if args.mbpp else mini.rows()
    tasks = {task.task_id: task for task in tasks_from(rows, None, "paper")[0] if task.split == "train"}
    texts = {i: task.code for i, task in tasks.items()}
    if args.annotations:
        annotations = load_annotations(args.annotations, {i: task.split for i, task in tasks.items()}, IDS)
        texts = {a.task_id: a.refinement or tasks[a.task_id].code for a in annotations}
    found: list[Any] = []
    for i, text in texts.items():
        if len(found) == args.examples:
            break
        try:
            target = completion_of(tasks[i].prompt, text, tasks[i].entry_point)
            row = Refinement(i, tasks[i].prompt, target, "gold")
            found.append(ILFModule.example(tokenizer, row, args.max_length))
        except ValueError:  # too long, or not a completion of its prompt
            continue
    return found


def now() -> float:
    """Return the time in seconds, after the device has finished its queued work."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


def theirs(args: argparse.Namespace, padded: bool) -> float:
    """Fine-tune with transformers' Trainer; return the examples per second after the first optimizer step."""
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments, default_data_collator

    from ilf.models.load import load_tokenizer

    tokenizer = load_tokenizer(args.model)
    rows = []
    for one in read_examples(args, tokenizer):
        ids, prompt = [*one.prompt_ids, *one.target_ids], len(one.prompt_ids)
        fill = args.max_length - len(ids) if padded else 0
        rows.append(
            {
                "input_ids": ids + [tokenizer.pad_token_id] * fill,
                "attention_mask": [1] * len(ids) + [0] * fill,
                "labels": [-100] * prompt + ids[prompt:] + [-100] * fill,
            }
        )
    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(now())

    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=args.batch_size,
            num_train_epochs=1,
            learning_rate=5e-6,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            bf16=args.precision == "bf16-mixed",
        )
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
        clock = Clock()
        Trainer(model, settings, train_dataset=rows, data_collator=default_data_collator, callbacks=[clock]).train()
    return (len(rows) - args.batch_size) / (times[-1] - times[0])


def ours(args: argparse.Namespace, overrides: list[str]) -> float:
    """Fine-tune like a run; return the examples per second after the first optimizer step."""
    import pytorch_lightning as pl
    import torch
    from hydra import compose, initialize_config_dir

    from ilf.cli.config import register, settings_from
    from ilf.models.load import adapt, load_model, load_tokenizer
    from ilf.training.ilf_module import ILFModule
    from ilf.training.mbpp_datamodule import Contents
    from ilf.training.trainer import make_trainer, training_device

    register()
    base = ["model=local", f"model.path={args.model}", "logger=none", "output_dir=unused", "training.epochs=1"]
    base.append(f"trainer.precision={args.precision}")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", [*base, f"training.batch_size={args.batch_size}", *overrides])
    settings = settings_from(config)
    training, phase = settings.training, settings.training.policy
    tokenizer = load_tokenizer(args.model)
    contents = Contents(read_examples(args, tokenizer))
    data = settings.datamodule(tokenizer=tokenizer, contents=contents, batch_size=phase.batch_size, seed=0)
    device = training_device(settings.trainer)
    model = load_model(args.model, torch.float32, settings.model.attention, training.quantize, device)
    model = adapt(model, settings.adapter)
    optimizer = settings.optimizer.having(lr=phase.lr)
    module = ILFModule(model, tokenizer, settings.sampler, optimizer, settings.scheduler)
    module.gradient_checkpointing = training.gradient_checkpointing
    module.train()
    if training.compile:
        module.compile_forward()
    times: dict[int, float] = {}

    class Clock(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            times.setdefault(trainer.global_step, now())

    trainer = make_trainer(settings.trainer, callbacks=[Clock()], epochs=1)
    trainer.fit(module, data)
    return (len(contents.training) - phase.batch_size) / (times[trainer.global_step] - times[1])


def measure(args: argparse.Namespace, name: str, overrides: list[str]) -> dict[str, Any]:
    """Run one peer or one set of overrides in this process; return its speed, peak memory and device."""
    import torch

    with contextlib.redirect_stdout(sys.stderr):
        speed = ours(args, overrides) if name.startswith("ours") else theirs(args, name == "authors")
    gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    device = torch.cuda.get_device_name() if gpu else f"cpu, {torch.get_num_threads()} threads"
    return {"examples_per_second": speed, "peak_mb": peak / 2**20, "device": device}


def main() -> None:
    """Measure everything alternately; print one line per measurement and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MINI, help="a folder in Hugging Face format")
    parser.add_argument("--mbpp", help="MBPP's mbpp.jsonl; without it, mini's tasks are used")
    parser.add_argument("--annotations", help="the paper's annotations; without it, gold programs are used")
    parser.add_argument("--examples", type=int, default=128, help="number of examples; the first batch is not timed")
    parser.add_argument("--batch-size", type=int, default=32, help="examples per optimizer step")
    parser.add_argument("--max-length", type=int, default=1024, help="number of tokens that the authors pad to")
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed"], help="for theirs and ours")
    parser.add_argument("--ours", nargs="*", action="append", metavar="KEY=VALUE", help="overrides; can be repeated")
    parser.add_argument("--peers", nargs="*", default=["authors", "unpadded"], choices=["authors", "unpadded"])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    import pytorch_lightning  # noqa: F401  # imported once, before forking, as that takes longer than what is timed
    import torch
    from transformers import AutoModelForCausalLM, Trainer  # noqa: F401

    # Trainer imports bitsandbytes, which initializes CUDA if there is a GPU. A forked process could not use CUDA then.
    processes = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    ways = {peer: [] for peer in args.peers}
    ways |= {" ".join(["ours", *overrides]): overrides for overrides in args.ours or OURS}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for i in range(args.rounds):
        for name, overrides in ways.items():
            with processes.Pool(1) as pool:
                found[name].append(pool.apply(measure, (args, name, overrides)))
            last = found[name][-1]
            print(
                f"round {i + 1}: {last['examples_per_second']:8.3g} ex/s {last['peak_mb']:8.0f} MB  {name}", flush=True
            )
    # Ratios are taken within each round, as the machine's speed changes between rounds.
    first = next(iter(ways))
    over = {
        name: [a["examples_per_second"] / b["examples_per_second"] for a, b in zip(runs, found[first], strict=True)]
        for name, runs in found.items()
    }
    result = {
        "benchmark": "training",
        "model": args.model.name,
        "device": found[first][0]["device"],
        "examples": args.examples,
        "batch_size": args.batch_size,
        "examples_per_second": {
            name: float(f"{statistics.median(run['examples_per_second'] for run in runs):.3g}")
            for name, runs in found.items()
        },
        "peak_mb": {name: round(statistics.median(run["peak_mb"] for run in runs)) for name, runs in found.items()},
        f"over_{first}": {name: round(statistics.median(ratios), 2) for name, ratios in over.items()},
        f"over_{first}_least": {name: round(min(ratios), 2) for name, ratios in over.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
