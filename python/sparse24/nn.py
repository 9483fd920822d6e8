"""Inference modules whose 2:4 weight is stored compressed: drop-ins for ``nn.Linear`` and ``nn.Conv2d``.

A product runs in three steps: ``SparseLinear.forward`` here checks the input's width and calls
``torch.ops.sparse24.linear`` (through ops), which packs the compressed weight for this machine once,
keeps the pack while the weight lives, and calls the C++ kernel (csrc/cpu).

The weights are constants here. Gradients still flow to the input, and to ``bias`` or ``values`` where
somebody asks for them, through the decompressed weight: right, but no faster than dense.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import grad, ops
from .compressed import CompressedModule, compress_matrix, wants_grad

_conv2d = torch.ops.sparse24.conv2d.default


class SparseLinear(CompressedModule):
    """Inference drop-in for ``nn.Linear`` whose 2:4 weight is stored compressed.

    ``values`` [out, K/2] in the weight's dtype and ``indices`` uint8 [out, K/8], with K = in_features
    rounded up to 8, have one layout on every device, so a ``state_dict`` saved on a GPU loads on a CPU.
    A new module holds zeros: fill it with :meth:`from_dense` or ``load_state_dict``. Inside torch's own
    transformer layers let ``to_sparse`` place it: their fused path would read ``weight`` and run dense.

    Equivalent to ``activation(F.linear(input, self.weight, self.bias))``.

    Args:
        in_features, out_features, bias, device, dtype: as ``nn.Linear``; float32, float16 or bfloat16.
        activation: "none", "relu", "gelu" or "gelu_tanh", fused into the product.

    Raises:
        ValueError: an unknown activation; in forward, an input whose last dim is not ``in_features``.
        TypeError: another dtype.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        activation: str = "none",
    ) -> None:
        super().__init__(
            out_features, in_features, bias=bias, activation=activation, device=device, dtype=dtype
        )
        self.in_features = in_features
        self.out_features = out_features

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features], in the dtype of ``values``."""
        if input.shape[-1:] != (self.in_features,):
            raise ValueError(f"input must be [..., {self.in_features}], not {tuple(input.shape)}")
        weight = self._operands()
        product = grad.linear if torch.is_grad_enabled() and wants_grad(input, *weight) else ops.linear
        output: Tensor = product(input, *weight, self.activation)
        return output

    @property
    def weight(self) -> Tensor:
        """The dense weight [out_features, in_features], decompressed at every read: a copy."""
        matrix: Tensor = torch.ops.sparse24.decompress(self.values, self.indices)
        return matrix[:, : self.in_features]

    @classmethod
    def from_dense(cls, module: nn.Linear, dtype: torch.dtype | None = None) -> SparseLinear:
        """Compress a pruned ``nn.Linear``; ``dtype`` casts it.

        Raises:
            TypeError: ``module`` is no ``nn.Linear``.
            ValueError: its weight is not 2:4 along the input features; row and group are named.
        """
        if not isinstance(module, nn.Linear):
            raise TypeError(f"from_dense needs an nn.Linear, not {type(module).__name__}")
        return cls.from_weight(module.weight, module.bias, dtype).train(module.training)

    @classmethod
    def from_weight(
        cls, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> SparseLinear:
        """Compress a 2:4 weight [out_features, in_features] and a bias [out_features].

        Raises:
            ValueError: the weight is not a matrix, not 2:4 along dim 1 (row and columns are named), or
                has no data.
        """
        if weight.dim() != 2:
            raise ValueError(f"weight must be [out_features, in_features], not {tuple(weight.shape)}")
        rows, columns = weight.shape
        module = cls(columns, rows, bias is not None, weight.device, dtype or weight.dtype)

        def place(row: int, group: int) -> str:
            return f"row {row}, columns {4 * group}-{min(4 * group + 3, columns - 1)}"

        module._fill(*compress_matrix(weight, module.values.dtype, place, weight.shape), bias)
        return module

    def to_dense(self) -> nn.Linear:
        """The equal ``nn.Linear``, zeros included; its parameters require gradients, as new ones do.

        Raises:
            ValueError: an activation is fused, which ``nn.Linear`` cannot hold.
        """
        self._refuse_activation("nn.Linear")
        dense = nn.Linear(self.in_features, self.out_features, self.bias is not None, "meta")
        dense.weight = nn.Parameter(self.weight.detach().contiguous())
        if self.bias is not None:
            dense.bias = nn.Parameter(self.bias.detach().clone())
        return dense.train(self.training)

    def _padding_columns(self) -> Tensor:
        return torch.arange(2 * self.values.shape[1]) >= self.in_features

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}" + self._optional_repr()


class SparseConv2d(CompressedModule):
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
        self._kernel_padding = (top, left) if inside else (0, 0)
        self._written_padding = None if inside else (left, right, top, bottom)
        self._written_mode = "constant" if self.padding_mode == "zeros" else self.padding_mode

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W] or [C, H, W], in the dtype of ``values``, as ``nn.Conv2d``."""
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

    def _product(self, input: Tensor) -> Tensor:
        weight = self._operands()
        product = grad.conv2d if torch.is_grad_enabled() and wants_grad(input, *weight) else _conv2d
        output: Tensor = product(
            input, *weight, self.kernel_size, self.stride, self._kernel_padding, self.dilation, self.groups,
            self.activation,
        )  # fmt: skip
        return output

    @property
    def weight(self) -> Tensor:
        """The dense weight [out_channels, in_channels / groups, R, S], decompressed at every read: a copy."""
        matrix = torch.ops.sparse24.decompress(self.values, self.indices)
        return ops.conv_matrix_to_weight(matrix, self.in_channels // self.groups, self.kernel_size)

    @classmethod
    def from_dense(cls, module: nn.Conv2d, dtype: torch.dtype | None = None) -> SparseConv2d:
        """Compress a pruned ``nn.Conv2d``; ``dtype`` casts it.

        Raises:
            TypeError: ``module`` is no ``nn.Conv2d``.
            ValueError: its weight is not 2:4 along the input channels (row, tap and channels are named),
                or has no data.
        """
        if not isinstance(module, nn.Conv2d):
            raise TypeError(f"from_dense needs an nn.Conv2d, not {type(module).__name__}")
        weight = module.weight
        sparse = cls(**_conv_arguments(module), device=weight.device, dtype=dtype or weight.dtype)
        _, channels, _, columns = weight.shape

        def place(row: int, group: int) -> str:
            tap, group = divmod(group, ops.round_up(channels, 4) // 4)
            r, s = divmod(tap, columns)
            last = min(4 * group + 3, channels - 1)
            return f"row {row}, tap ({r}, {s}), channels {4 * group}-{last}"

        matrix = ops.conv_weight_to_matrix(weight.detach())
        sparse._fill(*compress_matrix(matrix, sparse.values.dtype, place, weight.shape), module.bias)
        return sparse.train(module.training)

    def to_dense(self) -> nn.Conv2d:
        """The equal ``nn.Conv2d``, zeros included; its parameters require gradients, as new ones do.

        Raises:
            ValueError: an activation is fused, which ``nn.Conv2d`` cannot hold.
        """
        self._refuse_activation("nn.Conv2d")
        dense = nn.Conv2d(**_conv_arguments(self), device="meta")
        dense.weight = nn.Parameter(self.weight.detach())
        if self.bias is not None:
            dense.bias = nn.Parameter(self.bias.detach().clone())
        return dense.train(self.training)

    def _padding_columns(self) -> Tensor:
        channels = self.in_channels // self.groups
        column = torch.arange(2 * self.values.shape[1])
        last = math.prod(self.kernel_size) * ops.round_up(channels, 4)
        return (column % ops.round_up(channels, 4) >= channels) | (column >= last)

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        parts.append(f"stride={self.stride}")
        defaults = {"padding": (0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
        parts += [
            f"{k}={getattr(self, k)!r}" for k, default in defaults.items() if getattr(self, k) != default
        ]
        return ", ".join(parts) + self._optional_repr()


def _conv_arguments(module: nn.Conv2d | SparseConv2d) -> dict[str, Any]:
    """What both kinds of convolution are built from, device and dtype apart."""
    shared = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    arguments = {name: getattr(module, name) for name in (*shared, "padding_mode")}
    return arguments | {"bias": module.bias is not None}
