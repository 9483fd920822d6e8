"""The canonical compressed layout: operators to and from it, and the matrix form of a convolution.

The same on every device, for a weight [rows, K]::

    values   [rows, Kp/2]  weight dtype: the two kept values of every group of four, in column order
    indices  [rows, Kp/8]  uint8: 2 bits a kept value, low bits first   (Kp = K rounded up to 8)

A group with fewer than two non-zeros is filled with zero slots at its lowest free columns, so the two
indices of a group always increase.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import register_fake

from .. import _C
from .registry import DTYPES, TAGS, library, names_of, round_up

library.define("compress(Tensor weight) -> (Tensor, Tensor)", tags=TAGS)
library.define("decompress(Tensor values, Tensor indices) -> Tensor", tags=TAGS)


def check_compressible(weight: Tensor) -> None:
    torch._check_value(
        weight.dim() >= 1,
        lambda: "compress needs a weight [..., K], not a scalar",
    )
    torch._check_type(
        weight.dtype in DTYPES,
        lambda: f"compress supports {names_of(DTYPES)}, not {weight.dtype}",
    )


def check_compressed(values: Tensor, indices: Tensor) -> None:
    torch._check_type(
        values.dtype in DTYPES and indices.dtype == torch.uint8,
        lambda: (
            f"values must be one of {names_of(DTYPES)} and indices uint8, "
            f"not {values.dtype} and {indices.dtype}"
        ),
    )
    torch._check_value(
        values.dim() >= 1
        and values.shape[:-1] == indices.shape[:-1]
        and values.shape[-1] == 4 * indices.shape[-1],
        lambda: (
            "values [..., K/2] and indices [..., K/8] with K a multiple of 8 do not fit: "
            f"{tuple(values.shape)} and {tuple(indices.shape)}"
        ),
    )


def first_crowded(matrix: Tensor) -> tuple[int, int] | None:
    """(row, group) of the first group of four of [rows, K] with more than two non-zeros; ``None``: it is 2:4.

    Raises:
        TypeError: a dtype that cannot be compressed.
    """
    check_compressible(matrix)
    rows, cols = matrix.shape
    flat = matrix.detach().cpu().contiguous()
    found = _C.find_crowded(flat.data_ptr(), DTYPES[matrix.dtype], rows, cols)
    return None if found < 0 else divmod(found, round_up(cols, 8) // 4)


def _compress(weight: Tensor) -> tuple[Tensor, Tensor]:
    check_compressible(weight)
    *lead, cols = weight.shape
    flat = weight.detach().cpu().reshape(weight.shape[:-1].numel(), cols).contiguous()
    padded = round_up(cols, 8)
    values = torch.empty((*lead, padded // 2), dtype=weight.dtype)
    indices = torch.empty((*lead, padded // 8), dtype=torch.uint8)
    _C.compress(
        flat.data_ptr(), DTYPES[weight.dtype], flat.shape[0], cols, values.data_ptr(), indices.data_ptr()
    )
    return values.to(weight.device), indices.to(weight.device)


def _decompress(values: Tensor, indices: Tensor) -> Tensor:
    check_compressed(values, indices)
    padded = 2 * values.shape[-1]
    host_values, host_indices = values.detach().cpu().contiguous(), indices.cpu().contiguous()
    dense = torch.empty((*values.shape[:-1], padded), dtype=values.dtype)
    _C.expand(
        host_values.data_ptr(), host_indices.data_ptr(), DTYPES[values.dtype],
        values.shape[:-1].numel(), padded, dense.data_ptr(),
    )  # fmt: skip
    return dense.to(values.device)


library.impl("compress", _compress, "CompositeExplicitAutograd")
library.impl("decompress", _decompress, "CompositeExplicitAutograd")


@register_fake("sparse24::compress", lib=library)
def _(weight: Tensor) -> tuple[Tensor, Tensor]:
    check_compressible(weight)
    *lead, cols = weight.shape
    padded = round_up(cols, 8)
    return weight.new_empty((*lead, padded // 2)), weight.new_empty((*lead, padded // 8), dtype=torch.uint8)


@register_fake("sparse24::decompress", lib=library)
def _(values: Tensor, indices: Tensor) -> Tensor:
    check_compressed(values, indices)
    return values.new_empty((*values.shape[:-1], 2 * values.shape[-1]))


def conv_weight_to_matrix(weight: Tensor) -> Tensor:
    """[out, C, R, S] to the 2-D form that conv2d compresses: [out, R*S*C4], k ordered (r, s, c).

    C4 is C rounded up to 4, so that the groups of every tap start at its first channel.
    """
    out_channels, channels = weight.shape[:2]
    taps = F.pad(weight.permute(0, 2, 3, 1), (0, round_up(channels, 4) - channels))
    return taps.reshape(out_channels, -1).contiguous()


def conv_matrix_to_weight(matrix: Tensor, channels: int, kernel_size: Sequence[int]) -> Tensor:
    """The inverse of :func:`conv_weight_to_matrix`: [out, >= R*S*C4] to [out, C, R, S]."""
    r, s = kernel_size
    padded = round_up(channels, 4)
    taps = matrix[:, : r * s * padded].reshape(-1, r, s, padded)[..., :channels]
    return taps.permute(0, 3, 1, 2).contiguous()


def kept_columns(indices: Tensor) -> Tensor:
    """The column of every kept value: uint8 [rows, K/8] to int64 [rows, K/2]."""
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=indices.device)
    slots = ((indices.unsqueeze(-1) >> shifts) & 3).flatten(1).long()
    return slots + torch.arange(slots.shape[1], device=indices.device) // 2 * 4
