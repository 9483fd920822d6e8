"""A network's outputs on example inputs, and whether two of them are the same."""

from __future__ import annotations

import os
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from ..running import as_it_was
from .capture import Captured, arguments_of

#: Largest difference over the largest size, by the narrowest dtype that a network computes in: the sums of a
#: layer in another order. A channel at a wrong place changes outputs by their own size.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class Outputs(NamedTuple):
    """All tensors and numbers of an output."""

    leaves: list[Any]
    doubled: bool  #: computed in float64


def outputs_of(model: nn.Module, example: Any, *, doubled: bool | None = None) -> Outputs:
    """What a network gives: in float64 where that runs and fits into memory, else in its own dtype.

    Random numbers are the same ones every time, and no random state is changed. What a call
    leaves in buffers and attributes is taken back.

    Args:
        doubled: as another time; ``None``: find out.
    """
    states = torch.random.fork_rng(_devices(model))
    with torch.no_grad(), states, as_it_was(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(24)
        if doubled is None:
            doubled = _fits(model)
            if doubled:
                try:
                    return Outputs(_in_double(model, example), doubled=True)
                except Exception:  # noqa: BLE001  whatever it is in float64: what counts is its own dtype
                    torch.manual_seed(24)
            doubled = False
        leaves = _in_double(model, example) if doubled else _as_it_is(model, example)
    return Outputs(leaves, doubled)


def _as_it_is(model: nn.Module, example: Any) -> list[Any]:
    args, kwargs = tree_map_only(Tensor, Tensor.clone, arguments_of(example))  # a pass may write its inputs
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        return _leaves(model(*args, **kwargs))
    finally:
        for buffer, numbers in before:
            if not torch.equal(buffer, numbers):
                buffer.copy_(numbers)


def _in_double(model: nn.Module, example: Any) -> list[Any]:
    def double(tensor: Tensor) -> Tensor:
        dtype = torch.float64 if tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to(dtype, copy=True)

    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    args, kwargs = tree_map_only(Tensor, double, arguments_of(example))
    copies = {name: double(tensor) for name, tensor in tensors.items()}
    return _leaves(torch.func.functional_call(model, copies, args, kwargs))


def _leaves(output: Any) -> list[Any]:
    return [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in tree_flatten(output)[0]]


def difference(before: Outputs, after: Outputs) -> float:
    """The largest difference over the largest size of the tensor; infinite where they are not alike."""
    if len(before.leaves) != len(after.leaves):
        return float("inf")
    found = [_apart(old, new) for old, new in zip(before.leaves, after.leaves, strict=True)]
    return max(found, default=0.0)


def _apart(old: Any, new: Any) -> float:
    if not isinstance(old, Tensor) or not isinstance(new, Tensor):
        plain = bool | int | float | complex | str | bytes | None
        same = type(old) is type(new) and (not isinstance(old, plain) or old == new or old != old)  # noqa: PLR0124
        return 0.0 if same else float("inf")
    if old.shape != new.shape or old.dtype != new.dtype:
        return float("inf")
    if not (old.is_floating_point() or old.is_complex()):
        return 0.0 if torch.equal(old, new) else float("inf")
    finite = old.isfinite()
    if not torch.equal(finite, new.isfinite()) or not torch.equal(old[~finite].isnan(), new[~finite].isnan()):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    wide = torch.complex128 if old.is_complex() else torch.float64
    a, b = old[finite].to(wide), new[finite].to(wide)
    size = float(a.abs().max())
    return float((a - b).abs().max()) / max(size, 1e-30)


def tolerance_of(captured: Captured, before: Outputs) -> float:
    """By the narrowest dtype in the graph: in float64 only what casts on its own is narrower."""
    dtypes = {torch.float64}
    for node in captured.graph.nodes:
        casts = node.op == "call_function" and _is_cast(node)
        example = node.meta.get("val")
        if isinstance(example, Tensor) and (casts or not before.doubled):
            dtypes.add(example.dtype)
    return max(TOLERANCES[dtype] for dtype in dtypes if dtype in TOLERANCES)


def _is_cast(node: fx.Node) -> bool:
    """Whether a node names the dtype of what it gives."""
    return isinstance(node.kwargs.get("dtype"), torch.dtype) or any(
        isinstance(a, torch.dtype) for a in node.args
    )


def _fits(model: nn.Module) -> bool:
    """Whether a copy in float64 takes less than half of the memory that is free."""
    parameters = list(model.parameters())
    devices = {p.device for p in parameters}
    needed = 8 * sum(p.numel() for p in parameters)
    if len(devices) > 1 or any(device.type not in ("cpu", "cuda") for device in devices):
        return False
    if any(device.type == "cuda" for device in devices):
        return needed < torch.cuda.mem_get_info(next(iter(devices)))[0] // 2
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # a system that does not say
        return needed < 1 << 30
    return needed < free // 2


def _devices(model: nn.Module) -> list[torch.device]:
    return list({p.device for p in model.parameters() if p.device.type == "cuda"})
