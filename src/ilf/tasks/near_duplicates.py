"""Tasks to learn from that nearly repeat a task of Test: the same words, or the same gold program but for names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

from ilf.types import Task

_NAMES = {ast.FunctionDef: "name", ast.AsyncFunctionDef: "name", ast.ClassDef: "name", ast.arg: "arg", ast.Name: "id"}


def near_duplicates(tasks: Iterable[Task]) -> dict[int, int]:
    """Return the ids of the tasks of Refine and Train that nearly repeat one of Test, each with that one's id.

    Two tasks are near duplicates where their descriptions have the same words, or where their gold programs have the
    same syntax tree once names are numbered and imports and docstrings left out: either program then does what the
    other does. No threshold decides, so that tasks on opposites (odd and even words) are none.
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
    """Yield what tasks that are the same have in common: the words, and the shape of the program."""
    if words := re.findall(r"\w+", task.text.casefold()):
        yield tuple(words)
    if task.code:
        yield _shape(task.code)


def _shape(code: str) -> str:
    """Return the syntax tree of a program without imports and docstrings, its own names numbered as they come."""
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
    """Return whether a statement is an import, or a constant that stands alone, as docstrings do."""
    alone = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return alone or isinstance(node, ast.Import | ast.ImportFrom)


def _in_order(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and all below it in the order of the text; `ast.walk` goes level by level."""
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _in_order(child)
