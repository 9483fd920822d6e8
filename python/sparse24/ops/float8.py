"""``torch.ops.sparse24.float8_linear``: float8_e4m3fn weights, and inputs that become float8 too.

    y = activation(scale of the token * weight_scale * (x (float8) values^T) + bias), in the dtype of x

A token's scale is its largest magnitude over 448. On a GPU with float8 tensor cores the product is
``scaled_linear``; elsewhere it is the same function in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import register_fake

from .cuda import device_kernels
from .int8 import check_scales
from .product import COMPUTE_DTYPES, check_activation, check_bias, check_columns, check_matrix
from .registry import TAGS, check_devices, library, names_of
from .scaled import finish

library.define(
    "float8_linear(Tensor input, Tensor values, Tensor indices, Tensor weight_scale, Tensor? bias=None, "
    "str activation='none') -> Tensor",
    tags=TAGS,
)


def check_float8_linear(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, bias: Tensor | None, activation: str
) -> None:
    """Refuse what ``float8_linear`` cannot take: ValueError for shapes, TypeError for dtypes."""
    check_activation(activation)
    torch._check_type(
        values.dtype == torch.float8_e4m3fn,
        lambda: f"values must be float8_e4m3fn, not {values.dtype}: others are for linear and int8_linear",
    )
    torch._check_type(
        input.dtype in COMPUTE_DTYPES and (bias is None or bias.dtype == input.dtype),
        lambda: (
            f"input and bias must have one dtype of {names_of(COMPUTE_DTYPES)}, not {input.dtype} and "
            f"{None if bias is None else bias.dtype}; convert with .to(...) or use autocast"
        ),
    )
    check_matrix(values, indices)
    check_scales(values.shape[0], weight_scale, None)
    check_bias(values, bias)
    check_columns(input, values)


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


#: Through torch's dispatcher.
float8_linear: Callable[..., Tensor] = torch.ops.sparse24.float8_linear.default


def _under_autocast(device: str) -> Callable[..., Tensor]:
    """As ``F.linear`` under autocast: input and bias are cast, the scales are not."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device.upper()}"))

    def product(
        input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, bias: Tensor | None = None,
        activation: str = "none",
    ) -> Tensor:  # fmt: skip
        dtype = torch.get_autocast_dtype(device)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            bias = None if bias is None else bias.to(dtype)
            return float8_linear(input.to(dtype), values, indices, weight_scale, bias, activation)

    return product


library.impl("float8_linear", float8_linear_torch, "CompositeExplicitAutograd")
for _device in ("cpu", "cuda"):
    library.impl("float8_linear", _under_autocast(_device), f"Autocast{_device.upper()}")


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
