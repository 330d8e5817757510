"""Samplers: transformers models in this process (`hf`, `continuous`), or a server (`openai`; `vllm` starts one)."""

from ilf.lazy import getter
from ilf.protocols import Sampler as Sampler

_PLACES = {
    "ContinuousSampler": "continuous",
    "EngineSampler": "engine",
    "HFSampler": "hf",
    "ServedSampler": "served",
}
__all__ = list(_PLACES)
__getattr__ = getter(__name__, _PLACES)
