"""The operators' CUDA kernels: the current stream of the input's device, and what cuda.py does with it.

The only lines of the package that need a GPU to run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import mask, scaled
from ..layout import check_compressed, check_compressible
from ..registry import check_devices, library
from . import device_kernels
from . import float8 as cuda_float8
from . import int8_chain as cuda_chain
from . import products as cuda
from . import scaled as cuda_scaled
from .cusparselt import Stream
from .patches import Window


def current_stream(tensor: Tensor) -> Stream:
    """torch's current stream of the tensor's device."""
    return Stream(tensor.get_device(), torch.cuda.current_stream(tensor.device).cuda_stream)


def on_current_stream(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """``kernel`` with the current stream as its last argument, on the device of its first tensor.

    It raises RuntimeError where its tensors are on several devices, one of them a GPU.
    """
    names = list(inspect.signature(kernel).parameters)

    def run(tensor: Tensor, *rest: Any) -> Any:
        given = zip(names, (tensor, *rest), strict=False)
        check_devices(name, **{argument: value for argument, value in given if isinstance(value, Tensor)})
        with torch.cuda.device(tensor.device):
            return kernel(tensor, *rest, stream=current_stream(tensor))

    return run


def _linear(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None = None, activation: str = "none", *,
    stream: Stream,
) -> Tensor:  # fmt: skip
    return cuda.linear(input, values, indices, bias, activation, stream)


def _conv2d(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, kernel_size: Sequence[int],
    stride: Sequence[int] = (1, 1), padding: Sequence[int] = (0, 0), dilation: Sequence[int] = (1, 1),
    groups: int = 1, activation: str = "none", *, stream: Stream,
) -> Tensor:  # fmt: skip
    window = Window(kernel_size, stride, padding, dilation, groups)
    return cuda.conv2d(input, values, indices, bias, window, activation, stream)


def _scaled_linear(
    input: Tensor, values: Tensor, indices: Tensor, scale: Tensor | None, bias: Tensor | None,
    out_dtype: torch.dtype, activation: str = "none", *, stream: Stream,
) -> Tensor:  # fmt: skip
    return cuda_scaled.scaled_linear(input, values, indices, scale, bias, out_dtype, activation, stream)


def _scaled_conv2d(
    input: Tensor, values: Tensor, indices: Tensor, scale: Tensor | None, bias: Tensor | None,
    out_dtype: torch.dtype, kernel_size: Sequence[int], stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0), dilation: Sequence[int] = (1, 1), groups: int = 1,
    activation: str = "none", *, stream: Stream,
) -> Tensor:  # fmt: skip
    window = Window(kernel_size, stride, padding, dilation, groups)
    return cuda_scaled.scaled_conv2d(
        input, values, indices, scale, bias, out_dtype, window, activation, stream
    )  # fmt: skip


def _int8_linear(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, input_scale: Tensor | None = None,
    bias: Tensor | None = None, activation: str = "none", *, stream: Stream,
) -> Tensor:  # fmt: skip
    return cuda_scaled.int8_linear(
        input, values, indices, weight_scale, input_scale, bias, activation, stream
    )  # fmt: skip


def _float8_linear(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, bias: Tensor | None = None,
    activation: str = "none", *, stream: Stream,
) -> Tensor:  # fmt: skip
    return cuda_float8.float8_linear(input, values, indices, weight_scale, bias, activation, stream)


def _float8_conv2d(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, bias: Tensor | None,
    kernel_size: Sequence[int], stride: Sequence[int] = (1, 1), padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1), groups: int = 1, activation: str = "none", *, stream: Stream,
) -> Tensor:  # fmt: skip
    window = Window(kernel_size, stride, padding, dilation, groups)
    return cuda_float8.float8_conv2d(input, values, indices, weight_scale, bias, window, activation, stream)


def _int8_conv2d(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, input_scale: Tensor | None,
    bias: Tensor | None, kernel_size: Sequence[int], stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0), dilation: Sequence[int] = (1, 1), groups: int = 1,
    activation: str = "none", *, stream: Stream,
) -> Tensor:  # fmt: skip
    window = Window(kernel_size, stride, padding, dilation, groups)
    weight = (values, indices, weight_scale, input_scale)
    return cuda_scaled.int8_conv2d(input, *weight, bias, window, activation, stream)


def _int8_linear_chained(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, input_scale: Tensor,
    bias: Tensor | None, activation: str, output_scale: Tensor | None, dtype: torch.dtype, *, stream: Stream,
) -> Tensor:  # fmt: skip
    weight = (values, indices, weight_scale, input_scale)
    return cuda_chain.int8_linear_chained(input, *weight, bias, activation, output_scale, dtype, stream)


def _int8_conv2d_chained(
    input: Tensor, values: Tensor, indices: Tensor, weight_scale: Tensor, input_scale: Tensor,
    bias: Tensor | None, window: Sequence[int], activation: str, output_scale: Tensor | None,
    dtype: torch.dtype, *, stream: Stream,
) -> Tensor:  # fmt: skip
    given = Window(window[0:2], window[2:4], window[4:6], window[6:8], window[8])
    weight = (values, indices, weight_scale, input_scale)
    return cuda_chain.int8_conv2d_chained(
        input, *weight, bias, given, activation, output_scale, dtype, stream
    )


def _quantize_per_token(input: Tensor, *, stream: Stream) -> tuple[Tensor, Tensor]:
    return scaled.quantize_per_token(input, stream.handle)


def _fits_mask_kernel(weight: Tensor, n: int, m: int, dim: int) -> bool:
    return (
        device_kernels.built_for(weight)
        and (n, m) == (2, 4)
        and weight.dtype in mask.MASK_DTYPES
        and weight.dim() > 0
        and dim in (-1, weight.dim() - 1)
        and weight.is_contiguous()
    )


def _nm_mask(weight: Tensor, n: int, m: int, dim: int, *, stream: Stream) -> Tensor:
    if not _fits_mask_kernel(weight, n, m, dim):
        return mask.nm_mask_torch(weight, n, m, dim)
    rows = weight.shape[:-1].numel()
    return device_kernels.mask24(weight.view(rows, -1), stream.handle).view(weight.shape)


def _prune_(weight: Tensor, n: int, m: int, dim: int, *, stream: Stream) -> Tensor:
    if not _fits_mask_kernel(weight, n, m, dim):
        return mask.prune_torch_(weight, n, m, dim)
    if not weight.is_inference():
        torch.autograd.graph.increment_version(weight)
    rows = weight.shape[:-1].numel()
    return device_kernels.prune24_(weight.detach().view(rows, -1), stream.handle).view(weight.shape)


def _transposable_mask(weight: Tensor, *, stream: Stream) -> Tensor:
    if not device_kernels.built_for(weight) or weight.dtype not in mask.MASK_DTYPES:
        return mask.transposable_mask_torch(weight)
    mask.check_transposable(weight)
    return device_kernels.transposable_mask(weight.contiguous(), stream.handle)


def _compress(weight: Tensor, *, stream: Stream) -> tuple[Tensor, Tensor]:
    check_compressible(weight)
    if not device_kernels.built_for(weight):
        values, indices = torch.ops.sparse24.compress(weight.cpu())
        return values.to(weight.device), indices.to(weight.device)
    *lead, cols = weight.shape
    matrix = weight.detach().reshape(weight.shape[:-1].numel(), cols).contiguous()
    values, indices, crowded = device_kernels.compress(matrix, stream.handle)
    first = int(crowded)
    if first != torch.iinfo(torch.int64).max:
        row, group = divmod(first, values.shape[1] // 2)
        raise ValueError(
            f"not 2:4: row {row}, group {group} (columns {4 * group} to {4 * group + 3}) holds more than two "
            "non-zero weights; prune to at most 2 of every 4 first"
        )
    return values.view(*lead, -1), indices.view(*lead, -1)


def _decompress(values: Tensor, indices: Tensor, *, stream: Stream) -> Tensor:
    check_compressed(values, indices)
    rows, half = values.shape[:-1].numel(), values.shape[-1]
    dense = device_kernels.expand(
        values.detach().reshape(rows, half).contiguous(), indices.reshape(rows, half // 4).contiguous(),
        rows, 2 * half, stream.handle,
    )  # fmt: skip
    return dense.view(*values.shape[:-1], 2 * half)


KERNELS: dict[str, Callable[..., Any]] = {
    "linear": _linear,
    "conv2d": _conv2d,
    "scaled_linear": _scaled_linear,
    "scaled_conv2d": _scaled_conv2d,
    "int8_linear": _int8_linear,
    "float8_linear": _float8_linear,
    "float8_conv2d": _float8_conv2d,
    "int8_linear_chained": _int8_linear_chained,
    "int8_conv2d_chained": _int8_conv2d_chained,
    "int8_conv2d": _int8_conv2d,
    "quantize_per_token": _quantize_per_token,
    "nm_mask": _nm_mask,
    "prune_": _prune_,
    "transposable_mask": _transposable_mask,
    "compress": _compress,
    "decompress": _decompress,
}
for _name, _kernel in KERNELS.items():
    library.impl(_name, on_current_stream(_name, _kernel), "CUDA")
