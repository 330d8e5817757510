"""Mini Basic Python Problems: 974 generated tasks in MBPP's columns, with the paper's split ids.

Everything is generated from one seed, so that the rows are the same on every machine and in every run.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from ilf.tasks.data import Data
from ilf.tasks.mbpp import ids_of, tasks_from
from ilf.tasks.mini_grammar import Specification, draw_argument, draw_names, draw_specification
from ilf.tasks.mini_parts import FILTERS, MAPS, REDUCTIONS
from ilf.types import Task

_SEED, _TASKS = 2303_16749, 974  # the seed is the paper's arXiv number
_ATTEMPTS = 16  # arguments sampled for each task, of which three become tests


@dataclass
class Mini(Data):
    """Generated tasks that a script can annotate.

    Args:
        sha256: The expected SHA-256 of the content; null accepts any content.
    """

    annotator: Literal["human", "scripted"] = "scripted"
    sha256: str | None = None

    gold_passes: ClassVar[bool] = True

    def place_of(self, *splits: str) -> str:
        """Return the ids of these splits, for errors."""
        return ids_of(*splits)

    def read(self, key: str) -> tuple[Sequence[Task], str]:
        """Return all tasks in order of id, and the SHA-256 of their content."""
        return _tasks(self.sha256, self.prompt, key)

    def specifications(self) -> Mapping[int, Specification]:
        """Return what each task requires, by id."""
        return specifications()


@functools.cache
def _tasks(sha256: str | None, prompt: str, key: str) -> tuple[tuple[Task, ...], str]:
    tasks, found = tasks_from(rows(), sha256, prompt, key)
    return tuple(tasks), found


@functools.cache
def specifications() -> dict[int, Specification]:
    """Return what each task requires, by id. No two specifications are the same."""
    rng = random.Random(_SEED)
    found: dict[str, Specification] = {}
    while len(found) < _TASKS:
        specification = draw_specification(rng)
        found.setdefault(specification.key, specification)
    return dict(enumerate(found.values(), 1))


@functools.cache
def rows() -> tuple[tuple[str, dict[str, Any]], ...]:
    """Return (place, row) for each task, with MBPP's columns: text, gold program (a comprehension), three asserts."""
    return tuple((f"mini:{i}", _row(i, specification)) for i, specification in specifications().items())


def _row(task_id: int, specification: Specification) -> dict[str, Any]:
    rng = random.Random(f"{_SEED}/{task_id}")
    names = draw_names(specification, None, rng)
    name = specification.function_name()
    calls = [(repr(data), repr(specification.answer(data))) for data in draw_tests(specification, rng)]
    return {
        "task_id": task_id,
        "text": specification.text(rng),
        "code": f"def {name}({names.arg}):\n{specification.sketch(short=True).body(names)}",
        "test_list": [f"assert {name}({data}) == {answer}" for data, answer in calls],
        "test_setup_code": "",
        "challenge_test_list": [],
    }


def draw_tests(specification: Specification, rng: random.Random, count: int = 3) -> list[Any]:
    """Return the arguments, among those sampled, that best distinguish a specification from its neighbors."""
    neighbours = list(_neighbours(specification))
    arguments: list[Any] = []
    told: list[set[int]] = []  # the neighbors that each argument distinguishes
    attempts = 0
    while attempts < _ATTEMPTS or len(arguments) < count:
        attempts += 1
        data = draw_argument(specification, rng)
        if data in arguments or not specification.values(data):
            continue
        answer = specification.answer(data)
        if answer == 0 and specification.reduction.name == "product":
            continue
        arguments.append(data)
        told.append({i for i, other in enumerate(neighbours) if _answer(other, data) != answer})
    chosen: list[int] = []
    seen: set[int] = set()
    for _ in range(count):
        rest = [i for i in range(len(arguments)) if i not in chosen]
        best = max(rest, key=lambda i: (len(told[i] - seen), len(told[i]), -len(repr(arguments[i]))))
        chosen.append(best)
        seen |= told[best]
    return [arguments[i] for i in sorted(chosen, key=lambda i: len(repr(arguments[i])))]


def _neighbours(specification: Specification) -> Iterator[Specification]:
    """Yield the specifications that differ in the filter, the map or the reduction."""
    s = specification
    for f in FILTERS:
        if f.kind == s.source.kind and f != s.filter:
            yield replace(s, filter=f, k=s.k if s.k in f.constants else f.constants[0])
    for m in MAPS:
        if m.kind == s.source.kind and m.gives == s.map.gives and m != s.map:
            yield replace(s, map=m, m=m.constants[0])
    for reduction in REDUCTIONS:
        if s.map.gives in reduction.takes and reduction != s.reduction:
            yield replace(s, reduction=reduction)


def _answer(specification: Specification, data: Any) -> Any:
    try:
        return specification.answer(data)
    except (ValueError, IndexError):  # such as the maximum of an empty list
        return None
