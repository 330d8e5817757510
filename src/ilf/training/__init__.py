"""The Lightning API: RefineModule, ILFModule, MBPPDataModule and UnitTestCallback, also for a Trainer of your own."""

from ilf.lazy import getter

_PLACES = {
    "ILFModule": "ilf_module",
    "MBPPDataModule": "mbpp_datamodule",
    "RefineModule": "refine_module",
    "UnitTestCallback": "unit_test_callback",
}
__all__ = list(_PLACES)
__getattr__ = getter(__name__, _PLACES)
