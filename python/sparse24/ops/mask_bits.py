"""Masks as bits, eight to a byte, the first in the lowest bit: packed, unpacked, and applied to a tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _C

#: Bytes of a number that the kernel masks.
_WIDTHS = (2, 4, 8)


def pack_mask(mask: Tensor) -> Tensor:
    """A bool tensor of any shape as uint8 [numel / 8, rounded up], in the order of its elements, there."""
    mask = mask.contiguous()
    if mask.device.type != "cpu":
        return _pack_torch(mask)
    bits = torch.empty(-(-mask.numel() // 8), dtype=torch.uint8)
    _C.pack_mask(mask.data_ptr(), mask.numel(), bits.data_ptr(), torch.get_num_threads())
    return bits


def _pack_torch(mask: Tensor) -> Tensor:
    flat = torch.nn.functional.pad(mask.reshape(-1), (0, -mask.numel() % 8)).view(-1, 8)
    places = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (flat.to(torch.uint8) << places).sum(1, dtype=torch.uint8)


def unpack_mask(bits: Tensor, shape: torch.Size) -> Tensor:
    """The bool tensor of ``shape`` that :func:`pack_mask` packed, on the device of ``bits``."""
    if bits.device.type != "cpu":
        return _unpack_torch(bits, shape)
    mask = torch.empty(shape, dtype=torch.bool)
    _C.unpack_mask(bits.data_ptr(), mask.numel(), mask.data_ptr(), torch.get_num_threads())
    return mask


def _unpack_torch(bits: Tensor, shape: torch.Size) -> Tensor:
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    flat = (bits.unsqueeze(1) >> places) & 1
    return flat.view(-1)[: shape.numel()].view(shape).bool()


def apply_mask_bits_(tensor: Tensor, bits: Tensor) -> Tensor:
    """Write +0.0 over what the mask in ``bits``, on the same device, prunes, in place; return ``tensor``.

    Autograd does not record the change. On a CPU, contiguous numbers of 2, 4 or 8 bytes are masked as they
    lie; elsewhere the mask of this one tensor is unpacked for the call.
    """
    if tensor.device.type != "cpu" or not tensor.is_contiguous() or tensor.element_size() not in _WIDTHS:
        with torch.no_grad():
            return tensor.masked_fill_(~unpack_mask(bits, tensor.shape), 0)
    _C.apply_mask_bits(
        tensor.data_ptr(), tensor.element_size(), tensor.numel(), bits.data_ptr(), torch.get_num_threads()
    )
    if not tensor.is_inference():
        # The kernel writes through a pointer; backward passes and caches look at the version.
        torch.autograd.graph.increment_version(tensor)
    return tensor
