"""What CUDA graphs read of a weight: it lives as long as its layer, and all of it follows the weight. On the
emulator.

Passing here is not validation on a GPU.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from emulated import FLOAT, HALF, EmulatedStream, Emulator, compressed, randn, sparse_weight
from own_forms import MANY, K, M, check, forms, is_away, new_layer, run
from reference import assert_matches, linear_reference
from sparse24 import SparseLinear, masks
from sparse24.nn import on_device
from sparse24.ops.cuda import cusparselt, memory, route, weights
from sparse24.ops.cuda import products as cuda
from sparse24.ops.cuda.cusparselt import Algorithm
from sparse24.ops.cuda.route import Call, Measured

pytestmark = pytest.mark.usefixtures("on_emulator")


class Graphs:
    """Captures on one stream, and replays."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self.stream = emulator.new_stream()
        self._handle = ctypes.c_void_p(self.stream.handle)
        self._made: list[tuple[ctypes.c_void_p, ctypes.c_void_p]] = []

    def capture(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._emulator.cuda("StreamBeginCapture", self._handle, 2)
        output = work()
        self._emulator.cuda("StreamEndCapture", self._handle, ctypes.byref(graph))
        self._emulator.cuda("GraphInstantiate", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        self._made.append((graph, executable))

        def replay() -> None:
            output.zero_()
            self._emulator.cuda("GraphLaunch", executable, self._handle)

        return output, replay

    def end(self) -> None:
        for graph, executable in self._made:
            self._emulator.cuda("GraphExecDestroy", executable)
            self._emulator.cuda("GraphDestroy", graph)
        self._emulator.cuda("StreamDestroy", self._handle)


@pytest.fixture
def graphs(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    pool: list[Tensor] = []  # torch's CUDA allocator keeps what a graph uses; that of CPU tensors does not
    unpooled = memory.scratch
    monkeypatch.setattr(memory, "scratch", lambda *given: pool.append(unpooled(*given)) or pool[-1])
    found = Graphs(emulator)
    monkeypatch.setattr(on_device, "current_stream", lambda tensor: found.stream)
    yield found
    found.end()


def tune_to(id: int, tokens: int = MANY) -> None:
    """As if tuning had found this algorithm alone."""
    route.measured.clear()
    key = route.measured_key(Call(HALF, HALF, M, tokens, K), cusparselt.gpu(0))
    route.measured[key] = Measured(Algorithm(id), 1.0, 0.0, 0.0)
    route.forget()


def test_every_buffer_that_a_graph_reads_follows_the_weight(graphs: Graphs) -> None:
    """Also the blob of an algorithm that no call wants any more."""
    layer, weight, x = new_layer(bias=False), sparse_weight(M, K, HALF), randn(MANY, K)
    captured = []
    for id in (1, 2):
        tune_to(id)
        run(layer, x)
        captured.append(graphs.capture(functools.partial(run, layer, x)))
    assert len(forms(layer)._derived.blobs) == 1
    layer.values.mul_(2)
    run(layer, x)
    for output, replay in captured:
        replay()
        assert_matches(output, linear_reference(x, 2 * weight))


def test_what_a_graph_reads_outlives_a_move_and_is_written_again_after_the_return(graphs: Graphs) -> None:
    layer, weight, x = new_layer(bias=False), sparse_weight(M, K, HALF), randn(MANY, K)
    run(layer, x)
    output, replay = graphs.capture(functools.partial(run, layer, x))
    (blob,) = forms(layer)._derived.blobs.values()
    gone, place = weakref.ref(blob.data), blob.data.data_ptr()
    del blob
    forms(layer).be_on(torch.device("meta"))
    gc.collect()
    assert gone() is not None
    replay()
    assert_matches(output, linear_reference(x, weight))
    forms(layer).be_on(torch.device("cpu"))
    layer.values.mul_(2)
    run(layer, x)
    (blob,) = forms(layer)._derived.blobs.values()
    assert blob.data.data_ptr() == place
    replay()
    assert_matches(output, linear_reference(x, 2 * weight))
    del blob, layer
    gc.collect()
    assert gone() is None  # the layer was its last owner


def test_a_blob_that_no_graph_reads_goes_when_its_weight_leaves() -> None:
    layer = new_layer()
    run(layer, randn(MANY, K))
    (blob,) = forms(layer)._derived.blobs.values()
    gone = weakref.ref(blob.data)
    del blob
    forms(layer).be_on(torch.device("meta"))
    assert gone() is None
    values, indices = compressed(sparse_weight(M, K, HALF))
    cuda.linear(randn(MANY, K), values, indices, None, "none", EmulatedStream())
    assert weights._table
    del values, indices
    SparseLinear(8, 8).half()  # any layer that moves sweeps
    assert not weights._table


def test_a_dense_copy_and_cast_values_in_graphs_follow_the_weight(graphs: Graphs) -> None:
    dense = randn(M, K, dtype=FLOAT)
    masks.prune_(dense)
    values, indices = compressed(dense)
    x = randn(4, K)
    weights.keep_dense(values, indices, True)
    cuda.linear(x, values, indices, None, "none", graphs.stream)
    graphs.capture(lambda: cuda.linear(x, values, indices, None, "none", graphs.stream))
    key = route.measured_key(Call(HALF, HALF, M, MANY, K), cusparselt.gpu(0))
    route.measured[key] = Measured(Algorithm(), 1.0, 2.0, 3.0)  # sparse although a copy is kept
    route.forget()
    many = randn(MANY, K)
    cuda.linear(many, values, indices, None, "none", graphs.stream)
    product, replay = graphs.capture(lambda: cuda.linear(many, values, indices, None, "none", graphs.stream))
    places = [
        tensor.data_ptr() for tensor in weights.derived_of(values, indices)._memory() if tensor is not None
    ]
    values.mul_(2)
    cuda.linear(many, values, indices, None, "none", graphs.stream)
    replay()
    assert_matches(product, linear_reference(many, 2 * dense.half()))
    after = weights.derived_of(values, indices)
    assert set(places) <= {tensor.data_ptr() for tensor in after._memory() if tensor is not None}
    cast = after.casts[HALF]
    assert cast.dense is not None
    assert_matches(x @ cast.dense.t(), linear_reference(x, 2 * dense.half()))


def test_a_layer_takes_over_what_operators_derived(compressions: list[Any], emulator: Emulator) -> None:
    """A weight has one blob, whoever made it: values, indices and two blobs were kept by accident before."""
    layer, weight, x = new_layer(bias=False), sparse_weight(M, K, HALF), randn(MANY, K)
    cuda.linear(x, layer.values, layer.indices, None, "none", EmulatedStream())
    key = weights._key_of(layer.values, layer.indices)
    assert key in weights._table
    gc.collect()
    check(layer, weight)
    assert compressions == [(0, M)]
    assert is_away(layer)
    assert key not in weights._table
    held = forms(layer).bytes(layer)
    assert (held.canonical, held.dense) == (0, 0)
    assert held.blobs <= 0.65 * weight.nbytes


def test_what_was_derived_of_a_weight_before_a_write_is_not_taken_over(compressions: list[Any]) -> None:
    layer, weight = new_layer(bias=False), sparse_weight(M, K, HALF)
    cuda.linear(randn(MANY, K), layer.values, layer.indices, None, "none", EmulatedStream())
    layer.values.mul_(2)
    check(layer, 2 * weight)
    assert compressions == [(0, M)] * 2


def test_counts_tuned_apart_never_compress_again(compressions: list[Any]) -> None:
    layer, weight = new_layer(bias=False), sparse_weight(M, K, HALF)
    on = cusparselt.gpu(0)
    for tokens, id in ((32, 1), (64, 2), (128, 3)):
        key = route.measured_key(Call(HALF, HALF, M, tokens, K), on)
        others = ((Algorithm(id), 1.0), (Algorithm(), 1.5))
        route.measured[key] = Measured(Algorithm(id), 1.0, 0.0, 0.0, others)
    route.forget()
    for tokens in (32, 64, 128) * 4:
        check(layer, weight, tokens)
    assert compressions == [(0, M)]


def test_one_split_is_the_default_under_another_name(emulator: Emulator) -> None:
    call = Call(HALF, HALF, 64, 64, 64)

    def key(algorithm: Algorithm) -> object:
        return cusparselt._C.cusparselt_blob_key(0, route.product(call, "none", algorithm))

    assert key(Algorithm(1, 1, 1, 0)) == key(Algorithm(1)) == key(Algorithm(1, 0, 2))
    assert key(Algorithm(1, 2, 1)) != key(Algorithm(1))
    assert key(Algorithm(2)) != key(Algorithm(1))
    emulator.set_sm(90)
    cusparselt.forget()
    assert key(Algorithm(1, 1)) != key(Algorithm(1))  # where the default may be Segment-K
