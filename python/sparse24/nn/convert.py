"""``to_sparse`` and ``to_dense``: swap the layers of a network in place, and say what became of each.

A little over 300 lines: both ways stay together, and a third of them is their contract.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..masks import kept_share
from ..ops import machine, names_of
from ..ops.cuda import cusparselt
from ..pruning.by_tensors import weights_by_tensors
from ..pruning.layers import DENSE, dense_class, is_transposed_linear, stays_dense
from ..report import Report, Row
from . import by_tensors
from .attention import SparseMultiheadAttention
from .by_tensors import HeldUndo
from .compressed import DTYPES
from .conv2d import SparseConv2d
from .conv3d import SparseConv3d
from .convertible import (
    FilterFn,
    bytes_of,
    layers_of,
)
from .dense_loads import accept_compressed
from .fuse import folds_of
from .held import HeldWeight
from .kinds import SPARSE, ProductLayer
from .linear import SparseLinear
from .plan import How, by_tensors_alone, plan_of
from .swap import CARRIED_HOOKS, Places, Undo, carry_over, places_of, put, set_fused_paths
from .weight import CompressedWeight


class Verdict(NamedTuple):
    """Whether a layer that can be converted should be, and what its row says."""

    sparse: bool
    remark: str


_NO_FIGURES = Verdict(
    False, 'no figures for layers of this kind: stays dense with when="faster"; when="always" compresses it'
)
#: Asked once, with all layers that can be converted, by name; tells of each.
Decide = Callable[[dict[str, nn.Module]], dict[str, Verdict]]


def to_sparse(
    model: nn.Module,
    dtype: torch.dtype | None = None,
    filter_fn: FilterFn | None = None,
    decide: Decide | None = None,
    how: How = "modules",
) -> Report:
    """Replace the pruned layers of ``model`` by compressed ones, in place: all that can run, or as ``decide``
    says (``sparse24.to_sparse`` asks what is faster).

    ``Linear``, ``Conv2d``, ``Conv3d``, ``MultiheadAttention`` and transformers' ``Conv1D`` are replaced where
    their weight is 2:4 along the input channels. One-dimensional convolutions, recurrent layers, stacks of
    experts and subclasses with a ``forward`` that pads or casts stay, with compressed weights in the places
    of their own (``nn.held``), and so do all layers with ``how="tensors"``. The rest stays, and the report
    says why. A module registered under several names is converted once. Hooks around ``forward``, the
    training flag and public attributes are carried over. torch's fused path for transformer encoders, which
    would read dense weights, is switched off; outputs at padded positions are then those of the unfused path.

    All layers are looked at first; then one after the other is converted and its dense weight let go, so
    that memory peaks little above the dense network's (a layer that is cast is held until the end). A
    failure or an interruption restores what was converted.

    Args:
        model: the network; converted layers are for inference, so convert after training.
        dtype: cast the converted layers to it (float32, float16, bfloat16). Their inputs must then have
            this dtype: cast the rest of the model too, or run under autocast.
        filter_fn: ``filter_fn(name, module) -> bool``, false for a layer to leave as it is.
        decide: which of the layers that can be converted are; default: every one. Those of which it is not
            asked (recurrent layers and the like) stay dense then.
        how: "modules" or "tensors", see above.

    Returns:
        One row a layer, in model order; bytes count weight (values and indices) and bias.

    Raises:
        TypeError: ``model`` is no module, or another dtype.
        ValueError: ``model`` itself is the layer, which cannot be swapped in place; another ``how``.
    """
    if how not in ("modules", "tensors"):
        raise ValueError(f'how must be "modules" or "tensors", not {how!r}')
    if not isinstance(model, nn.Module):
        raise TypeError(f"to_sparse needs an nn.Module, not {type(model).__name__}")
    if dtype is not None and dtype not in DTYPES:
        raise TypeError(f"dtype must be one of {names_of(DTYPES)}, not {dtype}")
    if not by_tensors_alone(model, how):
        _refuse_root(model, (*DENSE, *SPARSE), "from_dense of the sparse class")
    aliases, places = _aliases(model), places_of(model)
    plan = plan_of(model, dtype, filter_fn, how)
    verdicts = {}
    if decide is not None:
        able = {p.name: model.get_submodule(p.name) for p in plan if not p.reason}
        verdicts = {name: _NO_FIGURES for name, module in able.items() if stays_dense(module)}
        verdicts |= decide({name: module for name, module in able.items() if name not in verdicts})
    rows: list[Row] = []
    undo: list[Undo | HeldUndo] = []
    try:
        for planned in plan:
            name, module = planned.name, model.get_submodule(planned.name)
            verdict = verdicts.get(name, Verdict(not planned.reason, planned.reason))
            if planned.weights is not None and verdict.sparse:
                row, held = by_tensors.convert(module, name, planned.weights, dtype)
                rows.append(row)
                undo.append(held)
                continue
            row, done = _convert(module, name, verdict, dtype, places, aliases)
            del module  # or the dense weights would live on
            rows.append(row)
            undo += done
        set_fused_paths(model)
    except BaseException:  # an interruption too
        for each in reversed(undo):
            each.run()
        set_fused_paths(model)
        raise
    for row in rows:
        if not row.done:
            accept_compressed(model.get_submodule(row.name))
    machine.give_memory_back()
    return Report(tuple(rows))


def _convert(
    module: nn.Module, name: str, verdict: Verdict, dtype: torch.dtype | None, places: dict[int, Places],
    aliases: dict[int, list[str]],
) -> tuple[Row, list[Undo]]:  # fmt: skip
    """Put the compressed layer in; the dense one is free when the caller has let go of it."""
    if not verdict.sparse:
        return row_of(name, module, None, verdict.remark), []
    sparse = build(module, dtype)
    remarks = (_remark(module, aliases.get(id(module), [])), verdict.remark)
    row = row_of(name, module, sparse, "; ".join(filter(None, remarks)))
    is_cast = any(p.is_floating_point() and dtype not in (None, p.dtype) for p in module.parameters())
    undo = Undo(module, sparse, places[id(module)], is_cast)
    carry_over(module, sparse)
    put(sparse, places[id(module)])
    return row, [undo]


def to_dense(model: nn.Module) -> Report:
    """Replace the compressed layers of ``model`` by dense ones, in place: the inverse of :func:`to_sparse`.

    The pruned weights stay zero, and activations that were folded are in their places again. What was
    transformers' ``Conv1D`` comes back as one, [in, out]. Dense layers, those that have always been so among
    them, load checkpoints of compressed ones from then on.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: ``model`` itself is the layer, which cannot be swapped in place.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"to_dense needs an nn.Module, not {type(model).__name__}")
    _refuse_root(model, SPARSE, "its method to_dense()")
    places = places_of(model)
    folds = folds_of(model)
    rows: list[Row] = []
    replacements: list[tuple[nn.Module, nn.Module]] = []
    in_place: list[int] = []  # rows of layers with compressed weights in their places
    for name, module in layers_of(model):
        if by_tensors.is_held(module):
            in_place.append(len(rows))
            rows.append(row_of(name, module, None, ""))
            continue
        if not isinstance(module, SPARSE):
            continue
        activation = getattr(module, "activation", "none")
        if activation != "none" and id(module) not in folds:
            rows.append(row_of(name, module, None, f"fuses activation={activation!r}"))
            continue
        dense = dense_of(module if activation == "none" else without_activation(module))
        replacements.append((module, dense))
        rows.append(row_of(name, module, dense, ""))
    for at in in_place:
        rows[at] = by_tensors.to_dense(model.get_submodule(rows[at].name), rows[at].name)
    for old, new in replacements:  # every one is built: nothing can fail half-way
        carry_over(old, new)
        put(new, places[id(old)])
        if id(old) in folds:
            folds[id(old)].put(*folds[id(old)].activation.folded)
    set_fused_paths(model)
    for _, module in layers_of(model):
        accept_compressed(module)
    return Report(tuple(rows))


def dense_of(module: ProductLayer | SparseMultiheadAttention) -> nn.Module:
    """What a compressed layer was: its ``to_dense()``, or transformers' ``Conv1D``."""
    dense = module.to_dense()
    conv1d = getattr(module, "_dense_class", None)
    if conv1d is None:
        return dense
    assert isinstance(dense, nn.Linear)
    with torch.device("meta"):  # no random numbers are drawn
        restored: nn.Module = conv1d(dense.out_features, dense.in_features)
    restored.weight = nn.Parameter(dense.weight.detach().t().contiguous())
    restored.bias = dense.bias
    return restored.train(module.training)


def without_activation(layer: nn.Module) -> Any:
    """The layer, sharing its tensors, as if nothing had been folded into it."""
    twin: Any = object.__new__(type(layer))
    twin.__dict__.update(layer.__dict__, activation="none")
    return twin


def _refuse_root(model: nn.Module, kinds: tuple[type[nn.Module], ...], instead: str) -> None:
    if isinstance(model, kinds) or is_transposed_linear(model):
        raise ValueError(
            f"the model is itself a {type(model).__name__}, which cannot be swapped in place: use {instead}"
        )


def _aliases(model: nn.Module) -> dict[int, list[str]]:
    """All names of every module, by its identity."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return names


def build(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """The compressed layer of a dense one that can be converted; ``dtype`` casts it."""
    if isinstance(module, nn.Linear):
        return SparseLinear.from_dense(module, dtype)
    if isinstance(module, nn.Conv2d):
        return SparseConv2d.from_dense(module, dtype)
    if isinstance(module, nn.Conv3d):
        return SparseConv3d.from_dense(module, dtype)
    if isinstance(module, nn.MultiheadAttention):
        return SparseMultiheadAttention.from_dense(module, dtype)
    weight: Tensor = module.weight.t()  # type: ignore[operator]
    sparse = SparseLinear.from_weight(weight, module.bias, dtype)  # type: ignore[arg-type]
    sparse._dense_class = dense_class(module)
    return sparse


def _remark(module: nn.Module, names: list[str]) -> str:
    """What a reader should know of a layer that was converted."""
    dense = dense_class(module)
    assert dense is not None
    remarks = []
    if len(names) > 1:
        remarks.append(f"also {', '.join(names[1:])}")
    if type(module) is not dense:
        remarks.append(f"was a {type(module).__name__}, a subclass of {dense.__name__}")
    if any(getattr(module, hooks) for hooks in CARRIED_HOOKS):
        remarks.append("hooks carried over")
    device = next(module.parameters()).device
    why_dense = why_device_dense(device)
    if why_dense:
        remarks.append(f"{why_dense}: computes through the dense weight")
    return "; ".join(remarks)


def why_device_dense(device: torch.device) -> str:
    """Why compressed layers cannot run sparse on a device, on one line; empty: they can."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return "; ".join(cusparselt.why_unavailable(torch.cuda.current_device()).splitlines())
    return "" if device.type == "cpu" else f"no sparse kernel on {device.type}"


def _weights(module: nn.Module) -> list[Tensor]:
    """The weights of a layer, dense or compressed; the first one's shape stands for the layer."""
    if isinstance(module, ProductLayer):
        return [module.weight]
    if by_tensors.is_held(module):
        return [each._view() for each in module.modules() if isinstance(each, HeldWeight)]
    if weights_by_tensors(module):
        return [
            place.weight for place in by_tensors.places_in(module) if not nn.parameter.is_lazy(place.weight)
        ]
    own = [p for n, p in module._parameters.items() if p is not None and "weight" in n]
    own = [p for p in own if not nn.parameter.is_lazy(p)]
    return own + [weight for child in module.children() for weight in _weights(child)]


def row_of(name: str, module: nn.Module, replacement: nn.Module | None, reason: str) -> Row:
    weights = [weight.detach() for weight in _weights(module)]
    numbers = (w.dense() if isinstance(w, CompressedWeight) and not w.is_meta else w for w in weights)
    before = bytes_of(module)
    return Row(
        name=name,
        kind=type(module).__name__,
        shape=tuple(weights[0].shape) if weights else (),
        done=replacement is not None,
        reason=reason,
        kept=kept_share(*numbers),
        bytes_before=before,
        bytes_after=before if replacement is None else bytes_of(replacement),
    )
