"""Compares the memory plan with the measured peak of sampling and of fine-tuning steps, each in a fresh process.

    python benchmarks/memory.py                                    # mini
    python benchmarks/memory.py --model FOLDER --tokens 512 --works sampling lora

The measurement is the increase over the process before the model is loaded. On a CPU it is the largest resident set,
with an allocator that returns every tensor above 64 kB to the system at once (MALLOC_MMAP_THRESHOLD_; otherwise glibc
keeps freed blocks for reuse, which can take more memory than the tensors themselves). On a GPU it is torch's count of
allocated memory. The last line of output is one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
from transformers import AutoConfig

from ilf.models.memory import FineTuning, Need, fine_tuning, sampling
from ilf.sampling import HFSampler
from ilf.training.gpu_checks import ADAMW, ADAMW_8BIT, LORA, draw, peak_bytes, train

MINI = Path(__file__).resolve().parent.parent / "src" / "ilf" / "models" / "mini"
FULL = FineTuning(None, ADAMW, "32-true", rows=1, tokens=1024, checkpointing=False)
WORKS = {
    "full": FULL,
    "full, adamw_8bit": replace(FULL, optimizer=ADAMW_8BIT),
    "full, adamw_8bit, checkpointing": replace(FULL, optimizer=ADAMW_8BIT, checkpointing=True),
    "full, bf16-mixed": replace(FULL, precision="bf16-mixed"),
    "lora": replace(FULL, adapter=LORA),
    "qlora": replace(FULL, adapter=LORA, quantize="nf4"),
    "lora, checkpointing": replace(FULL, adapter=LORA, checkpointing=True),
}


def main() -> None:
    """Print one line per workload (plan, measurement, ratio), and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MINI, help="a folder in Hugging Face format")
    parser.add_argument("--works", nargs="+", default=["sampling", *WORKS], choices=["sampling", *WORKS])
    parser.add_argument("--tokens", type=int, default=512, help="tokens per training row, and per prompt")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rows", type=int, default=8, help="rows per forward pass")
    parser.add_argument("--batch-size", type=int, default=64, help="programs at once")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--only", help=argparse.SUPPRESS)  # in a child process: the workload to measure
    args = parser.parse_args()
    settings = HFSampler(n=8, max_new_tokens=args.new_tokens, batch_size=args.batch_size)
    dtype, device = getattr(torch, args.dtype), "cuda" if torch.cuda.is_available() else "cpu"
    hows = {name: replace(how, rows=args.rows, tokens=args.tokens) for name, how in WORKS.items()}
    if args.only:
        works = {
            name: lambda tokens, how=how: train(args.model, replace(how, tokens=tokens), device)
            for name, how in hows.items()
        }
        works["sampling"] = lambda tokens: draw(args.model, settings, tokens, dtype, device)
        work = works[args.only]
        work(8)  # a warm-up: imports and one-time initialization must not count
        print(peak_bytes(lambda: work(args.tokens), device)[1])
        return
    found: dict[str, Any] = {}
    config = AutoConfig.from_pretrained(args.model)
    for work in args.works:
        if work == "sampling":
            plan: Need = sampling(config, settings, dtype, args.tokens, device=device)
        else:
            plan = fine_tuning(config, hows[work], device=device)
        own = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
        command = [sys.executable, *sys.argv, "--only", work]
        done = subprocess.run(command, text=True, capture_output=True, check=True, env=own)
        measured = int(done.stdout.split()[-1])
        found[work] = {"plan": plan.total, "measured": measured, "ratio": round(plan.total / measured, 2)}
        print(
            f"{work:32} plan {plan.total / 1e9:7.3f} GB, measured {measured / 1e9:7.3f}, "
            f"plan over measured {plan.total / measured:.2f}",
            flush=True,
        )
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    print(json.dumps({"benchmark": "memory", "model": args.model.name, "device": name, "bytes": found}))


if __name__ == "__main__":
    main()
