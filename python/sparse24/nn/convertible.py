"""Which layers of a network can be compressed as they are, and why another cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..ops import names_of
from ..pruning import prunable
from .attention import SparseMultiheadAttention, projections
from .compressed import DTYPES
from .conv2d import SparseConv2d
from .dense_loads import compressed_like, is_own_hook
from .forms import NotSparse24Error, check_weight
from .linear import SparseLinear

FilterFn = Callable[[str, nn.Module], bool]

SPARSE = (SparseLinear, SparseConv2d, SparseMultiheadAttention)
DENSE = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
_NO_KERNEL = (nn.Conv1d, nn.Conv3d)
_PARAMETERS = {
    "weight", "bias", "in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight",
    "bias_k", "bias_v",
}  # fmt: skip
#: Hooks that know the names of the weights in a state_dict.
_STATE_HOOKS = (
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


def layers_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that get a row, in model order; an attention counts as one layer."""
    inside: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        if isinstance(module, nn.MultiheadAttention | SparseMultiheadAttention):
            inside.update(id(child) for child in module.modules())
        if isinstance(module, (*DENSE, *SPARSE, *_NO_KERNEL)) or prunable.is_transposed_linear(module):
            yield name, module


def _storage_key(tensor: Tensor) -> int:
    """One key for all parameters that begin at one address; without data, one for each parameter."""
    if nn.parameter.is_lazy(tensor) or type(tensor) is not nn.Parameter:
        return id(tensor)
    return tensor.data_ptr() or id(tensor)


def owners_of(model: nn.Module) -> dict[int, list[str]]:
    """Names of the parameters that share storage, a module counted once, by :func:`_storage_key`."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter_name, parameter in module._parameters.items():
            if parameter is not None:
                full_name = f"{name}.{parameter_name}" if name else parameter_name
                owners.setdefault(_storage_key(parameter), []).append(full_name)
    return owners


def why_refused(
    name: str,
    module: nn.Module,
    dtype: torch.dtype | None,
    owners: Mapping[int, list[str]],
    filter_fn: FilterFn | None,
) -> str:
    """Why the layer is left as it is, as far as that can be said before looking at its values; or ""."""
    if isinstance(module, SPARSE):
        return "already sparse"
    if isinstance(module, _NO_KERNEL):
        return f"no sparse kernel for {type(module).__name__}"
    if filter_fn is not None and not filter_fn(name, module):
        return "left out by filter_fn"
    for layer_name, layer in module.named_modules(prefix=name):  # an attention and its out_proj
        reason = _foreign_behaviour(layer) or _unusable_weights(layer, layer_name, dtype, owners)
        if reason:
            return reason
    return ""


def dense_class(module: nn.Module) -> type[nn.Module]:
    """The class that says what the layer computes: of torch.nn, or transformers' ``Conv1D``."""
    is_conv1d = prunable.is_transposed_linear(module)
    return next(c for c in type(module).__mro__ if c in DENSE or (is_conv1d and c.__name__ == "Conv1D"))


def _foreign_behaviour(module: nn.Module) -> str:
    """What the layer does besides what its dense class does, that a conversion would drop; or ""."""
    kind = type(module).__name__
    if parametrize.is_parametrized(module):
        names = ", ".join(module.parametrizations)  # type: ignore[arg-type]
        return f"parametrized ({names}): call torch.nn.utils.parametrize.remove_parametrizations first"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return f"{kind} has no weight yet: run a batch through the model first"
    dense = dense_class(module)
    own = _own_methods(module, dense)
    if own:
        return own
    foreign = [p for p in module._parameters if p not in _PARAMETERS] + list(module._buffers)
    foreign += [child for child in module._modules if child != "out_proj"]
    if foreign:
        return f"holds more than a {dense.__name__} does: {', '.join(foreign)}"
    hooks = [kind for kind in _STATE_HOOKS if any(not is_own_hook(h) for h in getattr(module, kind).values())]
    if hooks:
        return f"has hooks that know its weight's name ({', '.join(hooks)}): remove them first"
    return ""


def _own_methods(module: nn.Module, dense: type[nn.Module]) -> str:
    """How the layer computes something else than its dense class; or ""."""
    for method in ("__call__", "forward", "_conv_forward"):
        if method in vars(module):
            return f"its {method} was replaced by hand"
        if getattr(type(module), method, None) is not getattr(dense, method, None):
            return f"{type(module).__name__} is a subclass of {dense.__name__} with its own {method}"
    return ""


def _unusable_weights(
    module: nn.Module, name: str, dtype: torch.dtype | None, owners: Mapping[int, list[str]]
) -> str:
    """Why the layer's weights cannot be compressed, whatever they hold; or ""."""
    attributes: tuple[str, ...] = ("weight",)
    if isinstance(module, nn.MultiheadAttention):
        separate = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        attributes = ("in_proj_weight",) if module._qkv_same_embed_dim else separate
    for attribute in attributes:
        reason = prunable._not_a_parameter(module, attribute)
        if reason:
            return reason
        weight = getattr(module, attribute)
        if type(weight) is not nn.Parameter:
            return f"{attribute} is a {type(weight).__name__}: only plain tensors are converted"
        if weight.is_meta:
            return f"{attribute} is on the meta device and holds no data"
        if dtype is None and weight.dtype not in DTYPES:
            return f"{attribute} is {weight.dtype}: pass dtype=, one of {names_of(DTYPES)}"
        others = owners[_storage_key(weight)]
        if len(others) > 1:
            own = f"{name}.{attribute}" if name else attribute
            return f"{attribute} is shared with {', '.join(o for o in others if o != own)}: untie it first"
    return ""


def _matrices(module: nn.Module, like: nn.Module) -> Iterator[tuple[str, Tensor, nn.Module]]:
    """Each dense weight [out, ...] of a layer, what names it, and the compressed layer that it becomes."""
    if isinstance(module, nn.MultiheadAttention):
        for name, (weight, _) in projections(module).items():
            yield f"{name}, ", weight, getattr(like, name)
    elif isinstance(module, nn.Linear | nn.Conv2d):
        yield "", module.weight, like
    else:
        yield "", module.weight.t(), like  # type: ignore[operator]


def why_not_sparse(module: nn.Module, dtype: torch.dtype | None) -> str:
    """Why the values of a layer do not allow, or do not reward, a compressed one; or ""."""
    like = compressed_like(module, dtype)
    for name, weight, layer in _matrices(module, like):
        assert isinstance(layer, SparseLinear | SparseConv2d)
        try:
            check_weight(weight, layer._form, layer.values.dtype)
        except NotSparse24Error as error:
            return f"not 2:4: {name}{error.place} hold more than two non-zeros"
    if bytes_of(like) >= bytes_of(module):
        return f"2:4, but no smaller when compressed ({bytes_of(like):,} bytes)"
    return ""


def bytes_of(module: nn.Module) -> int:
    tensors = (*module.parameters(), *module.buffers())
    return sum(t.numel() * t.element_size() for t in tensors if not nn.parameter.is_lazy(t))
