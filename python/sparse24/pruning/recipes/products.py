"""Linear layers that are trained by sparse products, where those of the pruned weight would be dense.

Forward, and backward for the input where the mask is 2:4 along the output channels, too, the kept values are
taken from the dense parameter and multiplied by the sparse kernels. They are taken at every call, so no write
to the parameter can be missed. The weight's gradient is a dense product: its mask is the Sparsifier's affair.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.fx import Proxy

from ... import ops
from ...masks import is_sparse24
from ..packed import PackedMask
from ..sharding import is_sharded
from ..sparsifier import Sparsifier
from .mvue import MvueLinear, mvue24

_linear = torch.ops.sparse24.linear.default
#: What the sparse products compute in.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Form(NamedTuple):
    """Where the values of a compressed matrix come from."""

    places: Tensor  #: of each value in a flattened source, int32 (int64 where that is too small)
    holes: Tensor  #: among the values, those of groups that keep fewer than two
    indices: Tensor  #: uint8 [rows, K/8], as the operators take them

    def values(self, source: Tensor, dtype: torch.dtype) -> Tensor:
        """[rows, K/2] of the source as it is now."""
        kept = source.detach().reshape(-1).index_select(0, self.places)
        if len(self.holes):
            kept.index_fill_(0, self.holes, 0)
        return kept.to(dtype).view(len(self.indices), -1)


class Forms(NamedTuple):
    """Of the product with the input, and of the one with the output's gradient, if that may be sparse."""

    forth: Form  #: [out, in], from the dense weight
    back: Form | None  #: [in, out], from the values of ``forth``, which take less cache


def forms_of(mask: Tensor) -> Forms | None:
    """The forms of a mask [out, in], bool; ``None``: not 2:4 along the input, or no multiple of eight."""
    rows, width = mask.shape
    found = _compressed(mask)
    if found is None:
        return None
    kept, columns, indices = found
    lines = torch.arange(rows, device=mask.device).unsqueeze(1)
    at = (lines * width + columns).flatten()
    forth = Form(_small(at), (kept == 0).nonzero().flatten(), indices)
    found = _compressed(mask.t())
    if found is None:
        return Forms(forth, None)
    kept, columns, indices = found
    value_at = torch.zeros(mask.numel(), dtype=torch.int64, device=mask.device)
    value_at[at] = torch.arange(len(at), device=mask.device)
    lines = torch.arange(width, device=mask.device).unsqueeze(1)
    places = value_at[(columns * width + lines).flatten()]
    return Forms(forth, Form(_small(places), (kept == 0).nonzero().flatten(), indices))


def _compressed(mask: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Of a mask as a matrix: its values, flattened, their columns [rows, K/2] and their indices."""
    matrix = mask.to(torch.int8).contiguous()
    if matrix.shape[1] % 8 or not is_sparse24(matrix):
        return None
    kept, indices = torch.ops.sparse24.compress(matrix)
    return kept.flatten(), ops.kept_columns(indices), indices


def _small(places: Tensor) -> Tensor:
    return places.int() if len(places) < torch.iinfo(torch.int32).max // 2 else places


class Way(NamedTuple):
    """How a product is computed."""

    forms: Forms
    dtype: torch.dtype
    estimates: bool = False  #: the weight's gradient, from a 2:4 estimate of the output's


class Followed:
    """The mask that a layer's products go by: the one that its Sparsifier has at that moment.

    A copy or a pickle follows none, and its layer computes dense: it may hold averaged weights, or others.
    """

    def __init__(self, sparsifier: Sparsifier | None = None, name: str = "") -> None:
        self._sparsifier = None if sparsifier is None else weakref.ref(sparsifier)
        self._name = name
        self._mask: PackedMask | None = None
        self._forms: Forms | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Followed:
        return Followed()

    def __reduce__(self) -> tuple[type[Followed], tuple[()]]:
        return Followed, ()

    def forms(self, weight: Tensor) -> Forms | None:
        """Of the mask as it is now; ``None``: there is none for this weight."""
        sparsifier = None if self._sparsifier is None else self._sparsifier()
        mask = None if sparsifier is None else sparsifier._masks.get(self._name)
        if mask is None or mask.shape != weight.shape or mask.is_placed or is_sharded(weight):
            return None
        if not isinstance(weight, nn.Parameter):  # somebody computes with a weight of his own
            return None
        mask = mask.follow(weight)
        if mask is not self._mask or (self._forms and self._forms.forth.indices.device != weight.device):
            self._forms = forms_of(mask.local_bool())
            self._mask = mask
        return self._forms


class Product(torch.autograd.Function):
    """``F.linear`` of what a mask keeps of the weight."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, way: Way) -> Tensor:
        values = way.forms.forth.values(weight, way.dtype)
        x = input.to(way.dtype)
        ctx.save_for_backward(x, weight if way.forms.back is None else values)
        ctx.weight_dtype, ctx.input_dtype = weight.dtype, input.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.way = way
        bias = None if bias is None else bias.to(way.dtype)
        output: Tensor = _linear(x, values, way.forms.forth.indices, bias)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, numbers = ctx.saved_tensors
        rows, way, back = grad.reshape(-1, grad.shape[-1]), ctx.way, ctx.way.forms.back
        of_input = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            if back is None:
                flat = rows @ numbers.to(way.dtype)
            else:
                flat = _linear(rows, back.values(numbers, way.dtype), back.indices)
            of_input = flat.view(input.shape).to(ctx.input_dtype)
        if ctx.needs_input_grad[1]:
            left = mvue24(rows) if way.estimates else rows
            of_weight = (left.t() @ input.reshape(-1, input.shape[-1])).to(ctx.weight_dtype)
        if ctx.bias_dtype is not None and ctx.needs_input_grad[2]:
            of_bias = rows.sum(0).to(ctx.bias_dtype)
        return of_input, of_weight, of_bias, None


class SparseProductLinear(nn.Linear):
    """``nn.Linear`` that multiplies by what its Sparsifier's mask keeps, while it is in training mode.

    Dense: in eval mode, without a mask, in what is compiled, exported or traced, for dtypes without kernels.
    """

    #: What such a layer is for everybody else: pruned, converted and saved as one.
    _trains_as = nn.Linear
    _followed: Followed
    _plain: type[nn.Linear]

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or _is_followed_by_others(input):
            return self._plain.forward(self, input)
        dtype, forms = computed_in(input, self.weight), self._followed.forms(self.weight)
        if dtype is None or forms is None or input.shape[-1:] != (self.in_features,):
            return self._plain.forward(self, input)
        way = Way(forms, dtype, self._plain is MvueLinear)
        output: Tensor = Product.apply(input, self.weight, self.bias, way)  # type: ignore[no-untyped-call]
        return output


def _is_followed_by_others(input: Any) -> bool:
    """Whether a compiler, an exporter or a transform follows the call: it would not see masks change."""
    if torch.compiler.is_compiling() or isinstance(input, Proxy) or torch._C._get_tracing_state() is not None:
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None or is_sharded(input)


def computed_in(input: Tensor, weight: Tensor) -> torch.dtype | None:
    """What the product is computed in, as autocast has it; ``None``: there is no sparse one."""
    device = weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    fits = input.dtype == weight.dtype or torch.is_autocast_enabled(device)
    return dtype if dtype in DTYPES and weight.dtype in DTYPES and input.dtype in DTYPES and fits else None


def take_up(layer: nn.Linear, sparsifier: Sparsifier, name: str) -> None:
    """Let a layer compute by the mask of the weight of that name."""
    if type(layer) is not SparseProductLinear:
        vars(layer)["_plain"] = type(layer)
        layer.__class__ = SparseProductLinear
    vars(layer)["_followed"] = Followed(sparsifier, name)


def give_up(layer: nn.Module) -> None:
    """The inverse of :func:`take_up`."""
    if type(layer) is SparseProductLinear:
        layer.__class__ = vars(layer).pop("_plain")
        del vars(layer)["_followed"]
