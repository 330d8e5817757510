"""Compute digests of code, so that results of older code are not reused after an edit that may change them."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

Code = ModuleType | Callable[..., Any] | Path

_LIBRARIES = {"torch", "pytorch_lightning", "lightning_fabric", "transformers", "peft"}
_OF_DATACLASSES = {"__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__replace__"}


def code_sha256(*parts: Code) -> str:
    """Return 16 characters of a SHA-256 over the syntax of `parts`. Comments, docstrings and layout don't change it.

    Args:
        *parts: Modules, functions, classes with their bases up to those of a library, or paths of Python files. For a
            method that was replaced at run time, the replacement counts.
    """
    digest = hashlib.sha256()
    for text in (text for part in parts for text in _texts(part)):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


def _texts(part: Any) -> Iterator[str]:
    if isinstance(part, Path):
        yield _syntax(part.read_text(encoding="utf-8"))
    elif isinstance(part, ModuleType):
        yield _syntax(inspect.getsource(part))
        for value in vars(part).values():
            if getattr(value, "__module__", None) == part.__name__:
                yield from _replaced(value, part.__file__)
        yield from _foreign(part)
    elif inspect.isclass(part):
        for kind in part.__mro__:
            top = kind.__module__.partition(".")[0]
            if top not in _LIBRARIES and top not in sys.stdlib_module_names:
                yield _of(kind)
                yield from _replaced(kind, inspect.getsourcefile(kind))
    else:
        yield _of(inspect.unwrap(part))


def _foreign(module: ModuleType) -> Iterator[str]:
    """Yield the current functions and classes that replaced those in a module's source."""
    for name in _definitions(inspect.getsource(module)):
        value = inspect.unwrap(getattr(module, name))
        if getattr(value, "__module__", None) != module.__name__:
            yield f"{name}: {_of(value)}"


@functools.cache
def _definitions(source: str) -> list[str]:
    """Return the names of a module's functions and classes."""
    return [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def _replaced(value: Any, file: str | None) -> Iterator[str]:
    """Yield the functions of a class that are defined in a file other than `file`, such as a notebook."""
    for name, one in vars(value).items() if inspect.isclass(value) else [("", value)]:
        one = getattr(one, "__func__", None) or getattr(one, "fget", None) or getattr(one, "func", None) or one
        code = getattr(inspect.unwrap(one) if callable(one) else one, "__code__", None)
        made = code is not None and code.co_filename == "<string>" and name in _OF_DATACLASSES
        if code is not None and code.co_filename != file and not made:
            yield f"{value.__qualname__}.{name}: {_of(inspect.unwrap(one))}"


def _of(value: Any) -> str:
    """Return the syntax of a function or class, or the bytecode of a function without source."""
    try:
        return _syntax(textwrap.dedent(inspect.getsource(value)))
    except (OSError, TypeError, SyntaxError):  # defined in a console or by `exec`, or a lambda within a call
        return _code(value.__code__) if hasattr(value, "__code__") else repr(type(value))


def _code(code: CodeType) -> str:
    constants = (_code(one) if isinstance(one, CodeType) else repr(one) for one in code.co_consts)
    return "|".join([code.co_code.hex(), repr(code.co_names), *constants])


@functools.cache
def _syntax(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:]
    return ast.dump(tree)
