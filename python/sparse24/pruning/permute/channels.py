"""Which channels of a network may change places: what ties them together, and what tells them apart.

An element is one position of a parameter's dim, or of an activation's. An order of the elements is allowed
if it

* moves elements that are the same (:meth:`Channels.unify`) as one,
* moves an element that is derived from another (a copy of it in a longer dim) as its source moves: edges with
  keys go to edges with the same keys,
* takes every element to one that occurs in the same tensors (:meth:`Channels.present`), at the same
  coordinates where these matter (:meth:`Channels.constrain`).

So elements that hang together by edges, a bundle, move together, and two bundles may change places if their
elements are told apart by nothing: colours are refined until they are stable, as graphs are compared, and
bundles with the same colours, each once, are interchangeable.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


class _Grown:
    """An array of integers that grows at its end."""

    def __init__(self) -> None:
        self._held: Ints = np.empty(1024, np.int64)
        self.size = 0

    def append(self, numbers: Ints) -> None:
        needed = self.size + numbers.size
        if needed > self._held.size:
            bigger = np.empty(max(needed, 2 * self._held.size), np.int64)
            bigger[: self.size] = self._held[: self.size]
            self._held = bigger
        self._held[self.size : needed] = numbers.reshape(-1)
        self.size = needed

    @property
    def numbers(self) -> Ints:
        return self._held[: self.size]


@dataclasses.dataclass(frozen=True)
class Solution:
    """What became of every element. A class is a set of bundles that may change places, two or more."""

    colour: Ints  #: elements of interchangeable bundles that correspond have the same
    class_of: Ints  #: of every element: the class of its bundle, -1: it stays
    rank_of: Ints  #: of every element: the number of its bundle in the class
    size_of: Ints  #: of every class: its bundles
    reason_of: Ints  #: of every element: the index of what keeps its bundle in place, or partly; -1: nothing


class Channels:
    """The elements of a network, and all that is known of them."""

    def __init__(self) -> None:
        self.count = 0
        self.reasons: list[str] = []
        self._source, self._source_key = _Grown(), _Grown()  # of every element, -1: not derived
        self._same = (_Grown(), _Grown())
        self._edges = (_Grown(), _Grown(), _Grown())  # source, key, derived
        self._places = (_Grown(), _Grown())  # element, key of the place
        self._sites = (_Grown(), _Grown())  # element, tensor: no element may be there twice
        self._explained = (_Grown(), _Grown())  # element, index of a reason
        self._partly = (_Grown(), _Grown())
        self._keys = 0

    def fresh(self, *shape: int) -> Ints:
        """New elements, tied to nothing."""
        size = int(np.prod(shape, dtype=np.int64))
        found = np.arange(self.count, self.count + size, dtype=np.int64)
        self.count += size
        none = np.full(size, -1, np.int64)
        self._source.append(none)
        self._source_key.append(none)
        return found.reshape(shape)

    def derive(self, elements: Ints, axis: int, size: int) -> Ints:
        """Copies of elements along a new axis of ``size``, which move as their sources do."""
        sources = np.expand_dims(elements, axis)
        shape = (*sources.shape[:axis], size, *sources.shape[axis + 1 :])
        copies = self.fresh(*shape)
        along = [1] * len(shape)
        along[axis] = size
        keys = np.broadcast_to(self._new_keys(size).reshape(along), shape)
        sources = np.broadcast_to(sources, shape)
        self._source.numbers[copies.reshape(-1)] = sources.reshape(-1)
        self._source_key.numbers[copies.reshape(-1)] = keys.reshape(-1)
        self._add_edges(sources, keys, copies)
        return copies

    def parallel(self, elements: Ints, axis: int) -> Ints:
        """Elements without an axis, along which they move in parallel: their sources where known."""
        found = self.sources_along(elements, axis)
        if found is not None:
            return found
        shape = elements.shape
        whole = self.fresh(*(shape[:axis] + shape[axis + 1 :]))
        along = [1] * len(shape)
        along[axis] = shape[axis]
        keys = np.broadcast_to(self._new_keys(shape[axis]).reshape(along), shape)
        self._add_edges(np.broadcast_to(np.expand_dims(whole, axis), shape), keys, elements)
        return whole

    def sources_along(self, elements: Ints, axis: int) -> Ints | None:
        """What all elements were derived from along an axis, each place of it by one key; or ``None``."""
        lines = np.moveaxis(elements, axis, 0).reshape(elements.shape[axis], -1)
        sources, keys = self._source.numbers[lines], self._source_key.numbers[lines]
        if (
            lines.size == 0
            or (sources < 0).any()
            or (sources != sources[:1]).any()
            or (keys != keys[:, :1]).any()
        ):
            return None
        found: Ints = sources[0].reshape(elements.shape[:axis] + elements.shape[axis + 1 :])
        return found

    def unify(self, first: Ints, second: Ints) -> None:
        """Elements that are the same, place by place."""
        if first is not second:
            for held, part in zip(self._same, (first, second), strict=True):
                held.append(part)

    def present(self, elements: Ints) -> None:
        """All of them are in one tensor: what takes their places must be there, too."""
        key = self._new_keys(1)
        for held in (self._places, self._sites):
            held[0].append(elements)
            held[1].append(np.broadcast_to(key, elements.size))

    def constrain(self, elements: Ints, axes: Sequence[int], reason: str) -> None:
        """What takes an element's place must have its coordinates along ``axes``; of all axes: it stays."""
        sizes = [elements.shape[axis] for axis in axes]
        shape = [1] * elements.ndim
        for axis, size in zip(axes, sizes, strict=True):
            shape[axis] = size
        keys = self._new_keys(int(np.prod(sizes, dtype=np.int64)))
        order = np.argsort(axes)
        keys = keys.reshape([sizes[i] for i in order]).reshape(shape)
        self._places[0].append(elements)
        self._places[1].append(np.broadcast_to(keys, elements.shape).reshape(-1))
        explained = self._explained if len(axes) == elements.ndim else self._partly
        explained[0].append(elements)
        explained[1].append(np.full(elements.size, len(self.reasons), np.int64))
        self.reasons.append(reason)

    def fix(self, elements: Ints, reason: str) -> None:
        """Elements that stay where they are."""
        self.constrain(elements, range(elements.ndim), reason)

    def solve(self) -> Solution:
        """Which bundles may change places."""
        same = _components(self.count, self._same[0].numbers, self._same[1].numbers)
        edges = (same[self._edges[0].numbers], self._edges[1].numbers, same[self._edges[2].numbers])
        start = np.zeros(self.count, np.uint64)
        places = same[self._places[0].numbers]
        _add_at(start, places, _mixed(self._places[1].numbers, 1))
        twice = self._twice(same)
        _add_at(start, twice, _mixed(twice, 2))  # an element that is twice in one tensor stays
        colour = _refined(start, edges)
        bundle = _components(self.count, edges[0], edges[2])[same]
        return self._classes(same, colour[same], bundle)

    def _classes(self, same: Ints, colour: Ints, bundle: Ints) -> Solution:
        whole = np.flatnonzero(same == np.arange(self.count))  # one for all that are the same
        of = bundle[whole]
        pairs, times = np.unique(np.stack([of, colour[whole]], 1), axis=0, return_counts=True)
        ambiguous = np.zeros(self.count, bool)
        ambiguous[pairs[times > 1, 0]] = True  # its elements cannot be told from each other: it stays
        print_ = np.zeros(self.count, np.uint64)
        _add_at(print_, of, _mixed(colour[whole], 3))
        heads = np.unique(of)
        heads = heads[~ambiguous[heads]]
        _, kind, size = np.unique(print_[heads], return_inverse=True, return_counts=True)
        number = np.where(size > 1, np.cumsum(size > 1) - 1, -1)
        class_of = np.full(self.count, -1, np.int64)
        rank_of = np.full(self.count, -1, np.int64)
        class_of[heads] = number[kind]
        order = np.argsort(kind, kind="stable")
        first = np.concatenate([[0], np.cumsum(size)[:-1]]).astype(np.int64)
        rank_of[heads[order]] = np.arange(len(heads)) - first[kind[order]]
        reason = self._reasons_of(bundle)
        return Solution(
            colour, class_of[bundle], rank_of[bundle], size[size > 1].astype(np.int64), reason[bundle]
        )

    def _reasons_of(self, bundle: Ints) -> Ints:
        """The first reason for each bundle: of what fixes it, else of what constrains it."""
        found = np.full(self.count, -1, np.int64)
        for elements, index in (self._partly, self._explained):
            back = slice(None, None, -1)  # so that the first one is written last
            found[bundle[elements.numbers[back]]] = index.numbers[back]
        return found

    def _twice(self, same: Ints) -> Ints:
        elements, site = same[self._sites[0].numbers], self._sites[1].numbers
        pairs, times = np.unique(site * np.int64(max(self.count, 1)) + elements, return_counts=True)
        found = np.unique(pairs[times > 1] % max(self.count, 1))
        if found.size:
            self._explained[0].append(found)
            self._explained[1].append(np.full(found.size, len(self.reasons), np.int64))
            self.reasons.append("one channel meets another of the same tensor, as in x + x.flip(1)")
        return found

    def _new_keys(self, count: int) -> Ints:
        self._keys += count
        return np.arange(self._keys - count, self._keys, dtype=np.int64)

    def _add_edges(self, sources: Ints, keys: Ints, derived: Ints) -> None:
        for held, part in zip(self._edges, (sources, keys, derived), strict=True):
            held.append(part)


def _mixed(numbers: Ints | Hashes, salt: int) -> Hashes:
    """SplitMix64's finalizer (Steele, Lea and Flood 2014)."""
    z = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15 * (2 * salt + 1) & (1 << 64) - 1)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _add_at(sums: Hashes, at: Ints, numbers: Hashes) -> None:
    np.add.at(sums, at, numbers)


def _components(count: int, first: Ints, second: Ints) -> Ints:
    """The least element that each hangs together with."""
    least = np.arange(count, dtype=np.int64)
    while True:
        a, b = least[first], least[second]
        if (a == b).all():
            return least
        low = np.minimum(a, b)
        np.minimum.at(least, a, low)
        np.minimum.at(least, b, low)
        while True:
            jumped = least[least]
            if (jumped == least).all():
                break
            least = jumped


def _refined(start: Hashes, edges: tuple[Ints, Ints, Ints]) -> Ints:
    """Stable colours: two elements share one if they start alike and their edges lead to alike elements."""
    source, key, derived = edges
    distinct, inverse = np.unique(start, return_inverse=True)
    colour, known = inverse.astype(np.int64), len(distinct)
    forth, back = _mixed(key, 4), _mixed(key, 5)
    while source.size:
        mixed = _mixed(colour, 6)
        _add_at(mixed, source, _mixed(forth ^ _mixed(colour[derived], 7), 8))
        _add_at(mixed, derived, _mixed(back ^ _mixed(colour[source], 9), 10))
        distinct, inverse = np.unique(mixed, return_inverse=True)
        colour = inverse.astype(np.int64)
        if len(distinct) == known:
            break
        known = len(distinct)
    return colour
