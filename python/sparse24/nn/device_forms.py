"""What a compressed layer on a GPU owns: its weight in one form for each way of running, and never a third.

Many tokens run on cuSPARSELt's blob, which is opaque; few run on the canonical form. A form is made when a
call first wants it. Once there is a blob, ``values`` and ``indices`` leave the device for a copy on the host,
unless few tokens ran too, and are away from the module (``lent``). Whoever reads them gets them back, bit for
bit, and then the blob is void: as long as anything outside holds them, or something that shares their memory,
the layer computes from them as they are, and after that the next call makes the blob again. So no write can
be missed, and no call looks through a weight for one.

Over 300 lines: one class, whose every method holds its one lock.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes

from ..ops.cuda import memory
from ..ops.cuda.blobs import Derived, Name, Operands
from ..ops.cuda.cusparselt import Stream
from ..ops.cuda.launch import parts_of
from ..ops.cuda.repeats import Done, Launches, add, add_few, launches_for, may_repeat
from ..ops.cuda.weights import adopt, derived_of, keep_dense
from ..ops.registry import Error
from .lent import Lent, is_held

if TYPE_CHECKING:
    from .compressed import CompressedModule


class Bytes(NamedTuple):
    """Memory of a layer's weight on its device, by form."""

    canonical: int
    blobs: int
    dense: int


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Make ordinary tensors whatever mode, transform or tracer the caller is in."""
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        _disable_current_modes(),
        torch._C.DisableTorchFunction(),
        temporarily_clear_interpreter_stack(),
    ):
        yield


def _host_copy(tensor: Tensor) -> Tensor:
    with_dma = tensor.is_cuda
    try:
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=with_dma)
    except RuntimeError:  # no more memory can be pinned: a slower copy is as good
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    return copy.copy_(tensor)


@functools.lru_cache(maxsize=1024)
def _like(shapes: tuple[torch.Size, torch.Size], dtypes: tuple[torch.dtype, torch.dtype]) -> Operands:
    with _undisturbed():
        values = torch.empty(shapes[0], dtype=dtypes[0], device="meta")
        indices = torch.empty(shapes[1], dtype=dtypes[1], device="meta")
    return values, indices


def _like_those_in(state: dict[str, object]) -> tuple[Operands, torch.device, bool] | None:
    """Tensors on the meta device like the module's, where they are, and whether they want gradients."""
    values = state["_parameters"].get("values")  # type: ignore[attr-defined]
    indices = state["_buffers"].get("indices")  # type: ignore[attr-defined]
    plain = type(values) in (nn.Parameter, Tensor) and type(indices) in (nn.Parameter, Tensor)
    if not plain or values.device != indices.device or values.layout is not torch.strided:
        return None
    like = _like((values.shape, indices.shape), (values.dtype, indices.dtype))
    return like, values.device, values.requires_grad


def _may_leave(state: dict[str, object]) -> bool:
    """Whether new objects would do for the module's tensors: nothing is attached to these."""
    values = state["_parameters"].get("values")  # type: ignore[attr-defined]
    indices = state["_buffers"].get("indices")  # type: ignore[attr-defined]
    return (
        type(values) is nn.Parameter
        and type(indices) is Tensor
        and not values.requires_grad
        and values.grad is None
        and not values.__dict__
        and not indices.__dict__
        and not values._backward_hooks
    )


def _tensors_of(layer: CompressedModule) -> Operands:
    return layer._parameters["values"], layer._buffers["indices"]  # type: ignore[return-value]


class _Canonical:
    """The canonical form while the layer alone has it, on the device or on the host."""

    def __init__(self, values: nn.Parameter, indices: Tensor) -> None:
        self.like = _like((values.shape, indices.shape), (values.dtype, indices.dtype))
        self.device = values.device
        self.here: tuple[nn.Parameter, Tensor] | None = (values, indices)
        self.host: Operands | None = None

    def bring(self) -> tuple[nn.Parameter, Tensor]:
        """Have it on the device.

        Raises:
            Error: the current stream captures a CUDA graph, which would copy from the host at every replay.
        """
        if self.here is None:
            assert self.host is not None
            if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                raise _absent_in_a_capture(self.like[0])
            with _undisturbed():  # synchronises: from now on any stream may read it
                values, indices = (memory.copy_of(tensor, self.device) for tensor in self.host)
                self.here = nn.Parameter(values, requires_grad=False), indices
        return self.here

    def leave(self) -> None:
        """Have it on the host only."""
        if self.here is None:
            return
        if self.host is None:
            with _undisturbed():
                values, indices = (_host_copy(tensor) for tensor in self.here)
            self.host = values, indices
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # any stream may have been reading it
        self.here = None


def _absent_in_a_capture(values: Tensor) -> Error:
    shape = (values.shape[0], 2 * values.shape[1])
    return Error(
        f"the canonical form of a weight {shape} is not on the device, and cannot be copied there while a "
        "CUDA graph is captured: call sparse24.prepare(model, tokens=...) before the capture"
    )


class DeviceForms:
    """The forms of one layer's weight. Begun when it first runs on a GPU; never copied, pickled or saved.

    Attributes:
        lock: held while forms are made, freed or handed out.
        keeps_dense: a dense copy is kept beside them.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.keeps_dense = False
        self._derived = Derived(lock=self.lock)
        #: By device, what CUDA graphs there read: it lives as long as the layer, wherever that has gone.
        self._left_behind: dict[torch.device, Derived] = {}
        self._own: _Canonical | None = None  # None: the module's dicts hold the canonical form, as usual
        self._dicts: tuple[weakref.ref[Lent], weakref.ref[Lent]] | None = None  # those that it is away from
        self._device: torch.device | None = None
        self._wants_canonical = False  # few tokens ran, or a dense product
        self._captured = False  # a CUDA graph reads the canonical form where it is
        self._read_by_operators: list[Derived] = []  # of the canonical form, by graphs that hold it
        self._launches: Launches | None = None  # what calls have done, to be done again without Python

    def __reduce__(self) -> tuple[object, ...]:
        return type(None), ()  # a copy begins with none

    def own_of(self, layer: CompressedModule) -> _Canonical | None:
        """The canonical form if it is away from this very layer; a replica shares what its original has."""
        own, dicts = self._own, self._dicts
        if own is None or dicts is None:
            return None
        state = layer.__dict__
        return own if dicts[0]() is state["_parameters"] and dicts[1]() is state["_buffers"] else None

    def found_in(self, layer: CompressedModule) -> tuple[Operands, torch.device, bool] | None:
        """Tensors like values and indices, their device, and whether values want gradients.

        ``None``: they are no plain tensors on one device. Nothing is moved.
        """
        own = self.own_of(layer)
        if own is None:
            with self.lock:  # lest another thread takes them away between the question and the look
                own = self.own_of(layer)
                if own is None:
                    return _like_those_in(layer.__dict__)
        return own.like, own.device, False

    def take(self, layer: CompressedModule) -> Derived | None:
        """What is derived from the weight; ``None``: nothing may be, for others hold its tensors."""
        derived = self._derived  # before the next line: what was voided since is at worst a call too old
        if self.own_of(layer) is not None:
            return derived
        with self.lock:
            if self.own_of(layer) is not None:
                return self._derived
            return self._derived if self._own is None and self._withdraw(layer.__dict__) else None

    def _withdraw(self, state: dict[str, Lent]) -> bool:
        """Remove the tensors from the module's dicts, unless somebody else holds them.

        What operators have derived from them before belongs to the layer from now on.
        """
        if not _may_leave(state):  # type: ignore[arg-type]
            return False
        for attribute, name in (("_parameters", "values"), ("_buffers", "indices")):
            if not isinstance(state[attribute], Lent):
                if is_held(state):
                    return False
                state[attribute] = Lent(state[attribute], name, self.lend)
            state[attribute].serve(self.lend)
        # Closed first and counted then: who read before is counted, who reads later waits for the lock.
        state["_parameters"].close()
        state["_buffers"].close()
        if is_held(state):
            state["_parameters"].open()
            state["_buffers"].open()
            return False
        own = _Canonical(state["_parameters"].take(), state["_buffers"].take())  # type: ignore[arg-type]
        assert own.here is not None
        adopted = None if own.here[0].is_inference() else adopt(*own.here)
        if adopted is not None and not self._derived.is_captured:
            self._derived = adopted
            adopted.lock = self.lock
        self._dicts = weakref.ref(state["_parameters"]), weakref.ref(state["_buffers"])
        self._own, self._launches = own, None
        return True

    def lend(self) -> None:
        """Put ``values`` and ``indices`` back into the module, as plain tensors; what was derived is void."""
        with self.lock:
            own = self._own
            if own is None or self._dicts is None:
                return
            tensors = own.bring()
            self._own, self._derived = None, self._derived.renewed()
            self._forget_launches()
            self._launches = None  # the next ones are for a weight that is in the dicts
            for reference, tensor in zip(self._dicts, tensors, strict=True):
                lent = reference()
                if lent is not None:
                    lent.give(tensor)
            if self.keeps_dense and own.device.type == "cuda":
                keep_dense(*tensors, True)  # for programs that call the operators with them

    def be_on(self, device: torch.device) -> None:
        """Free everything that belongs to another device."""
        if self._device == device:
            return
        with self.lock:
            if self._device == device:
                return
            before = self._derived.renewed()
            if self._device is not None and before.is_captured:
                self._left_behind[self._device] = before
            self._device = device
            self._forget_launches()
            self._derived = self._left_behind.pop(device, Derived(lock=self.lock))
            self._wants_canonical = self._captured = False

    # ---- what a call needs --------------------------------------------------------------------------

    def source(self, layer: CompressedModule, stream: Stream) -> Operands:
        """The canonical form on the device, to derive something from."""
        with self.lock:
            own = self.own_of(layer)
            if own is None:  # handed out meanwhile, by another thread
                return _tensors_of(layer)
            if own.here is None and stream.is_capturing:
                raise _absent_in_a_capture(own.like[0])
            return own.bring()

    def read(self, layer: CompressedModule, stream: Stream, to_stay: bool) -> Operands:
        """The canonical form on the device, for a product that reads it; ``to_stay`` there from then on."""
        with self.lock:
            operands, own = self.source(layer, stream), self.own_of(layer)
            self._captured = self._captured or stream.is_capturing
            self._wants_canonical = self._wants_canonical or to_stay
            if own is not None and to_stay:
                own.host = None
            return operands

    def note_a_capture(self, layer: CompressedModule, device: torch.device) -> None:
        """An operator is about to read the canonical form: if a graph is captured, it stays where it is.

        So does what the operator reads of what was derived from it.
        """
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            self.be_on(device)
            self._captured = True
            values, indices = layer.values, layer.indices
            if values.device == device and not values.is_inference():
                read = derived_of(values, indices)
                if all(read is not other for other in self._read_by_operators):
                    self._read_by_operators.append(read)

    def settle(self, stream: Stream) -> None:
        """After a call: let the canonical form leave the device if only what was derived is wanted."""
        own = self._own
        if own is None or own.here is None or self._wants_canonical or self._captured:
            return
        with self.lock:
            own = self._own
            if own is None or self._wants_canonical or self._captured:
                return
            if not self._derived.is_empty and not stream.is_capturing:
                own.leave()

    def repeat(self, layer: CompressedModule, done: Done) -> None:
        """Have ``call_linear`` do again what a call has done, for as long as the weight is in this form."""
        with self.lock:
            own, held, parts = self.own_of(layer), self._derived.blobs, []
            if not may_repeat(done):
                return
            if done.launch is not None:
                parts = [] if own is None else parts_of(done.launch)
                rows = done.launch.rows
                if not parts or any(held.get((rows, p.plan.key)) is not p.blob for p in parts):
                    return
            if own is not None and own.here is None and not parts:
                return
            if self._launches is None:
                state = layer.__dict__
                self._launches = launches_for(
                    None if own is None else (state["_parameters"], state["_buffers"])
                )
            if self._launches is not None:
                layer.__dict__["_launches"] = self._launches
                if parts:
                    add(self._launches, done, parts, layer.__dict__.get("_window"))
                else:
                    add_few(self._launches, done, None if own is None else own.here)

    def _forget_launches(self) -> None:
        if self._launches is not None:
            self._launches.clear()

    def keep_only(
        self, blobs: list[Name], dense: bool, canonical: bool, stream: Stream, cast: torch.dtype | None = None
    ) -> None:
        """Free every form but these, which are in the dtype ``cast`` where one is given."""
        with self.lock:
            self._forget_launches()
            for dtype, derived in ((None, self._derived), *self._derived.casts.items()):
                if dtype is cast:
                    derived.keep_only(blobs, dense, canonical)
                else:
                    derived.keep_only([], False)
            self._wants_canonical = canonical
            if canonical and self._own is not None:
                self._own.bring()
                self._own.host = None
            self.settle(stream)
        if canonical and not blobs and not dense:
            self.lend()  # nothing is derived: an ordinary module again

    def bytes(self, layer: CompressedModule) -> Bytes:
        """Memory on the device."""
        with self.lock:
            own = self.own_of(layer)
            if own is None:
                tensors: tuple[Tensor, ...] = _tensors_of(layer)
            else:
                tensors = own.here or ()
            canonical = sum(tensor.nbytes for tensor in tensors)
            dense = 0 if self._derived.dense is None else self._derived.dense.nbytes
            return Bytes(canonical, self._derived.bytes() - dense, dense)


_beginning = threading.Lock()


def forms_of(layer: CompressedModule) -> DeviceForms:
    """The forms of this layer, begun if there are none. A replica or shallow copy gets its own."""
    forms: DeviceForms | None = layer.__dict__.get("_forms")
    if forms is None or (forms._own is not None and forms.own_of(layer) is None):
        with _beginning:
            forms = layer.__dict__.get("_forms")
            if forms is None or (forms._own is not None and forms.own_of(layer) is None):
                forms = layer.__dict__["_forms"] = DeviceForms()
    return forms
