"""``torch.ops.sparse24.conv2d``: schema, checks, CPU kernel, dense fallback, fake kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import register_fake

from .. import _C
from . import machine, precision
from .layout import conv_matrix_to_weight
from .product import Mode, WeightArguments, activate, check_product, weight_arguments
from .registry import ACTIVATION_CODES, DTYPES, TAGS, check_devices, library, round_up, under_autocast

#: kernel_size, stride, padding and dilation, two numbers each, and groups.
Window = tuple[int, int, int, int, int, int, int, int, int]

library.define(
    "conv2d(Tensor input, Tensor values, Tensor indices, Tensor? bias, SymInt[2] kernel_size, "
    "SymInt[2] stride=1, SymInt[2] padding=0, SymInt[2] dilation=1, SymInt groups=1, "
    "str activation='none') -> Tensor",
    tags=TAGS,
)


def conv_out_size(
    input: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:  # fmt: skip
    return [
        (input.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel_size[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]


def is_channels_last(input: Tensor) -> bool:
    return input.is_contiguous(memory_format=torch.channels_last) and not input.is_contiguous()


def check_conv2d(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, kernel_size: Sequence[int],
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, activation: str,
) -> None:  # fmt: skip
    check_product(input, values, indices, bias, activation)
    check_conv2d_sizes(input, values, kernel_size, stride, padding, dilation, groups)


def check_conv2d_sizes(
    input: Tensor, values: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int,
) -> None:  # fmt: skip
    """Refuse sizes that make no convolution with this weight, with ValueError."""
    torch._check_value(
        input.dim() == 4,
        lambda: f"conv2d needs an input [N, C, H, W], not {tuple(input.shape)}",
    )
    torch._check_value(
        min(*kernel_size, *stride, *dilation, groups, input.shape[1]) > 0 and min(padding) >= 0,
        lambda: (
            "kernel_size, stride, dilation, groups and the channels must be positive and padding not "
            f"negative, not {list(kernel_size)}, {list(stride)}, {list(dilation)}, {groups}, "
            f"{input.shape[1]} and {list(padding)}"
        ),
    )
    channels = input.shape[1]
    k = kernel_size[0] * kernel_size[1] * round_up(channels // groups, 4)
    torch._check_value(
        channels % groups == 0 and values.shape[0] % groups == 0 and round_up(k, 8) == 2 * values.shape[1],
        lambda: (
            f"input {tuple(input.shape)} with kernel {list(kernel_size)} and groups {groups} needs "
            f"K = {round_up(k, 8)} columns, but the compressed weight is [{values.shape[0]}, "
            f"{2 * values.shape[1]}]"
        ),
    )
    torch._check_value(
        min(conv_out_size(input, kernel_size, stride, padding, dilation)) > 0,
        lambda: (
            f"input {tuple(input.shape)} with padding {list(padding)} is smaller than the kernel "
            f"{list(kernel_size)} with dilation {list(dilation)}"
        ),
    )


def conv2d_torch(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, kernel_size: Sequence[int],
    stride: Sequence[int] = (1, 1), padding: Sequence[int] = (0, 0), dilation: Sequence[int] = (1, 1),
    groups: int = 1, activation: str = "none",
) -> Tensor:  # fmt: skip
    """``conv2d`` through a dense weight, for devices that have no sparse kernel."""
    check_conv2d(input, values, indices, bias, kernel_size, stride, padding, dilation, groups, activation)
    matrix = torch.ops.sparse24.decompress(values, indices)
    weight = conv_matrix_to_weight(matrix, input.shape[1] // groups, kernel_size)
    return activate(conv2d_dense(input, weight, bias, stride, padding, dilation, groups), activation)


def conv2d_dense(input: Tensor, weight: Tensor, bias: Tensor | None, *window: Any) -> Tensor:
    """``F.conv2d`` whose output is channels_last if the input is, else contiguous, whatever the weight is."""
    layout = torch.channels_last if is_channels_last(input) else torch.contiguous_format
    return F.conv2d(input, weight, bias, *window).contiguous(memory_format=layout)


def _conv2d_cpu(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, kernel_size: Sequence[int],
    stride: Sequence[int] = (1, 1), padding: Sequence[int] = (0, 0), dilation: Sequence[int] = (1, 1),
    groups: int = 1, activation: str = "none",
) -> Tensor:  # fmt: skip
    check_conv2d(input, values, indices, bias, kernel_size, stride, padding, dilation, groups, activation)
    window = (*kernel_size, *stride, *padding, *dilation, groups)
    mode = (precision.for_product("conv", input.dtype), 0, 0.0, 0.0)
    return run_conv2d(input, weight_arguments(values, indices), bias, window, activation, mode)


def run_conv2d(
    input: Tensor,
    weight: tuple[WeightArguments, tuple[Tensor, ...]],
    bias: Tensor | None,
    window: Sequence[int],
    activation: str,
    mode: Mode,
) -> Tensor:
    """The convolution of checked operands on the CPU."""
    channels_last = is_channels_last(input)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = input.contiguous(memory_format=layout)
    machine.load()
    arguments, operands = weight
    bias = None if bias is None else bias.contiguous()
    out_size = conv_out_size(input, window[:2], window[2:4], window[4:6], window[6:8])
    shape = (input.shape[0], arguments[3], *out_size)
    output = torch.empty(shape, dtype=input.dtype, memory_format=layout)
    _C.conv2d(
        arguments, DTYPES[input.dtype], x.data_ptr(), 0 if bias is None else bias.data_ptr(),
        output.data_ptr(), tuple(x.shape), window, channels_last, ACTIVATION_CODES[activation],
        torch.get_num_threads(), mode,
    )  # fmt: skip
    del operands
    return output


def geometry_of(window: Window) -> tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[int], int]:
    """kernel_size, stride, padding, dilation and groups, as the operator takes them."""
    return window[0:2], window[2:4], window[4:6], window[6:8], window[8]


def conv2d(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, activation: str, window: Window
) -> Tensor:
    """``torch.ops.sparse24.conv2d`` of a window."""
    return _dispatched(input, values, indices, bias, *geometry_of(window), activation)


library.impl("conv2d", conv2d_torch, "CompositeExplicitAutograd")
library.impl("conv2d", _conv2d_cpu, "CPU")


_dispatched: Callable[..., Tensor] = torch.ops.sparse24.conv2d.default

for _device in ("cpu", "cuda"):
    library.impl(
        "conv2d", under_autocast(_dispatched, _device, _device == "cuda"), f"Autocast{_device.upper()}"
    )


@register_fake("sparse24::conv2d", lib=library)
def _(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, kernel_size: Sequence[int],
    stride: Sequence[int] = (1, 1), padding: Sequence[int] = (0, 0), dilation: Sequence[int] = (1, 1),
    groups: int = 1, activation: str = "none",
) -> Tensor:  # fmt: skip
    check_devices("conv2d", input=input, values=values, indices=indices, bias=bias)
    check_conv2d(input, values, indices, bias, kernel_size, stride, padding, dilation, groups, activation)
    layout = torch.channels_last if is_channels_last(input) else torch.contiguous_format
    out_size = conv_out_size(input, kernel_size, stride, padding, dilation)
    shape = (input.shape[0], values.shape[0], *out_size)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=layout)
