"""The refiner pi_Refine: the protocol `Refiner`, and the options of the group `refiner`."""

from ilf.lazy import getter
from ilf.protocols import Refiner as Refiner
from ilf.protocols import Refining as Refining

_PLACES = {
    "FewShot": "sampled",
    "FineTuned": "finetuned",
    "Folder": "sampled",
    "Policy": "sampled",
}
__all__ = ["Refiner", "Refining", *_PLACES]
__getattr__ = getter(__name__, _PLACES)
