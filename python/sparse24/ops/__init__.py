"""The operators ``torch.ops.sparse24.*``: schemas, kernels per device, fake kernels.

The only package that imports the compiled extensions. Each operator has three bodies: one in C++ for the
devices that have it, one in plain torch that serves every other device and dtype, and a fake one that
gives shapes to ``torch.compile`` and ``torch.export``. Arguments are checked here, before anything runs.
"""

from __future__ import annotations

from .. import _C
from .conv2d import Window, conv2d, conv2d_torch, geometry_of
from .cuda import operators as operators  # registers
from .float8 import float8_conv2d, float8_linear
from .int8 import check_scales, dequantized, int8_conv2d, int8_linear
from .int8_chain import int8_conv2d_chained, int8_linear_chained
from .layout import conv_matrix_to_weight, conv_weight_to_matrix, first_crowded, kept_columns
from .linear import linear, linear_torch
from .mask import nm_mask_torch, prune_torch_, transposable_mask_torch
from .mask_bits import apply_mask_bits_, pack_mask, unpack_mask
from .permutation import kept_sum, search_columns
from .product import activate
from .registry import ACTIVATIONS, Error, cpu_isa, names_of, round_up

#: The short way to a product: a tensor, or ``NotImplemented`` where the operator has to be asked.
call_linear = _C.call_linear
call_conv2d = _C.call_conv2d

__all__ = [
    "ACTIVATIONS",
    "Error",
    "Window",
    "activate",
    "apply_mask_bits_",
    "call_conv2d",
    "call_linear",
    "check_scales",
    "conv2d",
    "conv2d_torch",
    "conv_matrix_to_weight",
    "conv_weight_to_matrix",
    "cpu_isa",
    "dequantized",
    "first_crowded",
    "float8_conv2d",
    "float8_linear",
    "geometry_of",
    "int8_conv2d",
    "int8_conv2d_chained",
    "int8_linear",
    "int8_linear_chained",
    "kept_columns",
    "kept_sum",
    "linear",
    "linear_torch",
    "names_of",
    "nm_mask_torch",
    "pack_mask",
    "prune_torch_",
    "round_up",
    "search_columns",
    "transposable_mask_torch",
    "unpack_mask",
]
