"""The Lightning face: RefineModule, ILFModule, MBPPDataModule, UnitTestCallback, for a Trainer of one's own too."""

import importlib
from typing import Any

_PLACES = {
    "ILFModule": "ilf_module",
    "MBPPDataModule": "mbpp_datamodule",
    "RefineModule": "refine_module",
    "UnitTestCallback": "unit_test_callback",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    """Import a class when it is asked for: other modules here need no Lightning."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
