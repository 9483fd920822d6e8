"""The functions of torch that run the sparse product when they are given a compressed weight.

Each takes the arguments of the function it stands for, and returns ``NotImplemented`` where that has to do
its own work: other shapes or dtypes, a view of a weight, several compressed operands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from . import grad
from .forms import Conv2dForm, LinearForm
from .weight import CompressedWeight

_aten = torch.ops.aten

#: Views that turn a matrix round, so that ``x @ weight.t()`` is the layer's product.
_TRANSPOSES = (_aten.t.default, _aten.transpose.int, _aten.permute.default, _aten.numpy_T.default)


def _is_turned(weight: Any) -> bool:
    """Whether this is the transpose of a linear layer's whole weight."""
    return (
        isinstance(weight, CompressedWeight)
        and isinstance(weight._form, LinearForm)
        and len(weight._views) == 1
        and weight._views[0].operator in _TRANSPOSES
        and weight.shape == weight._form.shape[::-1]
        and weight.stride() == (1, weight._form.shape[1])
    )


def _is_whole(weight: Any, form: type) -> bool:
    return isinstance(weight, CompressedWeight) and isinstance(weight._form, form) and not weight._views


def _is_dense(*tensors: Any) -> bool:
    return not any(isinstance(tensor, CompressedWeight) for tensor in tensors)


def _run_linear(input: Tensor, weight: CompressedWeight, bias: Tensor | None) -> Any:
    fits = input.dtype == weight._kept_values.dtype and (bias is None or bias.dtype == input.dtype)
    if input.dim() == 0 or input.shape[-1] != weight._form.columns or not (fits or _autocasts(input)):
        return NotImplemented  # torch has its own words for that
    operands = (input, weight._kept_values, weight._kept_indices, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands):
        return grad.linear(*operands, "none")
    return ops.linear(*operands)


def _autocasts(input: Tensor) -> bool:
    return torch.is_autocast_enabled(input.device.type)


def _linear(input: Tensor, weight: Any, bias: Tensor | None = None) -> Any:
    if not _is_whole(weight, LinearForm) or not _is_dense(input, bias):
        return NotImplemented
    return _run_linear(input, weight, bias)


def _matmul(input: Any, other: Any, *, out: Tensor | None = None) -> Any:
    if out is not None or not _is_turned(other) or not isinstance(input, Tensor) or not _is_dense(input):
        return NotImplemented
    return _run_linear(input, other, None)


def _addmm(
    bias: Tensor, input: Tensor, other: Any, *, beta: float = 1, alpha: float = 1, out: Tensor | None = None
) -> Any:
    plain = beta == 1 and alpha == 1 and out is None and isinstance(bias, Tensor) and bias.dim() == 1
    if not plain or not _is_turned(other) or not _is_dense(bias, input) or bias.shape[0] != other.shape[1]:
        return NotImplemented
    return _run_linear(input, other, bias)


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int):
        return (value, value)
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) in (1, 2):
        return (value[0], value[-1])
    return None


def _conv2d(
    input: Tensor, weight: Any, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Any:  # fmt: skip
    sizes = (_pair(stride), _pair(padding), _pair(dilation))
    if not _is_whole(weight, Conv2dForm) or not _is_dense(input, bias) or None in sizes or input.dim() != 4:
        return NotImplemented
    operands = (input, weight._kept_values, weight._kept_indices, bias)
    fits = input.dtype == weight._kept_values.dtype and input.shape[1] == groups * weight.shape[1]
    if not fits and not _autocasts(input):
        return NotImplemented
    (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w) = sizes  # type: ignore[misc]
    window = (*weight._form.shape[2:], stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands):
        return grad.conv2d(*operands, "none", window)
    return ops.conv2d(*operands, "none", window)


def _convolution(
    input: Tensor, weight: Any, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int,
) -> Any:  # fmt: skip
    if transposed:
        return NotImplemented
    return _conv2d(input, weight, bias, stride, padding, dilation, groups)


#: By the function that a user calls: here autograd and autocast still see the product.
PRODUCTS: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    F.conv2d: _conv2d,
    torch.conv2d: _conv2d,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    torch.mm: _matmul,
    Tensor.mm: _matmul,
    torch.addmm: _addmm,
    Tensor.addmm: _addmm,
}
#: By the operator that functions of torch make of it inside (``F.multi_head_attention_forward``, say).
LOWERED: dict[Any, Callable[..., Any]] = {
    _aten.linear.default: _linear,
    _aten.mm.default: _matmul,
    _aten.addmm.default: _addmm,
    _aten.convolution.default: _convolution,
}

CompressedWeight.products.update(PRODUCTS)
CompressedWeight.lowered.update(LOWERED)
