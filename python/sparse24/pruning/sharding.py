"""DTensors (``fully_shard``, tensor parallelism), seen from one process.

Importing ``torch.distributed.tensor`` takes most of a second, so it waits until there is a DTensor.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn


def local(tensor: Tensor) -> Tensor:
    """The part of a DTensor that this process holds; any other tensor itself."""
    to_local = getattr(tensor, "to_local", None)
    part: Tensor = tensor if to_local is None else to_local()
    return part


def is_sharded(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a DTensor."""
    return hasattr(tensor, "to_local")


def cut(tensor: Tensor, dim: int, multiple: int) -> int | None:
    """The size of the shards of ``dim`` if one of them ends inside a group of ``multiple``, else None."""
    dtensor: Any = tensor
    if not is_sharded(tensor):
        return None
    size = tensor.shape[dim]
    for axis, placement in enumerate(dtensor.placements):
        if placement.is_shard(dim):
            size = -(-size // dtensor.device_mesh.size(axis))
            if size % multiple:
                return int(size)
    return None


def to_sharded(part: Tensor, like: Tensor) -> Tensor:
    """The DTensor whose local part is ``part``, placed as ``like``; ``part`` if ``like`` is no DTensor."""
    if not is_sharded(like):
        return part
    dtensor: Any = like
    return whole_of(part, dtensor.device_mesh, dtensor.placements, like.shape, like.stride())


def whole_of(part: Tensor, mesh: Any, placements: Any, shape: torch.Size, stride: tuple[int, ...]) -> Tensor:
    """The DTensor of ``shape`` whose local part is ``part``, without communication."""
    from torch.distributed.tensor import DTensor  # noqa: PLC0415

    whole: Tensor = DTensor.from_local(part, mesh, placements, run_check=False, shape=shape, stride=stride)
    return whole


def shard_like(whole: Tensor, like: Tensor) -> Tensor:
    """``whole`` on the device of ``like``, and cut as it is, without communication."""
    if is_sharded(whole) or not is_sharded(like):
        return whole.to(like.device)
    from torch.distributed.tensor import DTensor, Replicate  # noqa: PLC0415

    dtensor: Any = like
    mesh = dtensor.device_mesh
    copies = DTensor.from_local(whole.to(like.device), mesh, [Replicate()] * mesh.ndim, run_check=False)
    part: Tensor = copies.redistribute(mesh, dtensor.placements)
    return part


def reshard(model: nn.Module) -> None:
    """Bring back the shards of FSDP2 where a forward pass has left a gathered copy in their place."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # importing it would cost the others 0.8 s
    if fsdp is None:
        return
    for module in model.modules():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()


def refuse_sharded(model: nn.Module, caller: str) -> None:
    """Refuse a model whose weights lie on several processes.

    Raises:
        ValueError: a parameter is a DTensor (``fully_shard``, tensor parallelism); its name is told.
    """
    refuse_flat(model)
    for name, parameter in model.named_parameters():
        if is_sharded(parameter):
            raise ValueError(
                f"{caller} needs whole weights, and {name} {tuple(parameter.shape)} is sharded: do it "
                "before fully_shard or parallelize_module; Sparsifier.prune(from_zeros=True) then takes its "
                "masks over"
            )


def refuse_flat(model: nn.Module) -> None:
    """Refuse what FSDP1 has flattened, where no weight has a shape of its own any more.

    Raises:
        ValueError: ``model`` or a part of it is wrapped in ``FullyShardedDataParallel``.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return
    for name, module in model.named_modules():
        flat = "_flat_param" in module._parameters or any(
            getattr(p, "_fsdp_flattened", False) for p in module._parameters.values() if p is not None
        )
        if flat or isinstance(module, fsdp.FullyShardedDataParallel):
            raise ValueError(
                f"{name or 'the model'} is wrapped in FullyShardedDataParallel, which flattens weights so "
                "that none can be masked: shard with torch.distributed.fsdp.fully_shard, which is supported"
            )
