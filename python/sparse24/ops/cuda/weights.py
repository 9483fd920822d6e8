"""A compressed weight as the products on a GPU take it: bare tensors here, a layer's own in ``nn``.

Operators of ``torch.ops.sparse24`` get ``values`` and ``indices`` and nothing else (an exported or compiled
program has no layer at hand), so a table finds what was derived from them before.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from . import device_kernels
from .blobs import Derived, Operands
from .cusparselt import Stream

if TYPE_CHECKING:
    from .repeats import Done


class Weight(ABC):
    """One weight for one call.

    Attributes:
        like: values and indices, or tensors on the meta device with their shapes and dtypes.
        keeps_dense: whether a dense copy is kept for calls that are faster dense.
    """

    like: Operands
    keeps_dense: bool

    @abstractmethod
    def derived(self) -> Derived | None:
        """What is derived from it, the same for all of a call; ``None``: nothing may be, others hold it."""

    @abstractmethod
    def source(self) -> Operands:
        """The canonical form on the device, for as long as something is derived from it."""

    @abstractmethod
    def read(self, stream: Stream) -> Operands:
        """The canonical form on the device, for a product on ``stream`` that reads it: it stays there."""

    def note(self, done: Done) -> None:  # noqa: B027  most have nobody to tell
        """A product has run, on an input as it lies; it may be repeated so."""

    def dense(self, stream: Stream) -> Tensor:
        """The dense weight [m, K]: the copy if one is kept, else expanded for this call."""
        derived = self.derived() if self.keeps_dense else None
        if derived is not None:
            return derived.dense_of(self.source, stream)
        values, indices = self.read(stream)
        rows, columns = values.shape[0], 2 * values.shape[1]
        return device_kernels.expand(
            values.detach().contiguous(), indices.contiguous(), rows, columns, stream.handle
        )


class Canonical(Weight):
    """Bare ``values`` [m, K/2] and ``indices`` [m, K/8], as an operator gets them."""

    def __init__(self, values: Tensor, indices: Tensor) -> None:
        self.like = (values, indices)
        entry = _table.get(_key_of(values, indices))
        self.keeps_dense = entry is not None and entry.derived.keeps_dense
        self._derived: Derived | None = None

    def derived(self) -> Derived | None:
        if any(tensor.is_inference() for tensor in self.like):
            return None  # such tensors keep no count of writes
        if self._derived is None:
            self._derived = derived_of(*self.like)
        return self._derived

    def source(self) -> Operands:
        return self.like

    def read(self, stream: Stream) -> Operands:
        return self.like


class Cast(Weight):
    """A float32 weight in the 16-bit dtype that autocast asks for: rounded once, and kept so."""

    def __init__(self, weight: Weight, dtype: torch.dtype) -> None:
        values, indices = weight.like
        self.like = torch.empty(values.shape, dtype=dtype, device="meta"), indices
        self.keeps_dense = weight.keeps_dense
        self._weight, self._dtype = weight, dtype

    def derived(self) -> Derived | None:
        own = self._weight.derived()
        return None if own is None else own.cast(self._dtype)

    def source(self) -> Operands:
        values, indices = self._weight.source()
        return values.detach().to(self._dtype), indices

    def read(self, stream: Stream) -> Operands:
        derived = self.derived()  # before the tensors are in hand, which would count as holding them
        values, indices = self._weight.read(stream)
        if derived is None:
            return values.detach().to(self._dtype), indices
        return derived.values_of(lambda: (values.detach(), indices), self._dtype, stream), indices


def as_input(weight: Weight, dtype: torch.dtype) -> Weight:
    """The weight as a product with an input of ``dtype`` takes it: float32 is cast to 16 bits."""
    is_cast = weight.like[0].dtype is torch.float32 and dtype in (torch.float16, torch.bfloat16)
    return Cast(weight, dtype) if is_cast else weight


class _Entry(NamedTuple):
    storages: tuple[StorageWeakRef, StorageWeakRef]
    versions: tuple[int, int]
    derived: Derived


#: By storages and what of them values and indices are. An entry's weak references keep the addresses of its
#: storages from being given to others, so whoever has the key of an entry has living storages.
_table: dict[tuple[object, ...], _Entry] = {}
_lock = threading.Lock()


def _key_of(values: Tensor, indices: Tensor) -> tuple[object, ...]:
    return tuple(
        (t.untyped_storage()._cdata, t.data_ptr(), t.shape, t.stride(), t.dtype) for t in (values, indices)
    )


def derived_of(values: Tensor, indices: Tensor) -> Derived:
    """What was derived from these tensors, none of inference mode; begun anew where torch counted a write
    since.

    Torch does not count writes through ``.data``, or through memory that is shared outside of it (DLPack):
    they are not seen here, and the old weight answers. The layers of sparse24 own what is derived from their
    weights and have no such gap. What belonged to storages that are gone is dropped when something is next
    begun, and when a layer moves (:func:`sweep`).
    """
    key, versions = _key_of(values, indices), (values._version, indices._version)
    entry = _table.get(key)
    if entry is not None and entry.versions == versions:
        return entry.derived
    with _lock:
        entry = _table.get(key)
        if entry is None or entry.versions != versions:
            _sweep()
            storages = (StorageWeakRef(values.untyped_storage()), StorageWeakRef(indices.untyped_storage()))
            derived = Derived() if entry is None else entry.derived.renewed()
            entry = _table[key] = _Entry(storages, versions, derived)
    return entry.derived


def _sweep() -> None:
    for gone in [key for key, entry in _table.items() if any(s.expired() for s in entry.storages)]:
        del _table[gone]


def sweep() -> None:
    """Drop what was derived from tensors that are gone."""
    with _lock:
        _sweep()


def adopt(values: Tensor, indices: Tensor) -> Derived | None:
    """What was derived from these tensors as they are, for an owner that takes it over; ``None``: nothing."""
    with _lock:
        entry = _table.pop(_key_of(values, indices), None)
    if entry is None:
        return None
    unchanged = entry.versions == (values._version, indices._version)
    return entry.derived if unchanged else entry.derived.renewed()


def keep_dense(values: Tensor, indices: Tensor, keep: bool) -> None:
    """Whether operators that get these tensors keep a dense copy of the weight."""
    if values.is_inference() or indices.is_inference():
        return  # nothing is derived from such tensors
    if not keep and _key_of(values, indices) not in _table:
        return
    derived = derived_of(values, indices)
    derived.keeps_dense = keep
    if not keep:
        derived.drop_dense()
