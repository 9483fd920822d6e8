"""What a GPU wants beside the canonical form: blobs, a dense copy where one is asked for, workspaces.

A blob is cuSPARSELt's compressed buffer. It is derived from ``values`` and ``indices`` at the first call, for
one algorithm, shape, GPU and library, carries a key that says so, is made again when any of them changes, and
is never saved. It lives as long as the weight it was made from.
"""

from __future__ import annotations

import threading
import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from ... import _C
from ..layout import kept_columns
from ..registry import Error
from . import device_kernels
from .cusparselt import Product, Stream

#: Blobs kept for a weight: tuned token counts may want different algorithms, and each is a copy.
BLOBS_OF_A_WEIGHT = 2


def weight_state(values: Tensor, indices: Tensor) -> tuple[int, ...]:
    """What changes when a weight is moved or written to: what was derived from it is then void."""
    try:
        return values.data_ptr(), indices.data_ptr(), values._version, indices._version
    except RuntimeError:  # inference tensors keep no version: they must not be written to
        return values.data_ptr(), indices.data_ptr()


class Plan(NamedTuple):
    """A product in its C++ form, and what it needs."""

    product: Product
    key: _C.BlobKey  #: of the blobs that it reads
    blob_bytes: int
    buffer_bytes: int
    workspace_bytes: int


class Blob(NamedTuple):
    """One compressed buffer."""

    key: _C.BlobKey
    data: Tensor  # uint8, on the device
    stream: int  # that it was made on


class Prepared:
    """Everything derived from one weight on one device."""

    def __init__(self, values: Tensor, indices: Tensor) -> None:
        self.owner = weakref.ref(values)
        self.state = weight_state(values, indices)
        self.blobs: dict[tuple[tuple[int, int], _C.BlobKey], Blob] = {}  # oldest first
        self.dense: dict[tuple[int, int], Tensor] = {}
        self._pairs_are_halved: bool | None = None

    def is_1_of_2(self, values: Tensor, indices: Tensor) -> bool:
        """Whether at most one of every two neighbours is kept, as TF32 needs. Synchronises, once."""
        if self._pairs_are_halved is None:
            columns = kept_columns(indices).unflatten(1, (-1, 2))
            same_pair = columns[..., 0] // 2 == columns[..., 1] // 2
            both = (values.unflatten(1, (-1, 2)) != 0).all(-1)
            self._pairs_are_halved = not bool((same_pair & both).any())
        return self._pairs_are_halved


_prepared: dict[int, Prepared] = {}  # by id(values), for as long as that tensor lives
_keep_dense: dict[int, weakref.ref[Tensor]] = {}
_workspaces: dict[tuple[int, int], Tensor] = {}  # by device and stream, grown when a plan asks for more
_lock = threading.Lock()


def prepared(values: Tensor, indices: Tensor) -> Prepared:
    """What has been derived from a weight; begun anew when the weight was moved or changed."""
    entry = _prepared.get(id(values))
    if entry is not None and entry.owner() is values and entry.state == weight_state(values, indices):
        return entry
    with _lock:
        key = id(values)
        if key not in _prepared:
            weakref.finalize(values, _prepared.pop, key, None).atexit = False
        entry = _prepared[key] = Prepared(values, indices)
    return entry


def keep_dense(values: Tensor, keep: bool = True) -> None:
    """Whether a dense copy of this weight stays on the device, for calls that are faster dense."""
    key = id(values)
    if keep:
        _keep_dense[key] = weakref.ref(values)
        weakref.finalize(values, _keep_dense.pop, key, None).atexit = False
        return
    _keep_dense.pop(key, None)
    entry = _prepared.get(key)
    if entry is not None:
        entry.dense.clear()


def dense_kept(values: Tensor) -> bool:
    """Whether :func:`keep_dense` was asked for this weight."""
    kept = _keep_dense.get(id(values))
    return kept is not None and kept() is values


def dense_weight(values: Tensor, indices: Tensor, stream: Stream) -> Tensor:
    """The dense weight [m, K]: the copy if one is kept, else expanded for this call."""
    shape = (values.shape[0], 2 * values.shape[1])
    if not dense_kept(values):
        return device_kernels.expand(values, indices, *shape, stream.handle)
    entry = prepared(values, indices)
    found = entry.dense.get(shape)
    if found is None:
        found = entry.dense[shape] = device_kernels.expand(values, indices, *shape, stream.handle)
        _C.cusparselt_synchronize(stream.handle)  # other streams may read it from now on
    return found


def blob_of(values: Tensor, indices: Tensor, rows: tuple[int, int], plan: Plan, stream: Stream) -> Blob:
    """The blob that ``plan`` reads, of ``rows`` (first, count) of a weight: found, or compressed now by it.

    Raises:
        Error: it would have to be compressed while the stream captures a CUDA graph.
    """
    entry = prepared(values, indices)
    name = (rows, plan.key)
    found = entry.blobs.get(name)
    if found is None:
        found = _compress(values, indices, rows, plan, stream)
        with _lock:
            entry.blobs[name] = found
            _drop_others(entry, rows)
    if found.stream != stream.handle:
        stream.record(found.data)
    return found


def _drop_others(entry: Prepared, rows: tuple[int, int]) -> None:
    """Forget the oldest blobs of these rows beyond the number that is kept."""
    names = [name for name in entry.blobs if name[0] == rows]
    for name in names[: max(len(names) - BLOBS_OF_A_WEIGHT, 0)]:
        del entry.blobs[name]


def _compress(values: Tensor, indices: Tensor, rows: tuple[int, int], plan: Plan, stream: Stream) -> Blob:
    if _C.cusparselt_is_capturing(stream.handle):
        raise Error(
            f"a weight [{plan.product.m}, {plan.product.k}] has not been compressed for this GPU yet, and "
            "cannot be while a CUDA graph is captured: run the layer once before the capture"
        )
    part = slice(rows[0], rows[0] + rows[1])
    form = plan.product
    dense = device_kernels.expand(values[part], indices[part], form.m, form.k, stream.handle)
    data = torch.empty(plan.blob_bytes, dtype=torch.uint8, device=values.device)
    buffer = torch.empty(plan.buffer_bytes, dtype=torch.uint8, device=values.device)
    key = _C.cusparselt_compress(
        stream.device, form, dense.data_ptr(), data.data_ptr(), buffer.data_ptr(), stream.handle
    )
    _C.cusparselt_synchronize(stream.handle)  # once: from now on any stream may read it
    return Blob(key, data, stream.handle)


def workspace(bytes: int, device: torch.device, stream: Stream) -> Tensor:
    """Scratch memory for one launch on ``stream``: launches of a stream follow each other and share it.

    A CUDA graph gets its own: it may be replayed on another stream, beside what this one runs.
    """
    if bytes and _C.cusparselt_is_capturing(stream.handle):
        return torch.empty(bytes, dtype=torch.uint8, device=device)
    key = (stream.device, stream.handle)
    found = _workspaces.get(key)
    if found is None or found.numel() < bytes or found.device != device:
        found = _workspaces[key] = torch.empty(bytes, dtype=torch.uint8, device=device)
    return found


def release() -> None:
    """Drop the workspaces. Blobs go with their weights."""
    _workspaces.clear()
