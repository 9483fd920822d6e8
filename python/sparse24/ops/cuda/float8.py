"""``float8_linear`` and ``float8_conv2d`` on a GPU: quantized, multiplied sparse, finished in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from ..float8 import (
    by_images,
    check_float8_conv2d,
    check_float8_linear,
    float8_conv2d_torch,
    float8_linear_torch,
    rows_of,
)
from . import device_kernels
from .cusparselt import Stream
from .patches import Window
from .scaled import MANY_IMAGES, finish_images, finish_product, scaled_conv2d, scaled_linear


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


def float8_conv2d(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, bias: Tensor | None,
    window: Window, activation: str, stream: Stream,
) -> Tensor:  # fmt: skip
    """``torch.ops.sparse24.float8_conv2d`` on ``stream``, as :func:`float8_linear` with a scale an image."""
    operands = (input, values, indices, weight_scale, bias)
    check_float8_conv2d(*operands, *window, activation)
    if input.numel() == 0:
        return float8_conv2d_torch(*operands, *window, activation)

    def quantize(images: Tensor) -> tuple[Tensor, Tensor]:
        if len(images) < MANY_IMAGES:
            return device_kernels.quantize_in_torch(images, values.dtype)
        return device_kernels.quantize_per_token(images, stream.handle, values.dtype)

    quantized, scale = by_images(input, quantize)
    product = scaled_conv2d(quantized, values, indices, None, None, torch.float32, window, "none", stream)
    return finish_images(product, scale, weight_scale, bias, activation, input, stream)
