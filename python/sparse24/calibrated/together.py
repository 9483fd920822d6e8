"""Calibration in several processes that hold a model in shards (``fully_shard``).

Every process runs the forwards of its own batches. The moments of a layer's inputs are summed over all of
them, and each matrix is gathered, pruned by the same numbers everywhere, and cut into its shards again. So
the result is that of one process with everybody's batches.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..pruning.sharding import is_sharded, local, refuse_flat, reshard, shard_like
from .moments import Moments


class Together:
    """The processes that share a model, as calibration asks them."""

    def __init__(self, model: nn.Module, mesh: Any) -> None:
        self._model, self._mesh = model, mesh

    def settle(self) -> None:
        """Have the parameters be shards again, after forwards have gathered them."""
        reshard(self._model)

    @contextlib.contextmanager
    def callable_alone(self, block: nn.Module) -> Iterator[None]:
        """``block`` may be called without the modules around it, which gather some of its weights."""
        from torch.distributed.fsdp import FSDPModule  # noqa: PLC0415

        around = [
            module
            for module in self._model.modules()
            if isinstance(module, FSDPModule)
            and module is not block
            and any(part is block for part in module.modules())
        ]
        try:
            for module in around:
                module.unshard()
            yield
        finally:
            self.settle()

    def refuse_difference(self, what: str, own: object) -> None:
        """Refuse what has to be the same in all processes, for they wait for each other.

        Raises:
            ValueError: another process has another; ``what`` says of what.
        """
        first, *others = self._gathered(own)
        different = [other for other in others if other != first]
        if different:
            raise ValueError(
                f"every process of a sharded model needs the same {what}: one has {first}, another "
                f"{different[0]}"
            )

    def sum_up(self, found: Mapping[str, Sequence[Moments]]) -> dict[str, list[Moments]]:
        """The moments of layers, over all processes; one that a process has not reached has no rows there."""
        own = {name: [moments.columns for moments in parts] for name, parts in found.items()}
        sizes: dict[str, list[int]] = {}
        for other in self._gathered(own):
            for name, parts in other.items():
                sizes.setdefault(name, parts)
        device = self._device()
        summed = {}
        for name in sorted(sizes):
            mine = found.get(name) or [Moments(columns, device) for columns in sizes[name]]
            summed[name] = [moments.summed_up(self.sum) for moments in mine]
        return summed

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        import torch.distributed as dist  # noqa: PLC0415

        total = tensor.clone()
        for dim in range(self._mesh.ndim):
            dist.all_reduce(total, group=self._mesh.get_group(dim))
        return total

    def agreed(self, tensor: Tensor) -> Tensor:
        """What the first process has."""
        import torch.distributed as dist  # noqa: PLC0415

        taken = tensor.contiguous()
        for dim in range(self._mesh.ndim):
            dist.broadcast(taken, group=self._mesh.get_group(dim), group_src=0)
        return taken

    def _gathered(self, own: Any) -> list[Any]:
        import torch.distributed as dist  # noqa: PLC0415

        found = [own]
        for dim in range(self._mesh.ndim):
            group = self._mesh.get_group(dim)
            everybody: list[Any] = [None] * self._mesh.size(dim)
            dist.all_gather_object(everybody, found, group=group)
            found = [each for several in everybody for each in several]
        return found

    def _device(self) -> torch.device:
        return local(next(p for p in self._model.parameters() if is_sharded(p))).device


def together_of(model: nn.Module, caller: str) -> Together | None:
    """The processes that hold ``model`` in shards; ``None``: this one has all of it.

    Raises:
        ValueError: it is sharded in another way than by ``fully_shard``: by FSDP1, or tensor parallelism.
    """
    refuse_flat(model)
    reshard(model)
    meshes: list[Any] = []
    inside = _inside_fully_shard(model)
    for name, parameter in model.named_parameters():
        if not is_sharded(parameter):
            continue
        placed: Any = parameter
        if id(parameter) not in inside or sum(p.is_shard() for p in placed.placements) > 1:
            raise ValueError(
                f"{caller} needs whole weights, and {name} {tuple(parameter.shape)} is cut by tensor "
                f"parallelism ({placed.placements}): do it before parallelize_module, or shard by "
                "fully_shard alone; Sparsifier.prune(from_zeros=True) then takes its masks over"
            )
        if placed.device_mesh not in meshes:
            meshes.append(placed.device_mesh)
    if len(meshes) > 1:
        raise ValueError(f"{caller} needs one device mesh for the whole model, not {len(meshes)}: {meshes}")
    return Together(model, meshes[0]) if meshes else None


def _inside_fully_shard(model: nn.Module) -> set[int]:
    """Parameters, by id, of modules that ``fully_shard`` was called with."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    found: set[int] = set()
    for module in model.modules() if fsdp is not None else ():
        if isinstance(module, fsdp.FSDPModule):
            found.update(id(parameter) for parameter in module.parameters())
    return found


def whole(parameter: Tensor) -> Tensor:
    """All of a parameter, gathered from its shards where it has some; then in memory of its own."""
    detached: Any = parameter.detach()
    found: Tensor = detached.full_tensor() if is_sharded(parameter) else detached
    return found


@torch.no_grad()
def put_back(numbers: Tensor, parameter: Tensor) -> None:
    """Write what :func:`whole` gave and was changed; where that shares the parameter's memory, it is done."""
    if is_sharded(parameter):
        local(parameter).copy_(local(shard_like(numbers, parameter)))


def is_finite(weight: Tensor) -> bool:
    """Whether all of a weight is, in whatever process."""
    finite = local(weight.detach()).isfinite().all()
    if not is_sharded(weight):
        return bool(finite)
    placed: Any = weight
    together = Together(nn.Module(), placed.device_mesh)
    return bool(together.sum(1 - finite.to(torch.int32)) == 0)
