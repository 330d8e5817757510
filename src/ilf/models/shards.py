"""A model in parts, one a process: FSDP, in the form that torch calls fully_shard."""

from __future__ import annotations

from typing import Any

from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard


def shard(model: Any, mesh: DeviceMesh) -> None:
    """Divide the parameters of a model of transformers, in place, block by block: one is whole only while it runs."""
    blocks = set(model._no_split_modules or ())
    for module in model.modules():
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def hold_whole(model: Any, whole: bool) -> None:
    """Have each process hold the whole model, so that it needs none of the others; or its part again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(not whole, recurse=False)
            if whole:
                module.unshard()
            else:
                module.reshard()


def gathered(model: Any) -> dict[str, Any] | None:
    """Return the weights of a model in parts in the first process, on the CPU; None where the model is whole.

    All processes have to come here; the others' are empty.
    """
    if not any(isinstance(module, FSDPModule) for module in model.modules()):
        return None
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
