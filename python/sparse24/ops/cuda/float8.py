"""``float8_linear`` on a GPU: quantized by our kernel, multiplied sparse, finished in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from ..float8 import check_float8_linear, float8_linear_torch, rows_of
from . import device_kernels
from .cusparselt import Stream
from .scaled import finish_product, scaled_linear


def float8_linear(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, bias: Tensor | None,
    activation: str, stream: Stream,
) -> Tensor:  # fmt: skip
    """``torch.ops.sparse24.float8_linear`` on ``stream``.

    The product is float32: its scales and the bias come before it is rounded.
    """
    check_float8_linear(input, values, indices, weight_scale, bias, activation)
    if input.numel() == 0:
        return float8_linear_torch(input, values, indices, weight_scale, bias, activation)
    quantized, scale = device_kernels.quantize_per_token(rows_of(input), stream.handle, values.dtype)
    product = scaled_linear(quantized, values, indices, None, None, torch.float32, "none", stream)
    wide = None if bias is None else bias.float()
    output = finish_product(product, scale, weight_scale, wide, activation, input.dtype, stream)
    return output.view(*input.shape[:-1], values.shape[0])
