"""Who writes the feedback: one file a source; `Source` is what they have in common, and what is done to feedback."""

import importlib
from typing import Any

_PLACES = {
    "Annotator": "composed",
    "Drop": "transforms",
    "Human": "human",
    "LLM": "llm",
    "Mixed": "composed",
    "OneBug": "transforms",
    "Scripted": "scripted",
    "Shuffle": "transforms",
    "Source": "source",
    "Transform": "transforms",
    "UnitTests": "from_tests",
    "Writing": "source",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    """Import a class when it is asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
