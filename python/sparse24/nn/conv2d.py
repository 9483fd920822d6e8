"""``SparseConv2d``: ``nn.Conv2d`` for inference, its 2:4 weight stored compressed."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from .. import ops
from . import onnx
from .convolution import CompressedConvolution, conv_arguments
from .forms import Conv2dForm
from .tracing import leaf_of


class SparseConv2d(CompressedConvolution):
    """Inference drop-in for ``nn.Conv2d``, 2:4 along the input channels of every kernel tap.

    The weight [out, C, R, S] is compressed as the matrix [out, R*S*C4] with k ordered (r, s, c) and C4 =
    in_channels / groups rounded up to 4: ``values`` [out, K/2] and ``indices`` uint8 [out, K/8] with
    K = R*S*C4 rounded up to 8. A channels_last input gives a channels_last output.

    Equivalent to ``activation(F.conv2d(input, self.weight, self.bias, ...))``.

    Args:
        in_channels ... dtype: as ``nn.Conv2d``, every padding and padding_mode included.
        activation: "none", "relu", "gelu" or "gelu_tanh", fused into the product.

    Raises:
        ValueError: what ``nn.Conv2d`` refuses; an unknown activation; in forward, an input that is not
            [N, in_channels, H, W] or [in_channels, H, W].
        TypeError: another dtype.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        activation: str = "none",
    ) -> None:
        like = nn.Conv2d(
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

    def _set_padding(self, like: nn.Conv2d) -> None:
        """Split the padding: what the kernel does itself, and what has to be written around the input."""
        left, right, top, bottom = like._reversed_padding_repeated_twice
        if isinstance(like.padding, tuple):  # as given, so that a negative one is refused as such
            top = bottom = like.padding[0]
            left = right = like.padding[1]
        inside = self.padding_mode == "zeros" and left == right and top == bottom
        own = (top, left) if inside else (0, 0)
        self._written_padding = None if inside else (left, right, top, bottom)
        window = (*self.kernel_size, *self.stride, *own, *self.dilation, self.groups)
        self._window = cast(ops.Window, window)
        self._written_mode = "constant" if self.padding_mode == "zeros" else self.padding_mode

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "_window" not in state:  # pickled by version 0.1
            self._set_padding(nn.Conv2d(**conv_arguments(self), device="meta"))

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W] or [C, H, W], in the dtype of ``values``, as ``nn.Conv2d``."""
        if self._written_padding is None and not torch.compiler.is_compiling():
            output: Tensor = ops.call_conv2d(input, self.__dict__)
            if output is not NotImplemented:
                return output
        return self._general(input)

    def _general(self, input: Tensor) -> Tensor:
        """What the short way does not take: gradients, other devices, listeners, padding, wrong inputs."""
        if isinstance(input, Proxy):
            leaf: Tensor | None = leaf_of(self, (input,))
            return self._recorded(input) if leaf is None else leaf
        if input.dim() not in (3, 4) or input.shape[-3] != self.in_channels:
            raise ValueError(
                f"input must be [N, {self.in_channels}, H, W] or [{self.in_channels}, H, W], "
                f"not {tuple(input.shape)}"
            )
        if self._written_padding is not None:
            input = F.pad(input, self._written_padding, self._written_mode)
        if input.dim() == 3:
            return self._product(input.unsqueeze(0)).squeeze(0)
        return self._product(input)

    def _recorded(self, input: Tensor) -> Tensor:
        """The operators of the layer itself, for a graph of torch.fx of which it is the root."""
        if self._written_padding is not None:
            input = F.pad(input, self._written_padding, self._written_mode)
        return ops.conv2d(input, *self._operands(), self.activation, self._window)

    def _product(self, input: Tensor) -> Tensor:
        if onnx.is_exported():
            return onnx.conv2d(self, input)
        return super()._product(input)

    @property
    def _form(self) -> Conv2dForm:
        r, s = self.kernel_size
        return Conv2dForm((self.out_channels, self.in_channels // self.groups, r, s))

    @classmethod
    def from_dense(cls, module: nn.Conv2d, dtype: torch.dtype | None = None) -> SparseConv2d:
        """Compress a pruned ``nn.Conv2d``; ``dtype`` casts it.

        Raises:
            TypeError: ``module`` is no ``nn.Conv2d``.
            ValueError: its weight is not 2:4 along the input channels (row, tap and channels are named),
                or has no data.
        """
        return cls._from(module, nn.Conv2d, dtype)

    def to_dense(self) -> nn.Conv2d:
        """The equal ``nn.Conv2d``, zeros included; its parameters require gradients, as new ones do.

        Raises:
            ValueError: an activation is fused, which ``nn.Conv2d`` cannot hold.
        """
        return self._to(nn.Conv2d)
