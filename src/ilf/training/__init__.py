"""The Lightning face: RefineModule, ILFModule, MBPPDataModule, UnitTestCallback, for a Trainer of one's own too."""

from ilf.lazy import getter

_PLACES = {
    "ILFModule": "ilf_module",
    "MBPPDataModule": "mbpp_datamodule",
    "RefineModule": "refine_module",
    "UnitTestCallback": "unit_test_callback",
}
__all__ = list(_PLACES)
__getattr__ = getter(__name__, _PLACES)
