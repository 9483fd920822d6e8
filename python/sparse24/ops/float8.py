"""``torch.ops.sparse24.float8_linear`` and ``float8_conv2d``: float8_e4m3fn weights, inputs that become so.

    y = activation(scale of the token * weight_scale * (x (float8) values^T) + bias), in the dtype of x

A token's scale is its largest magnitude over 448; in a convolution an image has one scale. What holds NaN or
Inf gives NaN. On a GPU with float8 tensor cores the products are ``scaled_linear`` and ``scaled_conv2d``;
elsewhere they are the same functions in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import register_fake

from .conv2d import Window, check_conv2d_sizes, conv_out_size, geometry_of, is_channels_last
from .cuda import device_kernels
from .int8 import check_narrow
from .layout import conv_matrix_to_weight
from .product import check_activation, check_columns
from .registry import TAGS, check_devices, library
from .scaled import finish

library.define(
    "float8_linear(Tensor input, Tensor values, Tensor indices, Tensor weight_scale, Tensor? bias=None, "
    "str activation='none') -> Tensor",
    tags=TAGS,
)
library.define(
    "float8_conv2d(Tensor input, Tensor values, Tensor indices, Tensor weight_scale, Tensor? bias, "
    "SymInt[2] kernel_size, SymInt[2] stride=1, SymInt[2] padding=0, SymInt[2] dilation=1, SymInt groups=1, "
    "str activation='none') -> Tensor",
    tags=TAGS,
)


def _check(
    kind: str, input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, bias: Tensor | None,
    activation: str,
) -> None:  # fmt: skip
    check_activation(activation)
    torch._check_type(
        values.dtype == torch.float8_e4m3fn,
        lambda: f"values must be float8_e4m3fn, not {values.dtype}: others are for {kind} and int8_{kind}",
    )
    check_narrow(input, values, indices, weight_scale, None, bias)


def check_float8_linear(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, bias: Tensor | None, activation: str
) -> None:
    """Refuse what ``float8_linear`` cannot take: ValueError for shapes, TypeError for dtypes."""
    _check("linear", input, values, indices, weight_scale, bias, activation)
    check_columns(input, values)


def check_float8_conv2d(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, bias: Tensor | None,
    kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    groups: int, activation: str,
) -> None:  # fmt: skip
    """Refuse what ``float8_conv2d`` cannot take: ValueError for shapes, TypeError for dtypes."""
    _check("conv2d", input, values, indices, weight_scale, bias, activation)
    check_conv2d_sizes(input, values, kernel_size, stride, padding, dilation, groups)


def rows_of(input: Tensor) -> Tensor:
    """[..., k] as [n, k], each row of one piece."""
    rows = input.reshape(input.shape[:-1].numel(), input.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def float8_linear_torch(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, bias: Tensor | None = None,
    activation: str = "none",
) -> Tensor:  # fmt: skip
    """``float8_linear`` for devices without float8 products."""
    check_float8_linear(input, values, indices, weight_scale, bias, activation)
    quantized, scale = device_kernels.quantize_per_token(rows_of(input), 0, values.dtype)
    weight = torch.ops.sparse24.decompress(values, indices)[:, : input.shape[-1]]
    product = F.linear(quantized.float(), weight.float()) * scale.unsqueeze(1)
    output = finish(product, weight_scale, bias, activation, input.dtype)
    return output.view(*input.shape[:-1], values.shape[0])


def by_images(input: Tensor, quantize: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """What ``quantize`` makes of the images [N, C, H, W], a row each: lying as they lie, and scales [N]."""
    channels_last = is_channels_last(input)
    x = input.permute(0, 2, 3, 1) if channels_last else input.contiguous()
    quantized, scale = quantize(x.reshape(x.shape[0], x.shape[1:].numel()))
    quantized = quantized.view(x.shape)
    return quantized.permute(0, 3, 1, 2) if channels_last else quantized, scale


def float8_conv2d_torch(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, bias: Tensor | None,
    kernel_size: Sequence[int], stride: Sequence[int] = (1, 1), padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1), groups: int = 1, activation: str = "none",
) -> Tensor:  # fmt: skip
    """``float8_conv2d`` for devices without float8 products."""
    window = (kernel_size, stride, padding, dilation, groups)
    check_float8_conv2d(input, values, indices, weight_scale, bias, *window, activation)
    quantized, scale = by_images(input, lambda x: device_kernels.quantize_in_torch(x, values.dtype))
    matrix = torch.ops.sparse24.decompress(values, indices)
    weight = conv_matrix_to_weight(matrix, input.shape[1] // groups, kernel_size)
    product = F.conv2d(quantized.float(), weight.float(), None, stride, padding, dilation, groups)
    pixels = product.permute(0, 2, 3, 1) * scale.view(-1, 1, 1, 1)
    output = finish(pixels, weight_scale, bias, activation, input.dtype)
    layout = torch.channels_last if is_channels_last(input) else torch.contiguous_format
    return output.permute(0, 3, 1, 2).contiguous(memory_format=layout)


#: Through torch's dispatcher.
float8_linear: Callable[..., Tensor] = torch.ops.sparse24.float8_linear.default
_float8_conv2d: Callable[..., Tensor] = torch.ops.sparse24.float8_conv2d.default


def float8_conv2d(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, bias: Tensor | None,
    activation: str, window: Window,
) -> Tensor:  # fmt: skip
    """``torch.ops.sparse24.float8_conv2d`` of a window."""
    return _float8_conv2d(input, values, indices, weight_scale, bias, *geometry_of(window), activation)


def _under_autocast(operator: Callable[..., Tensor], device: str) -> Callable[..., Tensor]:
    """As torch's own under autocast: input and bias are cast, the scales are not."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device.upper()}"))

    def product(
        input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, bias: Tensor | None = None,
        *rest: Any,
    ) -> Tensor:  # fmt: skip
        dtype = torch.get_autocast_dtype(device)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            bias = None if bias is None else bias.to(dtype)
            return operator(input.to(dtype), values, indices, weight_scale, bias, *rest)

    return product


library.impl("float8_linear", float8_linear_torch, "CompositeExplicitAutograd")
library.impl("float8_conv2d", float8_conv2d_torch, "CompositeExplicitAutograd")
for _device in ("cpu", "cuda"):
    library.impl("float8_linear", _under_autocast(float8_linear, _device), f"Autocast{_device.upper()}")
    library.impl("float8_conv2d", _under_autocast(_float8_conv2d, _device), f"Autocast{_device.upper()}")


@register_fake("sparse24::float8_linear", lib=library)
def _(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, bias: Tensor | None = None,
    activation: str = "none",
) -> Tensor:  # fmt: skip
    check_devices(
        "float8_linear", input=input, values=values, indices=indices, weight_scale=weight_scale, bias=bias
    )
    check_float8_linear(input, values, indices, weight_scale, bias, activation)
    return input.new_empty((*input.shape[:-1], values.shape[0]))


@register_fake("sparse24::float8_conv2d", lib=library)
def _(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, bias: Tensor | None,
    kernel_size: Sequence[int], stride: Sequence[int] = (1, 1), padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1), groups: int = 1, activation: str = "none",
) -> Tensor:  # fmt: skip
    check_devices(
        "float8_conv2d", input=input, values=values, indices=indices, weight_scale=weight_scale, bias=bias
    )
    window = (kernel_size, stride, padding, dilation, groups)
    check_float8_conv2d(input, values, indices, weight_scale, bias, *window, activation)
    layout = torch.channels_last if is_channels_last(input) else torch.contiguous_format
    out_size = conv_out_size(input, kernel_size, stride, padding, dilation)
    shape = (input.shape[0], values.shape[0], *out_size)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=layout)
