"""Verdicts as rewards: functions for the argument `reward_funcs` of TRL's GRPOTrainer and similar trainers.

    from ilf.sandbox import reward

    GRPOTrainer(model, reward_funcs=reward, train_dataset=dataset)  # has the columns prompt and tests

This module does not need TRL itself.
"""

from __future__ import annotations

import logging
import os
import re
import textwrap
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ilf.sandbox.executor import Sandbox
from ilf.sandbox.jobs import Job, Limits, cores, is_time_limit
from ilf.types import InputError, Verdict

# A fenced code block in Markdown: the fence, the language, the code. A block that was cut off reaches to the end.
CODE_BLOCK = re.compile(
    r"(`{3,}|~{3,})[ \t]*(\w*)[^\n`]*\n(.*?)(?:^[ \t]*\1[`~]*[ \t]*\r?$|\Z)", re.DOTALL | re.MULTILINE
)
_PYTHON = ("python", "python3", "py")
_COLUMNS = ("tests", "inputs", "outputs", "compare_output", "setup_code", "time_limit")  # the columns that make a job
_log = logging.getLogger(__name__)


def answered(prompt: Any, completion: str) -> str:
    """Return the program in a completion: the last fenced block of Python, or all of the text if there is none.

    Text inside <think> tags is ignored.

    Args:
        prompt: The prompt in TRL's format; not used.
        completion: The text that the model wrote.
    """
    answer = completion.rpartition("</think>")[2].partition("<think>")[0]
    blocks = [(language.lower(), code) for _, language, code in CODE_BLOCK.findall(answer)]
    marked = [code for language, code in blocks if language in _PYTHON]
    found = marked or [code for language, code in blocks if not language]
    return textwrap.dedent(found[-1]) if found else answer


def continued(prompt: Any, completion: str) -> str:
    """Return prompt and completion as one program, for models that continue the prompt.

    Args:
        prompt: The beginning of the program.
        completion: The rest of the program.

    Raises:
        InputError: The prompt is a conversation.
    """
    if isinstance(prompt, str):
        return prompt + completion
    advice = "Leave `program=continued` out for conversations, or give prompts as strings."
    raise InputError("prompts", prompt, "must be strings that the completion continues", advice)


class Reward:
    """A reward function that returns 1.0 for a completion whose program passes its tests, and 0.0 otherwise.

    It returns None, which TRL leaves out of the reward, for a row without tests. The first call starts a sandbox, which
    later calls reuse. Each process of a launch has its own sandbox.

    Args:
        limits: What each program may use. With None, the defaults, with the processors of the machine divided among
            the local processes of a launch.
        program: Function that returns the program, given a prompt in TRL's format and the text of a completion:
            `answered`, `continued` or your own.
        partial: Whether to return the fraction of tests that pass rather than 1.0 or 0.0.
        undecided: Reward for the verdict "unsupported_test". A program can cause this verdict by what it returns: with
            0.0 it gains nothing by that, with None rows whose tests cannot be decided get no reward.
        name: Name under which TRL logs the rewards. The reward functions of a trainer need different names.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        program: Callable[[Any, str], str] = answered,
        partial: bool = False,
        undecided: float | None = None,
        name: str = "reward",
    ) -> None:
        self._given = limits, program, partial, undecided, name
        self._limits, self._program, self._partial, self._undecided = limits, program, partial, undecided
        self.__name__ = name
        self._started: dict[int, tuple[Sandbox, threading.Lock]] = {}  # by process ID, since a fork needs its own

    def __reduce__(self) -> tuple[type[Reward], tuple[Any, ...]]:
        """Pickle the reward function so that another process starts its own sandbox."""
        return type(self), self._given

    def __call__(
        self,
        completions: Sequence[Any],
        prompts: Sequence[Any] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Return a reward for each completion.

        Args:
            completions: Strings, or conversations, of which the assistant's last message is used.
            prompts: One prompt per completion, for a `program` that uses them.
            log_extra: TRL's function that logs columns; receives the verdict and the detail of each completion.
            columns: Lists with one value per completion: tests (each a list of statements that raise if the program is
                incorrect), or, for programs that read and write, inputs and outputs (each a list of strings) and
                optionally compare_output. A row may have tests, inputs with outputs, or None. Also optional: setup_code
                (a string) and time_limit (seconds of processor time). Other columns are ignored.

        Raises:
            InputError: A column is missing or holds values of another type.
        """
        found = {name: columns[name] for name in _COLUMNS if columns.get(name) is not None}
        if "tests" not in found and "inputs" not in found:
            advice = "Rename the column of the dataset that holds lists of asserts to tests."
            allowed = f"must be one of the columns {sorted(columns)}, unless there are inputs and outputs"
            raise InputError("tests", None, allowed, advice)
        for name, values in {"prompts": prompts, **found}.items():
            if values is not None and (isinstance(values, str) or len(values) != len(completions)):
                raise InputError(
                    name, values, f"must have {len(completions)} values, one per completion", "Give as many."
                )
        jobs = []
        for i, completion in enumerate(completions):
            text = self._program(None if prompts is None else prompts[i], _text(completion))
            jobs.append(_job(text, {name: values[i] for name, values in found.items()}))
        verdicts = iter(self._run([job for job in jobs if job is not None]))
        judged = [None if job is None else next(verdicts) for job in jobs]
        if log_extra is not None:
            log_extra(f"{self.__name__}_verdict", [one and one.verdict for one in judged])
            log_extra(f"{self.__name__}_detail", [one and one.detail for one in judged])
        return [self._worth(one) for one in judged]

    def close(self) -> None:
        """Stop the sandbox of this process. A later call starts a new one."""
        sandbox, _ = self._started.pop(os.getpid(), (None, None))
        if sandbox is not None:
            sandbox.close()

    def _run(self, jobs: list[Job]) -> list[Verdict]:
        first = os.getpid() not in self._started
        if first:
            self._started[os.getpid()] = Sandbox(self._limits or _usual()), threading.Lock()
        sandbox, lock = self._started[os.getpid()]
        with lock:  # TRL's asynchronous trainers call from several threads
            isolation = sandbox.isolation
            if first:
                level = logging.WARNING if isolation.open else logging.INFO
                _log.log(level, "%s: programs run with %s", self.__name__, isolation)
            return sandbox.run(jobs)

    def _worth(self, verdict: Verdict | None) -> float | None:
        if verdict is None:
            return None
        if verdict.verdict == "unsupported_test":
            return self._undecided
        return sum(verdict.tests) / len(verdict.tests) if self._partial else float(verdict.passed)


def _usual() -> Limits:
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of this machine; torchrun and accelerate set it
    return Limits(workers=max(1, cores() // processes))


def _text(completion: Any) -> str:
    """Return the text of a completion; of a conversation, the text of the assistant's last message."""
    if isinstance(completion, str):
        return completion
    try:
        written = [message for message in completion if message["role"] == "assistant"]
        content = (written[-1].get("content") or "") if written else ""
        if isinstance(content, str):
            return content
        return "".join(part["text"] for part in content if part["type"] == "text")
    except (TypeError, KeyError, AttributeError):
        allowed = "must be a string, or a list of messages, each with role and content"
        raise InputError("completions", completion, allowed, "Give completions in TRL's format.") from None


def _job(program: str, row: Mapping[str, Any]) -> Job | None:
    """Return the job for a row, or None for a row without tests, inputs and outputs."""
    lists = {name: row.get(name) for name in ("tests", "inputs", "outputs")}
    setup, limit = row.get("setup_code") or "", row.get("time_limit")
    if all(value is None for value in lists.values()):
        return None
    for name, value in lists.items():
        if value is not None and not (isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)):
            advice = 'Give each row a list, as in ["assert f(1) == 2"].'
            raise InputError(name, value, "must be a list of strings", advice)
    if not isinstance(setup, str):
        raise InputError("setup_code", setup, "must be a string", "Give code that runs after the program.")
    if not is_time_limit(limit):
        raise InputError("time_limit", limit, "must be more than 0 and at most 3600 seconds", "Correct that row.")
    tests, inputs, outputs = (tuple(value or ()) for value in lists.values())
    compare = row.get("compare_output") or "tokens"
    return Job(program, tests, setup, limit, inputs=inputs, outputs=outputs, compare_output=compare)


reward = Reward()
