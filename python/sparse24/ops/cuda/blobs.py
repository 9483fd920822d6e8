"""What a GPU wants beside the canonical form: blobs, a dense copy where one is asked for, workspaces.

A blob is cuSPARSELt's compressed buffer: opaque, for one algorithm, shape, GPU and library, with a key that
says so. It is never saved. Everything derived from one weight is owned by one ``Derived``, which is passed
to the products explicitly: a layer owns one, and ``weights`` finds one for operators that get bare tensors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
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

#: values [m, K/2] and indices uint8 [m, K/8].
Operands = tuple[Tensor, Tensor]
#: What a blob is found by: the first row and the number of rows that it holds, and the library's key.
Name = tuple[tuple[int, int], _C.BlobKey]


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


class Derived:
    """Everything derived from one state of one weight on one device.

    It does not watch the weight: whoever owns it calls :meth:`renewed` when the weight may have changed. What
    a CUDA graph has captured keeps its memory for as long as the owner lives, and is written there again.

    Args:
        keeps_dense: a dense copy stays on the device, for calls that are faster dense.
        lock: held while something is built, so that threads build it once; the owner's, where it has one.
    """

    def __init__(self, keeps_dense: bool = False, lock: threading.RLock | None = None) -> None:
        self.keeps_dense = keeps_dense
        self.lock = lock or threading.RLock()
        self.blobs: dict[Name, Blob] = {}  # oldest first
        self.dense: Tensor | None = None  # [m, K]
        self._dense_stream = 0  # that it was made on
        self._captured: dict[Name | None, Tensor] = {}  # blobs, and under None the dense copy
        self._pairs_are_halved: bool | None = None

    def renewed(self) -> Derived:
        """Nothing derived yet, for the weight as it is from now on; this one must not be kept."""
        with self.lock:
            fresh = Derived(self.keeps_dense, self.lock)
            fresh._captured, self._captured = self._captured, {}
            return fresh

    def is_1_of_2(self, source: Callable[[], Operands]) -> bool:
        """Whether at most one of every two neighbours is kept, as TF32 needs. Synchronises, once."""
        with self.lock:
            if self._pairs_are_halved is None:
                values, indices = source()
                columns = kept_columns(indices).unflatten(1, (-1, 2))
                same_pair = columns[..., 0] // 2 == columns[..., 1] // 2
                both = (values.unflatten(1, (-1, 2)) != 0).all(-1)
                self._pairs_are_halved = not bool((same_pair & both).any())
            return self._pairs_are_halved

    def blob_of(
        self, source: Callable[[], Operands], rows: tuple[int, int], plan: Plan, stream: Stream
    ) -> Blob:
        """The blob that ``plan`` reads, of ``rows`` (first, count) of the weight: found, or compressed by it.

        Args:
            source: gives the canonical form on the device, and is asked only where a blob is made.

        Raises:
            Error: it would have to be compressed while the stream captures a CUDA graph.
        """
        name = (rows, plan.key)
        found = self.blobs.get(name)
        if found is None:
            with self.lock:
                found = self.blobs.get(name)
                if found is None:
                    _refuse_in_a_capture(stream, plan.product.m, plan.product.k)
                    found = compress(*source(), rows, plan, stream, self._captured.get(name))
                    self.blobs[name] = found
                    self._drop_others(rows)
        if stream.is_capturing:
            self._captured[name] = found.data
        elif found.stream != stream.handle:
            stream.record(found.data)
        return found

    def _drop_others(self, rows: tuple[int, int]) -> None:
        """Forget the oldest blobs of these rows beyond the number that is kept."""
        names = [name for name in self.blobs if name[0] == rows]
        for name in names[: max(len(names) - BLOBS_OF_A_WEIGHT, 0)]:
            del self.blobs[name]

    def dense_of(self, source: Callable[[], Operands], stream: Stream) -> Tensor:
        """The dense copy [m, K], made at the first call.

        Raises:
            Error: it would have to be made while the stream captures a CUDA graph.
        """
        found = self.dense
        if found is None:
            with self.lock:
                found = self.dense
                if found is None:
                    found = self._make_dense(*source(), stream)
                    self.dense, self._dense_stream = found, stream.handle
        if stream.is_capturing:
            self._captured[None] = found
        elif self._dense_stream != stream.handle:
            stream.record(found)
        return found

    def _make_dense(self, values: Tensor, indices: Tensor, stream: Stream) -> Tensor:
        shape = (values.shape[0], 2 * values.shape[1])
        _refuse_in_a_capture(stream, *shape)
        made = device_kernels.expand(values, indices, *shape, stream.handle)
        before = self._captured.get(None)
        if before is not None and (before.shape, before.dtype) == (made.shape, made.dtype):
            made = before.copy_(made)
        _C.cusparselt_synchronize(stream.handle)  # other streams may read it from now on
        return made

    def keep_only(self, blobs: Iterable[Name], dense: bool) -> None:
        """Free every other blob, and the dense copy unless ``dense``; but not what a graph has captured."""
        with self.lock:
            wanted = set(blobs)
            self.blobs = {name: blob for name, blob in self.blobs.items() if name in wanted}
            if not dense:
                self.dense = None

    def bytes(self) -> int:
        """Memory that it holds on the device."""
        held = [*self._captured.values(), *(blob.data for blob in self.blobs.values())]
        if self.dense is not None:
            held.append(self.dense)
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in held}.values())


def _refuse_in_a_capture(stream: Stream, m: int, k: int) -> None:
    if stream.is_capturing:
        raise Error(
            f"a weight [{m}, {k}] has not been compressed for this GPU yet, and cannot be while a CUDA graph "
            "is captured: call sparse24.prepare(model, tokens=...), or run the layer once, before the capture"
        )


def compress(
    values: Tensor, indices: Tensor, rows: tuple[int, int], plan: Plan, stream: Stream,
    into: Tensor | None = None,
) -> Blob:  # fmt: skip
    """A blob of ``rows`` (first, count) of a weight, in ``into`` if that has its size. Synchronises."""
    part = slice(rows[0], rows[0] + rows[1])
    form = plan.product
    dense = device_kernels.expand(
        values[part].contiguous(), indices[part].contiguous(), form.m, form.k, stream.handle
    )
    if into is None or into.numel() != plan.blob_bytes:
        into = torch.empty(plan.blob_bytes, dtype=torch.uint8, device=values.device)
    buffer = torch.empty(plan.buffer_bytes, dtype=torch.uint8, device=values.device)
    key = _C.cusparselt_compress(
        stream.device, form, dense.data_ptr(), into.data_ptr(), buffer.data_ptr(), stream.handle
    )
    _C.cusparselt_synchronize(stream.handle)  # once: from now on any stream may read it
    return Blob(key, into, stream.handle)


_workspaces: dict[tuple[int, int], Tensor] = {}  # by device and stream, grown when a plan asks for more


def workspace(bytes: int, device: torch.device, stream: Stream) -> Tensor:
    """Scratch memory for one launch on ``stream``: launches of a stream follow each other and share it.

    A CUDA graph gets its own: it may be replayed on another stream, beside what this one runs.
    """
    if bytes and stream.is_capturing:
        return torch.empty(bytes, dtype=torch.uint8, device=device)
    key = (stream.device, stream.handle)
    found = _workspaces.get(key)
    if found is None or found.numel() < bytes or found.device != device:
        found = _workspaces[key] = torch.empty(bytes, dtype=torch.uint8, device=device)
    return found


def release() -> None:
    """Drop the workspaces. Blobs go with their owners."""
    _workspaces.clear()
