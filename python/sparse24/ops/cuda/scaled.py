"""Products of 8-bit operands on a GPU: which of scale, bias and activation are fused, and what torch does."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..conv2d import conv_out_size, is_channels_last
from ..float8 import by_images
from ..int8 import (
    check_int8_conv2d,
    check_int8_linear,
    int8_conv2d_torch,
    int8_linear_torch,
    quantize_input,
)
from ..registry import round_up
from ..scaled import (
    check_scaled_conv2d,
    check_scaled_linear,
    finish,
    scaled_conv2d_torch,
    scaled_linear_torch,
)
from . import device_kernels, route
from .cusparselt import GPU, Stream, why_unavailable
from .launch import Epilogue, call_of, ready
from .patches import Window, rows_of
from .products import conv2d_call, conv2d_route, conv2d_sparse, linear_sparse
from .ways import route_of
from .weights import Canonical


class _Split(NamedTuple):
    """An epilogue, divided into what the product does and what torch does after it."""

    fused: Epilogue
    product_dtype: torch.dtype
    scale: Tensor | None
    bias: Tensor | None
    activation: str


def _split(call: route.Call, scale: Tensor | None, bias: Tensor | None, on: GPU) -> _Split:
    """int8 products scale each row and add a float32 bias themselves; of fp8 only a bias is sure.

    An fp8 product with a scale gives float32, and torch does the rest. So it is with the int32 sums of an
    int8 product whose activation is not fused, lest it be applied to numbers that are rounded already.
    """
    activation, out_dtype = call.activation, call.out_dtype
    if call.dtype is torch.int8:
        if out_dtype.is_floating_point or route.fused_activation(call, on) == activation:
            return _Split(Epilogue(bias, scale, activation), out_dtype, None, None, "none")
        return _Split(Epilogue(), torch.int32, scale, bias, activation)
    if scale is None:
        bias = None if bias is None else bias.to(out_dtype)
        return _Split(Epilogue(bias, None, activation), out_dtype, None, None, "none")
    return _Split(Epilogue(), torch.float32, scale, bias, activation)


def finish_product(
    product: Tensor, token_scale: Tensor | None, scale: Tensor | None, bias: Tensor | None, activation: str,
    out_dtype: torch.dtype, stream: Stream,
) -> Tensor:  # fmt: skip
    """What follows a product [..., m], in one pass where our kernels run; ``token_scale`` [tokens]."""
    nothing = token_scale is None and scale is None and bias is None and activation == "none"
    if nothing and product.dtype is out_dtype:
        return product
    if device_kernels.usable(product) and out_dtype is not torch.int32:
        rows = product.reshape(-1, product.shape[-1])
        done = device_kernels.epilogue(rows, token_scale, scale, bias, activation, out_dtype, stream.handle)
        return done.view(product.shape)
    if token_scale is not None:
        product = product * token_scale.view(*product.shape[:-1], 1)
    return finish(product, scale, bias, activation, out_dtype)


#: Columns whose int8 products a float32 sums exactly: 1024 * 127 * 127 < 2^24.
_EXACT = 1024


def _dense_product(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., k] W^T of 8-bit operands that cannot run sparse: int32 exactly for int8, else float32."""
    if x.dtype is not torch.int8:
        return F.linear(x.float(), weight.float())
    rows, (m, k) = x.reshape(-1, x.shape[-1]), weight.shape
    if x.is_cuda and rows.shape[0] > 16 and m % 8 == 0 and k % 8 == 0:  # what torch._int_mm takes
        sums = torch._int_mm(rows.contiguous(), weight.t())
    else:
        parts = zip(rows.split(_EXACT, 1), weight.split(_EXACT, 1), strict=True)
        sums = sum(F.linear(a.float(), b.float()).to(torch.int32) for a, b in parts)  # type: ignore[assignment]
    return sums.view(*x.shape[:-1], m)


def _dense_linear(
    input: Tensor, values: Tensor, indices: Tensor, scale: Tensor | None, bias: Tensor | None,
    out_dtype: torch.dtype, activation: str, stream: Stream,
) -> Tensor:  # fmt: skip
    m, columns = values.shape[0], 2 * values.shape[1]
    weight = device_kernels.expand(values.contiguous(), indices.contiguous(), m, columns, stream.handle)[
        :, : input.shape[-1]
    ]
    return finish_product(_dense_product(input, weight), None, scale, bias, activation, out_dtype, stream)


def _dense_conv2d(
    input: Tensor, values: Tensor, indices: Tensor, scale: Tensor | None, bias: Tensor | None,
    out_dtype: torch.dtype, window: Window, activation: str, stream: Stream,
) -> Tensor:  # fmt: skip
    """By patches: torch has no convolution of such operands on a GPU."""
    out_size = conv_out_size(input, window.kernel_size, window.stride, window.padding, window.dilation)
    x, m = input.permute(0, 2, 3, 1).contiguous(), values.shape[0] // window.groups
    columns = round_up(2 * values.shape[1], 16)
    weight = device_kernels.expand(
        values.contiguous(), indices.contiguous(), values.shape[0], columns, stream.handle
    )
    products = []
    for group in range(window.groups):
        rows = rows_of(x, group, window, ((0, out_size[0]), out_size), columns, stream)
        products.append(_dense_product(rows, weight[group * m : (group + 1) * m]))
    pixels = torch.cat(products, 1).view(x.shape[0], *out_size, values.shape[0])
    output = finish_product(pixels, None, scale, bias, activation, out_dtype, stream).permute(0, 3, 1, 2)
    layout = torch.channels_last if is_channels_last(input) else torch.contiguous_format
    return output.contiguous(memory_format=layout)


def int8_linear(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, input_scale: Tensor | None,
    bias: Tensor | None, activation: str, stream: Stream,
) -> Tensor:  # fmt: skip
    """``torch.ops.sparse24.int8_linear`` on ``stream``: few tokens from the weight as it lies."""
    check_int8_linear(input, values, indices, weight_scale, input_scale, bias, activation)
    n, k = input.shape[:-1].numel(), input.shape[-1]
    few = input_scale is None and n * k > 0 and device_kernels.takes_few(n, input.dtype, values.dtype)
    if input_scale is not None and n * k > 0:
        rows = input.reshape(n, k)
        rows = rows if rows.stride(1) == 1 else rows.contiguous()
        quantized, scale = device_kernels.quantize_per_token(rows, stream.handle, given=input_scale)
        sums = scaled_linear(
            quantized.view(input.shape), values, indices, None, None, torch.int32, "none", stream
        )
        wide = None if bias is None else bias.float()
        return finish_product(sums, scale, weight_scale, wide, activation, input.dtype, stream)
    if not few or not device_kernels.usable(input):
        return int8_linear_torch(input, values, indices, weight_scale, input_scale, bias, activation)
    x = input.reshape(-1, k)
    y = device_kernels.few_tokens(x, values, indices, weight_scale, bias, activation, stream.handle)
    return y.view(*input.shape[:-1], y.shape[1])


#: Images from which on the kernel quantizes them, a block of threads an image; torch has all read one.
MANY_IMAGES = 32


def _quantize_images(input: Tensor, input_scale: Tensor, stream: Stream) -> tuple[Tensor, Tensor]:
    """int8 like ``input`` [N, C, H, W], lying as it lies, and float32 scales [N]."""
    if input.shape[0] < MANY_IMAGES:
        quantized, scale = quantize_input(input, input_scale, [1, 2, 3])
        return quantized, scale.flatten()
    return by_images(input, lambda x: device_kernels.quantize_per_token(x, stream.handle, given=input_scale))


def finish_images(
    product: Tensor, scale: Tensor, weight_scale: Tensor, bias: Tensor | None, activation: str,
    input: Tensor, stream: Stream,
) -> Tensor:  # fmt: skip
    """What follows a product [N, out, H, W] of images with scales [N]; as ``input`` lies, in its dtype."""
    pixels = product.permute(0, 2, 3, 1)
    of_tokens = scale.repeat_interleave(pixels.shape[1] * pixels.shape[2])
    wide = None if bias is None else bias.float()
    output = finish_product(pixels, of_tokens, weight_scale, wide, activation, input.dtype, stream)
    layout = torch.channels_last if is_channels_last(input) else torch.contiguous_format
    return output.permute(0, 3, 1, 2).contiguous(memory_format=layout)


def int8_conv2d(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, input_scale: Tensor | None,
    bias: Tensor | None, window: Window, activation: str, stream: Stream,
) -> Tensor:  # fmt: skip
    """``torch.ops.sparse24.int8_conv2d`` on ``stream``: int8 by int8 sparse, the rest in one pass."""
    operands = (input, values, indices, weight_scale, input_scale, bias)
    check_int8_conv2d(*operands, *window, activation)
    if input_scale is None or input.numel() == 0:
        return int8_conv2d_torch(*operands, *window, activation)
    quantized, scale = _quantize_images(input, input_scale, stream)
    sums = scaled_conv2d(quantized, values, indices, None, None, torch.int32, window, "none", stream)
    return finish_images(sums, scale, weight_scale, bias, activation, input, stream)


def scaled_linear(
    input: Tensor, values: Tensor, indices: Tensor, scale: Tensor | None, bias: Tensor | None,
    out_dtype: torch.dtype, activation: str, stream: Stream,
) -> Tensor:  # fmt: skip
    """``torch.ops.sparse24.scaled_linear`` on ``stream``, sparse wherever it is legal."""
    check_scaled_linear(input, values, indices, scale, bias, out_dtype, activation)
    operands = (input, values, indices, scale, bias, out_dtype, activation)
    if input.numel() == 0:
        return scaled_linear_torch(*operands)
    if why_unavailable(stream.device):
        return _dense_linear(*operands, stream)
    on, sizes = ready(stream.device), (values.shape[0], input.shape[:-1].numel(), input.shape[-1])
    parts = _split(call_of(input, *sizes, out_dtype, Epilogue(bias, scale, activation)), scale, bias, on)
    call = call_of(input, *sizes, parts.product_dtype, parts.fused)
    weight = Canonical(values, indices)
    chosen = route_of(call, weight, on)
    if not chosen.sparse:
        return _dense_linear(*operands, stream)
    product = linear_sparse(input, weight, parts.fused, parts.product_dtype, chosen, call, stream)
    return finish_product(product, None, parts.scale, parts.bias, parts.activation, out_dtype, stream)


def scaled_conv2d(
    input: Tensor, values: Tensor, indices: Tensor, scale: Tensor | None, bias: Tensor | None,
    out_dtype: torch.dtype, window: Window, activation: str, stream: Stream,
) -> Tensor:  # fmt: skip
    """``torch.ops.sparse24.scaled_conv2d`` on ``stream``, sparse wherever it is legal."""
    arguments = (input, values, indices, scale, bias, out_dtype, *window, activation)
    check_scaled_conv2d(*arguments)
    if input.numel() == 0:
        return scaled_conv2d_torch(*arguments)
    operands = (input, values, indices, scale, bias, out_dtype, window, activation)
    if why_unavailable(stream.device):
        return _dense_conv2d(*operands, stream)
    out_size = conv_out_size(input, window.kernel_size, window.stride, window.padding, window.dilation)
    on, epilogue = ready(stream.device), Epilogue(bias, scale, activation)
    whole = conv2d_call(input, values.shape[0], window, out_size, out_dtype, epilogue)
    parts = _split(whole, scale, bias, on)
    call = conv2d_call(input, values.shape[0], window, out_size, parts.product_dtype, parts.fused)
    weight = Canonical(values, indices)
    chosen = conv2d_route(call, weight, window, on)
    if not chosen.sparse:
        return _dense_conv2d(*operands, stream)
    product = conv2d_sparse(input, weight, window, parts.fused, parts.product_dtype, chosen, call, stream)
    pixels = product.permute(0, 2, 3, 1)
    rest = finish_product(pixels, None, parts.scale, parts.bias, parts.activation, out_dtype, stream)
    layout = torch.channels_last if is_channels_last(product) else torch.contiguous_format
    return rest.permute(0, 3, 1, 2).contiguous(memory_format=layout)
