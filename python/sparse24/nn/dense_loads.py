"""Checkpoints load both ways: ``values`` and ``indices`` into dense layers here, a 2:4 ``weight`` into
compressed ones in :mod:`.compressed`. So a file does not depend on which layers of a network stayed dense.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..pruning.by_tensors import weights_by_tensors
from . import int8
from .attention import SparseMultiheadAttention
from .compressed import FORMAT, CompressedModule
from .conv2d import SparseConv2d
from .conv3d import SparseConv3d
from .convolution import conv_arguments
from .forms import form_of
from .guard import CHILD, is_guard
from .held import HeldWeight
from .linear import SparseLinear

#: What a compressed layer has in a state_dict instead of ``weight``; the scales only where values are int8.
_KEYS = ("values", "indices", "weight_scale", "input_scale")


def compressed_like(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """The compressed layer for ``module`` on the meta device: its shapes and bytes, no numbers."""
    if isinstance(module, nn.MultiheadAttention):
        return SparseMultiheadAttention.like(module, dtype)
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    if isinstance(module, nn.Conv2d):
        return SparseConv2d(**conv_arguments(module), device="meta", dtype=dtype or weight.dtype)
    if isinstance(module, nn.Conv3d):
        return SparseConv3d(**conv_arguments(module), device="meta", dtype=dtype or weight.dtype)
    rows, columns = weight.shape if isinstance(module, nn.Linear) else reversed(weight.shape)
    return SparseLinear(columns, rows, bias is not None, "meta", dtype or weight.dtype)


def accept_compressed(module: nn.Module) -> None:
    """Let a dense layer (of torch.nn, or transformers' ``Conv1D``) load ``values`` and ``indices``, too."""
    known = any(is_own_hook(hook) for hook in module._load_state_dict_pre_hooks.values())
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
    fits = isinstance(module, kinds) or type(module).__name__ == "Conv1D" or bool(weights_by_tensors(module))
    if not known and fits:
        module.register_load_state_dict_pre_hook(load_compressed)  # type: ignore[no-untyped-call]


def is_own_hook(hook: Any) -> bool:
    """Whether a load hook of a module is the one of :func:`accept_compressed`."""
    return getattr(hook, "hook", None) is load_compressed


def load_compressed(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool,
    missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
) -> None:  # fmt: skip
    """Before a dense layer loads: turn what a compressed one wrote into ``weight``, in the caller's dict.

    What cannot be read is one of ``error_msgs``, and the layer keeps what it holds.
    """
    for name, parameter in module._parameters.items():
        held = f"{prefix}{CHILD}.{name}."
        if f"{held}indices" in state_dict and parameter is not None:
            _load_parameter(module, parameter, state_dict, prefix + name, held, error_msgs)
    if isinstance(module, nn.MultiheadAttention):
        _load_attention(module, state_dict, prefix, error_msgs)
        return
    if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d) or type(module).__name__ == "Conv1D":
        _load_weight(module, state_dict, prefix, local_metadata, error_msgs)


def _load_parameter(
    module: nn.Module, own: Tensor, state_dict: dict[str, Any], name: str, held: str, error_msgs: list[str]
) -> None:
    """``values`` and ``indices``, whose names begin with ``held``, as the parameter ``name``."""
    like = HeldWeight(form_of(module, tuple(own.shape)), "meta", torch.float32)
    try:
        state_dict[name] = _taken(like, state_dict, held, FORMAT)
    except _UnreadableError as problem:
        error_msgs.append(f"{held}{problem}")
        state_dict[name] = own
        _drop(state_dict, held)


def _load_weight(
    module: Any,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    error_msgs: list[str],
) -> None:
    """``values`` and ``indices`` as ``weight``."""
    if prefix + "values" not in state_dict and prefix + "indices" not in state_dict:
        return
    if prefix + "weight" in state_dict and is_guard(prefix + "weight", state_dict):
        del state_dict[prefix + "weight"]
    if prefix + "weight" in state_dict or not isinstance(module.weight, Tensor):
        return  # torch itself says what is unexpected
    version = local_metadata.get("version") or FORMAT
    like = compressed_like(module, torch.float32)
    assert isinstance(like, CompressedModule)
    try:
        weight = _taken(like, state_dict, prefix, version)
    except _UnreadableError as problem:
        error_msgs.append(f"{prefix}{problem}")
        weight = module.weight.detach()
        if isinstance(module.bias, Tensor):
            state_dict[prefix + "bias"] = module.bias
        _drop(state_dict, prefix)
    else:
        is_conv1d = not isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d)
        weight = weight.t().contiguous() if is_conv1d else weight
    state_dict[prefix + "weight"] = weight


class _UnreadableError(ValueError):
    """A compressed weight that a dense layer cannot hold."""


def _drop(state_dict: dict[str, Any], prefix: str) -> None:
    for key in _KEYS:
        state_dict.pop(prefix + key, None)


def _taken(like: CompressedModule, state_dict: dict[str, Any], prefix: str, version: int) -> Tensor:
    """The dense weight [out, ...] of what ``state_dict`` holds under ``prefix``, whose keys are taken out.

    Raises:
        _UnreadableError: it is damaged, of another shape, or of a newer format.
    """
    if version > FORMAT:
        raise _UnreadableError(
            f"values and indices have format {version}, newer than {FORMAT}: update sparse24"
        )
    values, indices, *scales = (state_dict.get(prefix + key) for key in _KEYS)
    problem = like._problem_with(values, indices, state_dict.get(prefix + "bias"))
    problem = problem or int8.problem_with(like, values, *scales)
    if problem is not None or values is None or indices is None:
        raise _UnreadableError(problem)
    if scales[0] is not None or values.dtype in int8.FLOAT8:
        values = values.float() * (1.0 if scales[0] is None else scales[0].unsqueeze(1))
    matrix: Tensor = torch.ops.sparse24.decompress(values.detach().contiguous(), indices.contiguous())
    _drop(state_dict, prefix)
    return like._form.to_weight(matrix).contiguous()


def _load_attention(
    module: nn.MultiheadAttention, state_dict: dict[str, Any], prefix: str, error_msgs: list[str]
) -> None:
    """``q_proj.values`` and the rest of a SparseMultiheadAttention, as the names of the dense one."""
    if prefix + "q_proj.values" not in state_dict:
        return
    like = SparseMultiheadAttention.like(module, torch.float32)
    found: dict[str, Tensor] = {}
    try:
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            layer = getattr(like, name)
            found[name] = _taken(layer, state_dict, f"{prefix}{name}.", FORMAT)
    except _UnreadableError as problem:
        error_msgs.append(f"{prefix}{problem}")
        for key in [key for key in state_dict if key.startswith(prefix)]:
            del state_dict[key]
        state_dict.update({f"{prefix}{key}": own for key, own in module.state_dict().items()})
        return
    state_dict.update({f"{prefix}{key}": tensor for key, tensor in _packed(module, found)})
    biases = [state_dict.pop(f"{prefix}{name}.bias", None) for name in ("q_proj", "k_proj", "v_proj")]
    if all(bias is not None for bias in biases) and module.in_proj_bias is not None:
        state_dict[prefix + "in_proj_bias"] = torch.cat(biases)


def _packed(module: nn.MultiheadAttention, found: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    inputs = [found[name] for name in ("q_proj", "k_proj", "v_proj")]
    if module._qkv_same_embed_dim:
        yield "in_proj_weight", torch.cat(inputs)
    else:
        yield from zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), inputs, strict=True)
    yield "out_proj.weight", found["out_proj"]
