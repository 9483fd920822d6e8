"""How operators that join tensors, or sum over them, take channels along."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from .channels import Ints
from .views import Group, Value, Views, sorted_group

#: A value with a name for each of its dims; ``None``: this dim of size one stands for any other size.
Operand = tuple[Value, Sequence[Hashable | None]]


class Flow(Views):
    """What operators do to groups; ``op`` is the one at hand, for the reasons."""

    # ---- what joins tensors --------------------------------------------------------------------------

    def join(self, operands: Sequence[Operand], out: Sequence[Hashable], shape: Sequence[int]) -> Value:
        """Multiply or add operands with named dims, and sum over the names that ``out`` lacks (as in einsum).

        Elements that meet are the same. Where one operand has an order of its own, or what is summed leaves a
        dim standing, its coordinates are kept.
        """
        sizes = {
            name: size
            for value, names in operands
            for name, size in zip(names, value.shape, strict=True)
            if name is not None
        }
        groups: list[Group] = []
        for members in _connected([(v, n, g) for v, n in operands for g in v.groups]):
            names = list(dict.fromkeys(name for _, own, group in members for name in _named(own, group)))
            whole = [self._spread(group, _named(own, group), names, sizes) for _, own, group in members]
            for other in whole[1:]:
                self.channels.unify(whole[0], other)
            stays = self._keep_orders(whole[0], names, operands)
            summed = [name for name in names if name not in out]
            if stays:
                continue
            if summed:
                self._constrain(whole[0], [i for i, n in enumerate(names) if n in out])
            else:
                groups.append(sorted_group([list(out).index(name) for name in names], whole[0]))
        uniform = {
            i
            for i, name in enumerate(out)
            if shape[i] > 1 and all(_repeats(value, names, name) for value, names in operands)
        }
        return Value(tuple(shape), tuple(groups), frozenset(uniform))

    def elementwise(self, values: Sequence[Value], shape: Sequence[int]) -> Value:
        """Operands that are broadcast against each other."""
        rank = len(shape)
        operands: list[Operand] = []
        for value in values:
            first = rank - len(value.shape)
            names = [first + i if size == shape[first + i] else None for i, size in enumerate(value.shape)]
            operands.append((value, names))
        return self.join(operands, range(rank), shape)

    def _spread(
        self, group: Group, own: Sequence[Hashable], names: Sequence[Hashable], sizes: Mapping[Hashable, int]
    ) -> Ints:
        """The elements of a group over all ``names``, copied along those that it lacks."""
        elements, held = group.elements, list(own)
        for name in names:
            if name not in held:
                elements = self.channels.derive(elements, len(held), sizes[name])
                held.append(name)
        return np.ascontiguousarray(elements.transpose([held.index(name) for name in names]))

    def _keep_orders(self, elements: Ints, names: Sequence[Hashable], operands: Sequence[Operand]) -> bool:
        """Keep what operands have in an order of their own; whether that is all, and the elements stay."""
        stays = False
        for value, own in operands:
            kept = []
            for dim, name in enumerate(own):
                if name in names and value.group_at(dim) is None and dim not in value.uniform:
                    kept.append(list(names).index(name))
            self._constrain(elements, kept, value.order)
            stays = stays or len(kept) == len(names)
        return stays

    def _constrain(self, elements: Ints, axes: Sequence[int], order: str = "") -> None:
        if axes:
            known = f"the order of {order}" if order else "a fixed order"
            self.channels.constrain(elements, axes, f"{self.op} meets them in {known}")

    # ---- what keeps a tensor, or sums over it ----------------------------------------------------------

    def reduce(self, value: Value, dims: Sequence[int], shape: Sequence[int]) -> Value:
        """Sum, mean, maximum ... over some dims, which are gone or of size one in ``shape``."""
        gone = {dim % max(len(value.shape), 1) for dim in dims}
        left = [dim for dim in range(len(value.shape)) if dim not in gone]
        summed = self.join([(value, range(len(value.shape)))], left, [value.shape[d] for d in left])
        return self.reshape(summed, shape)

    def within(self, value: Value, dims: Sequence[int]) -> Value:
        """What is computed over whole ``dims`` and keeps them (softmax): others of their groups stay."""
        over = {dim % len(value.shape) for dim in dims} if value.shape else set()
        for group in value.groups:
            if over & set(group.dims):
                self._constrain(group.elements, [i for i, d in enumerate(group.dims) if d not in over])
        return Value(value.shape, value.groups, order=value.order)

    def ordered(self, value: Value, dims: Sequence[int]) -> Value:
        """What depends on the order of ``dims``: they keep it."""
        over = {dim % len(value.shape) for dim in dims} if value.shape else set()
        groups = []
        for group in value.groups:
            axes = [i for i, d in enumerate(group.dims) if d in over]
            self._constrain(group.elements, axes)
            if len(axes) < len(group.dims):
                groups.append(group)
        return Value(value.shape, tuple(groups), value.uniform - over, value.order)

    def alike_outside(self, value: Value, dims: Sequence[int]) -> Value:
        """What mixes all other dims (a convolution its pixels): along them elements move in parallel."""
        groups: list[Group] = []
        for group in value.groups:
            held, elements = list(group.dims), group.elements
            if not set(held) & set(dims):
                self.channels.fix(elements, f"{self.op} meets them in a fixed order")
                continue
            for dim in [d for d in held if d not in dims]:
                elements = self.channels.parallel(elements, held.index(dim))
                held.remove(dim)
            groups.append(Group(tuple(held), elements))
        return Value(value.shape, tuple(groups), value.uniform, value.order)

    def cat(self, values: Sequence[Value], dim: int, shape: Sequence[int]) -> Value:
        """Tensors one after the other along a dim."""
        rank = len(shape)
        dim %= rank
        others = [d for d in range(rank) if d != dim]
        joined = [g for value in values for g in value.groups if dim in g.dims]
        along = sorted({d for group in joined for d in group.dims} - {dim})
        parts = [self._parted(value, dim, along) for value in values] if joined else []
        rest = [Value(v.shape, tuple(g for g in v.groups if dim not in g.dims), v.uniform) for v in values]
        names: list[Operand] = [
            (value, [d if d != dim else (index, "part") for d in range(rank)])
            for index, value in enumerate(rest)
        ]
        flat = self.join(names, others, [shape[d] for d in others])
        groups = [Group(tuple(others[d] for d in g.dims), g.elements) for g in flat.groups]
        if parts:
            dims = sorted([dim, *along])
            groups = self._apart_from(groups, dims)
            groups.append(Group(tuple(dims), np.concatenate(parts, dims.index(dim))))
        uniform = frozenset(others[d] for d in flat.uniform)
        return Value(tuple(shape), tuple(groups), uniform)

    def _apart_from(self, groups: Sequence[Group], dims: Sequence[int]) -> list[Group]:
        """Groups that share no dim with ``dims``; the others stay."""
        apart = []
        for group in groups:
            if set(group.dims) & set(dims):
                self.channels.fix(group.elements, f"{self.op} meets them in a fixed order")
            else:
                apart.append(group)
        return apart

    def _parted(self, value: Value, dim: int, along: Sequence[int]) -> Ints:
        """The elements of one part of a concatenation, copies of its own, over ``dim`` and ``along``."""
        group = value.group_at(dim)
        dims = sorted([dim, *along])
        if group is None:
            fresh = self.channels.fresh(*(value.shape[d] for d in dims))
            self.channels.fix(fresh, f"{self.op} puts them beside others, in a fixed order")
            return fresh
        sizes: dict[Hashable, int] = dict(enumerate(value.shape))
        whole = self._spread(group, group.dims, dims, sizes)
        copies: Ints = self.channels.derive(whole, 0, 1)[0]
        return copies


def _named(names: Sequence[Hashable | None], group: Group) -> list[Hashable]:
    return [names[dim] for dim in group.dims]


def _repeats(value: Value, names: Sequence[Hashable | None], name: Hashable) -> bool:
    """Whether an operand has one number along a name: it lacks it, or repeats it."""
    return name not in names or list(names).index(name) in value.uniform


_Member = tuple[Value, Sequence[Hashable | None], Group]


def _connected(members: Sequence[_Member]) -> list[list[_Member]]:
    """Groups that share a name, directly or through others."""
    found: list[tuple[set[Hashable], list[_Member]]] = []
    for member in members:
        names = set(_named(member[1], member[2]))
        together = [member]
        apart = []
        for known, held in found:
            if known & names:
                names |= known
                together = held + together
            else:
                apart.append((known, held))
        found = [*apart, (names, together)]
    return [held for _, held in found]
