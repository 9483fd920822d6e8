"""``torch.ops.sparse24.linear``: schema, checks, CPU kernel, dense fallback, fake kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import register_fake

from .. import _C
from .panels import pack_panels, panels_of
from .product import activate, check_product
from .registry import ACTIVATION_CODES, TAGS, library, round_up, under_autocast

library.define(
    "linear(Tensor input, Tensor values, Tensor indices, Tensor? bias=None, str activation='none') -> Tensor",
    tags=TAGS,
)


def check_linear(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, activation: str
) -> None:
    check_product(input, values, indices, bias, activation)
    torch._check_value(
        input.dim() >= 1 and round_up(input.shape[-1], 8) == 2 * values.shape[1],
        lambda: (
            f"input [..., K] has shape {tuple(input.shape)}, but the compressed weight holds "
            f"K = {2 * values.shape[1]} columns (K rounded up to 8)"
        ),
    )


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
    # Microseconds count here: a hit in the cache stands for the checks of the weight.
    panels = panels_of(values, indices, 1)
    if panels is None:
        check_linear(input, values, indices, bias, activation)
        panels = pack_panels(values, indices, 1)
    rows, half = values.shape
    dtype = values.dtype
    if (
        input.dtype is not dtype
        or input.dim() == 0
        or not 2 * half - 8 < input.shape[-1] <= 2 * half
        or activation not in ACTIVATION_CODES
        or (bias is not None and (bias.dtype is not dtype or bias.shape != (rows,)))
    ):
        check_linear(input, values, indices, bias, activation)
    *lead, cols = input.shape
    if cols == 0:
        return linear_torch(input, values, indices, bias, activation)
    x = input
    if dtype is not torch.float32:
        x, bias = input.float(), None if bias is None else bias.float()
    stride = cols
    if not x.is_contiguous():
        if x.dim() == 2 and x.stride(1) == 1:
            stride = x.stride(0)
        else:
            x = x.contiguous()
    if bias is not None and not bias.is_contiguous():
        bias = bias.contiguous()
    output = x.new_empty(*lead, rows)
    _C.linear(
        panels.address, x.data_ptr(), 0 if bias is None else bias.data_ptr(), output.data_ptr(),
        x.numel() // cols, rows, cols, stride, ACTIVATION_CODES[activation], torch.get_num_threads(),
    )  # fmt: skip
    return output if dtype is torch.float32 else output.to(dtype)


def linear(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, activation: str = "none"
) -> Tensor:
    """``torch.ops.sparse24.linear``, past the dispatcher when nothing listens there.

    The way through it costs five microseconds, as much as all the rest of a small call. It is taken
    when somebody traces, compiles, profiles, maps or casts, or gives anything but a plain CPU tensor.
    """
    if (
        torch.compiler.is_compiling()
        or type(input) is not Tensor
        or not input.is_cpu
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._is_tracing()
        or torch.is_autocast_enabled("cpu")
        or torch._C._autograd._profiler_enabled()
    ):
        output: Tensor = torch.ops.sparse24.linear.default(input, values, indices, bias, activation)
        return output
    return _linear_cpu(input, values, indices, bias, activation)


library.impl("linear", linear_torch, "CompositeExplicitAutograd")
library.impl("linear", _linear_cpu, "CPU")


for _device in ("cpu", "cuda"):
    library.impl(
        "linear", under_autocast(torch.ops.sparse24.linear.default, _device), f"Autocast{_device.upper()}"
    )


@register_fake("sparse24::linear", lib=library)
def _(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    check_linear(input, values, indices, bias, activation)
    return input.new_empty((*input.shape[:-1], values.shape[0]))
