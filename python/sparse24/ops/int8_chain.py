"""``torch.ops.sparse24.int8_linear_chained`` and ``int8_conv2d_chained``: int8 in, int8 out.

    y = activation(dequantized product + bias) in ``dtype``, then int8 by ``output_scale`` where there is one

The input is int8 by ``input_scale``, or floating in ``dtype`` and rounded to it first. What a layer hands on
is what the next one would have made of its floating output, bit for bit. On a CPU in kernels of our own,
elsewhere in torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.library import register_fake

from .. import _C
from . import machine
from .conv2d import Window, check_conv2d_sizes, conv_out_size, is_channels_last
from .int8 import check_scales, quantize_input
from .product import (
    COMPUTE_DTYPES,
    activate,
    check_activation,
    check_bias,
    check_columns,
    check_matrix,
    weight_arguments,
)
from .registry import ACTIVATION_CODES, DTYPES, TAGS, library, names_of

_BY_SCALE, _GIVEN = 2, 3

library.define(
    "int8_linear_chained(Tensor input, Tensor values, Tensor indices, Tensor weight_scale, "
    "Tensor input_scale, Tensor? bias, str activation, Tensor? output_scale, ScalarType dtype) -> Tensor",
    tags=TAGS,
)
library.define(
    "int8_conv2d_chained(Tensor input, Tensor values, Tensor indices, Tensor weight_scale, "
    "Tensor input_scale, Tensor? bias, SymInt[9] window, str activation, Tensor? output_scale, "
    "ScalarType dtype) -> Tensor",
    tags=TAGS,
)


def check_chained(
    input: Tensor, values: Tensor, indices: Tensor, scales: tuple[Tensor, Tensor, Tensor | None],
    bias: Tensor | None, activation: str, dtype: torch.dtype,
) -> None:  # fmt: skip
    """Refuse what a chained product cannot take: ValueError for shapes, TypeError for dtypes."""
    check_activation(activation)
    torch._check_type(values.dtype == torch.int8, lambda: f"values must be int8, not {values.dtype}")
    torch._check_type(
        dtype in COMPUTE_DTYPES and (bias is None or bias.dtype == dtype),
        lambda: f"dtype and bias must be one of {names_of(COMPUTE_DTYPES)}, not {dtype}",
    )
    torch._check_type(
        input.dtype in (torch.int8, dtype), lambda: f"input must be int8 or {dtype}, not {input.dtype}"
    )
    check_matrix(values, indices)
    weight_scale, input_scale, output_scale = scales
    check_scales(values.shape[0], weight_scale, input_scale)
    check_scales(values.shape[0], weight_scale, output_scale)
    check_bias(values, bias)


def _output(floating: Tensor, output_scale: Tensor | None) -> Tensor:
    if output_scale is None:
        return floating
    return quantize_input(floating, output_scale, [-1])[0]


def _as_int8(input: Tensor, input_scale: Tensor) -> Tensor:
    return input if input.dtype == torch.int8 else quantize_input(input, input_scale, [-1])[0]


def int8_linear_chained_torch(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, input_scale: Tensor,
    bias: Tensor | None, activation: str, output_scale: Tensor | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """``int8_linear_chained`` for devices without kernels of our own."""
    check_chained(input, values, indices, (weight_scale, input_scale, output_scale), bias, activation, dtype)
    check_columns(input, values)
    x = _as_int8(input, input_scale)
    sums = torch.ops.sparse24.scaled_linear(x, values, indices, None, None, torch.int32)
    floating = sums.float() * input_scale * weight_scale
    floating = floating if bias is None else floating + bias
    return _output(activate(floating, activation).to(dtype), output_scale)


def int8_conv2d_chained_torch(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, input_scale: Tensor,
    bias: Tensor | None, window: Sequence[int], activation: str, output_scale: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """``int8_conv2d_chained`` for devices without kernels of our own."""
    check_chained(input, values, indices, (weight_scale, input_scale, output_scale), bias, activation, dtype)
    geometry = (window[0:2], window[2:4], window[4:6], window[6:8], window[8])
    check_conv2d_sizes(input, values, *geometry)
    x = _as_int8(input, input_scale)
    sums = torch.ops.sparse24.scaled_conv2d(x, values, indices, None, None, torch.int32, *geometry)
    floating = sums.float() * input_scale * weight_scale.view(-1, 1, 1)
    floating = floating if bias is None else floating + bias.view(-1, 1, 1)
    output = _output(activate(floating, activation).to(dtype), output_scale)
    layout = torch.channels_last if is_channels_last(input) else torch.contiguous_format
    return output.contiguous(memory_format=layout)  # scales of lines have no layout of their own


def _mode(input: Tensor, input_scale: Tensor, output_scale: Tensor | None) -> tuple[int, int, float, float]:
    given = _GIVEN if input.dtype == torch.int8 else _BY_SCALE
    return 0, given, float(input_scale), 0.0 if output_scale is None else float(output_scale)


def _int8_linear_chained_cpu(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, input_scale: Tensor,
    bias: Tensor | None, activation: str, output_scale: Tensor | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    check_chained(input, values, indices, (weight_scale, input_scale, output_scale), bias, activation, dtype)
    check_columns(input, values)
    machine.load()
    x, columns = input.contiguous(), input.shape[-1]
    arguments, operands = weight_arguments(values, indices, weight_scale)
    bias = None if bias is None else bias.contiguous()
    kind = dtype if output_scale is None else torch.int8
    output = torch.empty((*input.shape[:-1], values.shape[0]), dtype=kind)
    _C.linear(
        arguments, DTYPES[dtype], x.data_ptr(), 0 if bias is None else bias.data_ptr(), output.data_ptr(),
        x.numel() // max(columns, 1), columns, columns, ACTIVATION_CODES[activation],
        torch.get_num_threads(), _mode(input, input_scale, output_scale),
    )  # fmt: skip
    del operands
    return output


def _int8_conv2d_chained_cpu(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, input_scale: Tensor,
    bias: Tensor | None, window: Sequence[int], activation: str, output_scale: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    check_chained(input, values, indices, (weight_scale, input_scale, output_scale), bias, activation, dtype)
    check_conv2d_sizes(input, values, window[0:2], window[2:4], window[4:6], window[6:8], window[8])
    machine.load()
    output = _empty_like_window(input, values, window, dtype if output_scale is None else torch.int8)
    channels_last = is_channels_last(input)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = input.contiguous(memory_format=layout)
    arguments, operands = weight_arguments(values, indices, weight_scale)
    bias = None if bias is None else bias.contiguous()
    _C.conv2d(
        arguments, DTYPES[dtype], x.data_ptr(), 0 if bias is None else bias.data_ptr(), output.data_ptr(),
        tuple(x.shape), tuple(window), channels_last, ACTIVATION_CODES[activation],
        torch.get_num_threads(), _mode(input, input_scale, output_scale),
    )  # fmt: skip
    del operands
    return output


def _empty_like_window(input: Tensor, values: Tensor, window: Sequence[int], dtype: torch.dtype) -> Tensor:
    layout = torch.channels_last if is_channels_last(input) else torch.contiguous_format
    out_size = conv_out_size(input, window[:2], window[2:4], window[4:6], window[6:8])
    shape = (input.shape[0], values.shape[0], *out_size)
    return torch.empty(shape, dtype=dtype, device=input.device, memory_format=layout)


library.impl("int8_linear_chained", int8_linear_chained_torch, "CompositeExplicitAutograd")
library.impl("int8_linear_chained", _int8_linear_chained_cpu, "CPU")
library.impl("int8_conv2d_chained", int8_conv2d_chained_torch, "CompositeExplicitAutograd")
library.impl("int8_conv2d_chained", _int8_conv2d_chained_cpu, "CPU")

int8_linear_chained: Callable[..., Tensor] = torch.ops.sparse24.int8_linear_chained.default
_conv2d: Callable[..., Tensor] = torch.ops.sparse24.int8_conv2d_chained.default


def int8_conv2d_chained(
    input: Tensor, weight: tuple[Tensor, Tensor, Tensor, Tensor], bias: Tensor | None, window: Window,
    activation: str, output_scale: Tensor | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """``torch.ops.sparse24.int8_conv2d_chained`` of a window."""
    return _conv2d(input, *weight, bias, list(window), activation, output_scale, dtype)


@register_fake("sparse24::int8_linear_chained", lib=library)
def _(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, input_scale: Tensor,
    bias: Tensor | None, activation: str, output_scale: Tensor | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    check_chained(input, values, indices, (weight_scale, input_scale, output_scale), bias, activation, dtype)
    check_columns(input, values)
    kind = dtype if output_scale is None else torch.int8
    return input.new_empty((*input.shape[:-1], values.shape[0]), dtype=kind)


@register_fake("sparse24::int8_conv2d_chained", lib=library)
def _(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, input_scale: Tensor,
    bias: Tensor | None, window: Sequence[int], activation: str, output_scale: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    check_chained(input, values, indices, (weight_scale, input_scale, output_scale), bias, activation, dtype)
    check_conv2d_sizes(input, values, window[0:2], window[2:4], window[4:6], window[6:8], window[8])
    return _empty_like_window(input, values, window, dtype if output_scale is None else torch.int8)
