"""What draws programs: transformers' models here (`hf`, `continuous`), or a server's (`openai`)."""

import importlib
from typing import Any

from ilf.protocols import Sampler as Sampler

_PLACES = {
    "ContinuousSampler": "continuous",
    "HFSampler": "hf",
    "ServedSampler": "served",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    """Import a class when it is asked for: a server's needs no torch."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
