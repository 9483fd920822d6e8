"""``SparseConv3d``: ``nn.Conv3d`` for inference, its 2:4 weight stored compressed."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from .. import ops
from . import onnx
from .convolution import CompressedConvolution
from .forms import Conv3dForm
from .planes import Depth, is_channels_last_3d, stacked, stacked_channels, stacked_weight, unstacked
from .tracing import leaf_of

_Size = int | tuple[int, int, int]


class SparseConv3d(CompressedConvolution):
    """Inference drop-in for ``nn.Conv3d``, 2:4 along the input channels of every kernel tap.

    The weight [out, C, T, R, S] is compressed as the matrix [out, R*S*T*C4] with k ordered (r, s, t, c) and
    C4 = in_channels / groups rounded up to 4: ``values`` [out, K/2] and ``indices`` uint8 [out, K/8] with
    K = R*S*T*C4 rounded up to 8. The planes under the T taps are stacked along the channels for one
    convolution of the kind of :class:`SparseConv2d`: a copy of T times the input, but none for kernels
    [T, 1, 1]. A channels_last_3d input gives a channels_last_3d output.

    Equivalent to ``activation(F.conv3d(input, self.weight, self.bias, ...))``.

    Args:
        in_channels ... dtype: as ``nn.Conv3d``, every padding and padding_mode included.
        activation: "none", "relu", "gelu" or "gelu_tanh", fused into the product.

    Raises:
        ValueError: what ``nn.Conv3d`` refuses; an unknown activation; in forward, an input that is not
            [N, in_channels, D, H, W] or [in_channels, D, H, W], or is smaller than the window.
        TypeError: another dtype.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Size,
        stride: _Size = 1,
        padding: _Size | str = 0,
        dilation: _Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        activation: str = "none",
    ) -> None:
        like = nn.Conv3d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode,
            device="meta",
        )  # fmt: skip
        columns = math.prod(like.kernel_size) * ops.round_up(in_channels // groups, 4)
        super().__init__(out_channels, columns, bias=bias, activation=activation, device=device, dtype=dtype)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = like.kernel_size
        self.stride = like.stride
        self.padding = like.padding
        self.dilation = like.dilation
        self.groups = groups
        self.padding_mode = padding_mode
        self._set_padding(like)

    def _set_padding(self, like: nn.Conv3d) -> None:
        """Split the padding: what the product of planes does itself, and what is written around the input."""
        written = list(like._reversed_padding_repeated_twice)  # along width, height, depth
        if isinstance(like.padding, tuple):  # as given, so that a negative one is refused as such
            written = [p for size in reversed(like.padding) for p in (size, size)]
        left, right, top, bottom, front, back = written
        zeros = self.padding_mode == "zeros"
        inside = zeros and left == right and top == bottom
        #: [T, 1, 1]: a convolution of [D, H*W] by [T, 1], which needs no copy.
        self._is_flat = self.kernel_size[1:] == self.stride[1:] == (1, 1) and not any(written[:4])
        self._is_flat = self._is_flat and (front == back if zeros else not (front or back))
        self._written_padding = [0, 0, 0, 0, front, back] if inside else written
        self._written_mode = "constant" if zeros else self.padding_mode
        pad = (top, left) if inside else (0, 0)
        t, s, d = self.kernel_size[0], self.stride[0], self.dilation[0]
        window = (*self.kernel_size[1:], *self.stride[1:], *pad, *self.dilation[1:], self.groups)
        self._window = cast(ops.Window, window)
        if self._is_flat:
            self._written_padding, self._window = [], (t, 1, s, 1, front, 0, d, 1, self.groups)
        self._depth = Depth(t, s, d, self.groups)

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, D, H, W] or [C, D, H, W], in the dtype of ``values``, as ``nn.Conv3d``."""
        if isinstance(input, Proxy):
            leaf: Tensor | None = leaf_of(self, (input,))
            return self._recorded(input) if leaf is None else leaf
        if input.dim() not in (4, 5) or input.shape[-4] != self.in_channels:
            raise ValueError(
                f"input must be [N, {self.in_channels}, D, H, W] or [{self.in_channels}, D, H, W], "
                f"not {tuple(input.shape)}"
            )
        if input.dim() == 4:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        if onnx.is_exported():
            return self._by_torch(input, onnx.weight(self))
        if self._is_flat:
            return self._product(input.flatten(3)).unflatten(3, input.shape[3:])  # type: ignore[no-any-return,no-untyped-call]
        if any(self._written_padding):
            layout = torch.channels_last_3d if is_channels_last_3d(input) else torch.contiguous_format
            padded = F.pad(input, self._written_padding, self._written_mode)
            input = padded.contiguous(memory_format=layout)
        return unstacked(self._product(stacked(input, self._depth)), input, self._depth)

    @property
    def _plane_channels(self) -> int:
        return self.in_channels if self._is_flat else stacked_channels(self.in_channels, self._depth)

    def _recorded(self, input: Tensor) -> Tensor:
        """For a graph of torch.fx of which the layer is the root."""
        matrix: Tensor = torch.ops.sparse24.decompress(self.values, self.indices)
        return self._by_torch(input, self._form.to_weight(matrix))

    def _by_torch(self, input: Tensor, weight: Tensor) -> Tensor:
        """Through a dense weight, for graphs whose readers know no operators of ours."""
        if self.padding_mode == "zeros":
            options: Any = (self.stride, self.padding, self.dilation, self.groups)
            return ops.activate(F.conv3d(input, weight, self.bias, *options), self.activation)
        padded = F.pad(input, self._written_padding, self._written_mode) if self._written_padding else input
        output = F.conv3d(padded, weight, self.bias, self.stride, 0, self.dilation, self.groups)
        return ops.activate(output, self.activation)

    def _two_dimensional(self, weight: Tensor) -> Tensor:
        return weight.squeeze(4) if self._is_flat else stacked_weight(weight)

    @property
    def _form(self) -> Conv3dForm:
        t, r, s = self.kernel_size
        return Conv3dForm((self.out_channels, self.in_channels // self.groups, t, r, s))

    @classmethod
    def from_dense(cls, module: nn.Conv3d, dtype: torch.dtype | None = None) -> SparseConv3d:
        """Compress a pruned ``nn.Conv3d``; ``dtype`` casts it.

        Raises:
            TypeError: ``module`` is no ``nn.Conv3d``.
            ValueError: its weight is not 2:4 along the input channels (row, tap and channels are named),
                or has no data.
        """
        return cls._from(module, nn.Conv3d, dtype)

    def to_dense(self) -> nn.Conv3d:
        """The equal ``nn.Conv3d``, zeros included; its parameters require gradients, as new ones do.

        Raises:
            ValueError: an activation is fused, which ``nn.Conv3d`` cannot hold.
        """
        return self._to(nn.Conv3d)
