"""The sparse products with gradients, through the decompressed weight: right, but no faster than dense.

The modules call these only where somebody asks for a gradient. The activation is then not fused: torch's
own follows the product, and differentiates itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input, conv2d_weight

from .. import ops

_linear = torch.ops.sparse24.linear.default
_conv2d = torch.ops.sparse24.conv2d.default


class _Linear(torch.autograd.Function):
    """``linear`` with the gradients of the dense product."""

    @staticmethod
    def forward(input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None) -> Tensor:
        output: Tensor = _linear(input, values, indices, bias)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, values, indices = ctx.saved_tensors
        grad = grad.to(values.dtype)
        flat = grad.reshape(-1, grad.shape[-1])
        grad_input = grad_values = grad_bias = None
        if ctx.needs_input_grad[0]:
            weight = torch.ops.sparse24.decompress(values, indices)[:, : input.shape[-1]]
            grad_input = (grad @ weight).to(input.dtype)
        if ctx.needs_input_grad[1]:
            dense = flat.t() @ input.reshape(-1, input.shape[-1]).to(values.dtype)
            padded = F.pad(dense, (0, 2 * values.shape[1] - dense.shape[1]))
            grad_values = padded.gather(1, ops.kept_columns(indices))
        if ctx.needs_input_grad[3]:
            grad_bias = flat.sum(0)
        return grad_input, grad_values, None, grad_bias


class _Conv2d(torch.autograd.Function):
    """``conv2d`` with the gradients of the dense convolution."""

    @staticmethod
    def forward(
        input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, kernel_size: Sequence[int],
        stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
    ) -> Tensor:  # fmt: skip
        output: Tensor = _conv2d(input, values, indices, bias, kernel_size, stride, padding, dilation, groups)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.kernel_size, *ctx.geometry = inputs[4:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, values, indices = ctx.saved_tensors
        grad = grad.to(values.dtype)
        groups = ctx.geometry[-1]
        channels = input.shape[1] // groups
        grad_input = grad_values = grad_bias = None
        if ctx.needs_input_grad[0]:
            matrix = torch.ops.sparse24.decompress(values, indices)
            weight = ops.conv_matrix_to_weight(matrix, channels, ctx.kernel_size)
            grad_input = conv2d_input(  # type: ignore[no-untyped-call]
                input.shape, weight, grad, *ctx.geometry
            ).to(input.dtype)
        if ctx.needs_input_grad[1]:
            shape = (values.shape[0], channels, *ctx.kernel_size)
            dense = conv2d_weight(  # type: ignore[no-untyped-call]
                input.to(values.dtype), shape, grad, *ctx.geometry
            )
            matrix = ops.conv_weight_to_matrix(dense)
            padded = F.pad(matrix, (0, 2 * values.shape[1] - matrix.shape[1]))
            grad_values = padded.gather(1, ops.kept_columns(indices))
        if ctx.needs_input_grad[3]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_input, grad_values, None, grad_bias, None, None, None, None, None


def linear(input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """``torch.ops.sparse24.linear``, differentiable once in input, values and bias."""
    output: Tensor = _Linear.apply(input, values, indices, bias)  # type: ignore[no-untyped-call]
    return ops.activate(output, activation)


def conv2d(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, activation: str, window: ops.Window
) -> Tensor:
    """``torch.ops.sparse24.conv2d``, differentiable once in input, values and bias."""
    geometry = ops.geometry_of(window)
    output: Tensor = _Conv2d.apply(input, values, indices, bias, *geometry)  # type: ignore[no-untyped-call]
    return ops.activate(output, activation)
