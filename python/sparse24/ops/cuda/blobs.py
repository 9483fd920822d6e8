"""What a GPU wants beside the canonical form: blobs, a dense copy where one is asked for, values cast for
autocast.

A blob is cuSPARSELt's compressed buffer: opaque, for one algorithm, shape, GPU and library, with a key that
says so. It is never saved. Everything derived from one weight is owned by one ``Derived``, which is passed
to the products explicitly: a layer owns one, and ``weights`` finds one for operators that get bare tensors.

A weight has one blob for each dtype of its results (a layer has one such dtype): its algorithm is the same
for every count of tokens (``route.algorithm_of``), or blobs would be as many as counts are tuned.

A little over 300 lines: one class, and what its entries are made of.
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
from . import device_kernels, memory
from .cusparselt import Product, Stream

#: values [m, K/2] and indices uint8 [m, K/8].
Operands = tuple[Tensor, Tensor]
#: What a blob is found by: the first row and the number of rows that it holds, and the library's key.
Name = tuple[tuple[int, int], _C.BlobKey]


class Plan(NamedTuple):
    """A product in its C++ form, and what it needs."""

    product: Product
    key: _C.BlobKey  #: of the blobs that it reads
    blob_bytes: int
    buffer_bytes: int
    workspace_bytes: int


class Kept(NamedTuple):
    """Memory that stays between calls, and the streams that torch's allocator knows to use it."""

    data: Tensor
    streams: set[int]

    def use(self, stream: Stream) -> Tensor:
        """The memory, for work of ``stream``: freed, it is not given away before that is done."""
        if stream.handle not in self.streams:
            stream.record(self.data)
            self.streams.add(stream.handle)
        return self.data


class Blob(NamedTuple):
    """One compressed buffer, and the plan and the address of a bias to make it again with."""

    plan: Plan
    memory: Kept  # uint8, on the device
    bias: int = 0

    @property
    def data(self) -> Tensor:
        """The buffer."""
        return self.memory.data

    @property
    def key(self) -> _C.BlobKey:
        """What it was compressed for."""
        return self.plan.key


class Derived:
    """Everything derived from one state of one weight on one device.

    It does not watch the weight: whoever owns it calls :meth:`renewed` when the weight may have changed. What
    a CUDA graph has captured keeps its memory for as long as the owner lives, and is written there again, all
    of it, as soon as anything is derived from the changed weight.

    Args:
        keeps_dense: a dense copy stays on the device, for calls that are faster dense.
        lock: held while something is built, so that threads build it once; the owner's, where it has one.
    """

    def __init__(self, keeps_dense: bool = False, lock: threading.RLock | None = None) -> None:
        self.keeps_dense = keeps_dense
        self.lock = lock or threading.RLock()
        self.blobs: dict[Name, Blob] = {}
        self.dense: Tensor | None = None  # [m, K]
        self.values: Tensor | None = None  # of a cast: values [m, K/2] in its dtype
        self.casts: dict[torch.dtype, Derived] = {}  # the same weight in the dtypes that autocast asked for
        self._dense: Kept | None = None
        self._values: Kept | None = None
        self._captured: dict[Name, Blob] = {}
        self._captured_dense: Kept | None = None
        self._captured_values: Kept | None = None
        self._stale: set[Name] = set()  # captured, and of the weight before
        self._pairs_are_halved: bool | None = None

    def renewed(self) -> Derived:
        """Nothing derived yet, for the weight as it is from now on; this one must not be kept."""
        with self.lock:
            fresh = Derived(self.keeps_dense, self.lock)
            fresh._captured, fresh._stale = self._captured, set(self._captured)
            fresh._captured_dense, fresh._captured_values = self._captured_dense, self._captured_values
            fresh.casts = {dtype: cast.renewed() for dtype, cast in self.casts.items()}
            self._captured, self._captured_dense, self._captured_values = {}, None, None
            return fresh

    @property
    def is_captured(self) -> bool:
        """Whether a CUDA graph reads any of its memory."""
        own = self._captured or self._captured_dense is not None or self._captured_values is not None
        return bool(own) or any(cast.is_captured for cast in self.casts.values())

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been derived from the weight as it is."""
        own = self.blobs or self.dense is not None or self.values is not None
        return not own and all(cast.is_empty for cast in self.casts.values())

    def cast(self, dtype: torch.dtype) -> Derived:
        """What is derived from the same weight in another dtype."""
        found = self.casts.get(dtype)
        if found is None:
            with self.lock:
                found = self.casts.setdefault(dtype, Derived(self.keeps_dense, self.lock))
        found.keeps_dense = self.keeps_dense
        return found

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
        self, source: Callable[[], Operands], rows: tuple[int, int], plan: Plan, stream: Stream, bias: int = 0
    ) -> Blob:
        """The blob that ``plan`` reads, of ``rows`` (first, count) of the weight: found, or compressed by it.

        Args:
            source: gives the canonical form on the device, and is asked only where a blob is made.
            bias: the address of the product's, for a plan that has to be made again.

        Raises:
            Error: it would have to be compressed while the stream captures a CUDA graph.
        """
        name = (rows, plan.key)
        found = self.blobs.get(name)
        if found is None:
            with self.lock:
                found = self.blobs.get(name) or self._make_blob(source, name, plan, stream, bias)
        if stream.is_capturing:
            self._captured[name] = found
        else:
            found.memory.use(stream)
        return found

    def _make_blob(
        self, source: Callable[[], Operands], name: Name, plan: Plan, stream: Stream, bias: int
    ) -> Blob:
        before = self._captured.get(name)
        if before is None or name in self._stale:
            _refuse_in_a_capture(stream, plan.product.m, plan.product.k)
            operands = source()
            before = compress(*operands, name[0], plan, stream, before, bias)
            self._stale.discard(name)
            self._follow(operands, stream)
        self.blobs = {
            other: blob
            for other, blob in self.blobs.items()
            if other[0] != name[0] or other[1].out_dtype != plan.key.out_dtype
        }
        self.blobs[name] = before
        return before

    def _follow(self, operands: Operands, stream: Stream) -> None:
        """Write the changed weight into everything that graphs read."""
        for name in list(self._stale):
            blob = self._captured[name]
            compress(*operands, name[0], blob.plan, stream, blob, blob.bias)
        self._stale.clear()
        if self._captured_dense is not None and self.dense is None:
            self._make_dense(*operands, stream)
        if self._captured_values is not None and self.values is None:
            self._make_values(operands[0], self._captured_values.data.dtype, stream)
        for dtype, cast in self.casts.items():
            if cast.is_captured:
                cast._follow((operands[0].to(dtype), operands[1]), stream)

    def dense_of(self, source: Callable[[], Operands], stream: Stream) -> Tensor:
        """The dense copy [m, K], made at the first call.

        Raises:
            Error: it would have to be made while the stream captures a CUDA graph.
        """
        if self.dense is None:
            with self.lock:
                if self.dense is None:
                    operands = source()
                    _refuse_in_a_capture(stream, operands[0].shape[0], 2 * operands[0].shape[1])
                    self._make_dense(*operands, stream)
                    self._follow(operands, stream)
        kept = self._dense
        assert kept is not None
        if stream.is_capturing:
            self._captured_dense = kept
        return kept.use(stream) if not stream.is_capturing else kept.data

    def _make_dense(self, values: Tensor, indices: Tensor, stream: Stream) -> None:
        shape = (values.shape[0], 2 * values.shape[1])
        kept = self._captured_dense
        if kept is None or (kept.data.shape, kept.data.dtype) != (shape, values.dtype):
            kept = Kept(memory.empty(shape, values.dtype, values.device), set())
        kept.use(stream).copy_(device_kernels.expand(values, indices, *shape, stream.handle))
        _C.cusparselt_synchronize(stream.handle)  # other streams may read it from now on
        self._dense, self.dense = kept, kept.data

    def values_of(self, source: Callable[[], Operands], dtype: torch.dtype, stream: Stream) -> Tensor:
        """values cast to ``dtype``, which is this cast's, made at the first call.

        Raises:
            Error: they would have to be made while the stream captures a CUDA graph.
        """
        if self.values is None:
            with self.lock:
                if self.values is None:
                    values = source()[0]
                    _refuse_in_a_capture(stream, values.shape[0], 2 * values.shape[1])
                    self._make_values(values, dtype, stream)
        kept = self._values
        assert kept is not None
        if stream.is_capturing:
            self._captured_values = kept
            return kept.data
        return kept.use(stream)

    def _make_values(self, values: Tensor, dtype: torch.dtype, stream: Stream) -> None:
        kept = self._captured_values
        if kept is None or kept.data.shape != values.shape:
            kept = Kept(memory.empty(values.shape, dtype, values.device), set())
        kept.use(stream).copy_(values)
        _C.cusparselt_synchronize(stream.handle)
        self._values, self.values = kept, kept.data

    def drop_dense(self) -> None:
        """Free the dense copies."""
        self.dense = self._dense = None
        for cast in self.casts.values():
            cast.drop_dense()

    def keep_only(self, blobs: Iterable[Name], dense: bool, values: bool = False) -> None:
        """Free all but these blobs, the dense copy and cast values unless told; never what a graph reads."""
        with self.lock:
            wanted = set(blobs)
            self.blobs = {name: blob for name, blob in self.blobs.items() if name in wanted}
            if not dense:
                self.dense = self._dense = None
            if not values:
                self.values = self._values = None

    def _memory(self) -> Iterable[Tensor | None]:
        yield from (blob.data for blob in (*self.blobs.values(), *self._captured.values()))
        yield self.values
        yield from (
            None if kept is None else kept.data for kept in (self._captured_dense, self._captured_values)
        )
        for cast in self.casts.values():
            yield from cast._memory()
            yield cast.dense

    def bytes(self) -> int:
        """Memory that it holds on the device."""
        held = {
            tensor.data_ptr(): tensor.nbytes for tensor in (*self._memory(), self.dense) if tensor is not None
        }
        return sum(held.values())


def _refuse_in_a_capture(stream: Stream, m: int, k: int) -> None:
    if stream.is_capturing:
        raise Error(
            f"a weight [{m}, {k}] has not been compressed for this GPU yet, and cannot be while a CUDA graph "
            "is captured: call sparse24.prepare(model, tokens=...), or run the layer once, before the capture"
        )


def compress(
    values: Tensor, indices: Tensor, rows: tuple[int, int], plan: Plan, stream: Stream,
    before: Blob | None = None, bias: int = 0,
) -> Blob:  # fmt: skip
    """A blob of ``rows`` (first, count) of a weight, in the memory of ``before`` if it fits. Synchronises."""
    part = slice(rows[0], rows[0] + rows[1])
    form = plan.product
    dense = device_kernels.expand(
        values[part].contiguous(), indices[part].contiguous(), form.m, form.k, stream.handle
    )
    if before is None or before.data.numel() != plan.blob_bytes:
        kept = Kept(memory.empty((plan.blob_bytes,), torch.uint8, values.device), set())
    else:
        kept = before.memory
    into = kept.use(stream)
    buffer = torch.empty(plan.buffer_bytes, dtype=torch.uint8, device=values.device)
    _C.cusparselt_compress(
        stream.device, form, bias, dense.data_ptr(), into.data_ptr(), buffer.data_ptr(), stream.handle
    )
    _C.cusparselt_synchronize(stream.handle)  # once: from now on any stream may read it
    return Blob(plan, kept, bias)
