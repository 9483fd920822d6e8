"""What the sparse convolutions share, whatever their number of dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from .. import ops
from ..ops.cuda.cusparselt import Stream
from ..ops.cuda.patches import Window
from ..ops.cuda.products import conv2d_by
from ..ops.cuda.weights import Weight
from . import grad, int8
from .compressed import CompressedModule, wants_grad
from .forms import compress_weight

if TYPE_CHECKING:
    from typing import Self  # Python 3.11

_Dense = TypeVar("_Dense", nn.Conv2d, nn.Conv3d)


class CompressedConvolution(CompressedModule):
    """Made from a dense convolution, and made dense again; its product, which is a 2-D convolution; how it
    is told."""

    in_channels: int
    out_channels: int
    kernel_size: Any
    stride: Any
    _form: Any
    _operator = "conv2d"
    #: Of the 2-D convolution that is computed.
    _window: ops.Window

    @property
    def _plane_channels(self) -> int:
        """Input channels of the 2-D convolution that is computed."""
        return self.in_channels

    def _two_dimensional(self, weight: Tensor) -> Tensor:
        """Its dense weight, of the layer's."""
        return weight

    def _geometry(self) -> Window:
        (r, s), (down, right), (top, left), (dilation_r, dilation_s), groups = ops.geometry_of(self._window)
        return Window((r, s), (down, right), (top, left), (dilation_r, dilation_s), groups)

    def _product(self, input: Tensor) -> Tensor:
        """The 2-D convolution of [N, C, H, W]."""
        if int8.is_narrow(self):
            return int8.conv2d(self, input)
        if input.is_cuda:
            by_own_forms = self._on_device(input)
            if by_own_forms is not None:
                return by_own_forms
        weight = self._operands()
        product = grad.conv2d if torch.is_grad_enabled() and wants_grad(input, *weight) else ops.conv2d
        output: Tensor = product(input, *weight, self.activation, self._window)
        return output

    def _product_by(self, weight: Weight, input: Tensor, bias: Tensor | None, stream: Stream) -> Tensor:
        return conv2d_by(input, weight, bias, self._geometry(), self.activation, stream)

    @classmethod
    def _from(cls, module: nn.Conv2d | nn.Conv3d, dense: type, dtype: torch.dtype | None) -> Self:
        """``from_dense`` of a convolution of the class ``dense``."""
        if not isinstance(module, dense):
            raise TypeError(f"from_dense needs an nn.{dense.__name__}, not {type(module).__name__}")
        weight = module.weight
        sparse = cls(**conv_arguments(module), device=weight.device, dtype=dtype or weight.dtype)
        sparse._fill(*compress_weight(weight, sparse._form, sparse.values.dtype), module.bias)
        return sparse.train(module.training)

    @torch.inference_mode(False)
    def _to(self, kind: type[_Dense]) -> _Dense:
        """``to_dense``."""
        self._refuse_activation(f"nn.{kind.__name__}")
        dense = kind(**conv_arguments(self), device="meta")
        dense.weight = nn.Parameter(self._view().dense())
        if self.bias is not None:
            dense.bias = nn.Parameter(self.bias.detach().clone())
        return dense.train(self.training)

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        parts.append(f"stride={self.stride}")
        dims = len(self.kernel_size)
        defaults = {"padding": (0,) * dims, "dilation": (1,) * dims, "groups": 1, "padding_mode": "zeros"}
        parts += [
            f"{k}={getattr(self, k)!r}" for k, default in defaults.items() if getattr(self, k) != default
        ]
        return ", ".join(parts) + self._optional_repr()


def conv_arguments(module: nn.Module) -> dict[str, Any]:
    """What dense and sparse convolutions are built from, device and dtype apart."""
    shared = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    arguments = {name: getattr(module, name) for name in (*shared, "padding_mode")}
    return arguments | {"bias": module.bias is not None}
