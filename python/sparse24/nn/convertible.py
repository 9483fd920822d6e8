"""Which layers of a network can be compressed as they are, and why another cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ..ops import names_of
from ..pruning import prunable
from ..pruning.by_tensors import weights_by_tensors
from ..pruning.heads import adapter_part
from ..pruning.layers import (
    DENSE,
    NO_KERNEL,
    Owners,
    is_transposed_linear,
    not_plain,
    runs_dense,
    stays_dense,
)
from .attention import SparseMultiheadAttention, projections
from .compressed import DTYPES, CompressedModule
from .dense_loads import compressed_like, is_own_hook
from .forms import NotSparse24Error, check_weight
from .int8 import remark_of
from .kinds import SPARSE, ProductLayer

FilterFn = Callable[[str, nn.Module], bool]

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
        is_known = isinstance(module, (*DENSE, *SPARSE, *NO_KERNEL)) or is_transposed_linear(module)
        if is_known or hasattr(module, "_held_names") or weights_by_tensors(module):
            yield name, module


def why_refused(
    name: str,
    module: nn.Module,
    dtype: torch.dtype | None,
    owners: Owners,
    filter_fn: FilterFn | None,
    by_tensors: bool = False,
) -> str:
    """Why the layer is left as it is, as far as that can be said before looking at its values; or "".

    ``by_tensors``: its weights are to be compressed in their places, which are looked at one by one.
    """
    is_held = any(hasattr(each, "_held_names") for each in (module, getattr(module, "out_proj", None)))
    if isinstance(module, SPARSE) or is_held:
        remark = remark_of(module) if isinstance(module, CompressedModule) else ""
        return f"already sparse{remark}"
    if reason := _left_out(name, module, filter_fn):
        return reason
    if reason := runs_dense(module) or ("" if by_tensors else stays_dense(module)):
        return reason
    for layer_name, layer in module.named_modules(prefix=name):  # an attention and its out_proj
        hooks = [
            kind for kind in _STATE_HOOKS if any(not is_own_hook(h) for h in getattr(layer, kind).values())
        ]
        if hooks:
            return f"has hooks that know its weight's name ({', '.join(hooks)}): remove them first"
        if not by_tensors and (reason := _unusable_weights(layer, layer_name, dtype, owners)):
            return reason
    return ""


def _left_out(name: str, module: nn.Module, filter_fn: FilterFn | None) -> str:
    if filter_fn is not None and not isinstance(module, NO_KERNEL) and not filter_fn(name, module):
        return "left out by filter_fn"
    part = adapter_part(f"{name}.weight")  # of zeros at first, which are 2:4
    return f"an adapter by its name ({part}): it stays what is trained" if part else ""


def _unusable_weights(module: nn.Module, name: str, dtype: torch.dtype | None, owners: Owners) -> str:
    """Why the layer's weights cannot be compressed, whatever they hold; or ""."""
    attributes: tuple[str, ...] = ("weight",)
    if isinstance(module, nn.MultiheadAttention):
        separate = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        attributes = ("in_proj_weight",) if module._qkv_same_embed_dim else separate
    for attribute in attributes:
        reason = prunable._not_a_parameter(module, attribute)
        if reason:
            return reason
        full = f"{name}.{attribute}" if name else attribute
        if reason := unusable_weight(module, attribute, full, dtype, owners):
            return reason
    return ""


def unusable_weight(
    module: nn.Module, attribute: str, name: str, dtype: torch.dtype | None, owners: Owners
) -> str:
    """Why a weight cannot be compressed, whatever it holds; or ""."""
    weight = getattr(module, attribute)
    foreign = not_plain(weight)
    if foreign or type(weight) is not nn.Parameter:
        return f"{attribute} is {foreign or f'a {type(weight).__name__}: only plain tensors are converted'}"
    if weight.is_meta:
        return f"{attribute} is on the meta device and holds no data"
    if wrong := _wrong_dtype(weight, dtype):
        return f"{attribute} is {weight.dtype}: {wrong}"
    if others := owners.others(weight, name):
        return f"{attribute} is shared with {', '.join(others)}: untie it first"
    return ""


def _wrong_dtype(weight: Tensor, dtype: torch.dtype | None) -> str:
    if not weight.is_floating_point() or weight.element_size() < 2:
        return "only floating weights of 16 bits or more are converted"
    return f"pass dtype=, one of {names_of(DTYPES)}" if dtype is None and weight.dtype not in DTYPES else ""


def _matrices(module: nn.Module, like: nn.Module) -> Iterator[tuple[str, Tensor, nn.Module]]:
    """Each dense weight [out, ...] of a layer, what names it, and the compressed layer that it becomes."""
    if isinstance(module, nn.MultiheadAttention):
        for name, (weight, _) in projections(module).items():
            yield f"{name}, ", weight, getattr(like, name)
    elif isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
        yield "", module.weight, like
    else:
        yield "", module.weight.t(), like  # type: ignore[operator]


def why_not_sparse(module: nn.Module, dtype: torch.dtype | None) -> str:
    """Why the values of a layer do not allow, or do not reward, a compressed one; or ""."""
    like = compressed_like(module, dtype)
    for name, weight, layer in _matrices(module, like):
        assert isinstance(layer, ProductLayer)
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
