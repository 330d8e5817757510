"""Finds training tasks that nearly duplicate a Test task: the same words, or the same gold program except for names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

from ilf.types import Task

_NAMES = {ast.FunctionDef: "name", ast.AsyncFunctionDef: "name", ast.ClassDef: "name", ast.arg: "arg", ast.Name: "id"}


def near_duplicates(tasks: Iterable[Task]) -> dict[int, int]:
    """Return the ids of the Refine and Train tasks that nearly duplicate a Test task, each with the id of that task.

    Two tasks are near duplicates if their descriptions have the same words, or if their gold programs have the same
    syntax tree after numbering the names and removing imports and docstrings, so that either program does what the
    other does. There is no similarity threshold, so tasks about opposites (odd and even words) are not duplicates.
    """
    known: dict[object, int] = {}
    others = []
    for task in tasks:
        if task.split == "test":
            for mark in _marks(task):
                known.setdefault(mark, task.task_id)
        elif task.split in ("refine", "train"):
            others.append(task)
    found = {task.task_id: next((known[mark] for mark in _marks(task) if mark in known), None) for task in others}
    return {task_id: repeated for task_id, repeated in found.items() if repeated is not None}


def _marks(task: Task) -> Iterator[object]:
    """Yield the keys that duplicate tasks share: the words, and the shape of the gold program."""
    if words := re.findall(r"\w+", task.text.casefold()):
        yield tuple(words)
    if task.code:
        yield _shape(task.code)


def _shape(code: str) -> str:
    """Return the syntax tree of a program without imports and docstrings, with its own names numbered in order."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [one for one in body if not _says_nothing(one)]  # type: ignore[attr-defined]
    own = {
        getattr(node, _NAMES[type(node)])
        for node in ast.walk(tree)
        if type(node) in _NAMES and not isinstance(getattr(node, "ctx", None), ast.Load)
    }
    numbers: dict[str, str] = {}
    for node in _in_order(tree):
        field = _NAMES.get(type(node))
        if field and (name := getattr(node, field)) in own:
            setattr(node, field, numbers.setdefault(name, f"name {len(numbers)}"))
    return ast.dump(tree)


def _says_nothing(node: ast.AST) -> bool:
    """Return whether a statement is an import, or a bare constant such as a docstring."""
    alone = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return alone or isinstance(node, ast.Import | ast.ImportFrom)


def _in_order(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and all of its descendants in source order, unlike the level order of `ast.walk`."""
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _in_order(child)
