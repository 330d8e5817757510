"""Verdicts as rewards: functions as TRL's GRPOTrainer and its relatives take them for `reward_funcs`.

    from ilf.sandbox import reward

    GRPOTrainer(model, reward_funcs=reward, train_dataset=dataset)  # with the columns prompt and tests

Needs no TRL itself.
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
from ilf.sandbox.jobs import Job, Limits, is_time_limit
from ilf.types import InputError, Verdict

# A fenced block of Markdown: the fence, the language, the code. One that was cut off goes to the end.
_BLOCK = re.compile(r"(`{3,}|~{3,})[ \t]*(\w*)[^\n`]*\n(.*?)(?:^[ \t]*\1[`~]*[ \t]*\r?$|\Z)", re.DOTALL | re.MULTILINE)
_PYTHON = ("python", "python3", "py")
_COLUMNS = ("tests", "inputs", "outputs", "compare_output", "setup_code", "time_limit")  # what a job is made of
_log = logging.getLogger(__name__)


def answered(prompt: Any, completion: str) -> str:
    """Return the program in an answer: its last fenced block of Python, else all of it. What is thought is no answer.

    Args:
        prompt: As TRL has it; not used.
        completion: What the model wrote.
    """
    answer = completion.rpartition("</think>")[2].partition("<think>")[0]
    blocks = [(language.lower(), code) for _, language, code in _BLOCK.findall(answer)]
    marked = [code for language, code in blocks if language in _PYTHON]
    found = marked or [code for language, code in blocks if not language]
    return textwrap.dedent(found[-1]) if found else answer


def continued(prompt: Any, completion: str) -> str:
    """Return prompt and completion as one program: for models that go on where the prompt ends.

    Args:
        prompt: The beginning of the program.
        completion: The rest.

    Raises:
        InputError: The prompt is a conversation.
    """
    if isinstance(prompt, str):
        return prompt + completion
    advice = "Leave `program=continued` out for conversations, or give prompts as texts."
    raise InputError("prompts", prompt, "must be texts where the completion continues them", advice)


class Reward:
    """A reward function: 1.0 for a completion whose program passes its tests, else 0.0.

    None, which TRL leaves out of the reward, for a row without tests. A sandbox starts at the first call and is kept;
    each process of a launch has its own.

    Args:
        limits: What each program may use; None: the usual, with all of the machine's processors, divided among the
            processes of a launch.
        program: Makes the program of a prompt, as TRL has it, and the text of a completion: `answered`, `continued` or
            your own.
        partial: Whether to give the share of tests that hold rather than all or nothing.
        undecided: What to give where the verdict is "unsupported_test". A program can bring that about by what it
            returns: 0.0 leaves it nothing to gain, None says nothing of the rows whose tests are at fault.
        name: What TRL logs the rewards under. Each reward function of a trainer needs one of its own.
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
        self._started: dict[int, tuple[Sandbox, threading.Lock]] = {}  # by process: a fork leaves its parent's alone

    def __reduce__(self) -> tuple[type[Reward], tuple[Any, ...]]:
        """Give another process a sandbox of its own."""
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
            completions: Texts, or conversations, of which the assistant's last message counts.
            prompts: As many, for a `program` that looks at them.
            log_extra: TRL's; gets verdict and detail of each, for its table of completions.
            columns: Lists, as many long: tests (each a list of statements that raise where the program is wrong), or
                inputs and outputs (each a list of texts) and optionally compare_output, of programs that read and
                write; a row has the one, the other, or None. Optionally setup_code (a text) and time_limit (seconds of
                processor time). Others are the trainer's or of other reward functions.

        Raises:
            InputError: A column is missing or holds something else.
        """
        found = {name: columns[name] for name in _COLUMNS if columns.get(name) is not None}
        if "tests" not in found and "inputs" not in found:
            advice = "Rename the column of the data set that holds lists of asserts to tests."
            allowed = f"needs to be one of the columns {sorted(columns)}, or inputs and outputs"
            raise InputError("tests", None, allowed, advice)
        for name, values in {"prompts": prompts, **found}.items():
            if values is not None and (isinstance(values, str) or len(values) != len(completions)):
                raise InputError(
                    name, values, f"must have {len(completions)} values, one a completion", "Give as many."
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
        """End this process's sandbox. A later call starts another."""
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
                _log.log(level, "%s: programs run in %s", self.__name__, isolation)
            return sandbox.run(jobs)

    def _worth(self, verdict: Verdict | None) -> float | None:
        if verdict is None:
            return None
        if verdict.verdict == "unsupported_test":
            return self._undecided
        return sum(verdict.tests) / len(verdict.tests) if self._partial else float(verdict.passed)


def _usual() -> Limits:
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # on this machine, as torchrun and accelerate say
    return Limits(workers=max(1, (os.cpu_count() or 1) // processes))


def _text(completion: Any) -> str:
    """Return what a model wrote in a completion: the text of the assistant's last message."""
    if isinstance(completion, str):
        return completion
    try:
        written = [message for message in completion if message["role"] == "assistant"]
        content = (written[-1].get("content") or "") if written else ""
        if isinstance(content, str):
            return content
        return "".join(part["text"] for part in content if part["type"] == "text")
    except (TypeError, KeyError, AttributeError):
        allowed = "must be a text, or a list of messages, each with role and content"
        raise InputError("completions", completion, allowed, "Give them as TRL does.") from None


def _job(program: str, row: Mapping[str, Any]) -> Job | None:
    """Return what the sandbox is to run, None for a row without tests and inputs."""
    lists = {name: row.get(name) for name in ("tests", "inputs", "outputs")}
    setup, limit = row.get("setup_code") or "", row.get("time_limit")
    if all(value is None for value in lists.values()):
        return None
    for name, value in lists.items():
        if value is not None and not (isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)):
            advice = 'Give each row a list, as in ["assert f(1) == 2"].'
            raise InputError(name, value, "must be a list of texts", advice)
    if not isinstance(setup, str):
        raise InputError("setup_code", setup, "must be a text", "Give code that runs after the program.")
    if not is_time_limit(limit):
        raise InputError("time_limit", limit, "must be more than 0 and at most 3600 seconds", "Correct that row.")
    tests, inputs, outputs = (tuple(value or ()) for value in lists.values())
    compare = row.get("compare_output") or "tokens"
    return Job(program, tests, setup, limit, inputs=inputs, outputs=outputs, compare_output=compare)


reward = Reward()
