"""Samples programs with an engine in a virtual environment of its own; benchmarks/sampling.py starts it.

    PYTHON benchmarks/engine_peer.py vllm    # reads a job and then requests, one JSON object per line

A job has "model" (a folder in Hugging Face format), "dtype", "prompts" (the token ids of each), "n" (programs per
prompt), "temperature", "batch_size" (programs at once), "limit" (new tokens), "stop" (strings that end a program) and
"ends" (tokens that end a program). The answer is {}, once the engine is loaded. A request has its own "limit" and a
"seed". Its answer, also one line of JSON, has "seconds" (of sampling alone) and "texts" (ordered by prompt, each with
the string that ended it).
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

CACHE = 4  # GB of KV cache

Draw = Callable[[int, int], list[str]]  # (limit, seed) -> texts


def vllm(job: dict[str, Any]) -> Draw:
    """Load vLLM. Prompts are prefilled again for each request, once for all programs of a prompt."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(CACHE))
    # On a CPU, vLLM would leave one core to other processes, which halves its speed on two cores.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(os.sched_getaffinity(0)))))
    from vllm import LLM, SamplingParams

    engine = LLM(
        job["model"],
        dtype=job["dtype"],
        max_num_seqs=job["batch_size"],
        max_model_len=max(map(len, job["prompts"])) + job["limit"],
        generation_config="vllm",  # ignore the top-k and top-p of the model's own generation config
    )
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]

    def draw(limit: int, seed: int) -> list[str]:  # the seed is unused, as vLLM does not accept one on a CPU
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
    """Convert the model without quantization, and load OpenVINO GenAI's continuous batching on the CPU."""
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
        # float32 holds bfloat16's weights exactly. By default the KV cache would have 8 bits.
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
    """Load the engine that the command line names, and serve requests until the input ends."""
    # Libraries print to standard output too, so answers go to a copy of it, and the rest to standard error.
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
