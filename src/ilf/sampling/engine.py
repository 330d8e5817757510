"""Draws programs from a server that is started for each model: vLLM, SGLang, llama.cpp, `transformers serve`."""

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

_LAST = 30  # lines of an engine's output that an error shows
_END = 30.0  # seconds that an engine has to end


@dataclass
class EngineSampler(ServedSampler):
    """Starts a server with the model that is to be sampled, and ends it before the next one.

    Args:
        n: Programs a task.
        temperature: Of the softmax.
        max_new_tokens: A bound; sampling stops where the function ends.
        batch_size: Requests at once.
        command: What starts it, word by word. $python is `python`, $model the model's folder, $port a free port,
            $folder a folder that is removed afterwards, $batch the requests at once; $$ is a dollar sign.
        arguments: More words of the command.
        module: What `python` must be able to import.
        python: The interpreter of the environment that the engine is installed in; null: this one.
        environment: Variables that the engine has besides those of the run.
        patience: Seconds that it has until it answers.
        extra: More fields of each request. In texts $eos_token_id (a list) and $pad_token_id stand for the model's,
            $top_k and $do_sample for how it is sampled.
        seeded: Whether requests have a seed.
    """

    command: Sequence[str | int | float] = ()
    arguments: Sequence[str | int | float] = ()
    module: str | None = None
    python: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    patience: AboveZero = 900.0

    retries = 2  # it is here, or has ended
    changes_nothing = ("n", "url", "python", "environment", "patience")

    def check(self) -> None:
        """Raise InputError where the engine can't be started from what is installed."""
        if distributed.count() > distributed.local_count():
            allowed = "must be reached from several machines, and the server is started on one, for itself"
            raise InputError(
                "sampler", type(self).__name__, allowed, "Start one yourself: sampler=openai sampler.url=URL."
            )
        if self.url is not None:
            advice = "Leave it out; a server that is there already is asked by sampler=openai."
            raise InputError("sampler.url", self.url, "is that of the engine which is started", advice)
        if not self.command:
            advice = "Give it as in conf/sampler/vllm.yaml."
            raise InputError("sampler.command", list(self.command), "must be the words that start a server", advice)
        if shutil.which(self._python) is None:
            advice = "Give the path of an interpreter: ENVIRONMENT/bin/python."
            raise InputError("sampler.python", self.python, "is no program that can be run", advice)
        first = string.Template(str(self.command[0])).safe_substitute(python=self._python)
        if shutil.which(first) is None:
            advice = "Install it, or give its path in sampler.command."
            raise InputError("sampler.command", list(self.command), f"{first} is no program that can be run", advice)
        if self.module:
            find = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({self.module!r}) is None)"
            if subprocess.run([self._python, "-c", find], capture_output=True).returncode:
                allowed = f"is an environment without the package {self.module}"
                advice = "Install it there, or give sampler.python=ENVIRONMENT/bin/python; see docs/how-to/servers.md."
                raise InputError("sampler.python", self._python, allowed, advice)

    @property
    def _python(self) -> str:
        return self.python or sys.executable

    @contextlib.contextmanager
    def ready(self, model: Path, folder: Path) -> Iterator[None]:
        """Have the engine hold a model.

        Args:
            model: Its folder.
            folder: Of the run; gets what the engine prints, as engine.log.

        Raises:
            InputError: The engine ends, or does not answer in time; shows its last lines.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"
        output, scratch = folder / "engine.log", folder / "engine"
        scratch.mkdir(parents=True, exist_ok=True)
        values = {"python": self._python, "model": model.absolute(), "port": port, "folder": scratch}
        values["batch"] = self.batch_size
        command = [string.Template(str(word)).safe_substitute(values) for word in (*self.command, *self.arguments)]
        with output.open("a") as file:
            file.write(f"$ {' '.join(command)}\n")
        start = output.stat().st_size
        # In a session of its own: Ctrl-C is the run's affair. Its standard input ends with the run, however that ends.
        engine = subprocess.Popen(
            [sys.executable, "-I", supervisor.__file__, str(output), *command],
            stdin=subprocess.PIPE,
            start_new_session=True,
            env=os.environ | self.environment,
        )
        try:
            log.info("starting the engine for %s: %s", model, output)
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
        """Wait until an engine answers."""
        began = time.monotonic()
        while engine.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/models", timeout=5) as answer:
                if answer.status == 200:
                    log.info("the engine answers after %.0f s", time.monotonic() - began)
                    return
            if time.monotonic() - began > self.patience:
                allowed = (
                    f"the engine has not answered for so many seconds; its last lines are\n{_tail(output, start)}\n"
                )
                raise InputError("sampler.patience", self.patience, allowed, "Give it longer, or see engine.log.")
            time.sleep(0.5)
        raise self._ended(engine, output, start)

    def _ended(self, engine: subprocess.Popen[bytes], output: Path, start: int) -> InputError:
        status = engine.wait()
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        if status in (-signal.SIGKILL, 128 + signal.SIGKILL):
            how += ", as where memory runs out"
        allowed = f"the engine has ended with {how}; its last lines are\n{_tail(output, start)}\n"
        advice = f"All of them are in {output}. What was drawn is kept: the same command goes on from there."
        advice += self._of_seeds
        return InputError("sampler.command", " ".join(map(str, self.command)), allowed, advice)

    def fields(self, tokenizer: Any) -> dict[str, Any]:
        """Return the free fields of a request for a model."""
        ends = token_ids(tokenizer.eos_token_id, end_of_text(tokenizer))
        ids = {"eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id, "top_k": self.top_k}
        ids["do_sample"] = "true" if self.temperature else "false"
        return {name: _filled(value, ids) for name, value in self.extra.items()}


def _filled(value: Any, ids: Mapping[str, object]) -> Any:
    return string.Template(value).safe_substitute(ids) if isinstance(value, str) else value


def _tail(output: Path, start: int) -> str:
    """Return the last lines that an engine has printed."""
    with output.open("rb") as file:
        file.seek(max(start, output.stat().st_size - 20_000))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-_LAST:]) or "(it printed nothing)"
