"""``to_sparse`` and ``to_dense``: swap the layers of a network in place, and say what became of each.

Every replacement is built before the first one is put in, so a failure leaves the model as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..ops import names_of
from ..ops.cuda import cusparselt
from ..pruning import prunable
from ..report import Report, Row
from .attention import SparseMultiheadAttention
from .compressed import DTYPES
from .conv2d import SparseConv2d
from .forms import NotSparse24Error
from .linear import SparseLinear

FilterFn = Callable[[str, nn.Module], bool]

_SPARSE = (SparseLinear, SparseConv2d, SparseMultiheadAttention)
_DENSE = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
_NO_KERNEL = (nn.Conv1d, nn.Conv3d)
_PARAMETERS = {
    "weight", "bias", "in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight",
    "bias_k", "bias_v",
}  # fmt: skip

#: Hooks that run around ``forward`` and work on any kind of layer.
_CARRIED_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip
#: Hooks that know the names of the weights in a state_dict.
_STATE_HOOKS = (
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip

#: The flag by which each of torch's transformer modules reads the dense weights of the layers inside in
#: one fused call. It is off while one of them is sparse; the user's value waits under the second name.
_FUSED_PATHS: tuple[tuple[type[nn.Module], str, str], ...] = (
    (nn.TransformerEncoder, "use_nested_tensor", "_sparse24_use_nested_tensor"),
    (nn.TransformerEncoderLayer, "activation_relu_or_gelu", "_sparse24_activation_relu_or_gelu"),
)


def to_sparse(
    model: nn.Module, dtype: torch.dtype | None = None, filter_fn: FilterFn | None = None
) -> Report:
    """Replace the pruned layers of ``model`` by compressed ones, in place.

    ``Linear``, ``Conv2d``, ``MultiheadAttention`` and transformers' ``Conv1D`` are converted where their
    weight is 2:4 along the input channels; everything else stays, and the report says why. A module
    registered under several names is converted once. Hooks around ``forward``, the training flag and
    public attributes are carried over. torch's fused path for transformer encoders, which would read
    dense weights, is switched off; outputs at padded positions are then those of the unfused path.

    Args:
        model: the network; converted layers are for inference, so convert after training.
        dtype: cast the converted layers to it (float32, float16, bfloat16). Their inputs must then have
            this dtype: cast the rest of the model too, or run under autocast.
        filter_fn: ``filter_fn(name, module) -> bool``, false for a layer to leave as it is.

    Returns:
        One row a layer, in model order; bytes count weight (values and indices) and bias.

    Raises:
        TypeError: ``model`` is no module, or another dtype.
        ValueError: ``model`` itself is the layer, which cannot be swapped in place.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"to_sparse needs an nn.Module, not {type(model).__name__}")
    if dtype is not None and dtype not in DTYPES:
        raise TypeError(f"dtype must be one of {names_of(DTYPES)}, not {dtype}")
    _refuse_root(model, (*_DENSE, *_SPARSE), "from_dense of the sparse class")
    aliases, owners = _aliases(model), _owners(model)
    rows: list[Row] = []
    replacements: dict[int, nn.Module] = {}
    for name, module in _layers(model):
        reason = _refusal(name, module, dtype, owners, filter_fn)
        sparse = None
        if not reason:
            sparse, reason = _build(module, dtype)
        if sparse is not None:
            replacements[id(module)] = sparse
            reason = _remark(module, aliases.get(id(module), []))
        rows.append(_row(name, module, sparse, reason))
    _swap(model, replacements)
    return Report(tuple(rows))


def to_dense(model: nn.Module) -> Report:
    """Replace the compressed layers of ``model`` by dense ones, in place: the inverse of :func:`to_sparse`.

    The pruned weights stay zero. What was transformers' ``Conv1D`` comes back as ``nn.Linear``.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: ``model`` itself is the layer, which cannot be swapped in place.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"to_dense needs an nn.Module, not {type(model).__name__}")
    _refuse_root(model, _SPARSE, "its method to_dense()")
    rows: list[Row] = []
    replacements: dict[int, nn.Module] = {}
    for name, module in _layers(model):
        if not isinstance(module, _SPARSE):
            continue
        activation = getattr(module, "activation", "none")
        if activation != "none":
            rows.append(_row(name, module, None, f"fuses activation={activation!r}"))
            continue
        dense = module.to_dense()
        replacements[id(module)] = dense
        rows.append(_row(name, module, dense, ""))
    _swap(model, replacements)
    return Report(tuple(rows))


def _refuse_root(model: nn.Module, kinds: tuple[type[nn.Module], ...], instead: str) -> None:
    if isinstance(model, kinds) or prunable.is_transposed_linear(model):
        raise ValueError(
            f"the model is itself a {type(model).__name__}, which cannot be swapped in place: use {instead}"
        )


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that get a row, in model order; an attention counts as one layer."""
    inside: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        if isinstance(module, nn.MultiheadAttention | SparseMultiheadAttention):
            inside.update(id(child) for child in module.modules())
        if isinstance(module, (*_DENSE, *_SPARSE, *_NO_KERNEL)) or prunable.is_transposed_linear(module):
            yield name, module


def _aliases(model: nn.Module) -> dict[int, list[str]]:
    """All names of every module, by its identity."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return names


def _storage_key(tensor: Tensor) -> int:
    """One key for all parameters that begin at one address; without data, one for each parameter."""
    if nn.parameter.is_lazy(tensor) or type(tensor) is not nn.Parameter:
        return id(tensor)
    return tensor.data_ptr() or id(tensor)


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """Names of the parameters that share storage, a module counted once, by :func:`_storage_key`."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter_name, parameter in module._parameters.items():
            if parameter is not None:
                full_name = f"{name}.{parameter_name}" if name else parameter_name
                owners.setdefault(_storage_key(parameter), []).append(full_name)
    return owners


def _refusal(
    name: str,
    module: nn.Module,
    dtype: torch.dtype | None,
    owners: Mapping[int, list[str]],
    filter_fn: FilterFn | None,
) -> str:
    """Why the layer is left as it is, as far as that can be said before looking at its values; or ""."""
    if isinstance(module, _SPARSE):
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


def _dense_class(module: nn.Module) -> type[nn.Module]:
    """The class that says what the layer computes: of torch.nn, or transformers' ``Conv1D``."""
    is_conv1d = prunable.is_transposed_linear(module)
    return next(c for c in type(module).__mro__ if c in _DENSE or (is_conv1d and c.__name__ == "Conv1D"))


def _foreign_behaviour(module: nn.Module) -> str:
    """What the layer does besides what its dense class does, that a conversion would drop; or ""."""
    kind = type(module).__name__
    if parametrize.is_parametrized(module):
        names = ", ".join(module.parametrizations)  # type: ignore[arg-type]
        return f"parametrized ({names}): call torch.nn.utils.parametrize.remove_parametrizations first"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return f"{kind} has no weight yet: run a batch through the model first"
    dense = _dense_class(module)
    own = _own_methods(module, dense)
    if own:
        return own
    foreign = [p for p in module._parameters if p not in _PARAMETERS] + list(module._buffers)
    foreign += [child for child in module._modules if child != "out_proj"]
    if foreign:
        return f"holds more than a {dense.__name__} does: {', '.join(foreign)}"
    hooks = [hook for hook in _STATE_HOOKS if getattr(module, hook)]
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


def _build(module: nn.Module, dtype: torch.dtype | None) -> tuple[nn.Module | None, str]:
    """The compressed layer, or ``None`` and why its values do not allow or do not reward one."""
    sparse: nn.Module
    try:
        if isinstance(module, nn.Linear):
            sparse = SparseLinear.from_dense(module, dtype)
        elif isinstance(module, nn.Conv2d):
            sparse = SparseConv2d.from_dense(module, dtype)
        elif isinstance(module, nn.MultiheadAttention):
            sparse = SparseMultiheadAttention.from_dense(module, dtype)
        else:
            weight: Tensor = module.weight.t()  # type: ignore[operator]
            sparse = SparseLinear.from_weight(weight, module.bias, dtype)  # type: ignore[arg-type]
    except NotSparse24Error as error:
        return None, f"not 2:4: {error.place} hold more than two non-zeros"
    if _bytes(sparse) >= _bytes(module):
        return None, f"2:4, but no smaller when compressed ({_bytes(sparse):,} bytes)"
    return sparse, ""


def _remark(module: nn.Module, names: list[str]) -> str:
    """What a reader should know of a layer that was converted."""
    dense = _dense_class(module)
    remarks = []
    if len(names) > 1:
        remarks.append(f"also {', '.join(names[1:])}")
    if type(module) is not dense:
        remarks.append(f"was a {type(module).__name__}, a subclass of {dense.__name__}")
    if any(getattr(module, hooks) for hooks in _CARRIED_HOOKS):
        remarks.append("hooks carried over")
    device = next(module.parameters()).device
    why_dense = _why_dense(device)
    if why_dense:
        remarks.append(f"{why_dense}: computes through the dense weight")
    return "; ".join(remarks)


def _why_dense(device: torch.device) -> str:
    """Why compressed layers cannot run sparse on a device, on one line; empty: they can."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return "; ".join(cusparselt.why_unavailable(torch.cuda.current_device()).splitlines())
    return "" if device.type == "cpu" else f"no sparse kernel on {device.type}"


def _bytes(module: nn.Module) -> int:
    tensors = (*module.parameters(), *module.buffers())
    return sum(t.numel() * t.element_size() for t in tensors if not nn.parameter.is_lazy(t))


def _weights(module: nn.Module) -> list[Tensor]:
    """The weights of a layer, dense or compressed; the first one's shape stands for the layer."""
    if isinstance(module, SparseLinear | SparseConv2d):
        return [module.weight]
    own = [p for n, p in module._parameters.items() if p is not None and "weight" in n]
    own = [p for p in own if not nn.parameter.is_lazy(p)]
    return own + [weight for child in module.children() for weight in _weights(child)]


def _row(name: str, module: nn.Module, replacement: nn.Module | None, reason: str) -> Row:
    weights = [weight.detach() for weight in _weights(module)]
    total = sum(weight.numel() for weight in weights)
    countable = total > 0 and not any(weight.is_meta for weight in weights)
    kept = sum(int(weight.count_nonzero()) for weight in weights) / total if countable else float("nan")
    before = _bytes(module)
    return Row(
        name=name,
        kind=type(module).__name__,
        shape=tuple(weights[0].shape) if weights else (),
        done=replacement is not None,
        reason=reason,
        kept=kept,
        bytes_before=before,
        bytes_after=before if replacement is None else _bytes(replacement),
    )


def _swap(model: nn.Module, replacements: Mapping[int, nn.Module]) -> None:
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            new = replacements.get(id(child))
            if child is not None and new is not None:
                _carry_over(child, new)
                parent._modules[name] = new
    _set_fused_paths(model)


def _carry_over(old: nn.Module, new: nn.Module) -> None:
    """Hooks (their dictionaries themselves, so that handles still remove them) and public attributes."""
    for hooks in _CARRIED_HOOKS:
        object.__setattr__(new, hooks, getattr(old, hooks))
    new._is_full_backward_hook = old._is_full_backward_hook
    for name, value in vars(old).items():
        if not name.startswith("_") and name != "activation" and name not in vars(new):
            setattr(new, name, value)


def _set_fused_paths(model: nn.Module) -> None:
    """Close torch's fused paths around sparse layers, and reopen those that hold none any more."""
    for module in model.modules():
        for kind, flag, saved in _FUSED_PATHS:
            if not isinstance(module, kind):
                continue
            sparse_inside = any(isinstance(child, _SPARSE) for child in module.modules())
            if sparse_inside and saved not in vars(module):
                setattr(module, saved, getattr(module, flag))
                setattr(module, flag, False)
            elif not sparse_inside and saved in vars(module):
                setattr(module, flag, getattr(module, saved))
                delattr(module, saved)
