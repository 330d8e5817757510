"""Checks to run on a new GPU: `python run.py experiment=gpu/checks`. They take minutes and need no network.

They measure speed, compare memory with its plan, resume from a checkpoint, and run a whole study on mini. The large
model has the architecture of CodeGen-Mono 6.1B with random weights, because speed and memory don't depend on the
weights.
"""

from __future__ import annotations

import gc
import logging
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback
from transformers import AutoModelForCausalLM, CodeGenConfig

from ilf.analysis.schema import Results
from ilf.components import Component
from ilf.files import write_atomically
from ilf.models.load import adapt, load_model, load_tokenizer
from ilf.models.memory import FineTuning, Need, fine_tuning, sampling
from ilf.protocols import Sampler
from ilf.sampling.hf import HFSampler
from ilf.training.ilf_module import ILFModule
from ilf.training.mbpp_datamodule import Contents, MBPPDataModule
from ilf.training.trainer import make_trainer
from ilf.types import Draw, Example

log = logging.getLogger(__name__)

CODEGEN_6B = CodeGenConfig(  # the values of Salesforce/codegen-6B-mono's config.json
    vocab_size=51200,
    n_positions=2048,
    n_ctx=2048,
    n_embd=4096,
    n_layer=33,
    n_head=16,
    rotary_dim=64,
    tie_word_embeddings=False,
)
LORA = Component(
    "peft.LoraConfig", {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
)
ADAMW, ADAMW_8BIT = Component("torch.optim.AdamW"), Component("bitsandbytes.optim.AdamW8bit")
_EIGHT_BIT = FineTuning(None, ADAMW_8BIT, "bf16-mixed", rows=1, tokens=1024, checkpointing=True)
TRAININGS = {
    "full, adamw_8bit": _EIGHT_BIT,
    "qlora": replace(_EIGHT_BIT, adapter=LORA, optimizer=ADAMW, quantize="nf4"),
}
_NEAR = (0.8, 1.25)  # allowed range of planned / measured memory


@dataclass
class Check:
    """One check: whether it passed, and its measurements, with units in their names."""

    name: str
    passed: bool
    figures: dict[str, Any] = field(default_factory=dict)


class _Clock(Callback):
    """Records when the device has finished each optimizer step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.monotonic())


def random_model(config: Any, tokenizer: Path, folder: Path, device: str) -> None:
    """Write a model with random bfloat16 weights, and a tokenizer, as a Hugging Face folder."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    load_tokenizer(tokenizer).save_pretrained(folder)


def peak_bytes(work: Callable[[], Any], device: str) -> tuple[Any, int]:
    """Run `work`; return its result and its peak memory, less the memory in use before.

    On a GPU, the peak is the memory that torch has allocated. On a CPU, it is the largest resident set: it includes
    memory that the allocator holds back, and is too small if the process was larger before.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return work(), torch.cuda.max_memory_allocated() - before
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    found = work()
    return found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def draw(folder: Path, settings: Sampler, tokens: int, dtype: torch.dtype, device: str) -> float:
    """Sample one batch of full-length programs from prompts of `tokens` tokens; return programs per second."""
    tokenizer, model = load_tokenizer(folder), load_model(folder, dtype).to(device)
    prompts = [f"{i} " + "x " * tokens for i in range(-(-settings.batch_size // settings.n))]
    prompts = [tokenizer.decode(tokenizer(p).input_ids[:tokens]) for p in prompts]
    draws = [Draw(i, "test", s, i * 1000 + s, p, "") for i, p in enumerate(prompts) for s in range(settings.n)]
    # Programs must reach their last token: no decoded text may end a function, and no token may end a text.
    tokenizer.decode = lambda *args, **kwargs: ""
    tokenizer.eos_token_id = model.generation_config.eos_token_id = None
    list(replace(settings, max_new_tokens=2).sample(model, tokenizer, draws[: settings.batch_size]))  # warm-up
    start = time.monotonic()
    list(settings.sample(model, tokenizer, draws[: settings.batch_size]))
    return settings.batch_size / (time.monotonic() - start)


def train(
    folder: Path, how: FineTuning, device: str, checkpoints: Path | None = None
) -> tuple[float, dict[str, torch.Tensor]]:
    """Take two optimizer steps of two forward passes each, as a run does, on rows of `how.tokens` tokens.

    Args:
        folder: The base model's folder.
        how: What is trained and how.
        device: "cuda" or "cpu".
        checkpoints: Where to store the last checkpoint. If there is one already, it is resumed, and no step is left.

    Returns:
        Tokens per second in the second step, and the trained parameters on the CPU. The first step also chooses
        kernels and creates the optimizer's states. The speed is 0 if no step was left.
    """
    tokenizer = load_tokenizer(folder)
    base = load_model(folder, torch.float32, how.attention, how.quantize, torch.device(device))
    net = adapt(base, how.adapter)
    module = ILFModule(
        net, tokenizer, optimizer=how.optimizer.having(lr=1e-3), gradient_checkpointing=how.checkpointing
    ).train()
    rows = [Example(i, (5,), (7,) * (how.tokens - 1)) for i in range(4 * how.rows)]
    data = MBPPDataModule(tokenizer, Contents(rows), batch_size=2 * how.rows, micro_batch_size=how.rows)
    own = {"accelerator": "gpu" if device == "cuda" else "cpu", "precision": how.precision, "gradient_clip_val": 1.0}
    clock = _Clock()
    configured = Component("pytorch_lightning.Trainer", own | {"log_every_n_steps": 1, "enable_model_summary": False})
    trainer = make_trainer(configured, callbacks=[clock], epochs=1, checkpoints=checkpoints)
    last = checkpoints / "last.ckpt" if checkpoints and (checkpoints / "last.ckpt").exists() else None
    trainer.fit(module, data, ckpt_path=last and str(last))
    speed = 2 * how.rows * how.tokens / (clock.times[1] - clock.times[0]) if clock.times else 0.0
    return speed, {name: p.detach().cpu() for name, p in net.named_parameters() if p.requires_grad}


def check_sampling(config: Any, folder: Path, settings: Sampler, tokens: int, device: str) -> Check:
    """Compare the memory of sampling with its plan, and report the speed."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    speed, measured = peak_bytes(lambda: draw(folder, settings, tokens, dtype, device), device)
    found = _near("sampling", sampling(config, settings, dtype, tokens, device=device), measured)
    found.figures |= {"programs/s": round(speed, 3), "tokens/s": round(speed * settings.max_new_tokens)}
    return found


def check_training(name: str, config: Any, folder: Path, how: FineTuning, device: str) -> Check:
    """Compare the memory of a fine-tuning with its plan, and report the speed."""
    (speed, _), measured = peak_bytes(lambda: train(folder, how, device), device)
    found = _near(name, fine_tuning(config, how, device), measured)
    found.figures |= {"tokens/s": round(speed)}
    return found


def _near(name: str, plan: Need, measured: int) -> Check:
    ratio = plan.total / measured
    figures = {"plan GB": round(plan.total / 1e9, 2), "measured GB": round(measured / 1e9, 2), "ratio": round(ratio, 2)}
    return Check(f"{name}: memory as planned", _NEAR[0] < ratio < _NEAR[1], figures)


def check_reload(folder: Path, how: FineTuning, scratch: Path, device: str) -> Check:
    """Check that a new model that resumes from a checkpoint has the trained weights, bit for bit."""
    _, trained = train(folder, how, device, scratch)
    # With the checkpoint, no step is left. Without it, the different rows would give different weights.
    _, loaded = train(folder, replace(how, tokens=how.tokens // 2), device, scratch)
    same = trained.keys() == loaded.keys() and all(torch.equal(trained[n], loaded[n]) for n in trained)
    return Check("resume from a checkpoint", same, {"tensors": len(trained)})


def check_study(run: Callable[[], Results]) -> Check:
    """Check that a whole study on mini completes, and that fine-tuning raises pass@1 there."""
    start = time.monotonic()
    results = run()
    before, after = (found["pass@1"] for found in (results["zero_shot"], results["finetuned"]) if found)
    figures = {"zero-shot pass@1": round(before, 3), "fine-tuned pass@1": round(after, 3)}
    figures["seconds"] = round(time.monotonic() - start)
    return Check("a study on mini", results["status"] == "complete" and after > before, figures)


def run_checks(
    mini: Path,
    folder: Path,
    study: Callable[[], Results],
    *,
    device: str = "cuda",
    config: Any = CODEGEN_6B,
    trainings: dict[str, FineTuning] | None = None,
    drawing: Sampler | None = None,
    prompt: int = 256,
) -> tuple[str, bool]:
    """Run all checks in turn, and write checks.md after each. A failed check doesn't stop the others.

    Args:
        mini: Folder of the mini model.
        folder: The run's folder.
        study: Runs a whole study on mini and returns its results.
        device: "cuda", or "cpu" to test the checks themselves.
        config: Configuration of the large model.
        trainings: How the large model is fine-tuned, by name.
        drawing: How the large model is sampled.
        prompt: Tokens of a prompt.

    Returns:
        The page, and whether all checks passed.
    """
    trainings, drawing = trainings or TRAININGS, drawing or HFSampler(n=32, batch_size=32, max_new_tokens=256)
    large, start = folder / "large", time.monotonic()
    random_model(config, mini, large, device)
    checks: dict[str, Callable[[], Check]] = {
        "sampling": partial(check_sampling, config, large, drawing, prompt, device),
        **{name: partial(check_training, name, config, large, how, device) for name, how in trainings.items()},
        "checkpoint": partial(check_reload, mini, list(trainings.values())[-1], folder / "checkpoints", device),
        "study": partial(check_study, study),
    }
    found: list[Check] = []
    for name, check in checks.items():
        log.info("checking: %s", name)
        try:
            found.append(check())
        except Exception as error:  # the page reports the error; the log has the traceback
            log.error("%s", traceback.format_exc())
            found.append(Check(name, False, {"error": f"{type(error).__name__}: {error}"[:200]}))
        write_atomically(folder / "checks.md", text := _page(found, device, time.monotonic() - start))
    shutil.rmtree(large)
    return text, all(check.passed for check in found)


def _page(checks: list[Check], device: str, seconds: float) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    versions = f"torch {torch.__version__}, Python {sys.version.split()[0]}"
    lines = [
        f"# Checks on {name}",
        "",
        f"{versions}; {seconds:.0f} seconds.",
        "",
        "| check | | results |",
        "| --- | --- | --- |",
    ]
    for check in checks:
        figures = ", ".join(f"{key} {value}" for key, value in check.figures.items())
        lines.append(f"| {check.name} | {'passed' if check.passed else 'FAILED'} | {figures} |")
    return "\n".join([*lines, ""])
