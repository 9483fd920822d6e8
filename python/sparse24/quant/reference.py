"""A sparse network in operators that others know: torch's quantized reference, and ONNX from it.

The operators are those of ``torch.ops.quantized_decomposed``, which torch.export and torch.onnx.export
translate to QuantizeLinear and DequantizeLinear; torch registers them with its reference of quantization.
"""

from __future__ import annotations

import copy
import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..nn import SparseConv2d, SparseConv3d
from ..nn.int8 import scales_of
from ..nn.kinds import ProductLayer
from ..nn.planes import stacked, stacked_weight, unstacked
from ..nn.swap import carry_over, places_of, put
from .observers import LEVELS

_FLOAT8_MAX = torch.finfo(torch.float8_e4m3fn).max


class _Reference(nn.Module):
    """A compressed layer with its weight dense: [out, in, ...] with the pruned zeros, int8 where it is."""

    quantized: Tensor
    scale: Tensor
    zeros: Tensor
    dense: Tensor
    bias: Tensor | None

    def __init__(self, layer: ProductLayer) -> None:
        super().__init__()
        matrix = torch.ops.sparse24.decompress(layer.values.detach(), layer.indices)
        weight = layer._form.to_weight(matrix).contiguous()
        self.is_int8, self.is_float8 = layer.is_int8, layer.is_float8
        self.input_scale: float | None = None
        if self.is_int8:
            weight_scale, input_scale = scales_of(layer)
            self.register_buffer("quantized", weight)
            self.register_buffer("scale", weight_scale.detach().clone())
            zeros = torch.zeros(len(weight_scale), dtype=torch.int64, device=weight_scale.device)
            self.register_buffer("zeros", zeros)
            self.input_scale = None if input_scale is None else float(input_scale)
        elif self.is_float8:
            scale = layer.get_buffer("weight_scale").detach().view(-1, *[1] * (weight.dim() - 1))
            self.register_buffer("dense", weight.float() * scale)
        else:
            self.register_buffer("dense", weight)
        self.register_parameter("bias", layer.bias)
        self.activation = layer.activation

    def _weight(self, dtype: torch.dtype) -> Tensor:
        if not self.is_int8:
            return self.dense.to(dtype) if self.is_float8 else self.dense
        known: Any = torch.ops.quantized_decomposed
        weight: Tensor = known.dequantize_per_channel(
            self.quantized, self.scale, self.zeros, 0, -LEVELS, LEVELS, torch.int8
        )
        return weight.to(dtype)

    def _input(self, x: Tensor, dims: list[int]) -> Tensor:
        if self.is_float8:
            scale = x.float().abs().amax(dims, keepdim=True) / _FLOAT8_MAX
            scale = torch.where(scale > 0, scale, 1.0)
            return ((x.float() / scale).to(torch.float8_e4m3fn).float() * scale).to(x.dtype)
        if self.input_scale is None:
            return x
        if self.input_scale == 0:  # a scale for every token or image, which ONNX has no operator for
            scale = x.float().abs().amax(dims, keepdim=True) / LEVELS
            scale = torch.where(scale > 0, scale, 1.0)
            return ((x.float() / scale).round().clamp(-LEVELS, LEVELS) * scale).to(x.dtype)
        known: Any = torch.ops.quantized_decomposed
        scaled = self.input_scale, 0, -LEVELS, LEVELS, torch.int8
        output: Tensor = known.dequantize_per_tensor(known.quantize_per_tensor(x.float(), *scaled), *scaled)
        return output.to(x.dtype)


class ReferenceLinear(_Reference):
    """What a :class:`~sparse24.SparseLinear` computes, in known operators."""

    def forward(self, input: Tensor) -> Tensor:
        x = self._input(input, [-1])
        return ops.activate(F.linear(x, self._weight(input.dtype), self.bias), self.activation)


class ReferenceConv2d(_Reference):
    """What a :class:`~sparse24.SparseConv2d` computes, in known operators."""

    def __init__(self, layer: SparseConv2d) -> None:
        super().__init__(layer)
        self._window = layer._window
        self._padding, self._mode = layer._written_padding, layer._written_mode

    def forward(self, input: Tensor) -> Tensor:
        x = input if self._padding is None else F.pad(input, self._padding, self._mode)
        x = self._input(x, [-3, -2, -1])
        _, stride, padding, dilation, groups = ops.geometry_of(self._window)
        output = F.conv2d(x, self._weight(input.dtype), self.bias, stride, padding, dilation, groups)
        return ops.activate(output, self.activation)


class ReferenceConv3d(_Reference):
    """What a :class:`~sparse24.SparseConv3d` computes, in known operators.

    With a scale for every image that is a 2-D convolution of stacked planes, whose images have the scales.
    """

    def __init__(self, layer: SparseConv3d) -> None:
        super().__init__(layer)
        self._window, self._depth, self._stride, self._dilation = (
            layer._window, layer._depth, layer.stride, layer.dilation,
        )  # fmt: skip
        self._written, self._mode = layer._written_padding, layer._written_mode
        self._is_flat = layer._is_flat
        top, left = layer._window[4:6]
        self._padding = (top, 0, 0) if self._is_flat else (0, top, left)

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() == 4:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        x = F.pad(input, self._written, self._mode) if any(self._written) else input
        weight = self._weight(input.dtype)
        if not self._is_flat and (self.is_float8 or self.input_scale == 0):
            planes = self._input(stacked(x, self._depth), [-3, -2, -1])
            _, stride, padding, dilation, groups = ops.geometry_of(self._window)
            y = F.conv2d(planes, stacked_weight(weight), self.bias, stride, padding, dilation, groups)
            output = unstacked(y, x, self._depth)
        else:
            x = self._input(x, [-4, -3, -2, -1])
            geometry: Any = (self._stride, self._padding, self._dilation, self._depth.groups)
            output = F.conv3d(x, weight, self.bias, *geometry)
        return ops.activate(output, self.activation)


def _made(layer: ProductLayer) -> _Reference:
    if isinstance(layer, SparseConv3d):
        return ReferenceConv3d(layer)
    return ReferenceConv2d(layer) if isinstance(layer, SparseConv2d) else ReferenceLinear(layer)


def reference(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in eval mode without compressed layers: their weights dense, int8 where they were.

    It computes what the model does, to rounding (weights of float8 are widened), and exports:
    ``torch.onnx.export(reference(model), inputs, dynamo=True)`` gives QuantizeLinear and DequantizeLinear
    around the products, with int8 weights in which pruned weights are zeros.

    Raises:
        TypeError: no module, or a compressed layer alone.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"reference needs a torch.nn.Module, not {type(model).__name__}")
    if isinstance(model, ProductLayer):
        raise TypeError("reference makes a copy of a network, not of a layer: put it into nn.Sequential")
    importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers the operators
    twin = copy.deepcopy(model).eval()
    places = places_of(twin)
    for module in list(twin.modules()):
        if isinstance(module, ProductLayer):
            made = _made(module)
            carry_over(module, made)
            put(made, places[id(module)])
    return twin
