"""The feedback sources, one per module, their base class `Source`, and the transforms of feedback."""

from ilf.lazy import getter

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
    "UnitTests": "unit_tests",
    "Writing": "source",
}
__all__ = list(_PLACES)
__getattr__ = getter(__name__, _PLACES)
