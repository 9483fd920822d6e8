"""Quantization-aware fine-tuning: int8 is simulated in the forward, gradients pass straight through it.

``prepare_qat`` swaps the 2:4 layers for ones that hold the same parameters, so an optimizer that was made
before keeps working; ``convert`` makes them compressed int8 layers, which compute what was trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import masks
from ..calibrated.blocks import checked_batches
from ..nn import SparseConv2d, SparseConv3d, SparseLinear
from ..nn.convertible import layers_of
from ..nn.swap import carry_over, places_of, put
from ..pruning.layers import is_transposed_linear, stays_dense
from ..pruning.prunable import unwrap
from ..pruning.running import quiet
from ..pruning.sharding import refuse_sharded
from ..report import Report, Row
from .folding import fold_batch_norms
from .observers import LEVELS

Scales = Literal["average", "learned"]
_TINY = torch.finfo(torch.float32).tiny


class _Round(torch.autograd.Function):
    """round(x / scale), from -127 to 127, times scale; the gradient of x is that of clamping.

    That of the scale is LSQ's (Esser et al. 2020): of a value inside (round(v) - v), of one beyond +-127.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ratio = x / scale
        rounded = ratio.round().clamp(-LEVELS, LEVELS)
        ctx.save_for_backward(ratio, rounded)
        ctx.shape = scale.shape
        return (rounded * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        ratio, rounded = ctx.saved_tensors
        inside = ratio.abs() <= LEVELS
        of_scale = None
        if ctx.needs_input_grad[1]:
            slope = torch.where(inside, rounded - ratio, rounded)
            of_scale = (grad * slope).float().sum().reshape(ctx.shape) / math.sqrt(
                max(ratio.numel(), 1) * LEVELS
            )
        return torch.where(inside, grad, 0.0), of_scale


def fake_quantized(x: Tensor, scale: Tensor) -> Tensor:
    """x as int8 by a scale that broadcasts, and back: in the dtype of x, with straight-through gradients."""
    output: Tensor = _Round.apply(x, scale)  # type: ignore[no-untyped-call]
    return output


def scale_of(size: Tensor) -> Tensor:
    """absmax / 127; 1 where that is too small to divide by."""
    scale = size.float() / LEVELS
    return torch.where(scale < _TINY, 1.0, scale)


class _Simulated:
    """What both kinds of layers share: the mask, the scale of the input, and the weight as int8 would be."""

    weight: Any
    mask: Tensor
    input_scale: Tensor
    activations: str | None
    momentum: float
    training: bool

    def _prepare(self, activations: str | None, scales: Scales, momentum: float) -> None:
        module: Any = self
        module.activations, module.momentum = activations, momentum
        module.register_buffer("mask", self.weight.detach() != 0)
        start = torch.zeros((), device=self.weight.device)
        if activations == "static" and scales == "learned":
            module.input_scale = nn.Parameter(start)
        else:
            module.register_buffer("input_scale", start)

    def _weight(self) -> Tensor:
        weight = self.weight * self.mask
        size = weight.detach().abs().flatten(1).amax(1)
        return fake_quantized(weight, scale_of(size).view(-1, *[1] * (weight.dim() - 1)))

    def _input(self, x: Tensor, dims: list[int]) -> Tensor:
        if self.activations is None or x.numel() == 0:
            return x
        if self.activations == "dynamic":
            return fake_quantized(x, scale_of(x.detach().abs().amax(dims, keepdim=True)))
        if self.training or not self.input_scale.detach().any():
            self._look(x.detach())
        return fake_quantized(x, self.input_scale.abs().clamp_min(_TINY))

    @torch.no_grad()
    def _look(self, x: Tensor) -> None:
        """The first batch begins a scale; later ones move an average, and leave one that is learned alone."""
        seen = scale_of(x.abs().amax())
        if not bool(self.input_scale.any()):
            self.input_scale.copy_(seen)
        elif not isinstance(self.input_scale, nn.Parameter):
            self.input_scale.lerp_(seen, 1 - self.momentum)


class QatLinear(_Simulated, nn.Linear):
    """``nn.Linear`` with a 2:4 weight and an input that become int8 in the forward, and stay floating."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(self._input(input, [-1]), self._weight(), self.bias)


class QatConv2d(_Simulated, nn.Conv2d):
    """The same for ``nn.Conv2d``; a dynamic scale is an image's."""

    def forward(self, input: Tensor) -> Tensor:
        weight, x = self._weight(), self._input(input, [-3, -2, -1])
        output: Tensor = self._conv_forward(x, weight, self.bias)
        return output


def prepare_qat(
    model: nn.Module,
    activations: str | None = "static",
    *,
    scales: Scales = "average",
    momentum: float = 0.9,
    batches: Iterable[Any] | None = None,
    fold: bool = True,
) -> Report:
    """Swap the 2:4 ``Linear`` and ``Conv2d`` of ``model`` for layers that simulate int8, in place.

    They hold the same parameters under the same names, so an optimizer made before goes on, any of them;
    pruned weights count as zero and get no gradient. Then train as usual, and call :func:`convert`.

    Args:
        model: pruned to 2:4, dense.
        activations: "static": one scale a layer. "dynamic": one a token (an image). ``None``: weights alone.
        scales: of "static": "average": moving averages of the largest magnitudes; "learned": parameters
            ``input_scale``, trained by LSQ's gradient: make the optimizer after this call then.
        momentum: of averages, 0 to 1.
        batches: one or more, to fold batch norms by: the first one is run before and after.
        fold: fold batch norms into the convolutions before them, where ``batches`` show that outputs stay
            the same.

    Returns:
        One row a layer.

    Raises:
        TypeError: no module, or batches of another kind.
        ValueError: an unknown word, no 2:4 layer, layers that are compressed or prepared already.
    """
    network = unwrap(_checked(model))
    refuse_sharded(network, "prepare_qat")
    if activations not in ("static", "dynamic", None):
        raise ValueError(f"activations must be 'static', 'dynamic' or None, not {activations!r}")
    if scales not in ("average", "learned"):
        raise ValueError(f"scales must be 'average' or 'learned', not {scales!r}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be from 0 to below 1, not {momentum}")
    if scales == "learned" and activations != "static":
        raise ValueError(f"learned scales belong to activations='static', not to {activations!r}")
    kept = None if batches is None else checked_batches(batches)
    kinds = {type(module) for module in network.modules()}
    if kinds & {QatLinear, QatConv2d, SparseLinear, SparseConv2d, SparseConv3d}:
        raise ValueError(
            "the model is compressed or prepared already: prepare_qat takes a dense 2:4 model, once"
        )
    rows, found = [], []
    for name, layer in layers_of(network):
        reason = _why_not(layer)
        rows.append(_row(name, layer, reason))
        if not reason:
            found.append(layer)
    if not found:
        raise ValueError("the model has no 2:4 Linear or Conv2d: prune it first (Sparsifier, oneshot)")
    if fold and kept is not None:
        with quiet(network), torch.no_grad():
            folded, _ = fold_batch_norms(network, kept[0])
        rows += folded
    places = places_of(network)
    for layer in found:
        put(_simulated(layer, activations, scales, momentum), places[id(layer)])
    return Report(tuple(rows), "prepared")


def _checked(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"a torch.nn.Module is needed, not {type(model).__name__}")
    return model


def _why_not(layer: nn.Module) -> str:
    if isinstance(layer, nn.MultiheadAttention) or is_transposed_linear(layer):
        return f"{type(layer).__name__} is not simulated: it is quantized after training"
    if reason := stays_dense(layer):
        return reason
    if type(layer) not in (nn.Linear, nn.Conv2d):
        return f"a {type(layer).__name__} is not simulated"
    weight: Any = layer.weight
    return "" if masks.is_sparse24(weight.detach()) else "its weight is not 2:4"


def _simulated(layer: Any, activations: str | None, scales: Scales, momentum: float) -> nn.Module:
    kind = QatLinear if isinstance(layer, nn.Linear) else QatConv2d
    made: Any = kind.__new__(kind)
    made.__dict__.update(vars(layer))
    for kept in ("_parameters", "_buffers", "_modules"):
        object.__setattr__(made, kept, dict(getattr(layer, kept)))
    carry_over(layer, made)
    made._prepare(activations, scales, momentum)
    return made  # type: ignore[no-any-return]


def convert(model: nn.Module) -> Report:
    """Make the layers of :func:`prepare_qat` compressed int8 layers, in place: they compute what was trained.

    Returns:
        One row a layer.

    Raises:
        TypeError: no module.
        ValueError: no layer was prepared; a weight is no longer finite, or a static scale has seen no batch.
            Nothing has changed then.
    """
    network = unwrap(_checked(model))
    layers: dict[str, Any] = {
        n: m for n, m in network.named_modules() if isinstance(m, QatLinear | QatConv2d)
    }
    if not layers:
        raise ValueError("no layer was prepared: call prepare_qat first")
    made = {}
    for name, layer in layers.items():
        scale = float(layer.input_scale.detach().abs())
        if layer.activations == "static" and not 0 < scale < math.inf:
            raise ValueError(f"{name} has no input scale ({scale}): run the prepared model on a batch first")
        try:
            made[name] = _compressed(layer, scale)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    places = places_of(network)
    rows = []
    for name, sparse in made.items():
        carry_over(layers[name], sparse)
        for own in ("mask", "activations", "momentum"):
            vars(sparse).pop(own, None)
        put(sparse, places[id(layers[name])])
        rows.append(_row(name, layers[name], "", sparse))
    return Report(tuple(rows), "quantized")


def _compressed(layer: Any, scale: float) -> nn.Module:
    """An int8 layer of a prepared one's numbers."""
    dense = nn.Linear if isinstance(layer, nn.Linear) else nn.Conv2d
    plain: Any = dense.__new__(dense)
    plain.__dict__.update(vars(layer))
    weight = nn.Parameter((layer.weight * layer.mask).detach(), requires_grad=False)
    object.__setattr__(plain, "_parameters", {"weight": weight, "bias": layer.bias})
    object.__setattr__(plain, "_buffers", {})
    sparse: Any = (SparseLinear if dense is nn.Linear else SparseConv2d).from_dense(plain)
    made: nn.Module = sparse.to_int8(layer.activations, scale if layer.activations == "static" else None)
    return made


def _row(name: str, layer: nn.Module, reason: str, sparse: nn.Module | None = None) -> Row:
    weight = getattr(layer, "weight", None)
    shape = tuple(weight.shape) if isinstance(weight, Tensor) else ()
    before = sum(p.nbytes for p in layer.parameters())
    after = before if sparse is None else sum(t.nbytes for t in (*sparse.parameters(), *sparse.buffers()))
    kept = masks.kept_share(weight.detach()) if isinstance(weight, Tensor) else 1.0
    return Row(name, type(layer).__name__, shape, not reason, reason, kept, before, after)
