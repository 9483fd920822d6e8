"""What ``to_sparse`` is going to do with every layer, and why it leaves one as it is."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import nn

from ..pruning import prunable
from ..pruning.by_tensors import weights_by_tensors
from ..pruning.layers import Owners, stays_dense
from . import by_tensors
from .convertible import FilterFn, layers_of, why_not_sparse, why_refused

How = Literal["modules", "tensors"]


class Planned(NamedTuple):
    """What is to become of a layer."""

    name: str
    reason: str  #: why it is left as it is, or ""
    weights: dict[str, str] | None  #: of one whose weights are compressed in their places: why not which


def by_tensors_alone(module: nn.Module, how: How) -> bool:
    """Whether a layer's weights are compressed in their places, if at all."""
    return how == "tensors" or bool(stays_dense(module) and weights_by_tensors(module))


def plan_of(
    model: nn.Module, dtype: torch.dtype | None, filter_fn: FilterFn | None, how: How
) -> list[Planned]:
    """Every layer: all are looked at before the first is touched."""
    owners = Owners(model)
    found = []
    for name, module in layers_of(model):
        in_place = by_tensors_alone(module, how)
        reason = why_refused(name, module, dtype, owners, filter_fn, in_place)
        weights = None
        if in_place and not reason:
            weights = by_tensors.why_not(module, name, dtype, owners)
            reason = _first_reason(module, weights)
        elif not reason:
            reason = why_not_sparse(module, dtype)
        found.append(Planned(name, reason, weights))
    return found


def _first_reason(module: nn.Module, weights: dict[str, str]) -> str:
    """Why none of a layer's weights can be compressed in its place; or ""."""
    if weights:
        return next(iter(weights.values())) if all(weights.values()) else ""
    attribute = next(iter(weights_by_tensors(module)), "weight")
    return prunable._not_a_parameter(module, attribute) or "has no weight"
