"""Lazy imports of a package's classes, so that composing a configuration does not import torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def getter(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` function of a package, which imports a class on first access.

    Args:
        package: Name of the package.
        places: For each class, the module of the package that defines it.
    """

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{places[name]}"), name)

    return find
