"""``sparse24.prepare`` on the emulator: it makes what given token counts run on, and frees the rest.

Passing here is not validation on a GPU.
"""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse24
from emulated import EmulatedStream, Emulator, randn, sparse_weight
from reference import assert_matches, conv2d_reference, linear_reference
from sparse24 import SparseConv2d, SparseConv3d, SparseLinear, masks
from sparse24.choose.gpu import describe_route
from sparse24.choose.prepare import Preparation, Prepared, prepare_layer
from sparse24.nn import device_forms, on_device
from sparse24.ops.cuda import blobs, launch, memory, route, ways
from sparse24.ops.cuda.cusparselt import Algorithm, gpu
from sparse24.ops.cuda.route import Call, Measured

HALF, BF16 = torch.float16, torch.bfloat16
M, K, MANY, FEW = 288, 128, 32, 4


@pytest.fixture
def layer(emulator: Emulator, stream: EmulatedStream, monkeypatch: pytest.MonkeyPatch) -> SparseLinear:
    """A layer whose CPU tensors are on the GPU, as far as its products go."""
    monkeypatch.setattr(on_device, "current_stream", lambda tensor: stream)
    return SparseLinear.from_weight(sparse_weight(M, K, HALF), randn(M, seed=5))


def run(layer: SparseLinear, tokens: int) -> None:
    x, weight = randn(tokens, K), sparse_weight(M, K, HALF)
    output = layer._on_device(x)
    assert output is not None
    assert_matches(output, linear_reference(x, weight, layer.__dict__["_parameters"]["bias"]))


def no_more_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(*given: Any) -> Any:
        raise AssertionError("a form was made")

    monkeypatch.setattr(blobs, "compress", made)
    monkeypatch.setattr(device_forms, "_host_copy", made)
    monkeypatch.setattr(launch._C, "cusparselt_sizes", made)


def test_many_tokens_get_a_blob_and_nothing_else(
    layer: SparseLinear, stream: EmulatedStream, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = prepare_layer("up", layer, (MANY, 77), stream)
    assert (row.sparse, row.dense, row.remark) == ((MANY, 77), (), "")
    assert row.bytes is not None
    assert (row.bytes.canonical, row.bytes.dense) == (0, 0)
    assert 0 < row.bytes.blobs <= 0.65 * row.dense_bytes
    assert row.dense_bytes == sparse_weight(M, K, HALF).nbytes
    assert emulator.launches() == 0
    with monkeypatch.context() as patch:
        no_more_is_made(patch)
        run(layer, MANY)
        run(layer, 77)
    assert emulator.launches() == 2  # 77 tokens are padded


def test_few_tokens_get_the_canonical_form_and_nothing_else(
    layer: SparseLinear, stream: EmulatedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(layer, MANY)
    row = prepare_layer("up", layer, (FEW,), stream)
    assert (row.sparse, row.dense, row.remark) == ((), (FEW,), "")
    assert row.bytes is not None
    assert (row.bytes.blobs, row.bytes.dense) == (0, 0)
    assert 0 < row.bytes.canonical <= 0.65 * row.dense_bytes
    assert not on_device.Glance(layer).is_away
    no_more_is_made(monkeypatch)
    run(layer, FEW)


def test_both_and_then_one_again(layer: SparseLinear, stream: EmulatedStream) -> None:
    both = prepare_layer("up", layer, (FEW, MANY), stream)
    assert both.bytes is not None
    assert both.bytes.blobs > 0
    assert both.bytes.canonical > 0
    assert (both.sparse, both.dense) == ((MANY,), (FEW,))
    run(layer, MANY)
    run(layer, FEW)
    one = prepare_layer("up", layer, (MANY,), stream)
    assert one.bytes == (0, both.bytes.blobs, 0)
    run(layer, FEW)
    run(layer, MANY)


def test_a_dense_copy_where_it_was_asked_for(layer: SparseLinear, stream: EmulatedStream) -> None:
    sparse24.keep_dense(layer)
    row = prepare_layer("up", layer, (FEW,), stream)
    assert row.bytes == (0, 0, row.dense_bytes)
    run(layer, FEW)
    sparse24.keep_dense(layer, keep=False)
    assert prepare_layer("up", layer, (FEW,), stream).bytes == (9 * row.dense_bytes // 16, 0, 0)


@pytest.mark.usefixtures("patches_gain")
def test_volumes_are_prepared(stream: EmulatedStream) -> None:
    dense = nn.Conv3d(32, 64, (2, 3, 3), dtype=HALF)
    masks.prune_(dense.weight.data)
    row = prepare_layer("", SparseConv3d.from_dense(dense), (MANY,), stream)
    assert (row.sparse, row.dense, row.remark) == ((MANY,), (), "")
    assert row.bytes is not None
    assert (row.bytes.canonical, row.bytes.dense) == (0, 0)
    assert 0 < row.bytes.blobs <= 0.65 * row.dense_bytes
    on_a_cpu = sparse24.prepare(nn.Sequential(SparseConv3d.from_dense(dense)), 8)
    assert [row.remark for row in on_a_cpu] == [
        "on cpu: its kernels read the canonical form, nothing to prepare"
    ]


def test_counts_tuned_apart_share_a_blob(layer: SparseLinear, stream: EmulatedStream) -> None:
    for tokens, id in ((64, 1), (256, 2)):
        call = Call(HALF, HALF, M, tokens, K)
        route.measured[route.measured_key(call, gpu(0))] = Measured(Algorithm(id), 1.0, 0.0, 0.0)
    launch.forget_plans()
    two = prepare_layer("up", layer, (64, 256), stream)
    one = prepare_layer("up", layer, (256,), stream)
    assert two.bytes is not None
    assert one.bytes is not None
    assert two.bytes.blobs == one.bytes.blobs  # one algorithm serves both
    run(layer, 64)
    run(layer, 256)


@pytest.mark.usefixtures("patches_gain")
def test_a_convolution_is_prepared_by_its_pixels(
    layer: SparseLinear, stream: EmulatedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = nn.Conv2d(32, 64, 3, padding=1, groups=2, dtype=BF16)
    masks.prune_(dense.weight.data)
    conv, x = SparseConv2d.from_dense(dense), randn(2, 32, 6, 6, dtype=BF16)
    row = prepare_layer("conv", conv, (72,), stream)
    assert row.bytes is not None
    assert row.bytes.canonical == 0
    assert 0 < row.bytes.blobs <= 0.65 * row.dense_bytes
    no_more_is_made(monkeypatch)
    output = conv._on_device(x)
    assert output is not None
    assert_matches(output, conv2d_reference(x, dense.weight, dense.bias, padding=1, groups=2))


def test_what_others_hold_is_said_and_left(layer: SparseLinear, stream: EmulatedStream) -> None:
    held = layer.values
    row = prepare_layer("up", layer, (MANY,), stream)
    assert (row.sparse, row.dense, row.remark) == ((), (MANY,), ways.HELD)
    assert "held outside of the layer" in str(Preparation([row]))
    del held
    row = prepare_layer("up", layer, (MANY,), stream)
    assert (row.sparse, row.remark) == ((MANY,), "")
    assert row.bytes is not None
    assert row.bytes.canonical == 0
    layer.values.requires_grad_()
    assert prepare_layer("up", layer, (MANY,), stream).remark == ways.HELD


def test_explanations_look_at_a_weight_and_leave_it_where_it_is(layer: SparseLinear) -> None:
    held = layer.values
    said = describe_route(layer, (MANY, K), gpu(0), True)
    assert said == f"dense, through a weight expanded for the call: {ways.HELD}"
    del held
    run(layer, MANY)
    said = describe_route(layer, (MANY, K), gpu(0), True)
    assert said.startswith("sparse: cuSPARSELt 0.8.1, algorithm 0")
    assert "4 tokens are fewer than 8" in describe_route(layer, (FEW, K), gpu(0), True)
    assert on_device.Glance(layer).is_away
    float32 = SparseLinear.from_weight(torch.zeros(M, K))
    assert "float32 runs as TF32" in describe_route(float32, (MANY, K), gpu(0), True)


def test_a_device_that_cannot_says_why(
    layer: SparseLinear, stream: EmulatedStream, emulator: Emulator
) -> None:
    emulator.set_sm(75)
    launch.forget()
    row = prepare_layer("up", layer, (MANY,), stream)
    assert "sm_75" in row.remark
    assert (row.sparse, row.dense) == ((), (MANY,))
    run(layer, MANY)
    emulator.reset()  # its refusals
    emulator.set_deferred(0)


def test_layers_without_plain_tensors_are_named(layer: SparseLinear, stream: EmulatedStream) -> None:
    layer._parameters["values"] = torch.Tensor._make_subclass(_Foreign, layer.values.data)
    row = prepare_layer("up", layer, (MANY,), stream)
    assert (row.sparse, row.bytes, row.remark) == ((), None, "no plain values and indices on one device")


class _Foreign(Tensor):
    """A subclass, as sharding libraries have them."""


def test_prepared_layers_are_captured(
    layer: SparseLinear, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool: list[Tensor] = []  # torch's CUDA allocator keeps what a graph uses; that of CPU tensors does not
    unpooled = memory.scratch
    monkeypatch.setattr(memory, "scratch", lambda *given: pool.append(unpooled(*given)) or pool[-1])
    mine = emulator.new_stream()
    monkeypatch.setattr(on_device, "current_stream", lambda tensor: mine)
    handle, graph = ctypes.c_void_p(mine.handle), ctypes.c_void_p()
    prepare_layer("up", layer, (MANY, FEW), mine)
    x = {tokens: randn(tokens, K) for tokens in (MANY, FEW)}
    emulator.cuda("StreamBeginCapture", handle, 2)
    captured = layer._on_device(x[MANY])
    layer._on_device(x[FEW])
    with pytest.raises(sparse24.Error, match=r"no plan exists yet for 64 tokens .*24.prepare"):
        prepare_layer("up", layer, (64,), mine)
    emulator.cuda("StreamEndCapture", handle, ctypes.byref(graph))
    executable = ctypes.c_void_p()
    emulator.cuda("GraphInstantiate", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
    emulator.cuda("GraphLaunch", executable, handle)
    assert captured is not None
    assert_matches(captured, linear_reference(x[MANY], sparse_weight(M, K, HALF), layer.bias))
    # What the graph reads is not freed, whatever is asked for next.
    before = layer.values.data_ptr()
    prepare_layer("up", layer, (MANY,), mine)
    assert layer.values.data_ptr() == before
    emulator.cuda("GraphExecDestroy", executable)
    emulator.cuda("GraphDestroy", graph)
    emulator.cuda("StreamDestroy", handle)


def test_on_a_cpu_there_is_nothing_to_prepare() -> None:
    model = nn.Sequential(SparseLinear(64, 32), nn.ReLU(), SparseLinear(32, 16, device="meta"))
    rows = sparse24.prepare(model, tokens=512)
    assert [(row.name, row.sparse, row.dense, row.bytes) for row in rows] == [
        ("0", (), (), None), ("2", (), (), None)
    ]  # fmt: skip
    assert rows[0].remark == "on cpu: its kernels read the canonical form, nothing to prepare"
    assert rows[1].remark == "on meta: it has no sparse kernels, nothing to prepare"
    assert type(model[0]._parameters) is dict
    assert "_forms" not in model[0].__dict__


def test_it_refuses() -> None:
    for wrong in (0, (), (16, -1)):
        with pytest.raises(ValueError, match="tokens must be positive counts"):
            sparse24.prepare(SparseLinear(8, 8), tokens=wrong)
    with pytest.raises(ValueError, match="has no compressed layer"):
        sparse24.prepare(nn.Linear(4, 4), tokens=1)


def test_a_preparation_is_printed_as_a_table() -> None:
    rows = Preparation(
        [
            Prepared("up", (512,), (1,), device_forms.Bytes(5_760, 5_760, 0), 10_240, ""),
            Prepared("", (), (), None, 10_240, "on cpu: nothing"),
        ]
    )
    header, _, up, root = str(rows).splitlines()
    assert header.split()[:4] == ["layer", "sparse", "dense", "canonical"]
    assert up.split() == ["up", "512", "1", "5,760", "5,760", "0", "1.12"]
    assert root.split() == ["(root)", "on", "cpu:", "nothing"]
