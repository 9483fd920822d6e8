"""A layer's weight as the matrices that calibration works on, and its inputs as rows that meet them.

A matrix is [out, K] with groups of four along K, as the layer is compressed: a convolution's K is R*S*C4, its
channels padded to a multiple of four, a matrix for each of its groups; transformers' ``Conv1D`` is
transposed; an attention has one for each projection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.forms import Conv3dForm
from ..nn.planes import Depth, stacked
from ..ops import conv_matrix_to_weight, conv_weight_to_matrix
from ..pruning.layers import is_transposed_linear
from ..pruning.sharding import local
from .together import put_back, whole

#: Rows of inputs of one call that are looked at; of more, evenly spaced ones.
MOST_ROWS = 1 << 15


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Some rows of a parameter as a matrix; :meth:`read` and :meth:`write` go between them."""

    name: str  #: of the parameter, and what part of it
    parameter: Tensor
    rows: slice  #: of its output channels
    kind: str  #: "linear", "conv1d" (transformers') or "conv"
    bias: Tensor | None = None  #: of the layer, or of all projections
    bias_begin: int = 0  #: where that of the first of ``parameter``'s rows is

    def read(self) -> Tensor:
        """float32 [rows, K], a tensor of its own."""
        weight = whole(self.parameter)
        if self.kind == "conv1d":
            weight = weight.t()
        part = weight[self.rows].float()
        if self.kind == "conv":
            part = _conv_matrix(part)
        return part.contiguous().clone()

    @torch.no_grad()
    def shift(self, change: Tensor) -> None:
        """Add [rows] to the bias."""
        assert self.bias is not None
        begin = self.bias_begin + (self.rows.start or 0)
        bias = whole(self.bias)
        part = bias[begin : begin + len(change)]
        part.copy_(part.float() + change)
        put_back(bias, self.bias)

    def to_parameter(self, matrix: Tensor) -> Tensor:
        """[rows, K] in the layout of the parameter's rows, in float32 or bool."""
        if self.kind == "conv1d":
            return matrix.t()
        if self.kind != "conv":
            return matrix
        channels, *kernel = self.parameter.shape[1:]
        if len(kernel) == 3:
            return Conv3dForm((len(matrix), channels, kernel[0], kernel[1], kernel[2])).to_weight(matrix)
        whole = conv_matrix_to_weight(matrix, channels, kernel if len(kernel) == 2 else (1, kernel[0]))
        return whole if len(kernel) == 2 else whole.squeeze(2)

    def part_of(self, mask: Tensor) -> Tensor:
        """This matrix's part [rows, K] of a mask in the shape of the parameter; padding is pruned."""
        part = (mask.t() if self.kind == "conv1d" else mask)[self.rows]
        if self.kind == "conv":
            part = _conv_matrix(part.float()) > 0
        return part.to(local(self.parameter).device)

    def write(self, matrix: Tensor) -> None:
        """Store [rows, K] in the parameter, in its dtype: pruned weights are +0.0."""
        with torch.no_grad():
            numbers = whole(self.parameter)
            target = numbers.t() if self.kind == "conv1d" else numbers
            part = self.to_parameter(matrix)
            target[self.rows].copy_(part.t() if self.kind == "conv1d" else part)
            put_back(numbers, self.parameter)


def _conv_matrix(weight: Tensor) -> Tensor:
    """The weight of a convolution of one to three dimensions as the matrix that is compressed."""
    if weight.dim() == 5:
        out, channels, t, r, s = weight.shape
        return Conv3dForm((out, channels, t, r, s)).to_matrix(weight)
    return conv_weight_to_matrix(weight if weight.dim() == 4 else weight.unsqueeze(2))


def matrices_of(name: str, layer: nn.Module) -> list[Matrix]:
    """The matrices of a layer of a kind that is pruned."""
    weight = f"{name}.weight" if name else "weight"
    if isinstance(layer, nn.MultiheadAttention):
        return _of_attention(name, layer)
    bias = layer._parameters.get("bias")
    if is_transposed_linear(layer):
        return [Matrix(weight, layer._parameters["weight"], slice(None), "conv1d", bias)]  # type: ignore[arg-type]
    if isinstance(layer, nn.Linear):
        return [Matrix(weight, layer.weight, slice(None), "linear", bias)]
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        rows = layer.out_channels // layer.groups
        parts = [slice(g * rows, (g + 1) * rows) for g in range(layer.groups)]
        return [Matrix(weight, layer.weight, part, "conv", bias) for part in parts]
    raise TypeError(
        f"a {type(layer).__name__} is not calibrated: Linear, Conv1d to Conv3d, Conv1D, MultiheadAttention"
    )


def _of_attention(name: str, layer: nn.MultiheadAttention) -> list[Matrix]:
    prefix, width = f"{name}." if name else "", layer.embed_dim
    bias, out = layer.in_proj_bias, layer.out_proj
    if layer._qkv_same_embed_dim:
        weight, name = layer.in_proj_weight, f"{prefix}in_proj_weight"
        found = [Matrix(name, weight, slice(i * width, (i + 1) * width), "linear", bias) for i in range(3)]
    else:
        found = [
            Matrix(prefix + own, getattr(layer, own), slice(None), "linear", bias, i * width)
            for i, own in enumerate(("q_proj_weight", "k_proj_weight", "v_proj_weight"))
        ]
    return [*found, Matrix(f"{prefix}out_proj.weight", out.weight, slice(None), "linear", out.bias)]


def input_rows(layer: nn.Module, args: Sequence[Tensor], kwargs: dict[str, Tensor]) -> list[Tensor]:
    """Float32 rows [n, K] for each matrix of :func:`matrices_of`, from the arguments of one call."""
    if isinstance(layer, nn.MultiheadAttention):
        return _attention_rows(layer, args, kwargs)
    x = (args[0] if args else kwargs["input"]).detach()
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return [_thinned(x.reshape(-1, x.shape[-1]))]
    return _patches(layer, x)


def _thinned(rows: Tensor) -> Tensor:
    step = -(-len(rows) // MOST_ROWS)
    return rows[:: max(step, 1)].float()


def _patches(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> list[Tensor]:
    """The windows of an input, k ordered (r, s, c) or (r, s, t, c), for each group of channels."""
    flat = isinstance(layer, nn.Conv1d)
    x = x.unsqueeze(-2) if flat else x
    x = x.unsqueeze(0) if x.dim() == layer.weight.dim() - 1 + flat else x
    padding = (*layer._reversed_padding_repeated_twice, *([0, 0] * flat))
    x = F.pad(x, padding, _pad_mode(layer))
    if isinstance(layer, nn.Conv3d):
        x = stacked(x, Depth(layer.kernel_size[0], layer.stride[0], layer.dilation[0], layer.groups))
    pairs = [(1, p[0]) if flat else p[-2:] for p in (layer.kernel_size, layer.dilation, layer.stride)]
    kernel, dilation, stride = (tuple(int(i) for i in pair) for pair in pairs)
    found = []
    for part in x.chunk(layer.groups, 1):
        channels = part.shape[1]
        columns = F.unfold(part.float(), kernel, dilation, 0, stride)  # [N, C R S, L]
        windows = columns.transpose(1, 2).reshape(-1, channels, kernel[0] * kernel[1])
        padded = F.pad(_thinned(windows), (0, 0, 0, -channels % 4))
        found.append(padded.transpose(1, 2).reshape(len(padded), -1))
    return found


def _pad_mode(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> str:
    return "constant" if layer.padding_mode == "zeros" else layer.padding_mode


@torch.no_grad()
def _attention_rows(
    layer: nn.MultiheadAttention, args: Sequence[Tensor], kwargs: dict[str, Tensor]
) -> list[Tensor]:
    """Query, key and value; and what out_proj meets: the layer's output with the identity for out_proj."""
    names = ("query", "key", "value")
    q, k, v = (args[i] if i < len(args) else kwargs[name] for i, name in enumerate(names))
    alike = {id(x): _thinned(x.detach().reshape(-1, x.shape[-1])) for x in (q, k, v)}
    out = layer.out_proj
    weight, bias = out.weight.data, None if out.bias is None else out.bias.data
    try:
        out.weight.data = torch.eye(layer.embed_dim, dtype=weight.dtype, device=weight.device)
        if out.bias is not None:
            out.bias.data = torch.zeros_like(out.bias)
        forward: Callable[..., tuple[Tensor, Tensor | None]] = type(layer).forward
        merged = forward(layer, *args, **kwargs)[0]
    finally:
        out.weight.data = weight
        if bias is not None:
            out.bias.data = bias
    return [*(alike[id(x)] for x in (q, k, v)), _thinned(merged.reshape(-1, layer.embed_dim))]
