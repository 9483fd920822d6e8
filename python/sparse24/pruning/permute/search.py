"""Which order each class of channels takes: the one in which 2:4 keeps more of the scores that it touches.

Groups of four run along the input channels of a weight. A class may hold those of several weights, whose
scores stand below each other then, each over its mean, so that a large one does not decide for all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ... import ops
from .channels import Ints, Solution
from .walk import Axis

#: Of one step of a search: rows times groups times groups; of more rows evenly spaced ones are looked at.
MOST_WORK = 1 << 31
#: At least so many rows, whatever their work.
FEWEST_ROWS = 256


@dataclasses.dataclass(frozen=True)
class Target:
    """A weight that will be pruned, and its scores."""

    name: str
    weight: Tensor
    dim: int  #: of its input channels
    score: Callable[[], Tensor]  #: float, not negative, of the weight's shape; made when it is asked for


def matrix_of(target: Target, axis: Axis) -> Tensor:
    """Scores [rows, input channels] of a target, or of one of its groups: float32, on the CPU."""
    score = target.score()[axis.rows]
    return score.movedim(target.dim, -1).reshape(-1, score.shape[target.dim]).float().cpu()


@dataclasses.dataclass
class _Part:
    """The input channels of a target, or of one of its groups, and the order that they have come to."""

    target: Target
    axis: Axis
    order: Ints
    kept: float = -1.0  #: of its scores in that order; negative: not known yet


@dataclasses.dataclass(frozen=True)
class _Quads:
    """Groups of four input channels whose members may change places: ranks in a class, and their places."""

    part: _Part
    ranks: Ints  #: [groups, 4]
    places: Ints  #: [groups, 4]

    def key(self) -> bytes:
        """The same for those that put the same channels together."""
        rows = np.sort(self.ranks, 1)
        return rows[np.lexsort(rows.T[::-1])].tobytes()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a search gave: for each class the channel that comes to each place, or why there is no order."""

    orders: dict[int, Ints]
    reasons: dict[int, str]


def axes_of_inputs(target: Target, axes: dict[int, list[Axis]]) -> list[Axis]:
    """The axes along which a target's groups of four run."""
    return [axis for axis in axes.get(id(target.weight), []) if axis.dim == target.dim]


def search(targets: Sequence[Target], axes: dict[int, list[Axis]], solution: Solution, seed: int) -> Outcome:
    """Orders for all classes that are better by it."""
    parts = [
        _Part(target, axis, np.arange(len(axis.elements)))
        for target in targets
        for axis in axes_of_inputs(target, axes)
    ]
    by_class: dict[int, list[_Quads]] = {}
    touched: dict[int, list[_Part]] = {}
    for part in parts:
        for number, quads in _quads_of(part, solution):
            by_class.setdefault(number, []).append(quads)
        for number in np.unique(solution.class_of[part.axis.elements]).tolist():
            touched.setdefault(number, []).append(part)
    found = Outcome({}, {})
    for number in sorted(by_class):
        order = _ordered(by_class[number], int(solution.size_of[number]), seed)
        if order is None:
            found.reasons[number] = "fewer than eight channels in groups of four may change places"
            continue
        if reason := _try(number, order, touched[number], solution):
            found.reasons[number] = reason
        else:
            found.orders[number] = order
    return found


def moved(axis: Axis, solution: Solution, orders: dict[int, Ints]) -> Ints:
    """Which place of an axis comes to each place."""
    order = np.arange(len(axis.elements))
    classes = solution.class_of[axis.elements]
    for number in np.unique(classes).tolist():
        if number in orders:
            order = _moved(axis.elements, solution, number, orders[number], order)
    return order


def _moved(elements: Ints, solution: Solution, number: int, order: Ints, places: Ints) -> Ints:
    """The places, with those of one class changed by its order of bundles."""
    here = np.flatnonzero(solution.class_of[elements] == number)
    ranks, colours = solution.rank_of[elements[here]], solution.colour[elements[here]]
    at = dict(zip(zip(ranks.tolist(), colours.tolist(), strict=True), here.tolist(), strict=True))
    sources = [at[rank, colour] for rank, colour in zip(order[ranks].tolist(), colours.tolist(), strict=True)]
    changed = places.copy()
    changed[here] = places[sources]
    return changed


def _quads_of(part: _Part, solution: Solution) -> Iterator[tuple[int, _Quads]]:
    elements = part.axis.elements
    whole = len(elements) // 4 * 4
    places = np.arange(whole).reshape(-1, 4)
    classes, ranks = solution.class_of[elements[places]], solution.rank_of[elements[places]]
    colours = solution.colour[elements[places]]
    distinct = (np.diff(np.sort(ranks, 1), axis=1) > 0).all(1)
    alike = (classes == classes[:, :1]).all(1) & (colours == colours[:, :1]).all(1)
    usable = distinct & alike & (classes[:, 0] >= 0)
    pairs = np.stack([classes[usable, 0], colours[usable, 0]], 1)
    for number, colour in np.unique(pairs, axis=0).tolist():
        rows = usable & (classes[:, 0] == number) & (colours[:, 0] == colour)
        yield number, _Quads(part, ranks[rows], places[rows])


def _ordered(all_quads: Sequence[_Quads], size: int, seed: int) -> Ints | None:
    """The best order for the partition into fours that most of the scores have."""
    by_partition: dict[bytes, list[_Quads]] = {}
    for quads in all_quads:
        by_partition.setdefault(quads.key(), []).append(quads)
    chosen = max(by_partition.values(), key=lambda held: sum(q.part.target.weight.numel() for q in held))
    fours = chosen[0].ranks
    fours = fours[np.lexsort(np.sort(fours, 1).T[::-1])]
    if len(fours) < 2:
        return None
    columns = fours.reshape(-1)
    most = max(MOST_WORK // len(fours) ** 2, FEWEST_ROWS) // len(chosen)
    stacked = []
    for quads in chosen:
        at = np.empty(size, np.int64)
        at[quads.ranks.reshape(-1)] = quads.places.reshape(-1)
        matrix = matrix_of(quads.part.target, quads.part.axis)
        mean = float(matrix.mean())
        step = max(-(-len(matrix) // max(most, 1)), 1)
        some = matrix[::step, torch.from_numpy(quads.part.order[at[columns]])]
        stacked.append(some * (step / mean) if mean > 0 else some)
    best = ops.search_columns(torch.cat(stacked), seed=seed).numpy()
    order = np.arange(size)
    order[columns] = columns[best]
    return order


def _try(number: int, order: Ints, parts: Sequence[_Part], solution: Solution) -> str:
    """Take an order for all parts that it touches, if they keep more with it; else why not."""
    if (order == np.arange(len(order))).all():
        return "no order was found that keeps more"
    gain, raw, before = 0.0, 0.0, [(part.order, part.kept) for part in parts]
    for part in parts:
        matrix = matrix_of(part.target, part.axis)
        whole = float(matrix.sum(dtype=torch.float64))
        if part.kept < 0:
            part.kept = ops.kept_sum(matrix, torch.from_numpy(part.order))
        old = part.kept
        part.order = _moved(part.axis.elements, solution, number, order, part.order)
        new = part.kept = ops.kept_sum(matrix, torch.from_numpy(part.order))
        raw += new - old
        gain += (new - old) / whole * matrix.numel() if whole > 0 else 0.0
        if new < old and old >= whole * (1 - 1e-12):
            broken = f"{part.target.name} is 2:4 already, and would not be any more"
            break
    else:
        broken = (
            ""
            if gain > 0 and raw > 0
            else "no order was found that keeps more of all weights that it touches"
        )
    if broken:
        for part, known in zip(parts, before, strict=True):
            part.order, part.kept = known
    return broken
