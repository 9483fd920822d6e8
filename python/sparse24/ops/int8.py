"""``torch.ops.sparse24.int8_linear`` and ``int8_conv2d``: int8 weights with floating-point inputs.

    y = activation((x (values * weight_scale)^T) + bias), in the dtype of x

``weight_scale`` [rows] belongs to the output channels. What becomes of x before the product is said by
``input_scale``: nothing (``None``: weight-only); int8 with this scale (a positive number, []); or int8 with a
scale of its own for every token, every image of a convolution (0). int8 by int8 sums up in int32, exactly.

On a CPU in kernels of our own; on a GPU int8 by int8 through ``scaled_linear``; elsewhere in torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import register_fake

from . import precision
from .conv2d import (
    Window,
    check_conv2d_sizes,
    conv2d_dense,
    conv_out_size,
    geometry_of,
    is_channels_last,
    run_conv2d,
)
from .layout import conv_matrix_to_weight
from .linear import run_linear
from .product import (
    COMPUTE_DTYPES,
    Mode,
    activate,
    check_activation,
    check_bias,
    check_columns,
    check_matrix,
    weight_arguments,
)
from .registry import TAGS, library, names_of

#: Codes of Quantize in csrc/sparse24.h.
_NONE, _BY_TOKEN, _BY_SCALE = 0, 1, 2

library.define(
    "int8_linear(Tensor input, Tensor values, Tensor indices, Tensor weight_scale, Tensor? input_scale=None, "
    "Tensor? bias=None, str activation='none') -> Tensor",
    tags=TAGS,
)
library.define(
    "int8_conv2d(Tensor input, Tensor values, Tensor indices, Tensor weight_scale, Tensor? input_scale, "
    "Tensor? bias, SymInt[2] kernel_size, SymInt[2] stride=1, SymInt[2] padding=0, SymInt[2] dilation=1, "
    "SymInt groups=1, str activation='none') -> Tensor",
    tags=TAGS,
)


def check_scales(rows: int, weight_scale: Tensor, input_scale: Tensor | None) -> None:
    """Refuse scales of another shape or dtype: ValueError and TypeError."""
    torch._check_value(
        weight_scale.shape == (rows,),
        lambda: f"weight_scale must be [{rows}], not {tuple(weight_scale.shape)}",
    )
    torch._check_value(
        input_scale is None or input_scale.dim() == 0,
        lambda: f"input_scale must be a scalar [], not {tuple(input_scale.shape)}",  # type: ignore[union-attr]
    )
    for name, scale in (("weight_scale", weight_scale), ("input_scale", input_scale)):
        torch._check_type(
            scale is None or scale.dtype == torch.float32,
            lambda name=name, scale=scale: f"{name} must be float32, not {scale.dtype}",
        )


def check_narrow(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, input_scale: Tensor | None,
    bias: Tensor | None,
) -> None:  # fmt: skip
    """What products with weights of 8 bits, int8 or float8, refuse alike."""
    torch._check_type(
        input.dtype in COMPUTE_DTYPES and (bias is None or bias.dtype == input.dtype),
        lambda: (
            f"input and bias must have one dtype of {names_of(COMPUTE_DTYPES)}, not {input.dtype} and "
            f"{None if bias is None else bias.dtype}; convert with .to(...) or use autocast"
        ),
    )
    check_matrix(values, indices)
    check_scales(values.shape[0], weight_scale, input_scale)
    check_bias(values, bias)


def _check(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, input_scale: Tensor | None,
    bias: Tensor | None, activation: str,
) -> None:  # fmt: skip
    check_activation(activation)
    torch._check_type(
        values.dtype == torch.int8,
        lambda: f"values must be int8, not {values.dtype}: floating-point weights are for linear and conv2d",
    )
    check_narrow(input, values, indices, weight_scale, input_scale, bias)


def check_int8_linear(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, input_scale: Tensor | None,
    bias: Tensor | None, activation: str,
) -> None:  # fmt: skip
    """Refuse what ``int8_linear`` cannot take: ValueError for shapes, TypeError for dtypes."""
    _check(input, values, indices, weight_scale, input_scale, bias, activation)
    check_columns(input, values)


def check_int8_conv2d(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, input_scale: Tensor | None,
    bias: Tensor | None, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int, activation: str,
) -> None:  # fmt: skip
    """Refuse what ``int8_conv2d`` cannot take: ValueError for shapes, TypeError for dtypes."""
    _check(input, values, indices, weight_scale, input_scale, bias, activation)
    check_conv2d_sizes(input, values, kernel_size, stride, padding, dilation, groups)


def quantize_input(input: Tensor, input_scale: Tensor, dim: list[int]) -> tuple[Tensor, Tensor]:
    """int8 like ``input``, and float32 scales that keep ``dim`` as 1: ``input_scale``, or where that is 0 the
    largest magnitude along ``dim`` over 127.

    To nearest, ties to even, -127 to 127. What is not finite makes its scale NaN; what is all zeros, or below
    127 * 2^-126, becomes zeros.
    """
    wide = input.float()
    absmax = wide.abs().amax(dim, keepdim=True) if input.numel() else wide.sum(dim, keepdim=True)
    tiny = (absmax < 127 * torch.finfo(torch.float32).tiny) & (input_scale == 0)
    scale = torch.where(input_scale == 0, absmax / 127, input_scale)
    largest = torch.full_like(absmax, 127)  # 127 / absmax would be a reciprocal, times 127: rounded twice
    inverse = torch.where(input_scale == 0, largest / absmax, 1 / input_scale)
    zeros = tiny | ~absmax.isfinite()
    scale = scale.masked_fill(tiny, 1).masked_fill(~absmax.isfinite(), float("nan"))
    return (wide * inverse).masked_fill(zeros, 0).round().clamp(-127, 127).to(torch.int8), scale


def dequantized(values: Tensor, indices: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The dense matrix [rows, K rounded up to 8] of an int8 weight."""
    matrix: Tensor = torch.ops.sparse24.decompress(values, indices)
    return (matrix.float() * weight_scale.unsqueeze(1)).to(dtype)


def int8_linear_torch(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, input_scale: Tensor | None = None,
    bias: Tensor | None = None, activation: str = "none",
) -> Tensor:  # fmt: skip
    """``int8_linear`` for devices without kernels of our own."""
    check_int8_linear(input, values, indices, weight_scale, input_scale, bias, activation)
    if input_scale is None:
        weight = dequantized(values, indices, weight_scale, input.dtype)[:, : input.shape[-1]]
        return activate(F.linear(input, weight, bias), activation)
    quantized, scale = quantize_input(input, input_scale, [-1])
    sums = torch.ops.sparse24.scaled_linear(quantized, values, indices, None, None, torch.int32)
    output = sums.float() * scale * weight_scale
    output = output if bias is None else output + bias
    return activate(output, activation).to(input.dtype)


def int8_conv2d_torch(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, input_scale: Tensor | None,
    bias: Tensor | None, kernel_size: Sequence[int], stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0), dilation: Sequence[int] = (1, 1), groups: int = 1,
    activation: str = "none",
) -> Tensor:  # fmt: skip
    """``int8_conv2d`` for devices without kernels of our own."""
    window = (kernel_size, stride, padding, dilation, groups)
    check_int8_conv2d(input, values, indices, weight_scale, input_scale, bias, *window, activation)
    if input_scale is None:
        matrix = dequantized(values, indices, weight_scale, input.dtype)
        weight = conv_matrix_to_weight(matrix, input.shape[1] // groups, kernel_size)
        output = conv2d_dense(input, weight, bias, stride, padding, dilation, groups)
        return activate(output, activation)
    quantized, scale = quantize_input(input, input_scale, [1, 2, 3])
    sums = torch.ops.sparse24.scaled_conv2d(quantized, values, indices, None, None, torch.int32, *window)
    output = sums.float() * scale * weight_scale.view(-1, 1, 1)
    output = output if bias is None else output + bias.view(-1, 1, 1)
    return activate(output, activation).to(input.dtype)


def _mode(kind: str, dtype: torch.dtype, input_scale: Tensor | None) -> Mode:
    if input_scale is None:
        return precision.for_product(kind, dtype), _NONE, 0.0, 0.0
    scale = float(input_scale)
    torch._check_value(
        0 <= scale < math.inf,
        lambda: f"input_scale must be 0 (a scale for every token) or positive and finite, not {scale}",
    )
    return 0, _BY_TOKEN if scale == 0 else _BY_SCALE, scale, 0.0


def _int8_linear_cpu(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, input_scale: Tensor | None = None,
    bias: Tensor | None = None, activation: str = "none",
) -> Tensor:  # fmt: skip
    check_int8_linear(input, values, indices, weight_scale, input_scale, bias, activation)
    mode = _mode("matmul", input.dtype, input_scale)
    if input.shape[-1] == 0:
        return int8_linear_torch(input, values, indices, weight_scale, None, bias, activation)
    return run_linear(input, weight_arguments(values, indices, weight_scale), bias, activation, mode)


def _int8_conv2d_cpu(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, input_scale: Tensor | None,
    bias: Tensor | None, kernel_size: Sequence[int], stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0), dilation: Sequence[int] = (1, 1), groups: int = 1,
    activation: str = "none",
) -> Tensor:  # fmt: skip
    geometry = (kernel_size, stride, padding, dilation, groups)
    check_int8_conv2d(input, values, indices, weight_scale, input_scale, bias, *geometry, activation)
    mode = _mode("conv", input.dtype, input_scale)
    window = (*kernel_size, *stride, *padding, *dilation, groups)
    return run_conv2d(input, weight_arguments(values, indices, weight_scale), bias, window, activation, mode)


int8_linear: Callable[..., Tensor] = torch.ops.sparse24.int8_linear.default
_int8_conv2d: Callable[..., Tensor] = torch.ops.sparse24.int8_conv2d.default


def int8_conv2d(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, input_scale: Tensor | None,
    bias: Tensor | None, activation: str, window: Window,
) -> Tensor:  # fmt: skip
    """``torch.ops.sparse24.int8_conv2d`` of a window."""
    weight = (values, indices, weight_scale, input_scale)
    return _int8_conv2d(input, *weight, bias, *geometry_of(window), activation)


def _under_autocast(operator: Callable[..., Tensor], device: str) -> Callable[..., Tensor]:
    """As ``F.linear`` under autocast: input and bias are cast, the scales are not."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device.upper()}"))

    def product(
        input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor,
        input_scale: Tensor | None = None, bias: Tensor | None = None, *rest: object,
    ) -> Tensor:  # fmt: skip
        dtype = torch.get_autocast_dtype(device)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            bias = None if bias is None else bias.to(dtype)
            return operator(input.to(dtype), values, indices, weight_scale, input_scale, bias, *rest)

    return product


library.impl("int8_linear", int8_linear_torch, "CompositeExplicitAutograd")
library.impl("int8_linear", _int8_linear_cpu, "CPU")
library.impl("int8_conv2d", int8_conv2d_torch, "CompositeExplicitAutograd")
library.impl("int8_conv2d", _int8_conv2d_cpu, "CPU")
for _device in ("cpu", "cuda"):
    library.impl("int8_linear", _under_autocast(int8_linear, _device), f"Autocast{_device.upper()}")
    library.impl("int8_conv2d", _under_autocast(_int8_conv2d, _device), f"Autocast{_device.upper()}")


@register_fake("sparse24::int8_linear", lib=library)
def _(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, input_scale: Tensor | None = None,
    bias: Tensor | None = None, activation: str = "none",
) -> Tensor:  # fmt: skip
    check_int8_linear(input, values, indices, weight_scale, input_scale, bias, activation)
    return input.new_empty((*input.shape[:-1], values.shape[0]))


@register_fake("sparse24::int8_conv2d", lib=library)
def _(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, input_scale: Tensor | None,
    bias: Tensor | None, kernel_size: Sequence[int], stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0), dilation: Sequence[int] = (1, 1), groups: int = 1,
    activation: str = "none",
) -> Tensor:  # fmt: skip
    geometry = (kernel_size, stride, padding, dilation, groups)
    check_int8_conv2d(input, values, indices, weight_scale, input_scale, bias, *geometry, activation)
    layout = torch.channels_last if is_channels_last(input) else torch.contiguous_format
    out_size = conv_out_size(input, kernel_size, stride, padding, dilation)
    shape = (input.shape[0], values.shape[0], *out_size)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=layout)
