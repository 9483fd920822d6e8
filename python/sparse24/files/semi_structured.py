"""torch's own semi-structured tensors (torch.sparse.to_sparse_semi_structured), to and from ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import masks

_SPARSE: Any = torch.sparse


def from_semi_structured(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``values`` and ``indices`` of a weight [out, in] that torch has compressed.

    One of CUTLASS's layout is read on any device; one of cuSPARSELt's, whose layout is its own, on the GPU
    that it is on.

    Raises:
        TypeError: another kind of tensor.
        ValueError: it is not 2:4, as of float32, which torch keeps 1:2.
    """
    if not isinstance(weight, _SPARSE.SparseSemiStructuredTensor):
        raise TypeError(
            f"from_semi_structured needs a SparseSemiStructuredTensor, not {type(weight).__name__}: "
            "sparse24.compress takes a dense weight"
        )
    return masks.compress(weight.detach().to_dense())


def to_semi_structured(values: Tensor, indices: Tensor) -> Tensor:
    """The weight as torch's ``SparseSemiStructuredTensorCUTLASS``.

    Args:
        values: [out, in / 2], float16, bfloat16 or int8; out a multiple of 32, in of 64 (int8: 16 and 128).
        indices: uint8 [out, in / 8].

    Raises:
        TypeError: a dtype that torch's layout cannot hold.
        ValueError: a shape that it cannot; damaged indices.
    """
    if values.dtype not in (torch.float16, torch.bfloat16, torch.int8):
        raise TypeError(f"torch keeps 2:4 weights of float16, bfloat16 and int8, not of {values.dtype}")
    dense = masks.decompress(values, indices)
    rows, columns = dense.shape
    least = (16, 128) if values.dtype == torch.int8 else (32, 64)
    if rows % least[0] or columns % least[1]:
        raise ValueError(
            f"torch's layout holds multiples of {least[0]} output and {least[1]} input features in "
            f"{values.dtype}, not {rows}x{columns}"
        )
    from torch.sparse import _semi_structured_conversions as conversions  # noqa: PLC0415  private to torch

    convert: Any = conversions.sparse_semi_structured_from_dense_cutlass
    packed, meta = convert(dense)
    made: Tensor = _SPARSE.SparseSemiStructuredTensorCUTLASS(
        dense.shape, packed=packed, meta=meta, packed_t=None, meta_t=None, compressed_swizzled_bitmask=None
    )
    return made
