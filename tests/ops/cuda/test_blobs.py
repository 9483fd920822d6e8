"""Weights compressed for cuSPARSELt: kept, made again, dropped, captured in a CUDA graph."""

from __future__ import annotations

import ctypes
import threading
import time
from typing import Any

import pytest
import torch
from torch import Tensor

import sparse24
from emulated import HALF, EmulatedStream, Emulator, compressed, randn, sparse_weight
from reference import assert_matches, linear_reference
from sparse24 import _C, SparseLinear
from sparse24.ops.cuda import blobs, cusparselt, launch, memory, route, weights
from sparse24.ops.cuda import products as cuda
from sparse24.ops.cuda.cusparselt import Algorithm
from sparse24.ops.cuda.route import Call, Measured


def blobs_of(*operands: Tensor) -> dict[Any, blobs.Blob]:
    return weights.derived_of(*operands).blobs


def test_a_weight_is_compressed_once(emulator: Emulator, stream: EmulatedStream) -> None:
    weight = sparse_weight(32, 64, HALF)
    values, indices = compressed(weight)
    for tokens in (16, 64, 16):
        cuda.linear(randn(tokens, 64), values, indices, None, "none", stream)
    assert len(blobs_of(values, indices)) == 1


def test_a_weight_is_compressed_again_after_it_changed(stream: EmulatedStream) -> None:
    weight, x = sparse_weight(32, 64, HALF), randn(16, 64)
    values, indices = compressed(weight)
    cuda.linear(x, values, indices, None, "none", stream)
    values.mul_(2)
    assert_matches(cuda.linear(x, values, indices, None, "none", stream), linear_reference(x, 2 * weight))


def test_a_weight_is_compressed_again_for_another_algorithm(stream: EmulatedStream) -> None:
    weight, x = sparse_weight(288, 64, HALF), randn(16, 64)
    values, indices = compressed(weight)
    key = route.measured_key(Call(HALF, HALF, 288, 16, 64), cusparselt.gpu(0))
    for id in (0, 1, 2, 3):
        route.measured[key] = Measured(Algorithm(id), 1.0, 0.0, 0.0)
        launch.forget_plans()
        assert_matches(cuda.linear(x, values, indices, None, "none", stream), linear_reference(x, weight))
    assert len(blobs_of(values, indices)) == 1


def test_blobs_go_with_their_weight(stream: EmulatedStream) -> None:
    values, indices = compressed(sparse_weight(32, 64, HALF))
    key = weights._key_of(values, indices)
    cuda.linear(randn(16, 64), values, indices, None, "none", stream)
    assert key in weights._table
    del values
    weights.derived_of(*compressed(sparse_weight(32, 64, HALF)))  # what is gone is dropped with the next
    assert key not in weights._table


def test_a_state_dict_holds_no_blob(stream: EmulatedStream) -> None:
    layer = SparseLinear.from_weight(sparse_weight(32, 64, HALF))
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    cuda.linear(randn(16, 64), *layer._operands()[:2], None, "none", stream)
    assert layer.state_dict().keys() == before.keys()
    assert all(torch.equal(layer.state_dict()[key], value) for key, value in before.items())


def test_another_stream_tells_the_allocator(emulator: Emulator, stream: EmulatedStream) -> None:
    values, indices = compressed(sparse_weight(32, 64, HALF))
    cuda.linear(randn(16, 64), values, indices, None, "none", stream)
    (blob,) = blobs_of(values, indices).values()
    other = emulator.new_stream()
    for user in (stream, other, other, stream):
        cuda.linear(randn(16, 64), values, indices, None, "none", user)
    # Once each: the allocator keeps a set. What is kept belongs to no stream that computes.
    for user in (stream, other):
        assert user.recorded == [blob.data.data_ptr()]
    emulator.cuda("StreamDestroy", ctypes.c_void_p(other.handle))


def test_threads_have_their_own_handles(emulator: Emulator) -> None:
    weight, x = sparse_weight(64, 64, HALF), randn(24, 64)
    values, indices = compressed(weight)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            mine = emulator.new_stream()
            for _ in range(5):
                assert_matches(
                    cuda.linear(x, values, indices, None, "none", mine), linear_reference(x, weight)
                )
            emulator.cuda("StreamDestroy", ctypes.c_void_p(mine.handle))
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    # A thread's handles go when the thread does, which is a little after join returns.
    deadline = time.monotonic() + 10
    while emulator.live_objects() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_thread_that_lives_for_a_call_builds_its_plan_and_nothing_else(
    emulator: Emulator, compressions: list[Any]
) -> None:
    """The library binds a handle to the thread that made it, and plans to their handle; blobs serve all."""
    weight, x = sparse_weight(64, 64, HALF), randn(24, 64)
    values, indices = compressed(weight)
    expected = linear_reference(x, weight)
    main = emulator.new_stream()
    cuda.linear(x, values, indices, None, "none", main)
    mine, before = _C.cusparselt_plans_cached(), emulator.live_objects()
    seen: list[tuple[int, int]] = []

    def work() -> None:
        begun = _C.cusparselt_plans_cached()
        for _ in range(3):
            assert_matches(cuda.linear(x, values, indices, None, "none", main), expected)
        seen.append((begun, _C.cusparselt_plans_cached()))

    for _ in range(4):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        deadline = time.monotonic() + 10  # what a thread has made goes with it, a little after join returns
        while emulator.live_objects() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert emulator.live_objects() == before
    assert seen == [(0, 1)] * 4
    assert _C.cusparselt_plans_cached() == mine == 1
    assert compressions == [(0, 64)]
    emulator.cuda("StreamDestroy", ctypes.c_void_p(main.handle))


def test_a_captured_call_replays_and_what_is_not_ready_is_refused(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool: list[Tensor] = []  # torch's CUDA allocator keeps what a graph uses; that of CPU tensors does not
    unpooled = memory.scratch
    monkeypatch.setattr(memory, "scratch", lambda *given: pool.append(unpooled(*given)) or pool[-1])
    mine = emulator.new_stream()
    handle = ctypes.c_void_p(mine.handle)
    weight, x = sparse_weight(32, 64, HALF), randn(16, 64)
    values, indices = compressed(weight)
    cuda.linear(x, values, indices, None, "none", mine)  # the warm-up
    emulator.cuda("StreamBeginCapture", handle, 2)
    synchronizations = emulator.synchronizations()
    captured = cuda.linear(x, values, indices, None, "none", mine)
    assert len({scratch.data_ptr() for scratch in pool}) == 2  # the warm-up's, and the graph's own
    assert emulator.synchronizations() == synchronizations
    more = randn(32, 64)
    with pytest.raises(sparse24.Error, match="before the capture"):
        cuda.linear(more, values, indices, None, "none", mine)
    unseen = compressed(sparse_weight(64, 64, HALF))
    _prepare_plans(64, 16, 64, mine)
    with pytest.raises(sparse24.Error, match=r"weight \[64, 64\] has not been compressed .* the capture"):
        cuda.linear(x, *unseen, None, "none", mine)
    graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
    emulator.cuda("StreamEndCapture", handle, ctypes.byref(graph))
    emulator.cuda("GraphInstantiate", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
    emulator.cuda("GraphLaunch", executable, handle)
    assert_matches(captured, linear_reference(x, weight))
    emulator.cuda("GraphExecDestroy", executable)
    emulator.cuda("GraphDestroy", graph)
    emulator.cuda("StreamDestroy", handle)


def _prepare_plans(m: int, n: int, k: int, stream: EmulatedStream) -> None:
    """As if a plan of these sizes were known, so that only the blob is missing."""
    call = Call(HALF, HALF, m, n, k)
    form = route.product(call, "none", Algorithm())
    key = _C.cusparselt_blob_key(0, form)
    launch._plans[(0, call, "none", Algorithm(), k, m, (1, 0, 0))] = blobs.Plan(form, key, 1, 1, 1)
