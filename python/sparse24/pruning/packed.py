"""The masks that a Sparsifier keeps: a bit a weight. Whoever asks for one gets it as a bool tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ops
from .sharding import is_sharded, local, shard_like, whole_of


class PackedMask:
    """A mask, True = kept, as uint8 [numel / 8]; of a sharded weight, that of the local shard.

    Args:
        mask: bool, any shape; a DTensor where the weight is one.
    """

    def __init__(self, mask: Tensor) -> None:
        part = local(mask)
        self.shape = mask.shape  #: of the whole
        self._local_shape = part.shape
        self._bits = ops.pack_mask(part)
        placed: Any = mask
        #: Where the shards are: mesh, placements, and the strides of the whole; None: not sharded.
        self._placed = (placed.device_mesh, placed.placements, mask.stride()) if is_sharded(mask) else None

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self._bits.numel()

    @property
    def is_placed(self) -> bool:
        """Whether it is that of a shard."""
        return self._placed is not None

    def local_bool(self) -> Tensor:
        """The mask of the local part, bool."""
        return ops.unpack_mask(self._bits, self._local_shape)

    def to_bool(self) -> Tensor:
        """The mask as it was given, bool; in memory of its own."""
        if self._placed is None:
            return self.local_bool()
        mesh, placements, stride = self._placed
        return whole_of(self.local_bool(), mesh, placements, self.shape, stride)

    def follow(self, weight: Tensor) -> PackedMask:
        """This mask on the device of ``weight`` and sharded as it is: itself, or another one."""
        if is_sharded(weight) and self._placed is None:
            return PackedMask(shard_like(self.to_bool(), weight))
        device = local(weight).device
        if self._bits.device != device:
            self._bits = self._bits.to(device)
        return self

    @torch.no_grad()
    def apply_(self, tensor: Tensor) -> None:
        """Write +0.0 over what is pruned of a weight, its gradient, or a copy of it in another dtype."""
        part = local(tensor)
        ops.apply_mask_bits_(part, self._bits.to(part.device))
