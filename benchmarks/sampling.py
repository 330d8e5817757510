"""Programs per second: our sampler compared with others, on the same model and the same prompts.

    python benchmarks/sampling.py                                    # mini
    python benchmarks/sampling.py --model FOLDER --mbpp mbpp.jsonl   # any model on MBPP's prompts
    python benchmarks/sampling.py --peers ours generate authors      # with the authors' way of sampling
    python benchmarks/sampling.py --peers ours other_dtype           # float32 and bfloat16
    python benchmarks/sampling.py --peers ours read_whole --shots 2  # worked examples, read once or with each prompt
    python benchmarks/sampling.py --model FOLDER --vllm V/bin/python --openvino O/bin/python   # with engines
    python benchmarks/sampling.py --random FOLDER                    # its config.json and tokenizer, random weights

`ours` samples like a run with sampler=hf, and `continuous` like one with sampler=continuous (transformers' continuous
batching). `generate` is transformers' own method, called with as many prompts as our batch holds and our rule for the
end of a program. vLLM and OpenVINO GenAI run in separate processes (benchmarks/engine_peer.py), with the Python of
their own environments: `pip install vllm`, or a CPU build; `pip install openvino-genai "optimum-intel[openvino]"`.

All peers sample the same number of programs at the same temperature, without top-k or top-p, with the same limit on new
tokens, and end a program where its function ends. The engines do so at STOP, a list of strings. STOP ends a program too
early if a line within brackets or a string begins in the first column. It ends a program too late if its very first
line begins in the first column, or if the next statement begins with a character outside ASCII. `authors` samples one
sequence per call, which ends at EOS or at a limit of its own.

Loading, converting, compiling and sampling a few tokens for all prompts are not timed. A peer that writes shorter
programs is faster. The output therefore includes each peer's tokens per program, counted in the texts as they were
sampled, and the share of programs with at least 95% of the limit. The last line of output is one JSON object.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, StoppingCriteria

from ilf.models import decoding
from ilf.models.load import load_model, load_tokenizer
from ilf.models.onednn_linear import load_packed
from ilf.models.tokens import Continuation, encode_continuation, encode_prompts, end_ids
from ilf.sampling import ContinuousSampler, HFSampler, continuous, hf
from ilf.tasks import mini
from ilf.tasks.mbpp import read_rows, tasks_from
from ilf.tasks.prompts import ended
from ilf.training.mbpp_datamodule import MBPPDataModule, plan_draws

HERE = Path(__file__).resolve().parent
MINI = HERE.parent / "src" / "ilf" / "models" / "mini"
STOP = ["\n" + char for char in map(chr, range(33, 127)) if char != "#"]  # a statement in the first column
WARM = 8  # new tokens per program in the warm-up
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Job:
    """The input that all peers share."""

    model: Any
    sampled: Any  # the same model, loaded as a run loads it for sampling
    tokenizer: Any
    tasks: list[Any]
    prompts: list[list[int]]  # token ids
    args: argparse.Namespace
    limit: int  # new tokens per program
    authors: int  # number of programs for `authors`
    authors_limit: int  # new tokens per program for `authors`


class FunctionEnds(StoppingCriteria):
    """A stopping criterion that ends a row of `generate` where its function ends."""

    def __init__(self, rows: list[Continuation], width: int, pad: int) -> None:
        self.rows, self.width, self.pad, self.over = rows, width, pad, [False] * len(rows)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **options: Any) -> torch.Tensor:
        """Return a mask of the rows that have ended."""
        for i, tokens in enumerate(input_ids[:, self.width :].tolist()):
            if not self.over[i] and tokens[-1] != self.pad:
                self.over[i] = ended(self.rows[i].text(tokens))
        return torch.tensor(self.over, device=input_ids.device)


def generate(job: Job, prompts: list[list[int]], n: int, limit: int, stop: bool) -> list[str]:
    """Return the texts of n samples per prompt, from one call of transformers' `generate`."""
    model, tokenizer = job.model, job.tokenizer
    inputs = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
    config = GenerationConfig(
        do_sample=True,
        temperature=job.args.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=limit,
        num_return_sequences=n,
        eos_token_id=sorted(end_ids(model, tokenizer)),
        pad_token_id=tokenizer.pad_token_id,
    )
    rows = [row for ids in prompts for row in [Continuation(tokenizer, ids)] * n]
    width = inputs["input_ids"].shape[1]
    criteria = [FunctionEnds(rows, width, tokenizer.pad_token_id)] if stop else []
    with torch.inference_mode():
        found = model.generate(**inputs, generation_config=config, stopping_criteria=criteria)
    return [row.text(tokens) for row, tokens in zip(rows, found[:, width:].tolist(), strict=True)]


def authors(job: Job, seed: int) -> list[str]:
    """Sample one sequence per call, up to a limit of its own, without a rule for the end of a program."""
    chosen = [job.prompts[i % len(job.prompts)] for i in range(job.authors)]
    return [text for ids in chosen for text in generate(job, [ids], 1, job.authors_limit, stop=False)]


def batched(job: Job, seed: int) -> list[str]:
    """Sample all programs of as many prompts per call as our batch holds."""
    prompts, n, size = job.prompts, job.args.n, max(1, job.args.batch_size // job.args.n)
    calls = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    return [text for call in calls for text in generate(job, call, n, job.limit, stop=True)]


def ours(job: Job, seed: int, kind: Any = HFSampler) -> list[str]:
    """Sample like a run, except that texts are not cut after sampling."""
    n, size = job.args.n, job.args.batch_size
    sampler = kind(n, job.args.temperature, job.limit, size)
    draws = plan_draws([(task, task.prompt) for task in job.tasks], "benchmark", n, seed)
    batches = MBPPDataModule(job.tokenizer, sampling_batch_size=size).draw_batches(draws)
    with mock.patch.object(hf, "cut", _whole), mock.patch.object(continuous, "cut", _whole):
        model = job.sampled if kind is HFSampler else job.model
        return [text for batch in batches for _, text in sampler.sample(model, job.tokenizer, batch)]


def _whole(completion: str, script: bool) -> str:
    return completion


def timed(draw: Callable[[], list[str]]) -> tuple[float, list[str]]:
    """Return the seconds that sampling takes, and the texts."""
    start = time.monotonic()
    texts = draw()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.monotonic() - start, texts


def other_dtype(job: Job, seed: int) -> list[str]:
    """Sample like a run with weights in the dtype that `--dtype` does not name."""
    return ours(replace(job, sampled=_in_other_dtype(job.args.model, job.args.dtype)), seed)


def read_whole(job: Job, seed: int) -> list[str]:
    """Sample like a run that reads each whole prompt, including what all prompts begin with."""
    with mock.patch.object(decoding, "read_beginning", lambda model, prompts: None):
        return ours(job, seed)


@functools.cache
def _in_other_dtype(folder: Path, dtype: str) -> Any:
    other = torch.float32 if dtype == "bfloat16" else torch.bfloat16
    return load_packed(folder, other, torch.device(DEVICE))


Peer = Callable[[Job, int], tuple[float, list[str]]]  # (job, seed) -> (seconds, texts)

PEERS: dict[str, Peer] = {
    "ours": lambda job, seed: timed(lambda: ours(job, seed)),
    "other_dtype": lambda job, seed: timed(lambda: other_dtype(job, seed)),
    "read_whole": lambda job, seed: timed(lambda: read_whole(job, seed)),
    "generate": lambda job, seed: timed(lambda: batched(job, seed)),
    "continuous": lambda job, seed: timed(lambda: ours(job, seed, ContinuousSampler)),
    "authors": lambda job, seed: timed(lambda: authors(job, seed)),
}


@contextmanager
def engine(name: str, python: str, job: Job) -> Iterator[Peer]:
    """Start an engine in a process of its own with the interpreter `python`, and yield it as a peer."""
    command = [python, str(HERE / "engine_peer.py"), name]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(**message: Any) -> dict[str, Any]:
        print(json.dumps(message), file=process.stdin, flush=True)
        if not (line := process.stdout.readline()):
            raise SystemExit(f"{name} exited with status {process.wait()}; see its output above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def draw(job: Job, seed: int) -> tuple[float, list[str]]:
        answer = ask(limit=job.limit, seed=seed)
        return answer["seconds"], answer["texts"]

    settings = {key: getattr(job.args, key) for key in ("n", "temperature", "batch_size", "dtype", "limit")}
    ends = sorted(end_ids(job.model, job.tokenizer))
    with process:
        ask(model=str(job.args.model), prompts=job.prompts, stop=STOP, ends=ends, **settings)
        yield draw


def random_model(folder: Path, to: str) -> Path:
    """Write a model with the config.json and the tokenizer of a folder, and random weights, to another folder."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32).save_pretrained(to)
    load_tokenizer(folder).save_pretrained(to)
    return Path(to)


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MINI, help="a folder in Hugging Face format")
    parser.add_argument("--random", type=Path, help="instead of --model: a folder with config.json and a tokenizer")
    parser.add_argument("--mbpp", help="MBPP's mbpp.jsonl; without it, mini's tasks are used")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=["ours", "generate", "continuous"])
    parser.add_argument("--vllm", metavar="PYTHON", help="also time vLLM: the Python of its environment")
    parser.add_argument("--openvino", metavar="PYTHON", help="also time OpenVINO GenAI: the Python of its environment")
    parser.add_argument("--tasks", type=int, default=40, help="number of prompts, from Test")
    parser.add_argument("--shots", type=int, default=0, help="gold programs of other tasks before each prompt")
    parser.add_argument("--n", type=int, default=10, help="samples per prompt")
    parser.add_argument("--batch-size", type=int, default=100, help="programs at once")
    parser.add_argument("--limit", type=int, default=512, help="new tokens per program")
    parser.add_argument("--authors", type=int, default=40, help="number of programs for the peer authors")
    parser.add_argument("--authors-limit", type=int, default=1024, help="new tokens per program for the peer authors")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def compare(job: Job, peers: dict[str, Peer]) -> dict[str, Any]:
    """Time the peers alternately, print a line for each peer and round, and return the results."""
    few = min(WARM, job.limit)
    for draw in peers.values():
        draw(replace(job, limit=few, authors=1, authors_limit=few), 0)
    speeds: dict[str, list[float]] = {name: [] for name in peers}
    tokens: dict[str, list[int]] = {name: [] for name in peers}
    bound: dict[str, list[bool]] = {name: [] for name in peers}
    for i in range(job.args.rounds):
        for name, draw in peers.items():
            seconds, texts = draw(job, i + 1)
            speed, counts = len(texts) / seconds, [len(encode_continuation(job.tokenizer, text)) for text in texts]
            limit = job.authors_limit if name == "authors" else job.limit
            speeds[name].append(speed)
            tokens[name] += counts
            bound[name] += [count >= 0.95 * limit for count in counts]
            drawn = f"{len(texts)} programs, {sum(counts)} tokens"
            print(f"round {i + 1}: {name:10} {speed:8.3g} programs/s ({drawn})", flush=True)
    # Ratios are taken within each round, as the machine's speed changes between rounds.
    over = {
        name: [a / b for a, b in zip(speeds["ours"], found, strict=True)]
        for name, found in speeds.items()
        if "ours" in speeds and name != "ours"
    }
    return {
        "programs_per_second": {name: float(f"{statistics.median(found):.3g}") for name, found in speeds.items()},
        "ours_over": {name: round(statistics.median(found), 2) for name, found in over.items()},
        "ours_over_least": {name: round(min(found), 2) for name, found in over.items()},
        "tokens_a_program": {name: round(statistics.mean(found), 1) for name, found in tokens.items()},
        "share_at_the_bound": {name: round(statistics.mean(found), 3) for name, found in bound.items()},
    }


def main() -> None:
    """Compare the peers that the command line names, and print one JSON object."""
    args = arguments()
    rows = read_rows(args.mbpp, "") if args.mbpp else mini.rows()
    found = tasks_from(rows, None, "paper")[0]
    examples = [task.code for task in found if task.split == "prompt"][: args.shots]
    shown = "".join(f"{code}\n\n\n" for code in examples)
    tasks = [replace(task, prompt=shown + task.prompt) for task in found if task.split == "test"][: args.tasks]
    with ExitStack() as stack:
        if args.random:
            args.model = random_model(args.random, stack.enter_context(tempfile.TemporaryDirectory()))
        dtype, device = getattr(torch, args.dtype), torch.device(DEVICE)
        model, sampled = load_model(args.model, dtype).to(device), load_packed(args.model, dtype, device)
        tokenizer = load_tokenizer(args.model)
        prompts = encode_prompts(tokenizer, [task.prompt for task in tasks])
        job = Job(model, sampled, tokenizer, tasks, prompts, args, args.limit, args.authors, args.authors_limit)
        peers = {name: PEERS[name] for name in args.peers}
        for name in ("vllm", "openvino"):
            if python := getattr(args, name):
                peers[name] = stack.enter_context(engine(name, python, job))
        result = {
            "benchmark": "sampling",
            "model": (args.random or args.model).name + (", random weights" if args.random else ""),
            "dtype": args.dtype,
            "device": torch.cuda.get_device_name() if DEVICE == "cuda" else f"cpu, {torch.get_num_threads()} threads",
            "programs": len(tasks) * args.n,
            "limit": args.limit,
            "shots": args.shots,
            **compare(job, peers),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
