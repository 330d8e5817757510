"""Shards a model among processes with FSDP2 (torch's fully_shard)."""

from __future__ import annotations

from typing import Any

from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard


def shard(model: Any, mesh: DeviceMesh) -> None:
    """Shard a transformers model's parameters in place, block by block. A block is whole only while it runs."""
    blocks = set(model._no_split_modules or ())
    for module in model.modules():
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def hold_whole(model: Any, whole: bool) -> None:
    """Give each process the whole model, so that it needs no other process, or only its shard again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(not whole, recurse=False)
            if whole:
                module.unshard()
            else:
                module.reshard()


def gathered(model: Any) -> dict[str, Any] | None:
    """Return a sharded model's weights on rank 0, on the CPU; None if the model is not sharded.

    All processes must call this. Other ranks get an empty result.
    """
    if not any(isinstance(module, FSDPModule) for module in model.modules()):
        return None
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
