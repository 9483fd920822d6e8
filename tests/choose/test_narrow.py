"""``prepare``, ``tune`` and ``explain`` of layers in 8 bits: of the products that their operators run.

On the emulator. Passing here is not validation on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from emulated import FLOAT, EmulatedStream, Emulator, randn
from reference import relative_error
from sparse24 import SparseConv2d, SparseLinear, masks
from sparse24.choose.gpu import TuningRun, describe_route, explain
from sparse24.choose.prepare import prepare, prepare_layer
from sparse24.ops.cuda import cusparselt, launch, route
from sparse24.ops.cuda import operators as cuda_ops

M, K, MANY = 64, 128, 32


def linear(way: str) -> SparseLinear:
    dense = nn.Linear(K, M)
    masks.prune_(dense.weight.data)
    layer = SparseLinear.from_dense(dense)
    return layer.to_float8() if way == "float8" else layer.to_int8(None if way == "weights" else way)


def run(layer: SparseLinear | SparseConv2d, x: Tensor, stream: EmulatedStream) -> Tensor:
    """As the dispatcher does on a GPU."""
    weight = (layer.values, layer.indices, layer.weight_scale)
    if layer.is_float8:
        kind, window = ("conv2d", layer._geometry()) if isinstance(layer, SparseConv2d) else ("linear", ())
        kernel = cuda_ops.KERNELS[f"float8_{kind}"]
        found = kernel(x, *weight, layer.bias, *window, layer.activation, stream=stream)
    elif isinstance(layer, SparseLinear):
        scale = layer._buffers.get("input_scale")
        found = cuda_ops.KERNELS["int8_linear"](
            x, *weight, scale, layer.bias, layer.activation, stream=stream
        )
    else:
        geometry = layer._geometry()
        found = cuda_ops.KERNELS["int8_conv2d"](
            x, *weight, layer.input_scale, layer.bias, *geometry, layer.activation, stream=stream
        )
    assert isinstance(found, Tensor)
    return found


@pytest.fixture
def ada(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """A GPU whose tensor cores take float8."""
    monkeypatch.setenv("SPARSE24_EMULATOR_SM", "89")  # of the processes that try algorithms
    emulator.set_sm(89)
    launch.forget()
    return emulator


@pytest.mark.parametrize("way", ["dynamic", "float8"])
def test_what_is_prepared_is_what_the_call_wants(
    way: str, ada: Emulator, stream: EmulatedStream, compressions: list[Any]
) -> None:
    layer, x = linear(way), randn(MANY, K, dtype=FLOAT)
    row = prepare_layer("up", layer, (MANY,), stream)
    assert (row.sparse, row.dense, row.remark) == ((MANY,), (), "")
    assert row.bytes is not None
    assert row.bytes.blobs > 0
    assert compressions == [(0, M)]
    assert relative_error(run(layer, x, stream), layer(x)) <= 1e-2
    assert compressions == [(0, M)]
    assert ada.launches() == 1


def convolution(way: str) -> SparseConv2d:
    dense = nn.Conv2d(32, 64, 3, padding=1, groups=2)
    masks.prune_(dense.weight.data)
    layer = SparseConv2d.from_dense(dense)
    return layer.to_float8() if way == "float8" else layer.to_int8(way)


@pytest.mark.parametrize("way", ["dynamic", "float8"])
@pytest.mark.usefixtures("patches_gain", "ada")
def test_a_convolution_is_prepared(way: str, stream: EmulatedStream, compressions: list[Any]) -> None:
    layer = convolution(way)
    x = randn(2, 32, 6, 6, dtype=FLOAT)
    row = prepare_layer("conv", layer, (72,), stream)
    assert (row.sparse, row.remark) == ((72,), "")
    assert compressions == [(0, 32), (32, 32)]
    assert relative_error(run(layer, x, stream), layer(x)) <= 1e-4
    assert len(compressions) == 2


def test_a_weight_that_alone_is_int8_has_nothing_to_prepare(
    emulator: Emulator, stream: EmulatedStream
) -> None:
    layer = linear("weights")
    row = prepare_layer("up", layer, (MANY,), stream)
    assert (row.sparse, row.dense) == ((), (MANY,))
    assert "only the weight is int8" in row.remark
    assert "only the weight is int8" in describe_route(layer, (MANY, K), cusparselt.gpu(0), True)
    few = cusparselt.gpu(0)._replace(kernels=True)
    assert describe_route(layer, (4, K), few, True).startswith("on the compressed weight")


@pytest.mark.parametrize("way", ["dynamic", "float8"])
def test_explain_and_tune_speak_of_that_product(way: str, ada: Emulator, stream: EmulatedStream) -> None:
    layer = linear(way)
    on = cusparselt.gpu(0)
    assert describe_route(layer, (MANY, K), on, True).startswith("sparse: cuSPARSELt")
    (row,) = TuningRun(stream, launches=1, by_library=False, again=False).run([layer], (MANY,), 60.0, str)
    assert row.remark == "", row.remark
    assert row.trials > 0
    assert row.wrong == 0
    out = torch.int32 if way == "dynamic" else FLOAT
    call = route.Call(layer.values.dtype, out, M, MANY, K)
    assert route.measured_key(call, on) in route.measured
    x = randn(MANY, K, dtype=FLOAT)
    assert relative_error(run(layer, x, stream), layer(x)) <= 1e-2


@pytest.mark.usefixtures("patches_gain", "ada")
def test_explain_and_tune_speak_of_a_float8_convolution(stream: EmulatedStream) -> None:
    layer, on, shape = convolution("float8"), cusparselt.gpu(0), (2, 32, 6, 6)
    assert describe_route(layer, shape, on, True).startswith("sparse: cuSPARSELt")
    (row,) = TuningRun(stream, launches=1, by_library=False, again=False).run([layer], (72,), 60.0, str)
    assert (row.remark, row.wrong, row.dtype) == ("", 0, torch.float8_e4m3fn)
    assert row.trials > 0
    x = randn(*shape, dtype=FLOAT)
    assert relative_error(run(layer, x, stream), layer(x)) <= 1e-4


def test_a_gpu_without_float8_says_so(emulator: Emulator, stream: EmulatedStream) -> None:
    for layer, shape in ((linear("float8"), (MANY, K)), (convolution("float8"), (1, 32, 4, 8))):
        assert "sm_89" in describe_route(layer, shape, cusparselt.gpu(0), True)
        row = prepare_layer("up", layer, (MANY,), stream)
        assert row.dense == (MANY,)


@pytest.mark.parametrize("make", [linear, convolution])
def test_a_cpu_has_no_kernels_for_float8_and_says_so(make: Callable[[str], Any]) -> None:
    for way, begin, remark in (
        ("float8", "dense, in float32: there are no CPU kernels for float8", "no sparse kernels"),
        ("dynamic", "sparse: CPU kernels", "its kernels read the canonical form"),
    ):
        layer = make(way)
        shape = (MANY, K) if isinstance(layer, SparseLinear) else (1, 32, 4, 8)
        assert explain(layer, shape).startswith(begin)
        (row,) = prepare(nn.Sequential(layer), MANY)
        assert remark in row.remark
