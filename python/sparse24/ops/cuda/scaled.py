"""Products of 8-bit operands on a GPU: which of scale, bias and activation are fused, and what torch does."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..conv2d import conv_out_size
from ..int8 import check_int8_linear, int8_linear_torch
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
from .patches import Window
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


def int8_linear(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, input_scale: Tensor | None,
    bias: Tensor | None, activation: str, stream: Stream,
) -> Tensor:  # fmt: skip
    """``torch.ops.sparse24.int8_linear`` on ``stream``: few tokens from the weight as it lies."""
    check_int8_linear(input, values, indices, weight_scale, input_scale, bias, activation)
    n, k = input.shape[:-1].numel(), input.shape[-1]
    few = input_scale is None and n * k > 0 and device_kernels.takes_few(n, input.dtype, values.dtype)
    if not few or not device_kernels.built_for(input):
        return int8_linear_torch(input, values, indices, weight_scale, input_scale, bias, activation)
    x = input.reshape(-1, k)
    y = device_kernels.few_tokens(x, values, indices, weight_scale, bias, activation, stream.handle)
    return y.view(*input.shape[:-1], y.shape[1])


def scaled_linear(
    input: Tensor, values: Tensor, indices: Tensor, scale: Tensor | None, bias: Tensor | None,
    out_dtype: torch.dtype, activation: str, stream: Stream,
) -> Tensor:  # fmt: skip
    """``torch.ops.sparse24.scaled_linear`` on ``stream``, sparse wherever it is legal."""
    check_scaled_linear(input, values, indices, scale, bias, out_dtype, activation)
    if why_unavailable(stream.device) or input.numel() == 0:
        return scaled_linear_torch(input, values, indices, scale, bias, out_dtype, activation)
    on, sizes = ready(stream.device), (values.shape[0], input.shape[:-1].numel(), input.shape[-1])
    parts = _split(call_of(input, *sizes, out_dtype, Epilogue(bias, scale, activation)), scale, bias, on)
    call = call_of(input, *sizes, parts.product_dtype, parts.fused)
    weight = Canonical(values, indices)
    chosen = route_of(call, weight, on)
    if not chosen.sparse:
        return scaled_linear_torch(input, values, indices, scale, bias, out_dtype, activation)
    product = linear_sparse(input, weight, parts.fused, parts.product_dtype, chosen, call, stream)
    return finish(product, parts.scale, parts.bias, parts.activation, out_dtype)


def scaled_conv2d(
    input: Tensor, values: Tensor, indices: Tensor, scale: Tensor | None, bias: Tensor | None,
    out_dtype: torch.dtype, window: Window, activation: str, stream: Stream,
) -> Tensor:  # fmt: skip
    """``torch.ops.sparse24.scaled_conv2d`` on ``stream``, sparse wherever it is legal."""
    arguments = (input, values, indices, scale, bias, out_dtype, *window, activation)
    check_scaled_conv2d(*arguments)
    if why_unavailable(stream.device) or input.numel() == 0:
        return scaled_conv2d_torch(*arguments)
    out_size = conv_out_size(input, window.kernel_size, window.stride, window.padding, window.dilation)
    on, epilogue = ready(stream.device), Epilogue(bias, scale, activation)
    whole = conv2d_call(input, values.shape[0], window, out_size, out_dtype, epilogue)
    parts = _split(whole, scale, bias, on)
    call = conv2d_call(input, values.shape[0], window, out_size, parts.product_dtype, parts.fused)
    weight = Canonical(values, indices)
    chosen = conv2d_route(call, weight, window, on)
    if not chosen.sparse:
        return scaled_conv2d_torch(*arguments)
    product = conv2d_sparse(input, weight, window, parts.fused, parts.product_dtype, chosen, call, stream)
    rest = finish(product.permute(0, 2, 3, 1), parts.scale, parts.bias, parts.activation, out_dtype)
    return rest.permute(0, 3, 1, 2)
