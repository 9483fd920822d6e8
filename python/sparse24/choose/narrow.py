"""Products of layers in 8 bits as ``explain``, ``tune`` and ``prepare`` see them: ops/cuda/scaled.py."""

from __future__ import annotations

import torch

from ..nn import int8
from ..nn.kinds import ProductLayer
from ..nn.on_device import Glance

#: What their sums are, before scales, bias and activation.
_SUMS = {torch.int8: torch.int32, torch.float8_e4m3fn: torch.float32}


def product_dtypes(layer: ProductLayer) -> tuple[torch.dtype, torch.dtype]:
    """Of the operands of the layer's product on a GPU, and of its result."""
    dtype = Glance(layer).like[0].dtype
    return dtype, _SUMS.get(dtype, dtype)


def is_bare(layer: ProductLayer) -> bool:
    """Whether bias and activation come after the product, not in it."""
    return int8.is_narrow(layer)


def why_no_product(layer: ProductLayer) -> str:
    """Why the layer has no product in 8 bits although its weight is; empty: it has, or is not in 8 bits."""
    if int8.is_int8(layer) and int8.scales_of(layer)[1] is None:
        return "only the weight is int8: it is dequantized for each call of more than a few tokens"
    return ""
