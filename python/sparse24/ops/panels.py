"""The canonical form packed for this machine's CPU kernels: made once, cached beside the weight."""

from __future__ import annotations

import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _C
from .registry import DTYPES


class _Panels(NamedTuple):
    owner: weakref.ref[Tensor]  # the `values` they were packed from
    state: tuple[int, ...]  # what weight_state said then: a moved or changed weight is packed again
    groups: int
    packed: Tensor
    address: int


_panels: dict[int, _Panels] = {}  # by id(values), for as long as that tensor lives


def weight_state(values: Tensor, indices: Tensor) -> tuple[int, ...]:
    """What changes when a weight is moved or written to: what was derived from it is then void."""
    try:
        return values.data_ptr(), indices.data_ptr(), values._version, indices._version
    except RuntimeError:  # inference tensors keep no version: they must not be written to
        return values.data_ptr(), indices.data_ptr()


def _pack(values: Tensor, indices: Tensor, groups: int) -> _Panels:
    rows, padded = values.shape[0], 2 * values.shape[1]
    packed = torch.empty(_C.panels_bytes(rows // groups, padded) * groups, dtype=torch.uint8)
    dense_values, dense_indices = values.detach().contiguous(), indices.contiguous()
    state = weight_state(values, indices)
    _C.pack(
        dense_values.data_ptr(), dense_indices.data_ptr(), DTYPES[values.dtype], rows, padded, groups,
        packed.data_ptr(),
    )  # fmt: skip
    return _Panels(weakref.ref(values), state, groups, packed, packed.data_ptr())


def panels_of(values: Tensor, indices: Tensor, groups: int) -> _Panels | None:
    """The panels of a weight that has not changed since it was packed, else None.

    A hit also says that ``values`` and ``indices`` have passed the checks of the operator before.
    Callers keep the entry while a kernel reads it: another thread may replace it meanwhile.
    """
    entry = _panels.get(id(values))
    if (
        entry is None
        or entry.owner() is not values
        or entry.state != weight_state(values, indices)
        or entry.groups != groups
    ):
        return None
    return entry


def pack_panels(values: Tensor, indices: Tensor, groups: int) -> _Panels:
    """Pack a checked weight and keep its panels until ``values`` is gone."""
    key = id(values)
    if key not in _panels:
        weakref.finalize(values, _panels.pop, key, None).atexit = False
    entry = _panels[key] = _pack(values, indices, groups)
    return entry
