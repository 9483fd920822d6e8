"""Products of weights that are compressed in their places, where torch compiles or exports.

A compiler sees no tensor subclass there: a parameter that is read is a dense copy. So the forwards of
torch's own layers, and those of recurrent ones, are given to it as operators on ``values`` and ``indices``.
What else reads such a weight (stacks of experts, an attention's packed projections, subclasses that multiply
by themselves) gets the copy.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from . import grad, int8, onnx
from .compressed import wants_grad
from .guard import CHILD
from .planes import Depth, stacked, unstacked

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def held_for_compiler(module: nn.Module, name: str) -> Any:
    """The compressed weight that stands for a parameter, where a compiler or torch.export looks; or None."""
    if not torch.compiler.is_compiling() or onnx.is_exported():
        return None
    child = module._modules.get(CHILD)
    held: Any = None if child is None else child._modules.get(name)
    return None if held is None or int8.is_narrow(held) else held


def linear(module: nn.Module, name: str, input: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` with the parameter ``name`` of a module."""
    held = held_for_compiler(module, name)
    if held is None:
        return F.linear(input, getattr(module, name), bias)
    return _linear(held, input, bias)


def _linear(held: Any, input: Tensor, bias: Tensor | None) -> Tensor:
    operands = (held.values, held.indices, bias)
    wants = torch.is_grad_enabled() and wants_grad(input, *operands)
    output: Tensor = (grad.linear if wants else ops.linear)(input, *operands, "none")
    return output


def _conv2d(held: Any, input: Tensor, bias: Tensor | None, window: ops.Window) -> Tensor:
    operands = (held.values, held.indices, bias)
    wants = torch.is_grad_enabled() and wants_grad(input, *operands)
    output: Tensor = (grad.conv2d if wants else ops.conv2d)(input, *operands, "none", window)
    return output


class LinearForward:
    """``forward`` of ``nn.Linear``."""

    def forward(self, input: Tensor) -> Tensor:
        module: Any = self
        return linear(module, "weight", input, module.bias)


class TurnedForward:
    """``forward`` of transformers' ``Conv1D``."""

    def forward(self, x: Tensor) -> Tensor:
        module: Any = self
        held = held_for_compiler(module, "weight")
        if held is not None:
            return _linear(held, x, module.bias)
        output: Tensor = super().forward(x)  # type: ignore[misc]
        return output


class ConvForward:
    """``_conv_forward`` of the convolutions."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        module: Any = self
        held = held_for_compiler(module, "weight")
        if held is None:
            output: Tensor = super()._conv_forward(input, weight, bias)  # type: ignore[misc]
            return output
        return _convolved(module, held, input, bias)


def _convolved(module: Any, held: Any, input: Tensor, bias: Tensor | None) -> Tensor:
    dims = len(module.kernel_size)
    if input.dim() == dims + 1:
        return _convolved(module, held, input.unsqueeze(0), bias).squeeze(0)
    padding = module.padding
    if module.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        input, padding = F.pad(input, module._reversed_padding_repeated_twice, mode), (0,) * dims
    sizes = [module.kernel_size, module.stride, padding, module.dilation]
    if dims == 1:
        (k,), (s,), (p,), (d,) = sizes
        return _conv2d(held, input.unsqueeze(2), bias, (1, k, 1, s, 0, p, 1, d, module.groups)).squeeze(2)
    window: Any = (*(n for size in sizes for n in size[-2:]), module.groups)
    if dims == 2:
        return _conv2d(held, input, bias, window)
    front = padding[0]
    input = F.pad(input, (0, 0, 0, 0, front, front)) if front else input
    depth = Depth(module.kernel_size[0], module.stride[0], module.dilation[0], module.groups)
    return unstacked(_conv2d(held, stacked(input, depth), bias, window), input, depth)


def forward_of(base: type[nn.Module]) -> type | None:
    """The class with the method that stands for that of ``base``; None: its own reads a dense copy."""
    if base.forward is nn.Linear.forward:
        return LinearForward
    if any(getattr(base, "_conv_forward", None) is kind._conv_forward for kind in _CONVOLUTIONS):
        return ConvForward
    turned: Any = next((c for c in base.__mro__ if c.__name__ == "Conv1D"), None)
    is_theirs = turned is not None and turned.__module__.startswith("transformers.")
    return TurnedForward if is_theirs and base.forward is turned.forward else None
