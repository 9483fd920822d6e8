"""``SparseLinear``: ``nn.Linear`` for inference, its 2:4 weight stored compressed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from .. import ops
from ..ops.cuda.cusparselt import Stream
from ..ops.cuda.products import linear_by
from ..ops.cuda.weights import Weight
from . import grad, int8, onnx
from .compressed import CompressedModule, wants_grad
from .forms import LinearForm, compress_weight
from .tracing import leaf_of


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

    _operator = "linear"
    #: transformers' ``Conv1D`` where ``to_sparse`` has converted one.
    _dense_class: type[nn.Module] | None = None

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
        if not torch.compiler.is_compiling():
            output: Tensor = ops.call_linear(input, self.__dict__)
            if output is not NotImplemented:
                return output
        return self._general(input)

    def _general(self, input: Tensor) -> Tensor:
        """What the short way does not take: gradients, other devices, listeners, and wrong inputs."""
        if isinstance(input, Proxy):
            leaf: Tensor | None = leaf_of(self, (input,))
            return ops.linear(input, *self._operands(), self.activation) if leaf is None else leaf
        if input.shape[-1:] != (self.in_features,):
            raise ValueError(f"input must be [..., {self.in_features}], not {tuple(input.shape)}")
        if onnx.is_exported():
            return onnx.linear(self, input)
        if int8.is_narrow(self):
            return int8.linear(self, input)
        if input.is_cuda:
            by_own_forms = self._on_device(input)
            if by_own_forms is not None:
                return by_own_forms
        weight = self._operands()
        product = grad.linear if torch.is_grad_enabled() and wants_grad(input, *weight) else ops.linear
        result: Tensor = product(input, *weight, self.activation)
        return result

    def _product_by(self, weight: Weight, input: Tensor, bias: Tensor | None, stream: Stream) -> Tensor:
        return linear_by(input, weight, bias, self.activation, stream)

    @property
    def _form(self) -> LinearForm:
        return LinearForm((self.out_features, self.in_features))

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
        module._fill(*compress_weight(weight, module._form, module.values.dtype), bias)
        return module

    @torch.inference_mode(False)
    def to_dense(self) -> nn.Linear:
        """The equal ``nn.Linear``, zeros included; its parameters require gradients, as new ones do.

        Raises:
            ValueError: an activation is fused, which ``nn.Linear`` cannot hold.
        """
        self._refuse_activation("nn.Linear")
        dense = nn.Linear(self.in_features, self.out_features, self.bias is not None, "meta")
        dense.weight = nn.Parameter(self._view().dense().contiguous())
        if self.bias is not None:
            dense.bias = nn.Parameter(self.bias.detach().clone())
        return dense.train(self.training)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}" + self._optional_repr()
