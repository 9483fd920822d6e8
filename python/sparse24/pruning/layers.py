"""What runs sparse once it is pruned: the one predicate that ``prune``, ``to_sparse`` and their reports ask.

A layer runs sparse if it is a ``Linear``, ``Conv2d``, ``Conv3d``, ``MultiheadAttention`` or transformers'
``Conv1D``, and does nothing besides what that class does; or if a compressed weight can stand in the place of
its own (``by_tensors``). What does not is left alone by ``prune``, for its zeros would cost accuracy and gain
nothing; it grows as kernels come.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .by_tensors import weights_by_tensors, why_not_by_tensors

#: The classes of torch.nn that have a compressed one.
DENSE = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
#: Layers that are pruned where they are selected, and stay dense; and those that are never pruned.
NO_KERNEL = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

_PARAMETERS = {
    "weight", "bias", "in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight",
    "bias_k", "bias_v",
}  # fmt: skip


#: Why a layer is not swapped whose weights are compressed in their places.
SWAPS_NOT = "its weights are compressed in their places"


def runs_dense(module: nn.Module) -> str:
    """Why a layer runs dense, swapped or with compressed weights in its own ones' places; or ""."""
    reason = stays_dense(module)
    return why_not_by_tensors(module) if reason and weights_by_tensors(module) else reason


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether ``module`` is transformers' ``Conv1D``, a Linear whose weight is [in, out]."""
    return any(
        c.__name__ == "Conv1D" and c.__module__.startswith("transformers.") for c in type(module).__mro__
    )


def dense_class(module: nn.Module) -> type[nn.Module] | None:
    """The class that says what a layer computes: of ``DENSE``, or transformers' ``Conv1D``."""
    is_conv1d = is_transposed_linear(module)
    return next(
        (c for c in type(module).__mro__ if c in DENSE or (is_conv1d and c.__name__ == "Conv1D")), None
    )


def stays_dense(module: nn.Module) -> str:
    """Why a layer has no compressed one, whatever its weight holds; empty if it has.

    An attention counts as one layer: what stands in the way of its ``out_proj`` is its own reason.
    """
    dense = dense_class(module)
    if dense is None:
        return why_not_by_tensors(module) or SWAPS_NOT
    reason = _foreign_behaviour(module, dense)
    if not reason and isinstance(module, nn.MultiheadAttention):
        reason = stays_dense(module.out_proj)
    return reason


def _foreign_behaviour(module: nn.Module, dense: type[nn.Module]) -> str:
    """What the layer does besides what its dense class does, that a conversion would drop; or ""."""
    kind = type(module).__name__
    if parametrize.is_parametrized(module):
        names = ", ".join(module.parametrizations)  # type: ignore[arg-type]
        return f"parametrized ({names}): call torch.nn.utils.parametrize.remove_parametrizations first"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return f"{kind} has no weight yet: run a batch through the model first"
    own = getattr(type(module), "_trains_as", type(module))  # of a recipe: its forward computes the same
    for method in ("__call__", "forward", "_conv_forward"):
        if method in vars(module):
            return f"its {method} was replaced by hand"
        if getattr(own, method, None) is not getattr(dense, method, None):
            return f"{kind} is a subclass of {dense.__name__} with its own {method}"
    foreign = [p for p in module._parameters if p not in _PARAMETERS] + list(module._buffers)
    foreign += [child for child in module._modules if child != "out_proj"]
    return f"holds more than a {dense.__name__} does: {', '.join(foreign)}" if foreign else ""


def not_plain(weight: Tensor) -> str:
    """Why the numbers of a weight are not to be touched (another library's tensor); empty if they may be."""
    if nn.parameter.is_lazy(weight) or hasattr(weight, "to_local"):
        return ""
    if weight.layout != torch.strided:
        layout = str(weight.layout).removeprefix("torch.")
        return f"of layout {layout}: only strided tensors are pruned and converted"
    if type(weight) in (Tensor, nn.Parameter):
        return ""
    return f"a {type(weight).__name__}: only plain tensors are pruned and converted"


def compressed_bytes(shape: Sequence[int], element_size: int) -> int:
    """Bytes of values [out, K/2] and indices [out, K/8] of a weight [out, in], [out, in, R, S] or with T."""
    columns = shape[1]
    if len(shape) >= 4:
        columns = -(-columns // 4) * 4 * math.prod(shape[2:])
    padded = -(-columns // 8) * 8
    return shape[0] * (padded // 2 * element_size + padded // 8)


def _storage_key(tensor: Tensor) -> int:
    """One key for all parameters that begin at one address; without data, one for each parameter."""
    if nn.parameter.is_lazy(tensor) or type(tensor) is not nn.Parameter or tensor.layout != torch.strided:
        return id(tensor)
    return tensor.data_ptr() or id(tensor)


class Owners:
    """Which layers of a model hold the same weight; a module that is registered twice counts once."""

    def __init__(self, model: nn.Module) -> None:
        self._names: dict[int, list[str]] = {}
        for name, module in model.named_modules():
            for parameter_name, parameter in module._parameters.items():
                if parameter is not None:
                    full_name = f"{name}.{parameter_name}" if name else parameter_name
                    self._names.setdefault(_storage_key(parameter), []).append(full_name)

    def others(self, weight: Tensor, name: str) -> list[str]:
        """The names of the parameters that begin where ``weight``, called ``name``, does."""
        return [other for other in self._names.get(_storage_key(weight), ()) if other != name]
