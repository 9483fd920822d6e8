"""The conversion of a layer whose weights are compressed in their places: which, how they lie, and back."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..masks import kept_share
from ..pruning.by_tensors import weights_by_tensors
from ..pruning.layers import Owners, is_transposed_linear
from ..report import Row
from .convertible import bytes_of, unusable_weight
from .forms import NotSparse24Error, check_weight, form_of
from .held import HeldWeight, helds_of, hold, put_back, release

_PACKED = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


class Place(NamedTuple):
    """A parameter that may be compressed where it is."""

    module: nn.Module
    attribute: str
    name: str  #: of the parameter in the layer: "weight", "out_proj.weight"

    @property
    def weight(self) -> Tensor:
        weight = self.module._parameters[self.attribute]
        assert weight is not None
        return weight


def places_in(layer: nn.Module) -> Iterator[Place]:
    """The weights of a layer that may be compressed in their places."""
    if isinstance(layer, nn.MultiheadAttention):
        for name in _PACKED:
            if layer._parameters.get(name) is not None:
                yield Place(layer, name, name)
        if layer.out_proj._parameters.get("weight") is not None:
            yield Place(layer.out_proj, "weight", "out_proj.weight")
        return
    names = ("weight",) if is_transposed_linear(layer) else tuple(weights_by_tensors(layer))
    for name in names:
        if layer._parameters.get(name) is not None:
            yield Place(layer, name, name)


def why_not(layer: nn.Module, name: str, dtype: torch.dtype | None, owners: Owners) -> dict[str, str]:
    """Why each weight of a layer is not compressed in its place, by its name in the layer; "": it can be."""
    found = {}
    for place in places_in(layer):
        full = f"{name}.{place.name}" if name else place.name
        reason = unusable_weight(place.module, place.attribute, full, dtype, owners)
        found[place.name] = reason or _by_numbers(place, dtype)
    return found


def _by_numbers(place: Place, dtype: torch.dtype | None) -> str:
    weight = place.weight
    form = form_of(place.module, tuple(weight.shape))
    like = HeldWeight(form, "meta", dtype or weight.dtype)
    try:
        check_weight(weight, form, like.values.dtype)
    except NotSparse24Error as error:
        return f"not 2:4: {error.place} hold more than two non-zeros"
    if bytes_of(like) >= weight.numel() * weight.element_size():
        return f"2:4, but no smaller when compressed ({bytes_of(like):,} bytes)"
    return ""


class HeldUndo:
    """How the weights of a layer come back that were compressed in their places."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype | None) -> None:
        self._parameters = [(m, dict(m._parameters)) for m in layer.modules()] if dtype is not None else []
        self._old: list[tuple[nn.Module, str, weakref.ref[nn.Parameter], bool]] = []

    def add(self, place: Place) -> None:
        """Remember a weight that is about to be compressed."""
        old: Any = place.weight
        self._old.append((place.module, place.attribute, weakref.ref(old), old.requires_grad))

    def run(self) -> None:
        """Put the dense weights back."""
        for module, attribute, reference, requires_grad in self._old:
            old, held = reference(), helds_of(module).get(attribute)
            if not isinstance(held, HeldWeight):
                continue  # not compressed yet
            if old is None:
                old = nn.Parameter(held._view().dense(), requires_grad)
            put_back(module, {attribute: old})
        for module, parameters in self._parameters:
            module._parameters.update(parameters)


def convert(
    layer: nn.Module, name: str, reasons: dict[str, str], dtype: torch.dtype | None
) -> tuple[Row, HeldUndo]:
    """Compress the weights of a layer whose reason is empty, in their places; ``dtype`` casts the layer."""
    undo = HeldUndo(layer, dtype)
    shape, before = shape_of(layer), bytes_of(layer)
    kept = kept_share(*(place.weight.detach() for place in places_in(layer)))
    try:
        _compress(layer, reasons, dtype, undo)
    except BaseException:  # an interruption, too
        undo.run()
        raise
    left = [f"{weight} stays dense: {reason}" for weight, reason in reasons.items() if reason]
    remark = "; ".join(["weights compressed in their places", *left])
    return Row(name, type(layer).__name__, shape, True, remark, kept, before, bytes_of(layer)), undo


def _compress(layer: nn.Module, reasons: dict[str, str], dtype: torch.dtype | None, undo: HeldUndo) -> None:
    for place in list(places_in(layer)):
        if not reasons[place.name]:
            undo.add(place)
            form = form_of(place.module, tuple(place.weight.shape))
            held = HeldWeight.from_dense(place.weight.detach(), form, dtype)
            hold(place.module, {place.attribute: held})
    if dtype is not None:
        for module in layer.modules():
            own = {n: p for n, p in module._parameters.items() if p is not None and p.is_floating_point()}
            for own_name, parameter in own.items():
                if parameter.dtype != dtype:
                    cast = nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad)
                    module._parameters[own_name] = cast


def to_dense(layer: nn.Module, name: str) -> Row:
    """Make the compressed weights of a layer dense again, in their places."""
    before = bytes_of(layer)
    for module in layer.modules():
        if hasattr(module, "_held_names"):
            release(module)
    kept = kept_share(*(place.weight.detach() for place in places_in(layer)))
    return Row(name, type(layer).__name__, shape_of(layer), True, "", kept, before, bytes_of(layer))


def shape_of(layer: nn.Module) -> tuple[int, ...]:
    """Of the first weight of a layer that may be compressed."""
    first = next(places_in(layer), None)
    return () if first is None or nn.parameter.is_lazy(first.weight) else tuple(first.weight.shape)


def is_held(layer: nn.Module) -> bool:
    """Whether a layer has compressed weights in the places of its own."""
    if hasattr(layer, "_held_names"):
        return True
    return isinstance(layer, nn.MultiheadAttention) and hasattr(layer.out_proj, "_held_names")
