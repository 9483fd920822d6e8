"""Which way a product takes on a GPU: sparse or dense, and why."""

from __future__ import annotations

import pytest
import torch

from emulated import FLOAT, HALF, EmulatedStream, Emulator, compressed, randn, sparse_weight
from reference import assert_matches, conv2d_reference, linear_reference
from sparse24.ops.cuda import cusparselt, route, weights
from sparse24.ops.cuda import products as cuda
from sparse24.ops.cuda.cusparselt import GPU, Algorithm
from sparse24.ops.cuda.products import Window
from sparse24.ops.cuda.route import Call, Measured
from sparse24.ops.cuda.weights import Canonical

from .precision import close

A100, H100, GB10 = GPU(80, 108, 801), GPU(90, 132, 801), GPU(121, 48, 801)


def test_decoding_runs_dense(emulator: Emulator, stream: EmulatedStream) -> None:
    weight, x = sparse_weight(32, 64, HALF), randn(7, 64)
    output = cuda.linear(x, *compressed(weight), None, "gelu", stream)
    assert_matches(output, linear_reference(x, weight, None, "gelu"))
    assert emulator.launches() == 0
    assert "7 tokens are fewer than 8" in route.choose(Call(HALF, HALF, 32, 7, 64), A100, False).reason


@pytest.mark.parametrize(
    ("on", "m", "n", "k", "reason"),
    [
        (GB10, 16384, 4096, 16384, "published times on sm_121 expect 0."),
        (GB10, 3584, 4096, 3584, ""),
        (A100, 4096, 4096, 4096, ""),
        (H100, 4096, 1023, 4096, "no figures of float16 on sm_90, and 1023 tokens are fewer than 1024"),
        (H100, 4096, 1024, 4096, ""),
        (H100, 4096, 4096, 768, "a side of 768 is below 1024"),
    ],
)
def test_losing_shapes_run_dense_where_a_copy_is_kept(on: GPU, m: int, n: int, k: int, reason: str) -> None:
    call = Call(HALF, HALF, m, n, k)
    kept = route.choose(call, on, True)
    assert (kept.sparse, reason in kept.reason) == (reason == "", True)
    assert route.choose(call, on, False).sparse  # expanding the weight would cost more


def test_measured_figures_decide(emulator: Emulator) -> None:
    on = cusparselt.gpu(0)
    call = Call(HALF, HALF, 64, 1000, 64)
    route.measured[route.measured_key(call, on)] = Measured(Algorithm(2), 30.0, 20.0, 90.0)
    assert route.bucket(1000) == route.bucket(1024) == 1024
    kept = route.choose(call, on, True)
    assert (kept.sparse, kept.reason) == (False, "measured: sparse takes 30.0 us, dense 20.0 us")
    expanded = route.choose(call, on, False)
    assert (expanded.sparse, expanded.algorithm) == (True, Algorithm(2))


def test_a_dense_copy_is_kept_where_it_is_asked_for(emulator: Emulator, stream: EmulatedStream) -> None:
    weight, x = sparse_weight(32, 64, HALF), randn(4, 64)
    operands = compressed(weight)
    weights.keep_dense(*operands, True)
    first = Canonical(*operands).dense(stream)
    assert Canonical(*operands).dense(stream) is first
    assert_matches(cuda.linear(x, *operands, None, "none", stream), linear_reference(x, weight))
    weights.keep_dense(*operands, False)
    assert Canonical(*operands).dense(stream) is not first
    assert emulator.launches() == 0


def test_float32_needs_leave_to_run_as_tf32(emulator: Emulator, stream: EmulatedStream) -> None:
    weight, x = sparse_weight(32, 64, FLOAT), randn(16, 64, dtype=FLOAT)
    assert_matches(cuda.linear(x, *compressed(weight), None, "none", stream), linear_reference(x, weight))
    assert emulator.launches() == 0
    chosen = cuda.route_of(Call(FLOAT, FLOAT, 32, 16, 64), Canonical(*compressed(weight)), cusparselt.gpu(0))
    assert "set_float32_matmul_precision" in chosen.reason


@pytest.mark.usefixtures("tf32")
def test_float32_that_is_not_1_of_2_runs_dense(emulator: Emulator, stream: EmulatedStream) -> None:
    weight, x = torch.zeros(32, 64), randn(16, 64, dtype=FLOAT)
    weight[:, ::4] = weight[:, 1::4] = 1.5  # 2:4, but both in one pair
    assert_matches(cuda.linear(x, *compressed(weight), None, "none", stream), linear_reference(x, weight))
    assert emulator.launches() == 0
    chosen = cuda.route_of(Call(FLOAT, FLOAT, 32, 16, 64), Canonical(*compressed(weight)), cusparselt.gpu(0))
    assert "one kept weight of every two" in chosen.reason


@pytest.mark.parametrize("driver", [True, False])
def test_without_a_usable_device_products_run_dense(
    driver: bool, emulator: Emulator, stream: EmulatedStream
) -> None:
    if driver:
        emulator.set_sm(75)
    else:
        emulator.set_driver(0)
    weight, x = sparse_weight(32, 64, HALF), randn(16, 64)
    output = cuda.linear(x, *compressed(weight), None, "none", stream)
    assert_matches(output, linear_reference(x, weight))
    image, kernel = randn(2, 16, 5, 5), sparse_weight(32, 16, HALF)
    pointwise = Window((1, 1), (1, 1), (0, 0), (1, 1), 1)
    close(
        cuda.conv2d(image, *compressed(kernel), None, pointwise, "none", stream),
        conv2d_reference(image, kernel.view(32, 16, 1, 1)),
    )
    assert emulator.launches() == 0
    assert ("sm_75" if driver else "no NVIDIA driver is loaded") in cusparselt.why_unavailable(0)
    emulator.reset()  # the refusals of a device that is not there
    emulator.set_deferred(0)
