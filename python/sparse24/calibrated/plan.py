"""What is to be pruned, and how: checked before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import masks as patterns
from ..pruning.layers import stays_dense
from ..pruning.prunable import Candidate, find_candidates, layer_at
from ..pruning.rules import rule_of
from ..pruning.selection import Select, chosen
from ..report import Row
from .matrices import Matrix, matrices_of
from .rows import left_row
from .together import is_finite


class Way(NamedTuple):
    """How matrices are pruned, and blocks trained."""

    method: str
    refit: int  #: steps
    steps: int  #: of training a block; 0: it is not trained
    bias: bool  #: biases take up the mean of what outputs lose
    autocast: torch.dtype | None  #: for training


class Plan(NamedTuple):
    """Layers by name, the names of their parameters that are pruned, and the user's own masks."""

    layers: dict[str, nn.Module]
    parameters: set[str]
    left: list[Row]
    masks: Mapping[str, Tensor]

    def mask_of(self, matrix: Matrix) -> Tensor | None:
        """The user's mask [rows, K] of a matrix."""
        mask = self.masks.get(matrix.name)
        return None if mask is None else matrix.part_of(mask)


def plan_for(
    model: nn.Module, select: Select, skip: Sequence[str], masks: Mapping[str, Tensor] | None
) -> Plan:
    """The layers that ``select`` and ``skip`` leave, checked.

    Raises:
        TypeError: a layer that cannot be calibrated was selected; a mask is no bool tensor.
        ValueError: a name that matches no layer, a weight that is not finite or has no values, a mask of
            another shape or that is not 2:4, or of a weight that is not pruned.
    """
    candidates = find_candidates(model)
    names = chosen(model, candidates, select)
    skipped = chosen(model, candidates, list(skip)) if skip else set()
    layers: dict[str, nn.Module] = {}
    parameters, left = set(), []
    rule = rule_of("2:4")
    for candidate in candidates:
        if candidate.alias_of:
            continue
        if candidate.name in skipped:
            left.append(left_row(model, candidate, "kept dense by skip"))
            continue
        if candidate.name not in names or candidate.blocked:
            left.append(left_row(model, candidate))
            continue
        name, layer = _owner(model, candidate)
        if select is None and (reason := _why_not_calibrated(layer)):
            left.append(left_row(model, candidate, reason))
            continue
        matrices = matrices_of(name, layer)  # TypeError: it cannot be calibrated
        weight = next(matrix.parameter for matrix in matrices if matrix.name == candidate.name)
        _check_weight(candidate.name, weight)
        if obstacle := rule.obstacle(weight, candidate.dim):
            left.append(left_row(model, candidate, obstacle))
            continue
        layers[name] = layer
        parameters.add(candidate.name)
    plan = Plan(layers, parameters, left, dict(masks or {}))
    _check_masks(plan)
    return plan


def _why_not_calibrated(layer: nn.Module) -> str:
    """Why a layer whose weight is compressed in its place is left alone unless selected; or ""."""
    if not stays_dense(layer) or type(layer) is nn.Conv1d:
        return ""
    return f"a {type(layer).__name__} is not calibrated: sparse24.Sparsifier prunes it by magnitude"


def _owner(model: nn.Module, candidate: Candidate) -> tuple[str, nn.Module]:
    """The layer that is calibrated for a parameter: of an attention's out_proj, the attention."""
    name = candidate.module_name
    if name.endswith(".out_proj") or name == "out_proj":
        owner = name.removesuffix("out_proj").removesuffix(".")
        attention = layer_at(model, owner)
        if isinstance(attention, nn.MultiheadAttention):
            return owner, attention
    layer = layer_at(model, name)
    assert layer is not None
    return name, layer


def _check_weight(name: str, weight: Tensor) -> None:
    if weight.is_meta:
        raise ValueError(f"{name} is on the meta device and has no values: load the model's weights first")
    if not is_finite(weight):
        raise ValueError(f"{name} holds NaN or Inf: it cannot be pruned")


def _check_masks(plan: Plan) -> None:
    matrices = [m for name, layer in plan.layers.items() for m in matrices_of(name, layer)]
    known = {matrix.name for matrix in matrices} & plan.parameters
    for name, mask in plan.masks.items():
        given: Any = mask
        if name not in known:
            raise ValueError(
                f"masks has {name!r}, which is not pruned here; pruned are: {', '.join(sorted(known))}"
            )
        if not isinstance(given, Tensor) or given.dtype != torch.bool:
            kind = given.dtype if isinstance(given, Tensor) else type(given).__name__
            raise TypeError(f"the mask of {name} must be a bool tensor, True = kept, not {kind}")
        for matrix in (each for each in matrices if each.name == name):
            if mask.shape != matrix.parameter.shape:
                shapes = f"{tuple(mask.shape)}, and the weight {tuple(matrix.parameter.shape)}"
                raise ValueError(f"the mask of {name} has the shape {shapes}")
            if not patterns.is_sparse24(matrix.part_of(mask).float()):
                raise ValueError(
                    f"the mask of {name} is not 2:4: it keeps more than two of four neighbours along the "
                    "input channels"
                )
