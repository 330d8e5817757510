"""Draws programs with an engine that lives in a virtual environment of its own; benchmarks/sampling.py starts it.

    PYTHON benchmarks/engine_peer.py vllm    # reads a job, then requests, an object of JSON a line; answers each so

A job has "model" (a folder in Hugging Face's layout), "dtype", "prompts" (tokens of each), "n" (programs a prompt),
"temperature", "batch_size" (programs at once), "limit" (new tokens), "stop" (strings that end a program) and "ends"
(tokens that do). It is answered by {} once the engine is loaded. A request has a "limit" of its own and a "seed"; its
answer has "seconds", of drawing alone, and "texts", prompt by prompt, each with the string that ended it.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CACHE = 4  # GB of keys and values

Draw = Callable[[int, int], list[str]]  # from the limit and the seed to texts


def vllm(job: dict[str, Any]) -> Draw:
    """Load vLLM. Its prompts are prefilled anew at each request, once for all programs of a prompt."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(CACHE))
    # On a CPU it would leave one processor to other work: of two, half its speed.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(os.sched_getaffinity(0)))))
    from vllm import LLM, SamplingParams

    engine = LLM(
        job["model"],
        dtype=job["dtype"],
        max_num_seqs=job["batch_size"],
        max_model_len=max(map(len, job["prompts"])) + job["limit"],
        generation_config="vllm",  # not the publisher's top-k and top-p
    )
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]

    def draw(limit: int, seed: int) -> list[str]:  # on a CPU vLLM takes no seed
        settings = SamplingParams(
            n=job["n"],
            temperature=job["temperature"],
            max_tokens=limit,
            stop=job["stop"],
            include_stop_str_in_output=True,
            stop_token_ids=job["ends"],
        )
        engine.reset_prefix_cache()
        return [out.text for found in engine.generate(prompts, settings, use_tqdm=False) for out in found.outputs]

    return draw


def openvino(job: dict[str, Any]) -> Draw:
    """Convert the model, not quantised, and load OpenVINO GenAI's continuous batching, on the CPU."""
    import numpy as np
    import openvino as ov
    from openvino_genai import ContinuousBatchingPipeline, GenerationConfig, SchedulerConfig

    precision = {"float32": "f32", "bfloat16": "bf16"}[job["dtype"]]
    scheduler = SchedulerConfig()
    scheduler.max_num_seqs, scheduler.cache_size = job["batch_size"], CACHE
    scheduler.max_num_batched_tokens = max(512, job["batch_size"])
    with tempfile.TemporaryDirectory() as folder:
        convert = [str(Path(sys.executable).with_name("optimum-cli")), "export", "openvino", "--model", job["model"]]
        convert += ["--task", "text-generation-with-past", "--weight-format", "fp32", folder]
        subprocess.run(convert, check=True, stdout=sys.stderr)
        # float32 holds bfloat16's weights exactly. By default keys and values would have 8 bits.
        properties = {"INFERENCE_PRECISION_HINT": precision, "KV_CACHE_PRECISION": precision}
        engine = ContinuousBatchingPipeline(folder, scheduler, "CPU", properties)
    tokenizer = engine.get_tokenizer()
    prompts = [ov.Tensor(np.array([ids], dtype=np.int64)) for ids in job["prompts"]]

    def draw(limit: int, seed: int) -> list[str]:
        settings = []
        for i in range(len(prompts)):
            one = GenerationConfig()
            one.do_sample, one.temperature, one.num_return_sequences = True, job["temperature"], job["n"]
            one.max_new_tokens, one.rng_seed = limit, seed * len(prompts) + i
            one.stop_strings, one.include_stop_str_in_output = set(job["stop"]), True
            one.stop_token_ids = set(job["ends"])
            settings.append(one)
        found = engine.generate(prompts, settings)
        return [text for each in found for text in tokenizer.decode(each.m_generation_ids)]

    return draw


def main() -> None:
    """Load the engine that the command names and serve requests until there are no more."""
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    draw = {"vllm": vllm, "openvino": openvino}[sys.argv[1]](json.loads(sys.stdin.readline()))
    print(json.dumps({}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        start = time.monotonic()
        texts = draw(request["limit"], request["seed"])
        print(json.dumps({"seconds": time.monotonic() - start, "texts": texts}), file=answers, flush=True)


if __name__ == "__main__":
    main()
