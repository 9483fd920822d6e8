"""Compressed operands of the operators."""

from __future__ import annotations

import torch
from torch import Tensor

import sparse24
from reference import TOLERANCE
from sparse24 import ops

DTYPES = list(TOLERANCE)
sparse = torch.ops.sparse24


def pruned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    weight = torch.randn(*shape)
    return (weight * sparse24.magnitude_mask(weight)).to(dtype)


def compressed_linear(
    rows: int, columns: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """weight, values, indices, bias."""
    weight = pruned(rows, columns, dtype=dtype)
    return weight, *sparse.compress(weight), torch.randn(rows).to(dtype)


def compressed_conv(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weight = pruned(*shape, dtype=dtype)
    return weight, *sparse.compress(ops.conv_weight_to_matrix(weight)), torch.randn(shape[0]).to(dtype)
