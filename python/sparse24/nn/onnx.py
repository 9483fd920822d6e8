"""Compressed layers in ``torch.onnx.export``: ONNX has no 2:4 operators.

The file holds ``values`` and ``indices``, about 5/8 of the dense weight at 16 bits and 9/16 at 32, and plain
operators that make the dense weight of them. They depend on constants alone, so a runtime folds them once,
when it loads the file, and computes dense from then on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from . import int8
from .tracing import is_traced

if TYPE_CHECKING:
    from .compressed import CompressedModule


def is_exported() -> bool:
    """Whether ``torch.onnx.export`` records what runs, by a trace or by torch.export."""
    if torch.compiler.is_dynamo_compiling():
        return False  # which traces what is asked here
    is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # torch 2.6 has none
    return (is_traced() or is_exporting()) and torch.onnx.is_in_onnx_export()


def weight(layer: CompressedModule) -> Tensor:
    """The dense weight by operators that ONNX has.

    Raises:
        ValueError: activations of the layer are int8 or float8.
    """
    values, indices = layer.values, layer.indices
    if int8.is_narrow(layer):
        scale, input_scale = int8.scales_of(layer)
        if input_scale is not None or int8.is_float8(layer):
            kind = "float8" if int8.is_float8(layer) else "int8"
            raise ValueError(
                f"this {type(layer).__name__} takes {kind} activations, which are not exported: export the "
                "network that sparse24.quant.reference makes, or call sparse24.to_dense(model)"
            )
        values = values.to(layer._float_dtype) * scale.unsqueeze(1).to(layer._float_dtype)  # type: ignore[assignment]
    rows, kept = values.shape
    shifts = torch.tensor([1, 4, 16, 64], dtype=torch.int32, device=indices.device)
    slots = (indices.to(torch.int32).unsqueeze(-1) // shifts) % 4  # two bits a kept value, low bits first
    groups = 4 * (torch.arange(kept, device=indices.device) // 2)
    columns = slots.reshape(rows, kept).to(torch.int64) + groups
    blank = torch.zeros((rows, 2 * kept), dtype=values.dtype, device=values.device)
    return layer._form.to_weight(blank.scatter(1, columns, values))


def linear(layer: Any, input: Tensor) -> Tensor:
    """``SparseLinear`` by operators that ONNX has."""
    return ops.activate(F.linear(input, weight(layer), layer.bias), layer.activation)


def conv2d(layer: Any, input: Tensor) -> Tensor:
    """The product of ``SparseConv2d`` by operators that ONNX has."""
    _, stride, padding, dilation, groups = ops.geometry_of(layer._window)
    output = F.conv2d(input, weight(layer), layer.bias, stride, padding, dilation, groups)
    return ops.activate(output, layer.activation)
