"""Where the channels of a tensor lie, and what views and slices do to them.

A :class:`Value` stands for a tensor. Some of its dims carry channels: a group is one array of elements over
one or more dims (after a view to heads: over the heads' dim and the one within a head). A uniform dim repeats
one number; every other dim has an order of its own that no permutation changes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from .channels import Channels, Ints

#: Copies of elements that a view of merged dims may make; of more, those dims move in parallel.
MOST_COPIES = 1 << 16


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Elements over some dims of a tensor, ascending; all of size two or more."""

    dims: tuple[int, ...]
    elements: Ints  #: of the sizes of these dims


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """A tensor: its shape and what its dims carry. No dim is in two groups."""

    shape: tuple[int, ...]
    groups: tuple[Group, ...] = ()
    uniform: frozenset[int] = frozenset()
    order: str = ""  #: where the order of its other dims comes from

    def group_at(self, dim: int) -> Group | None:
        """The group that a dim is in."""
        return next((group for group in self.groups if dim in group.dims), None)


class Views:
    """What operators that compute nothing do to groups; ``op`` is the one at hand, for the reasons."""

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        self.op = ""

    def fix(self, value: Value, reason: str) -> None:
        """All channels of a tensor stay where they are."""
        for group in value.groups:
            self.channels.fix(group.elements, reason)

    def permute(self, value: Value, order: Sequence[int]) -> Value:
        """The dims in another order."""
        rank = len(value.shape)
        order = [dim % rank for dim in order]
        groups = [sorted_group([order.index(d) for d in g.dims], g.elements) for g in value.groups]
        return Value(
            tuple(value.shape[d] for d in order),
            tuple(groups),
            frozenset(order.index(d) for d in value.uniform),
        )

    def expand(self, value: Value, shape: Sequence[int]) -> Value:
        """Dims of size one repeated, and new ones in front."""
        first = len(shape) - len(value.shape)
        groups = [Group(tuple(d + first for d in g.dims), g.elements) for g in value.groups]
        repeated = {i for i in range(len(shape)) if i < first or value.shape[i - first] != shape[i]}
        return Value(tuple(shape), tuple(groups), frozenset({d + first for d in value.uniform} | repeated))

    def take(self, value: Value, dim: int, places: Ints) -> Value:
        """Some places of a dim (a slice), which stays: copies, for two parts of one tensor may meet."""
        dim %= len(value.shape)
        shape = (*value.shape[:dim], len(places), *value.shape[dim + 1 :])
        groups = []
        for group in value.groups:
            if dim not in group.dims:
                groups.append(group)
                continue
            axis = group.dims.index(dim)
            elements = self.channels.derive(group.elements.take(places, axis), 0, 1)[0]
            if len(places) != 1:
                groups.append(Group(group.dims, elements))
            elif len(group.dims) == 1:
                self.channels.fix(elements, f"{self.op} picks it")
            else:
                rest = tuple(d for d in group.dims if d != dim)
                groups.append(Group(rest, np.ascontiguousarray(elements.squeeze(axis))))
        kept = tuple(g for g in groups if g.elements.size)
        return Value(shape, kept, value.uniform, value.order)

    def reshape(self, value: Value, shape: Sequence[int]) -> Value:
        """The same numbers under another shape: dims are split to common factors, and these are merged."""
        if tuple(shape) == value.shape:
            return value
        factors = _common_factors(value.shape, shape)
        if factors is None or 0 in shape:
            for group in value.groups:
                self.channels.fix(group.elements, f"{self.op} of {value.shape} to {tuple(shape)} mixes them")
            return Value(tuple(shape))
        sizes, split, merged = factors
        groups = [self._split(group, split, sizes) for group in value.groups]
        uniform = {part for dim in value.uniform for part in split[dim]}
        for parts in merged:
            groups = self._merge(groups, parts, sizes)
        place = {part: dim for dim, parts in enumerate(merged) for part in parts}
        done = []
        for group in groups:
            dims = tuple(dict.fromkeys(place[part] for part in group.dims))
            done.append(Group(dims, group.elements.reshape([shape[d] for d in dims])))
        repeated = {
            dim for dim, parts in enumerate(merged) if parts and all(part in uniform for part in parts)
        }
        return Value(tuple(shape), tuple(done), frozenset(repeated), value.order)

    def _split(self, group: Group, split: Sequence[Sequence[int]], sizes: Sequence[int]) -> Group:
        held = [part for dim in group.dims for part in split[dim]]
        elements = group.elements.reshape([sizes[part] for part in held])
        while len(held) > 1:  # what a merge before has copied becomes what it was
            axis = next((i for i in reversed(range(len(held))) if self._is_copied(elements, i)), None)
            if axis is None:
                break
            found = self.channels.sources_along(elements, axis)
            assert found is not None
            elements = found
            del held[axis]
        return Group(tuple(held), elements)

    def _is_copied(self, elements: Ints, axis: int) -> bool:
        return self.channels.sources_along(elements, axis) is not None

    def _merge(self, groups: Sequence[Group], parts: Sequence[int], sizes: Sequence[int]) -> list[Group]:
        """Groups that hold all factors of a merged dim, or none."""
        touched = [group for group in groups if set(group.dims) & set(parts)]
        if len(parts) < 2 or not touched:
            return list(groups)
        rest = [group for group in groups if not set(group.dims) & set(parts)]
        if len(touched) > 1:
            for group in touched:
                self.channels.fix(group.elements, f"{self.op} merges two dims with channels")
            return rest
        group = touched[0]
        missing = [part for part in parts if part not in group.dims]
        copies = group.elements.size * math.prod(sizes[part] for part in missing)
        if missing and copies > MOST_COPIES:
            return rest + self._shortened(group, parts)
        held, elements = list(group.dims), group.elements
        for part in missing:
            elements = self.channels.derive(elements, len(held), sizes[part])
            held.append(part)
        return [*rest, sorted_group(held, elements)]

    def _shortened(self, group: Group, parts: Sequence[int]) -> list[Group]:
        """A group without the factors of one dim, along which it moves in parallel; none: it stays."""
        held, elements = list(group.dims), group.elements
        if set(held) <= set(parts):
            self.channels.fix(elements, f"{self.op} merges them with many others")
            return []
        for part in [p for p in held if p in parts]:
            elements = self.channels.parallel(elements, held.index(part))
            held.remove(part)
        return [Group(tuple(held), elements)]


def sorted_group(dims: Sequence[int], elements: Ints) -> Group:
    order = np.argsort(dims, kind="stable")
    return Group(tuple(int(dims[i]) for i in order), np.ascontiguousarray(elements.transpose(order)))


def _common_factors(
    old: Sequence[int], new: Sequence[int]
) -> tuple[list[int], list[list[int]], list[list[int]]] | None:
    """Sizes of the factors of two shapes, and which each dim has; ``None``: there are no common ones."""
    if math.prod(old) != math.prod(new) or math.prod(old) == 0:
        return None
    cuts = sorted({math.prod(shape[:i]) for shape in (old, new) for i in range(len(shape) + 1)})
    if any(high % low for low, high in itertools.pairwise(cuts)):
        return None
    sizes = [high // low for low, high in itertools.pairwise(cuts)]

    def parts(shape: Sequence[int]) -> list[list[int]]:
        edges = [cuts.index(math.prod(shape[:i])) for i in range(len(shape) + 1)]
        return [list(range(low, high)) for low, high in itertools.pairwise(edges)]

    return sizes, parts(old), parts(new)
