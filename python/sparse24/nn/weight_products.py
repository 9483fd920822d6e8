"""The functions of torch that run the sparse product when they are given a compressed weight.

Each takes the arguments of the function it stands for, and returns ``NotImplemented`` where that has to do
its own work: other shapes or dtypes, views that are not some rows of a weight, several compressed operands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from . import grad
from .forms import Conv1dForm, Conv2dForm, Conv3dForm, LinearForm, StackForm, TurnedForm
from .planes import Depth, is_channels_last_3d, stacked, unstacked
from .weight import CompressedWeight

_aten = torch.ops.aten


class _Rows(NamedTuple):
    """Rows of a compressed matrix: what a weight, or a view of some of its rows, is multiplied by."""

    values: Tensor
    indices: Tensor
    columns: int


def _rows(weight: CompressedWeight, first: int, count: int, columns: int) -> _Rows:
    values, indices = weight._kept_values, weight._kept_indices
    if count != len(values):
        values, indices = values[first : first + count], indices[first : first + count]
    return _Rows(values, indices, columns)


def _matrix(weight: Any) -> _Rows | None:
    """The rows of a weight [m, in] whose memory is that of m rows of the whole one; None: it is another."""
    if not isinstance(weight, CompressedWeight) or weight.dim() != 2 or weight._scale is not None:
        return None
    form = weight._form
    if isinstance(form, LinearForm | StackForm):
        return _lying(weight, tuple(weight.shape), tuple(weight.stride()), form.shape[-1])
    if isinstance(form, TurnedForm):  # its transpose [out, in] is the matrix
        out = form.shape[1]
        is_it = weight.shape == form.shape[::-1] and weight.stride() == (1, out) and not weight._offset
        return _rows(weight, 0, out, form.shape[0]) if is_it else None
    return None


def _lying(
    weight: CompressedWeight, shape: tuple[int, ...], strides: tuple[int, ...], columns: int
) -> _Rows | None:
    first, rest = divmod(weight._offset, columns) if columns else (0, 1)
    in_rows = (strides[1] == 1 or columns == 1) and (strides[0] == columns or shape[0] == 1)
    return _rows(weight, first, shape[0], columns) if not rest and shape[1] == columns and in_rows else None


def _turned(weight: Any) -> _Rows | None:
    """The rows of the matrix whose transpose [in, m] this weight is; None: it is no such transpose."""
    if not isinstance(weight, CompressedWeight) or weight.dim() != 2 or weight._scale is not None:
        return None
    form = weight._form
    if isinstance(form, LinearForm | StackForm):
        shape, strides = tuple(weight.shape)[::-1], tuple(weight.stride())[::-1]
        return _lying(weight, shape, strides, form.shape[-1])
    if isinstance(form, TurnedForm) and weight.shape == form.shape and weight.is_contiguous():
        return _rows(weight, 0, form.shape[1], form.shape[0]) if not weight._offset else None
    return None


def _stack(weight: Any) -> list[_Rows] | None:
    """The matrices of the transposes [E, in, out] of a stack of weights; None: it is another."""
    if not isinstance(weight, CompressedWeight) or not isinstance(weight._form, StackForm):
        return None
    count, out, columns = weight._form.shape
    whole = weight.shape == (count, columns, out) and weight.stride() == (out * columns, 1, columns)
    if not whole or weight._offset or weight._scale is not None:
        return None
    return [_rows(weight, expert * out, out, columns) for expert in range(count)]


def _kernels(weight: Any) -> _Rows | None:
    """The rows of a convolution's weight, or of some of its output channels; None: it is another."""
    kinds = Conv1dForm | Conv2dForm | Conv3dForm
    if not isinstance(weight, CompressedWeight) or not isinstance(weight._form, kinds):
        return None
    size = math.prod(weight._form.shape[1:])
    fits = weight.shape[1:] == weight._form.shape[1:] and weight.is_contiguous() and size
    if not fits or weight._offset % size or weight._scale is not None:
        return None
    return _rows(weight, weight._offset // size, len(weight), weight._form.columns)


def _is_dense(*tensors: Any) -> bool:
    return not any(isinstance(tensor, CompressedWeight) for tensor in tensors)


def _run_linear(input: Tensor, weight: _Rows, bias: Tensor | None) -> Any:
    fits = input.dtype == weight.values.dtype and (bias is None or bias.dtype == input.dtype)
    if input.dim() == 0 or input.shape[-1] != weight.columns or not (fits or _autocasts(input)):
        return NotImplemented  # torch has its own words for that
    operands = (input, weight.values, weight.indices, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands):
        return grad.linear(*operands, "none")
    return ops.linear(*operands)


def _autocasts(input: Tensor) -> bool:
    return torch.is_autocast_enabled(input.device.type)


def _linear(input: Tensor, weight: Any, bias: Tensor | None = None) -> Any:
    rows = _matrix(weight)
    if rows is None or not _is_dense(input, bias):
        return NotImplemented
    return _run_linear(input, rows, bias)


def _matmul(input: Any, other: Any, *, out: Tensor | None = None) -> Any:
    rows = _turned(other)
    if out is not None or rows is None or not isinstance(input, Tensor) or not _is_dense(input):
        return NotImplemented
    return _run_linear(input, rows, None)


def _addmm(
    bias: Tensor, input: Tensor, other: Any, *, beta: float = 1, alpha: float = 1, out: Tensor | None = None
) -> Any:
    plain = beta == 1 and alpha == 1 and out is None and isinstance(bias, Tensor) and bias.dim() == 1
    rows = _turned(other)
    if not plain or rows is None or not _is_dense(bias, input) or bias.shape[0] != other.shape[1]:
        return NotImplemented
    return _run_linear(input, rows, bias)


def _grouped(
    input: Any, other: Any, offs: Tensor | None = None, bias: Tensor | None = None, out_dtype: Any = None
) -> Any:
    """``grouped_mm`` of sorted tokens with a stack of experts: each expert's rows by its own matrix."""
    stack = _stack(other)
    if stack is None or offs is None or bias is not None or not _is_dense(input) or input.dim() != 2:
        return NotImplemented
    if out_dtype not in (None, input.dtype) or input.dtype != stack[0].values.dtype:
        return NotImplemented
    ends = offs.tolist()
    parts = []
    for rows, begin, end in zip(stack, [0, *ends], ends, strict=False):
        if end > begin:
            parts.append(_run_linear(input[begin:end], rows, None))
    rest = len(input) - (ends[-1] if ends else 0)
    parts.append(input.new_zeros(rest, other.shape[2]))  # rows of no expert, which torch leaves undefined
    return NotImplemented if any(part is NotImplemented for part in parts) else torch.cat(parts)


def _pair(value: Any, one: bool, unused: int) -> tuple[int, int] | None:
    """A size of a window; where the input has ``one`` dimension, with what the other has."""
    if isinstance(value, int):
        return (unused, value) if one else (value, value)
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) in ((1,) if one else (1, 2)):
        return (unused, value[0]) if one else (value[0], value[-1])
    return None


def _conv(
    input: Tensor, weight: Any, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Any:  # fmt: skip
    """``conv2d`` and ``conv1d``, which is one of kernels [1, K]."""
    rows = _kernels(weight)
    if rows is None or not _is_dense(input, bias) or input.dim() != weight.dim() or weight.dim() == 5:
        return NotImplemented
    one = weight.dim() == 3
    sizes = (_pair(stride, one, 1), _pair(padding, one, 0), _pair(dilation, one, 1))
    if None in sizes:
        return NotImplemented
    operands = (input.unsqueeze(2) if one else input, rows.values, rows.indices, bias)
    fits = input.dtype == rows.values.dtype and input.shape[1] == groups * weight.shape[1]
    if not fits and not _autocasts(input):
        return NotImplemented
    (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w) = sizes  # type: ignore[misc]
    kernel = weight._form.shape[2:]  # numbers, also where shapes are traced
    kernel = (1, *kernel) if one else kernel
    window = (*kernel, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands):
        output = grad.conv2d(*operands, "none", window)
    else:
        output = ops.conv2d(*operands, "none", window)
    return output.squeeze(2) if one else output


def _triple(value: Any) -> tuple[int, int, int] | None:
    if isinstance(value, int):
        return (value, value, value)
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) in (1, 3):
        return (value[0], value[len(value) // 2], value[-1])
    return None


def _conv3d(
    input: Tensor, weight: Any, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Any:  # fmt: skip
    """``conv3d`` as one ``conv2d`` of stacked planes."""
    rows = _kernels(weight)
    if rows is None or not _is_dense(input, bias) or weight.dim() != 5 or input.dim() != 5:
        return NotImplemented
    strides, pads, dilations = _triple(stride), _triple(padding), _triple(dilation)
    fits = input.dtype == rows.values.dtype and input.shape[1] == groups * weight.shape[1]
    if strides is None or pads is None or dilations is None or not (fits or _autocasts(input)):
        return NotImplemented
    kernel = weight._form.shape[2:]
    layout = torch.channels_last_3d if is_channels_last_3d(input) else torch.contiguous_format
    deep = input
    if pads[0]:
        deep = F.pad(input, (0, 0, 0, 0, pads[0], pads[0])).contiguous(memory_format=layout)
    if deep.shape[2] < (kernel[0] - 1) * dilations[0] + 1:
        return NotImplemented  # torch has its own words for that
    depth = Depth(kernel[0], strides[0], dilations[0], groups)
    operands = (stacked(deep, depth), rows.values, rows.indices, bias)
    window = (*kernel[1:], *strides[1:], *pads[1:], *dilations[1:], groups)
    wants = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)
    output = (grad.conv2d if wants else ops.conv2d)(*operands, "none", window)
    return unstacked(output, deep, depth)


def _convolution(
    input: Tensor, weight: Any, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int,
) -> Any:  # fmt: skip
    if transposed:
        return NotImplemented
    return _conv(input, weight, bias, stride, padding, dilation, groups)


#: By the function that a user calls: here autograd and autocast still see the product.
PRODUCTS: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    F.conv2d: _conv,
    torch.conv2d: _conv,
    F.conv1d: _conv,
    torch.conv1d: _conv,
    F.conv3d: _conv3d,
    torch.conv3d: _conv3d,
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

for _name in ("grouped_mm", "_grouped_mm"):  # by version of torch
    for _owner in (F, torch):
        if hasattr(_owner, _name):
            PRODUCTS[getattr(_owner, _name)] = _grouped
if hasattr(_aten, "_grouped_mm"):
    LOWERED[_aten._grouped_mm.default] = _grouped

CompressedWeight.products.update(PRODUCTS)
CompressedWeight.lowered.update(LOWERED)
