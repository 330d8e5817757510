"""Who writes the feedback: one file a source; `Source` is what they have in common, and what is done to feedback."""

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
