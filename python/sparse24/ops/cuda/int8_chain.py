"""Chained int8 products on a GPU: quantized by our kernel, multiplied sparse, finished in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from ..conv2d import check_conv2d_sizes, is_channels_last
from ..float8 import rows_of
from ..int8 import quantize_input
from ..int8_chain import check_chained, int8_conv2d_chained_torch, int8_linear_chained_torch
from ..product import check_columns
from . import device_kernels
from .cusparselt import Stream
from .patches import Window
from .scaled import finish_product, scaled_conv2d, scaled_linear


def _by_rows(x: Tensor, scale: Tensor, stream: Stream) -> Tensor:
    """int8 of [..., k] by one scale, whose rows with NaN or Inf become zeros."""
    quantized, _ = device_kernels.quantize_per_token(rows_of(x), stream.handle, given=scale)
    return quantized.view(x.shape)


def int8_linear_chained(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, input_scale: Tensor,
    bias: Tensor | None, activation: str, output_scale: Tensor | None, dtype: torch.dtype, stream: Stream,
) -> Tensor:  # fmt: skip
    """``torch.ops.sparse24.int8_linear_chained`` on ``stream``."""
    scales = (weight_scale, input_scale, output_scale)
    check_chained(input, values, indices, scales, bias, activation, dtype)
    check_columns(input, values)
    if input.numel() == 0:
        weight = (values, indices, weight_scale, input_scale)
        return int8_linear_chained_torch(input, *weight, bias, activation, output_scale, dtype)
    x = input if input.dtype == torch.int8 else _by_rows(input, input_scale, stream)
    sums = scaled_linear(x, values, indices, None, None, torch.int32, "none", stream)
    tokens = input_scale.expand(sums.shape[:-1].numel())
    wide = None if bias is None else bias.float()
    output = finish_product(sums, tokens, weight_scale, wide, activation, dtype, stream)
    return output if output_scale is None else _by_rows(output, output_scale, stream)


def int8_conv2d_chained(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, input_scale: Tensor,
    bias: Tensor | None, window: Window, activation: str, output_scale: Tensor | None, dtype: torch.dtype,
    stream: Stream,
) -> Tensor:  # fmt: skip
    """``torch.ops.sparse24.int8_conv2d_chained`` on ``stream``; lines of images are no rows of the kernel's,
    so torch quantizes.
    """
    scales = (weight_scale, input_scale, output_scale)
    check_chained(input, values, indices, scales, bias, activation, dtype)
    check_conv2d_sizes(input, values, *window)
    if input.numel() == 0:
        flat = [*window.kernel_size, *window.stride, *window.padding, *window.dilation, window.groups]
        weight = (values, indices, weight_scale, input_scale)
        return int8_conv2d_chained_torch(input, *weight, bias, flat, activation, output_scale, dtype)
    x = input if input.dtype == torch.int8 else quantize_input(input, input_scale, [-1])[0]
    sums = scaled_conv2d(x, values, indices, None, None, torch.int32, window, "none", stream)
    pixels = sums.permute(0, 2, 3, 1)
    tokens = input_scale.expand(pixels.shape[:-1].numel())
    wide = None if bias is None else bias.float()
    done = finish_product(pixels, tokens, weight_scale, wide, activation, dtype, stream)
    layout = torch.channels_last if is_channels_last(input) else torch.contiguous_format
    output = done.permute(0, 3, 1, 2)
    output = output if output_scale is None else quantize_input(output, output_scale, [-1])[0]
    return output.contiguous(memory_format=layout)
