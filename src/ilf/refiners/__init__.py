"""What pi_Refine is: one protocol (`Refiner`), and the options of the group `refiner`."""

import importlib
from typing import Any

from ilf.protocols import Refiner as Refiner
from ilf.protocols import Refining as Refining

_PLACES = {
    "FewShot": "sampled",
    "FineTuned": "finetuned",
    "Folder": "sampled",
    "Policy": "sampled",
}
__all__ = ["Refiner", "Refining", *_PLACES]


def __getattr__(name: str) -> Any:
    """Import a class when it is asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
