"""Scales that move into a neighbouring layer: a batch norm into its convolution, outliers into a weight.

What follows what is seen, not guessed: a network runs on one batch, and a norm that is given exactly the
tensor that a convolution has just returned follows it. What else reads that tensor is not seen; so outputs
are compared, and what changed them is taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..nn import SparseLinear
from ..nn.convolution import CompressedConvolution
from ..nn.swap import put
from ..pruning.running import run_batch
from ..report import Row

#: Largest difference of outputs that rounding may make, over their largest magnitude.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float64: 1e-8}
_NORMS = (nn.LayerNorm, nn.RMSNorm)
_FOLDED = (nn.BatchNorm2d, nn.BatchNorm3d)

#: Takes a change back.
Undo = Callable[[], None]


def outputs_of(model: nn.Module, batch: Any) -> list[Tensor]:
    """All floating tensors that the model returns."""
    return [
        x for x in tree_leaves(run_batch(model, batch)) if isinstance(x, Tensor) and x.is_floating_point()
    ]


def differs(before: list[Tensor], after: list[Tensor]) -> bool:
    """Whether outputs are others than rounding explains."""
    if len(before) != len(after):
        return True
    return any(
        bool((a.double() - b.double()).abs().max() > TOLERANCE.get(a.dtype, 1e-4) * b.double().abs().max())
        for b, a in zip(before, after, strict=True)
        if a.numel()
    )


@torch.no_grad()
def given_by(
    model: nn.Module,
    batch: Any,
    sources: Mapping[str, nn.Module],
    takers: Mapping[str, nn.Module],
) -> dict[str, str]:
    """For each of ``takers`` whose first argument always is what one of ``sources`` returned: that one."""
    returned: dict[int, tuple[str, Tensor]] = {}  # tensors stay alive, so no number is used twice
    found: dict[str, set[str]] = {}
    calls: dict[str, int] = {}

    def leaves(name: str) -> Callable[..., None]:
        def note(_: nn.Module, __: Any, output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            if isinstance(output, Tensor):
                returned[id(output)] = (name, output)

        return note

    def comes(name: str) -> Callable[..., None]:
        def note(_: nn.Module, args: tuple[Any, ...]) -> None:
            known = returned.get(id(args[0])) if args else None
            found.setdefault(name, set()).add("" if known is None else known[0])

        return note

    handles = [module.register_forward_hook(leaves(name)) for name, module in sources.items()]
    handles += [module.register_forward_pre_hook(comes(name)) for name, module in takers.items()]
    try:
        run_batch(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    single = {name: next(iter(names)) for name, names in found.items() if len(names) == 1}
    return {name: source for name, source in single.items() if source and calls.get(source) == 1}


def fold_batch_norms(model: nn.Module, batch: Any) -> tuple[list[Row], list[Undo]]:
    """Fold each batch norm that follows a convolution into it; an identity stands in its place.

    The model is in eval mode. Returns a row for each folded norm, and how to take it all back.
    """
    convolutions = {
        n: m
        for n, m in model.named_modules()
        if isinstance(m, CompressedConvolution) or type(m) in (nn.Conv2d, nn.Conv3d)
    }
    norms: dict[str, Any] = {n: m for n, m in model.named_modules() if type(m) in _FOLDED}
    norms = {n: m for n, m in norms.items() if m.track_running_stats}
    pairs = given_by(model, batch, convolutions, norms) if norms else {}
    before = outputs_of(model, batch) if pairs else []
    changes = {
        norm: lambda norm=norm, convolution=convolution: _fold(model, convolutions[convolution], norm)
        for norm, convolution in pairs.items()
        if getattr(convolutions[convolution], "activation", "none") == "none"
    }
    kept, undo = apply_checked(model, batch, before, changes)
    why = "folded into the convolution before it"
    rows = [
        Row(n, type(norms[n]).__name__, (), done=False, reason=why, kept=1.0, bytes_before=0, bytes_after=0)
        for n in kept
    ]
    return rows, undo


def apply_checked(
    model: nn.Module,
    batch: Any,
    before: list[Tensor],
    changes: Mapping[str, Callable[[], Undo]],
) -> tuple[list[str], list[Undo]]:
    """Make all changes; where outputs then differ, one after the other, those that change nothing."""
    undo = [change() for change in changes.values()]
    if not undo or not _differs(model, batch, before):
        return list(changes), undo
    for each in reversed(undo):
        each()
    kept, undo = [], []
    for name, change in changes.items():
        back = change()
        if _differs(model, batch, before):
            back()
        else:
            kept.append(name)
            undo.append(back)
    return kept, undo


def _differs(model: nn.Module, batch: Any, before: list[Tensor]) -> bool:
    """Whether the network now returns something else, or fails."""
    try:
        return differs(before, outputs_of(model, batch))
    except (RuntimeError, TypeError, ValueError):
        return True


def _fold(model: nn.Module, convolution: Any, name: str) -> Undo:
    norm: Any = model.get_submodule(name)
    parent, _, own = name.rpartition(".")
    place = [(model.get_submodule(parent), own)]
    weight = norm.weight if norm.affine else torch.ones_like(norm.running_mean)
    scale = (weight.double() / (norm.running_var.double() + norm.eps).sqrt()).detach()
    shift = (norm.bias.double() if norm.affine else 0.0) - norm.running_mean.double() * scale
    bias = convolution.bias
    held = convolution.values if isinstance(convolution, CompressedConvolution) else convolution.weight
    numbers, had = held.detach().clone(), None if bias is None else bias.detach().clone()
    new = shift if bias is None else bias.detach().double() * scale + shift
    with torch.no_grad():
        held.copy_(held.double() * scale.view(-1, *[1] * (held.dim() - 1)))
        if bias is None:
            convolution.register_parameter(
                "bias", nn.Parameter(new.to(held.dtype), requires_grad=held.requires_grad)
            )
        else:
            bias.copy_(new)
    put(nn.Identity(), place)

    def back() -> None:
        with torch.no_grad():
            held.copy_(numbers)
            if bias is None:
                convolution.register_parameter("bias", None)
            else:
                bias.copy_(had)
        put(norm, place)

    return back


def migrate_outliers(
    model: nn.Module,
    batch: Any,
    layers: Mapping[str, nn.Module],
    absmax: Mapping[str, Tensor],
    strength: float,
) -> tuple[list[str], list[Undo]]:
    """SmoothQuant (Xiao et al. 2023): a norm's output channels are divided by s, weights get it back.

    s_j = absmax_j^strength / wmax_j^(1 - strength), the largest weights of all layers that read the norm.

    Args:
        layers: compressed linear layers by name.
        absmax: of each channel of their inputs, by name of the layer.
        strength: from 0 to 1: how much of the difficulty moves into the weights.
    """
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _NORMS)}
    pairs = given_by(model, batch, norms, {n: m for n, m in layers.items() if isinstance(m, SparseLinear)})
    before = outputs_of(model, batch) if pairs else []
    readers: dict[str, list[str]] = {}
    for layer, norm in pairs.items():
        readers.setdefault(norm, []).append(layer)
    changes = {
        norm: lambda norm=norm, names=names: _migrate(
            norms[norm], [layers[n] for n in names], absmax[names[0]], strength
        )
        for norm, names in readers.items()
        if getattr(norms[norm], "weight", None) is not None
    }
    return apply_checked(model, batch, before, changes)


def _migrate(norm: Any, readers: list[Any], absmax: Tensor, strength: float) -> Undo:
    dense = [
        reader.weight.to_dense() if hasattr(reader.weight, "to_dense") else reader.weight
        for reader in readers
    ]
    largest = torch.stack([w.detach().abs().float().amax(0) for w in dense]).amax(0)
    floor = torch.finfo(torch.float32).tiny
    s = absmax.float().clamp_min(floor).pow(strength) / largest.clamp_min(floor).pow(1 - strength)
    s = torch.where((absmax > 0) & (largest > 0) & s.isfinite() & (s > 0), s, 1.0)
    held = [p for p in (norm.weight, getattr(norm, "bias", None)) if p is not None]
    numbers = [p.detach().clone() for p in held]
    values = [reader.values.detach().clone() for reader in readers]
    with torch.no_grad():
        for parameter in held:
            parameter.copy_(parameter.float() / s)
        for reader in readers:
            reader.values.copy_(reader.values.float() * _of_kept(s, reader))

    def back() -> None:
        with torch.no_grad():
            for parameter, number in zip(held, numbers, strict=True):
                parameter.copy_(number)
            for reader, number in zip(readers, values, strict=True):
                reader.values.copy_(number)

    return back


def _of_kept(s: Tensor, layer: SparseLinear) -> Tensor:
    """s [in] of each kept value [out, in / 2]."""
    columns = layer.values.shape[1] * 2
    padded = torch.ones(columns, device=s.device)
    padded[: len(s)] = s
    bits = layer.indices.unsqueeze(-1) >> torch.arange(0, 8, 2, device=s.device, dtype=torch.uint8) & 3
    places = bits.flatten(1).long() + 4 * (torch.arange(columns // 2, device=s.device) // 2)
    return padded[places]
