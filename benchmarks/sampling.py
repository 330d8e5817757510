"""Programs a second: ours against the authors' way of sampling and plain batched `generate`, same model, same prompts.

    python benchmarks/sampling.py                                    # mini
    python benchmarks/sampling.py --model FOLDER --mbpp mbpp.jsonl   # any model on MBPP's prompts

The authors draw one sequence a call, with up to 1,024 new tokens, and stop at EOS only. `generate` draws
`num_return_sequences` samples for a batch of prompts, and stops at EOS or where all of a batch are done. Ours is
what a run does. All at one temperature, without top-k or top-p. The authors' way is timed on fewer programs where it is
slow (--authors). The last line is one JSON object.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
from transformers import GenerationConfig

from ilf.models.load import load_model, load_tokenizer
from ilf.sampling import ContinuousSampler, HFSampler
from ilf.tasks import mini
from ilf.tasks.mbpp import read_rows, tasks_from
from ilf.training.mbpp_datamodule import MBPPDataModule, plan_draws

MINI = Path(__file__).resolve().parent.parent / "src" / "ilf" / "models" / "mini"


def generate(model: Any, tokenizer: Any, prompts: list[str], n: int, limit: int, temperature: float) -> None:
    """Draw n samples a prompt in one call of `generate`."""
    tokenizer.padding_side = "left"
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
    config = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=limit,
        num_return_sequences=n,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.inference_mode():
        model.generate(**inputs, generation_config=config)


def authors(model: Any, tokenizer: Any, prompts: list[str], args: argparse.Namespace) -> int:
    """One sequence a call; return how many programs were drawn."""
    for i in range(args.authors):
        generate(model, tokenizer, [prompts[i % len(prompts)]], 1, args.authors_limit, args.temperature)
    return int(args.authors)


def batched(model: Any, tokenizer: Any, prompts: list[str], args: argparse.Namespace) -> int:
    """All samples of as many prompts as our batch holds in each call; return how many programs were drawn."""
    size = max(1, args.batch_size // args.n)
    for start in range(0, len(prompts), size):
        generate(model, tokenizer, prompts[start : start + size], args.n, args.limit, args.temperature)
    return len(prompts) * args.n


def ours(model: Any, tokenizer: Any, prompts: list[str], args: argparse.Namespace) -> int:
    """What a run does; return how many programs were drawn."""
    kind = ContinuousSampler if args.continuous else HFSampler
    sampler = kind(args.n, args.temperature, args.limit, args.batch_size)
    draws = plan_draws(args.pairs, "benchmark", args.n, 0)
    data = MBPPDataModule(tokenizer, sampling_batch_size=args.batch_size)
    for batch in data.draw_batches(draws):
        for _ in sampler.sample(model, tokenizer, batch):
            pass
    return len(draws)


PEERS: dict[str, Callable[..., int]] = {"ours": ours, "generate": batched, "authors": authors}


def main() -> None:
    """Time the three in turns and print a line each round and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MINI, help="a folder in Hugging Face's layout")
    parser.add_argument("--mbpp", help="MBPP's mbpp.jsonl; mini's tasks without it")
    parser.add_argument("--tasks", type=int, default=40, help="prompts, of Test")
    parser.add_argument("--n", type=int, default=10, help="samples a prompt")
    parser.add_argument("--batch-size", type=int, default=100, help="programs at once, ours and generate's")
    parser.add_argument("--limit", type=int, default=512, help="new tokens, ours and generate's")
    parser.add_argument("--authors", type=int, default=40, help="programs that the authors' way is timed on")
    parser.add_argument("--authors-limit", type=int, default=1024, help="new tokens, the authors' way")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--continuous", action="store_true", help="ours by sampler=continuous")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rows = read_rows(args.mbpp, "") if args.mbpp else mini.rows()
    tasks = [task for task in tasks_from(rows, None, "paper")[0] if task.split == "test"][: args.tasks]
    args.pairs = [(task, task.prompt) for task in tasks]
    prompts = [task.prompt for task in tasks]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(args.model, getattr(torch, args.dtype)).to(device)
    tokenizer = load_tokenizer(args.model)
    generate(model, tokenizer, prompts[:1], 1, 8, args.temperature)  # what is loaded at first use is not timed
    speeds: dict[str, list[float]] = {name: [] for name in PEERS}
    for i in range(args.rounds):
        for name, draw in PEERS.items():
            start = time.monotonic()
            count = draw(model, tokenizer, prompts, args)
            if device == "cuda":
                torch.cuda.synchronize()
            speeds[name].append(count / (time.monotonic() - start))
            print(f"round {i + 1}: {name:10} {speeds[name][-1]:8.3g} programs/s", flush=True)
    # Round by round, as the machine's speed changes from one to the next.
    over = {name: [a / b for a, b in zip(speeds["ours"], found, strict=True)] for name, found in speeds.items()}
    result = {
        "benchmark": "sampling",
        "model": args.model.name,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "programs": len(prompts) * args.n,
        "programs_per_second": {name: float(f"{statistics.median(found):.3g}") for name, found in speeds.items()},
        "ours_over": {name: round(statistics.median(found), 2) for name, found in over.items() if name != "ours"},
        "ours_over_least": {name: round(min(found), 2) for name, found in over.items() if name != "ours"},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
