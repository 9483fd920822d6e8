"""Products of 8-bit operands: ``scaled_linear``, ``scaled_conv2d`` and ``quantize_per_token``.

y = activation(scale * (x W^T) + bias), rounded half to even and saturated for int8. int8 accumulates in
int32, exactly. On a GPU through cuSPARSELt; elsewhere in torch, right and not fast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import register_fake

from .conv2d import check_conv2d_sizes, conv_out_size, is_channels_last
from .cuda import device_kernels
from .layout import conv_matrix_to_weight
from .product import activate, check_activation, check_columns, check_matrix
from .registry import TAGS, check_devices, library, names_of

#: What each dtype of the operands may give.
OUT_DTYPES = {
    torch.int8: (torch.int8, torch.int32, torch.float16, torch.bfloat16),
    torch.float8_e4m3fn: (torch.float16, torch.bfloat16, torch.float32),
    torch.float8_e5m2: (torch.float16, torch.bfloat16, torch.float32),
}

library.define(
    "scaled_linear(Tensor input, Tensor values, Tensor indices, Tensor? scale, Tensor? bias, "
    "ScalarType out_dtype, str activation='none') -> Tensor",
    tags=TAGS,
)
library.define(
    "scaled_conv2d(Tensor input, Tensor values, Tensor indices, Tensor? scale, Tensor? bias, "
    "ScalarType out_dtype, SymInt[2] kernel_size, SymInt[2] stride=1, SymInt[2] padding=0, "
    "SymInt[2] dilation=1, SymInt groups=1, str activation='none') -> Tensor",
    tags=TAGS,
)
library.define("quantize_per_token(Tensor input) -> (Tensor, Tensor)", tags=TAGS)


def _check_scaled(
    input: Tensor, values: Tensor, indices: Tensor, scale: Tensor | None, bias: Tensor | None,
    out_dtype: torch.dtype, activation: str,
) -> None:  # fmt: skip
    check_activation(activation)
    torch._check_type(
        values.dtype in OUT_DTYPES and input.dtype == values.dtype,
        lambda: (
            f"input and values must have one dtype of {names_of(OUT_DTYPES)}, not {input.dtype} and "
            f"{values.dtype}; float32, float16 and bfloat16 are for linear and conv2d"
        ),
    )
    torch._check_type(
        out_dtype in OUT_DTYPES[values.dtype],
        lambda: f"{values.dtype} gives {names_of(OUT_DTYPES[values.dtype])}, not {out_dtype}",
    )
    check_matrix(values, indices)
    for name, vector in (("scale", scale), ("bias", bias)):
        torch._check_value(
            vector is None or (vector.dtype == torch.float32 and vector.shape == (values.shape[0],)),
            lambda name=name, vector=vector: (
                f"{name} must be float32 [{values.shape[0]}], not {vector.dtype} {tuple(vector.shape)}"
            ),
        )


def check_scaled_linear(
    input: Tensor, values: Tensor, indices: Tensor, scale: Tensor | None, bias: Tensor | None,
    out_dtype: torch.dtype, activation: str,
) -> None:  # fmt: skip
    """Refuse what ``scaled_linear`` cannot take: ValueError for shapes, TypeError for dtypes."""
    _check_scaled(input, values, indices, scale, bias, out_dtype, activation)
    check_columns(input, values)


def check_scaled_conv2d(
    input: Tensor, values: Tensor, indices: Tensor, scale: Tensor | None, bias: Tensor | None,
    out_dtype: torch.dtype, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int, activation: str,
) -> None:  # fmt: skip
    """Refuse what ``scaled_conv2d`` cannot take: ValueError for shapes, TypeError for dtypes."""
    _check_scaled(input, values, indices, scale, bias, out_dtype, activation)
    check_conv2d_sizes(input, values, kernel_size, stride, padding, dilation, groups)


def finish(
    product: Tensor, scale: Tensor | None, bias: Tensor | None, activation: str, out_dtype: torch.dtype
) -> Tensor:
    """activation(scale * product + bias) along the last dim, rounded as ``out_dtype`` is."""
    if scale is not None:
        product = product * scale
    if bias is not None:
        product = product + bias
    product = activate(product, activation)
    if not out_dtype.is_floating_point:
        limits = torch.iinfo(out_dtype)
        product = product.round().clamp(limits.min, limits.max)
    return product.to(out_dtype)


def scaled_linear_torch(
    input: Tensor, values: Tensor, indices: Tensor, scale: Tensor | None, bias: Tensor | None,
    out_dtype: torch.dtype, activation: str = "none",
) -> Tensor:  # fmt: skip
    """``scaled_linear`` through a dense weight in float64, where int8 products are exact."""
    check_scaled_linear(input, values, indices, scale, bias, out_dtype, activation)
    weight = torch.ops.sparse24.decompress(values, indices)[:, : input.shape[-1]]
    return finish(F.linear(input.double(), weight.double()), scale, bias, activation, out_dtype)


def scaled_conv2d_torch(
    input: Tensor, values: Tensor, indices: Tensor, scale: Tensor | None, bias: Tensor | None,
    out_dtype: torch.dtype, kernel_size: Sequence[int], stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0), dilation: Sequence[int] = (1, 1), groups: int = 1,
    activation: str = "none",
) -> Tensor:  # fmt: skip
    """``scaled_conv2d`` through a dense weight in float64, where int8 products are exact."""
    window = (kernel_size, stride, padding, dilation, groups)
    check_scaled_conv2d(input, values, indices, scale, bias, out_dtype, *window, activation)
    matrix = torch.ops.sparse24.decompress(values, indices)
    weight = conv_matrix_to_weight(matrix, input.shape[1] // groups, kernel_size)
    product = F.conv2d(input.double(), weight.double(), None, stride, padding, dilation, groups)
    layout = torch.channels_last if is_channels_last(input) else torch.contiguous_format
    output = finish(product.permute(0, 2, 3, 1), scale, bias, activation, out_dtype)
    return output.permute(0, 3, 1, 2).contiguous(memory_format=layout)


def check_quantizable(input: Tensor) -> None:
    """Refuse what ``quantize_per_token`` cannot take."""
    torch._check_value(input.dim() >= 1, lambda: "quantize_per_token needs an input [..., K], not a scalar")
    torch._check_type(
        input.dtype in (torch.float32, torch.float16, torch.bfloat16),
        lambda: f"quantize_per_token takes float32, float16, bfloat16, not {input.dtype}",
    )


def quantize_per_token(input: Tensor, stream: int = 0) -> tuple[Tensor, Tensor]:
    """int8 [..., K] and float32 scale [...]: ``device_kernels.quantize_per_token`` for any shape."""
    check_quantizable(input)
    rows = input.reshape(input.shape[:-1].numel(), input.shape[-1])
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    quantized, scale = device_kernels.quantize_per_token(rows, stream)
    return quantized.reshape(input.shape), scale.reshape(input.shape[:-1])


library.impl("scaled_linear", scaled_linear_torch, "CompositeExplicitAutograd")
library.impl("scaled_conv2d", scaled_conv2d_torch, "CompositeExplicitAutograd")
library.impl("quantize_per_token", quantize_per_token, "CompositeExplicitAutograd")


@register_fake("sparse24::scaled_linear", lib=library)
def _(
    input: Tensor, values: Tensor, indices: Tensor, scale: Tensor | None, bias: Tensor | None,
    out_dtype: torch.dtype, activation: str = "none",
) -> Tensor:  # fmt: skip
    check_devices("scaled_linear", input=input, values=values, indices=indices, scale=scale, bias=bias)
    check_scaled_linear(input, values, indices, scale, bias, out_dtype, activation)
    return input.new_empty((*input.shape[:-1], values.shape[0]), dtype=out_dtype)


@register_fake("sparse24::scaled_conv2d", lib=library)
def _(
    input: Tensor, values: Tensor, indices: Tensor, scale: Tensor | None, bias: Tensor | None,
    out_dtype: torch.dtype, kernel_size: Sequence[int], stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0), dilation: Sequence[int] = (1, 1), groups: int = 1,
    activation: str = "none",
) -> Tensor:  # fmt: skip
    check_devices("scaled_conv2d", input=input, values=values, indices=indices, scale=scale, bias=bias)
    window = (kernel_size, stride, padding, dilation, groups)
    check_scaled_conv2d(input, values, indices, scale, bias, out_dtype, *window, activation)
    layout = torch.channels_last if is_channels_last(input) else torch.contiguous_format
    out_size = conv_out_size(input, kernel_size, stride, padding, dilation)
    shape = (input.shape[0], values.shape[0], *out_size)
    return torch.empty(shape, dtype=out_dtype, device=input.device, memory_format=layout)


@register_fake("sparse24::quantize_per_token", lib=library)
def _(input: Tensor) -> tuple[Tensor, Tensor]:
    check_quantizable(input)
    return input.new_empty(input.shape, dtype=torch.int8), input.new_empty(
        input.shape[:-1], dtype=torch.float32
    )
