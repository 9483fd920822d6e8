"""Making the forms of a weight: from many threads, when it fails, while a graph is captured. On the emulator.

Passing here is not validation on a GPU.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sparse24
from emulated import Emulator, randn, sparse_weight
from own_forms import FEW, MANY, K, M, check, forms, is_away, new_layer, run, wait_for_handles
from reference import assert_matches, linear_reference
from sparse24.nn import device_forms, on_device
from sparse24.ops.cuda import blobs, memory

HALF = torch.float16

pytestmark = pytest.mark.usefixtures("on_emulator")


def test_first_calls_from_many_threads_build_once(emulator: Emulator, compressions: list[Any]) -> None:
    layer, weight, x = new_layer(), sparse_weight(M, K, HALF), randn(MANY, K)
    expected, bias = [], layer.bias.clone()
    start = threading.Barrier(6)

    def work() -> None:
        start.wait()
        output = run(layer, x)
        expected.append(output)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(expected) == 6
    for output in expected:
        assert_matches(output, linear_reference(x, weight, bias))
    check(layer, weight)
    assert compressions == [(0, M)]
    wait_for_handles(emulator)


def test_reading_while_other_threads_run_loses_nothing(emulator: Emulator) -> None:
    layer, weight, x = new_layer(), sparse_weight(M, K, HALF), randn(MANY, K)
    reference, bias = linear_reference(x, weight, layer.bias), layer.bias.clone()
    errors: list[BaseException] = []
    stop = threading.Event()

    def work(step: Callable[[], None]) -> None:
        try:
            while not stop.is_set():
                step()
        except BaseException as error:
            errors.append(error)
            raise

    def compute() -> None:
        assert_matches(run(layer, x), reference)

    def read() -> None:
        assert list(layer.state_dict()) == ["values", "bias", "indices"]
        assert torch.equal(layer._parameters["bias"], bias)

    threads = [threading.Thread(target=work, args=(step,)) for step in (compute, compute, read, read)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    check(layer, weight)
    wait_for_handles(emulator)


@pytest.mark.parametrize("where", ["compress", "_host_copy"])
def test_a_failure_while_building_leaves_the_layer_whole(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}

    def out_of_memory(*given: Any) -> Any:
        raise torch.OutOfMemoryError("of the device")

    with monkeypatch.context() as patch:
        patch.setattr(blobs if where == "compress" else device_forms, where, out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            run(layer, randn(MANY, K))
        check(layer, weight, FEW)
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name])
    check(layer, weight)


def test_bringing_back_that_fails_leaves_the_layer_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    check(layer, weight)

    def out_of_memory(*given: Any) -> Any:
        raise torch.OutOfMemoryError("of the device")

    with monkeypatch.context() as patch:
        patch.setattr(device_forms._Canonical, "bring", out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            layer.state_dict()
        assert is_away(layer)
        check(layer, weight)
    assert torch.equal(layer.weight, weight)


def test_captures(emulator: Emulator, monkeypatch: pytest.MonkeyPatch, compressions: list[Any]) -> None:
    """What is not ready is refused, a captured blob keeps its place, and a new weight is written there."""
    pool: list[Tensor] = []  # torch's CUDA allocator keeps what a graph uses; that of CPU tensors does not
    unpooled = memory.scratch
    monkeypatch.setattr(memory, "scratch", lambda *given: pool.append(unpooled(*given)) or pool[-1])
    mine = emulator.new_stream()
    monkeypatch.setattr(on_device, "current_stream", lambda tensor: mine)
    handle = ctypes.c_void_p(mine.handle)
    layer, weight, x = new_layer(bias=False), sparse_weight(M, K, HALF), randn(MANY, K)
    other = new_layer(bias=False)
    run(layer, x)
    assert is_away(layer)
    emulator.cuda("StreamBeginCapture", handle, 2)
    captured = run(layer, x)
    with pytest.raises(
        sparse24.Error, match=r"weight \[288, 128\] has not been compressed .* sparse24.prepare"
    ):
        run(other, x)
    with pytest.raises(sparse24.Error, match=r"no plan exists yet for 64 tokens .* sparse24.prepare"):
        run(layer, randn(64, K))
    with pytest.raises(sparse24.Error, match=r"canonical form of a weight \(288, 128\) .* sparse24.prepare"):
        run(layer, randn(FEW, K))
    graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
    emulator.cuda("StreamEndCapture", handle, ctypes.byref(graph))
    emulator.cuda("GraphInstantiate", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
    emulator.cuda("GraphLaunch", executable, handle)
    assert_matches(captured, linear_reference(x, weight))
    (blob,) = forms(layer)._derived.blobs.values()
    place = blob.data.data_ptr()
    del blob
    layer.values.mul_(2)
    run(layer, x)
    (blob,) = forms(layer)._derived.blobs.values()
    assert blob.data.data_ptr() == place
    captured.zero_()
    emulator.cuda("GraphLaunch", executable, handle)
    assert_matches(captured, linear_reference(x, 2 * weight))
    emulator.cuda("GraphExecDestroy", executable)
    emulator.cuda("GraphDestroy", graph)
    emulator.cuda("StreamDestroy", handle)


def test_a_canonical_form_that_a_graph_reads_stays_where_it_is(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = emulator.new_stream()
    monkeypatch.setattr(on_device, "current_stream", lambda tensor: mine)
    handle, layer = ctypes.c_void_p(mine.handle), new_layer()
    address = layer.values.data_ptr()
    emulator.cuda("StreamBeginCapture", handle, 2)
    run(layer, randn(FEW, K))
    graph = ctypes.c_void_p()
    emulator.cuda("StreamEndCapture", handle, ctypes.byref(graph))
    check(layer, sparse_weight(M, K, HALF))
    assert is_away(layer)
    assert layer.values.data_ptr() == address
    emulator.cuda("GraphDestroy", graph)
    emulator.cuda("StreamDestroy", handle)
