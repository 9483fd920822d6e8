"""Masks go on to the network of the next phase, which has new heads or changed layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping
from typing import Any

from torch import Tensor, nn

from ...report import Report, Row
from ..prunable import Candidate, unwrap
from ..selection import Select
from ..sparsifier import Sparsifier


def carry(
    masks: Sparsifier | Mapping[str, Any],
    model: nn.Module,
    *,
    names: Mapping[str, str] | None = None,
    prune_new: bool = False,
    select: Select = None,
) -> tuple[Sparsifier, Report]:
    """A Sparsifier for ``model`` with the masks of another phase, wherever name and shape are the same.

    A backbone pruned as a classifier goes into a detector, an encoder pretrained with a language head gets
    one for answers. Load the weights first: what a mask prunes is set to zero, and must be small already.

    Args:
        masks: the Sparsifier of the phase before, or its ``state_dict()``.
        model: the network of this phase, its carried weights loaded.
        names: prefixes of names there to prefixes here, as ``{"": "backbone."}``; the longest that fits
            counts. Default: the same names.
        prune_new: weights without a mask of that phase are pruned by magnitude now, and not left dense.
        select: which layers may be pruned, as :class:`~sparse24.Sparsifier` takes it.

    Returns:
        The Sparsifier, to attach; and a report: what was carried, what is new, what changed shape. Masks that
        nothing here has a place for are rows of kind "mask".

    Raises:
        TypeError: no Sparsifier or state of one.
        ValueError: nothing fits: not one mask has a weight of its name and shape here, or another pattern.
            ``model`` is as it was.
    """
    state = masks.state_dict() if isinstance(masks, Sparsifier) else masks
    if not isinstance(state, Mapping) or set(state) != {"pattern", "masks"}:
        raise TypeError(f"carry needs a Sparsifier or its state_dict(), not {type(masks).__name__}")
    moved = {_renamed(name, names or {}): mask for name, mask in state["masks"].items()}
    own = Sparsifier(model, pattern=state["pattern"], select=select)
    parameters = dict(unwrap(model).named_parameters())
    fitting = {n: m for n, m in moved.items() if n in parameters and parameters[n].shape == m.shape}
    if not fitting:
        first = next(iter(moved), "none")
        raise ValueError(
            f"none of the {len(moved)} masks fits a weight of this model (the first: {first}): say by names= "
            f"how names change, as {{'': 'backbone.'}}; this model has {', '.join(list(parameters)[:3])}"
        )
    default = {candidate.name: weight for candidate, weight in own._prunable()}
    chosen: list[str] = [*fitting, *(default.keys() - fitting.keys() if prune_new else ())]
    found = Sparsifier(model, pattern=state["pattern"], select=chosen)
    computed = found._compute_masks() if prune_new else {}
    taken = {name: mask.to_bool() for name, mask in computed.items()} | fitting
    found.load_state_dict({"pattern": state["pattern"], "masks": taken})
    found._mask_weights()
    prunable = {candidate.layer for candidate in _of(own, default)}
    why = {row.name: row.reason for row in own.report() if row.name not in prunable}
    return found, _report(found, moved, fitting, why)


def _of(sparsifier: Sparsifier, names: Container[str]) -> list[Candidate]:
    return [candidate for candidate in sparsifier._candidates if candidate.name in names]


def _renamed(name: str, names: Mapping[str, str]) -> str:
    fitting = [old for old in names if name.startswith(old)]
    if not fitting:
        return name
    old = max(fitting, key=len)
    return names[old] + name.removeprefix(old)


def _report(
    found: Sparsifier, moved: Mapping[str, Tensor], fitting: Mapping[str, Tensor], why: Mapping[str, str]
) -> Report:
    """Args: ``why``: of layers that are left alone in any case."""
    rows, parameters = [], set()
    for candidate, row in zip(found._candidates, found.report(), strict=True):
        parameters.add(candidate.name)
        reason = row.reason
        if candidate.name in fitting:
            reason = "; ".join(filter(None, ("carried", reason)))
        elif candidate.name in moved:
            given = "x".join(map(str, moved[candidate.name].shape))
            reason = f"changed: its mask is {given}" + ("; pruned anew" if row.done else ": left dense")
        elif row.done:
            reason = "; ".join(filter(None, ("new here, pruned by magnitude", reason)))
        elif candidate.layer in why:
            reason = why[candidate.layer]
        elif reason == "not selected":
            reason = "new here: left dense (prune_new=True prunes it)"
        rows.append(dataclasses.replace(row, reason=reason))
    for name, mask in moved.items():
        if name not in parameters:
            rows.append(Row(name, "mask", tuple(mask.shape), False, "no such weight here", 1.0, 0, 0))
    return Report(tuple(rows), "pruned")
