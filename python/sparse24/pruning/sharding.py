"""DTensors (``fully_shard``, tensor parallelism), seen from one process.

Importing ``torch.distributed.tensor`` takes most of a second, so it waits until there is a DTensor.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


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
    from torch.distributed.tensor import DTensor  # noqa: PLC0415

    dtensor: Any = like
    whole: Tensor = DTensor.from_local(
        part, dtensor.device_mesh, dtensor.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
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
