"""Sampling from a server that is started for each model: vLLM, SGLang, llama.cpp, `transformers serve`."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import string
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ilf import distributed
from ilf.models.tokens import end_of_text, token_ids
from ilf.ranges import AboveZero
from ilf.sampling import supervisor
from ilf.sampling.served import ServedSampler
from ilf.types import InputError

log = logging.getLogger(__name__)

_LAST = 30  # number of lines of the engine's output that an error message shows
_END = 30.0  # seconds within which an engine must exit


@dataclass
class EngineSampler(ServedSampler):
    """A sampler that starts a server with the model to be sampled, and stops it before the next model.

    Args:
        n: Programs per task.
        temperature: Temperature of the softmax.
        max_new_tokens: Upper limit; sampling stops where the function ends.
        batch_size: Number of concurrent requests.
        command: The command that starts the server, as a list of words. $python stands for `python`, $model for the
            model's folder, $dtype for the data type of its weights (float32 or bfloat16), $port for a free port,
            $folder for a folder that is removed afterwards, $batch for the number of concurrent requests, and $$ for a
            dollar sign.
        arguments: More words that are appended to the command.
        module: The module that `python` must be able to import.
        python: The interpreter of the environment in which the engine is installed; null for this one.
        environment: Environment variables of the engine, in addition to those of the run.
        patience: Seconds within which the engine must answer.
        extra: More fields of each request. In their texts, $eos_token_id (a list) and $pad_token_id stand for the
            model's tokens, and $top_k and $do_sample for the settings of the sampler.
        seeded: Whether requests have a seed.
    """

    command: Sequence[str | int | float] = ()
    arguments: Sequence[str | int | float] = ()
    module: str | None = None
    python: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    patience: AboveZero = 900.0

    retries = 2  # few, as the server is local: it answers, or it has exited
    changes_nothing = ("n", "url", "python", "patience")

    def check(self) -> None:
        """Raise InputError if the engine can't be started with what is installed."""
        if distributed.count() > distributed.local_count():
            allowed = "starts a server that only one machine can reach, and this run uses several machines"
            advice = "Start a server yourself: sampler=openai sampler.url=URL."
            raise InputError("sampler", type(self).__name__, allowed, advice)
        if self.url is not None:
            advice = "Leave it out. For a server that is already running, use sampler=openai."
            raise InputError("sampler.url", self.url, "must be null: the engine that is started sets it", advice)
        if not self.command:
            advice = "Give a command as in conf/sampler/vllm.yaml."
            raise InputError("sampler.command", list(self.command), "must be the words that start a server", advice)
        if shutil.which(self._python) is None:
            advice = "Give the path of an interpreter: ENVIRONMENT/bin/python."
            raise InputError("sampler.python", self.python, "is not an executable program", advice)
        first = string.Template(str(self.command[0])).safe_substitute(python=self._python)
        if shutil.which(first) is None:
            advice = "Install it, or give its path in sampler.command."
            raise InputError("sampler.command", list(self.command), f"{first} is not an executable program", advice)
        if self.module:
            find = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({self.module!r}) is None)"
            if subprocess.run([self._python, "-c", find], capture_output=True).returncode:
                allowed = f"belongs to an environment without the package {self.module}"
                advice = "Install it there, or give sampler.python=ENVIRONMENT/bin/python; see docs/how-to/servers.md."
                raise InputError("sampler.python", self._python, allowed, advice)

    @property
    def _python(self) -> str:
        return self.python or sys.executable

    @property
    def casts(self) -> bool:
        """Whether the command gives the engine the data type of the weights."""
        return any("$dtype" in str(word) for word in (*self.command, *self.arguments))

    @contextlib.contextmanager
    def ready(self, model: Path, folder: Path) -> Iterator[None]:
        """Run the engine with a model for the duration of the context.

        Args:
            model: The model's folder.
            folder: The run's folder; the engine's output goes to engine.log in it.

        Raises:
            InputError: The engine exits, or does not answer in time. The message shows its last lines of output.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"
        output, scratch = folder / "engine.log", folder / "engine"
        scratch.mkdir(parents=True, exist_ok=True)
        values = {"python": self._python, "model": model.absolute(), "port": port, "folder": scratch}
        values |= {"batch": self.batch_size, "dtype": self.dtype}
        command = [string.Template(str(word)).safe_substitute(values) for word in (*self.command, *self.arguments)]
        with output.open("a") as file:
            file.write(f"$ {' '.join(command)}\n")
        start = output.stat().st_size
        # In a session of its own, so that Ctrl-C reaches only the run. The engine's standard input closes when the run
        # ends, however that happens, and the supervisor then stops the engine.
        engine = subprocess.Popen(
            [sys.executable, "-I", supervisor.__file__, str(output), *command],
            stdin=subprocess.PIPE,
            start_new_session=True,
            env=os.environ | self.environment,
        )
        try:
            log.info("starting the engine for %s; its output is in %s", model, output)
            self._wait(engine, output, start)
            try:
                yield
            except InputError as error:
                if engine.poll() is not None:
                    raise self._ended(engine, output, start) from error
                raise
        finally:
            with contextlib.suppress(OSError):
                engine.stdin.close()  # type: ignore[union-attr]
            with contextlib.suppress(subprocess.TimeoutExpired):
                engine.wait(_END)
            engine.kill()
            engine.wait()
            shutil.rmtree(scratch, ignore_errors=True)

    def _wait(self, engine: subprocess.Popen[bytes], output: Path, start: int) -> None:
        """Wait until the engine answers requests."""
        began = time.monotonic()
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy can't reach this machine
        while engine.poll() is None:
            with contextlib.suppress(OSError), direct.open(f"{self.url}/models", timeout=5) as answer:
                if answer.status == 200:
                    log.info("the engine answered after %.0f s", time.monotonic() - began)
                    return
            if time.monotonic() - began > self.patience:
                allowed = (
                    f"the engine did not answer within so many seconds; its last lines are\n{_tail(output, start)}\n"
                )
                advice = "Increase it, or see engine.log."
                raise InputError("sampler.patience", self.patience, allowed, advice)
            time.sleep(0.5)
        raise self._ended(engine, output, start)

    def _ended(self, engine: subprocess.Popen[bytes], output: Path, start: int) -> InputError:
        status = engine.wait()
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        if status in (-signal.SIGKILL, 128 + signal.SIGKILL):
            how += ", as happens when memory runs out"
        allowed = f"the engine has exited with {how}; its last lines are\n{_tail(output, start)}\n"
        advice = f"All of its output is in {output}. Sampled programs are stored: the same command resumes from there."
        advice += self._of_seeds
        return InputError("sampler.command", " ".join(map(str, self.command)), allowed, advice)

    def fields(self, tokenizer: Any) -> dict[str, Any]:
        """Return the extra fields of a request, with the placeholders replaced."""
        ends = token_ids(tokenizer.eos_token_id, end_of_text(tokenizer))
        ids = {"eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id, "top_k": self.top_k}
        ids["do_sample"] = "true" if self.temperature else "false"
        return {name: _filled(value, ids) for name, value in self.extra.items()}


def _filled(value: Any, ids: Mapping[str, object]) -> Any:
    return string.Template(value).safe_substitute(ids) if isinstance(value, str) else value


def _tail(output: Path, start: int) -> str:
    """Return the last lines of an engine's output."""
    with output.open("rb") as file:
        file.seek(max(start, output.stat().st_size - 20_000))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-_LAST:]) or "(it printed nothing)"
