"""``torch.ops.sparse24.linear``: schema, checks, CPU kernel, dense fallback, fake kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import register_fake

from .. import _C
from . import machine, precision
from .product import (
    Mode,
    WeightArguments,
    activate,
    check_columns,
    check_product,
    weight_arguments,
)
from .registry import ACTIVATION_CODES, DTYPES, TAGS, check_devices, library, under_autocast

library.define(
    "linear(Tensor input, Tensor values, Tensor indices, Tensor? bias=None, str activation='none') -> Tensor",
    tags=TAGS,
)


def check_linear(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, activation: str
) -> None:
    check_product(input, values, indices, bias, activation)
    check_columns(input, values)


def linear_torch(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """``linear`` through a dense weight, for devices that have no sparse kernel."""
    check_linear(input, values, indices, bias, activation)
    weight = torch.ops.sparse24.decompress(values, indices)[:, : input.shape[-1]]
    return activate(F.linear(input, weight, bias), activation)


def _linear_cpu(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    check_linear(input, values, indices, bias, activation)
    if input.shape[-1] == 0:
        return linear_torch(input, values, indices, bias, activation)
    mode = (precision.for_product("matmul", input.dtype), 0, 0.0, 0.0)
    return run_linear(input, weight_arguments(values, indices), bias, activation, mode)


def run_linear(
    input: Tensor,
    weight: tuple[WeightArguments, tuple[Tensor, ...]],
    bias: Tensor | None,
    activation: str,
    mode: Mode,
) -> Tensor:
    """The product of checked operands on the CPU, K being at least 1."""
    *lead, cols = input.shape
    x, stride = input, cols
    if input.dim() == 2 and input.stride(1) == 1 and input.stride(0) >= 0:
        stride = input.stride(0)
    else:
        x = input.contiguous()
    machine.load()
    arguments, operands = weight
    bias = None if bias is None else bias.contiguous()
    output = input.new_empty(*lead, arguments[3])
    _C.linear(
        arguments, DTYPES[input.dtype], x.data_ptr(), 0 if bias is None else bias.data_ptr(),
        output.data_ptr(), x.numel() // cols, cols, stride, ACTIVATION_CODES[activation],
        torch.get_num_threads(), mode,
    )  # fmt: skip
    del operands
    return output


library.impl("linear", linear_torch, "CompositeExplicitAutograd")
library.impl("linear", _linear_cpu, "CPU")


#: Through torch's dispatcher.
linear: Callable[..., Tensor] = torch.ops.sparse24.linear.default

for _device in ("cpu", "cuda"):
    library.impl("linear", under_autocast(linear, _device, _device == "cuda"), f"Autocast{_device.upper()}")


@register_fake("sparse24::linear", lib=library)
def _(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    check_devices("linear", input=input, values=values, indices=indices, bias=bias)
    check_linear(input, values, indices, bias, activation)
    return input.new_empty((*input.shape[:-1], values.shape[0]))
