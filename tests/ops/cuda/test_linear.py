"""The linear operator of CUDA on the emulator, with CPU tensors. Not validation on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from emulated import BF16, FLOAT, HALF, EmulatedStream, Emulator, compressed, randn, sparse_weight
from reference import assert_matches, linear_reference
from sparse24 import ops
from sparse24.ops.cuda import cusparselt, route
from sparse24.ops.cuda import products as cuda
from sparse24.ops.cuda.cusparselt import Algorithm
from sparse24.ops.cuda.launch import Epilogue
from sparse24.ops.cuda.route import Call, Measured
from sparse24.ops.cuda.weights import Canonical
from sparse24.ops.registry import round_up

from .precision import close

SHAPES = [  # m, n, k
    (64, 32, 64),
    (288, 16, 128),  # the blob's layout changes at 256 rows
    (64, 29, 64),  # the last tokens overlap
    (40, 32, 64),  # m is padded
    (64, 32, 50),  # k is padded
    (37, 61, 93),
]


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("dtype", [HALF, BF16, FLOAT])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("tf32")
def test_linear(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    activation: str,
    emulator: Emulator,
    stream: EmulatedStream,
) -> None:
    m, n, k = shape
    weight, x, bias = sparse_weight(m, k, dtype), randn(n, k, dtype=dtype), randn(m, dtype=dtype, seed=2)
    for given in (bias, None):
        output = cuda.linear(x, *compressed(weight), given, activation, stream)
        close(output, linear_reference(x, weight, given, activation))
        assert output.is_contiguous()
    assert emulator.launches() >= 2


@pytest.mark.parametrize(
    ("tokens", "launches"), [(8, 1), (64, 1), (9, 1), (15, 1), (17, 2), (1000, 1), (1001, 2)]
)
def test_ragged_tokens_are_padded_or_the_last_launched_again(
    tokens: int, launches: int, emulator: Emulator, stream: EmulatedStream
) -> None:
    weight, x = sparse_weight(32, 64, HALF), randn(tokens, 64)
    output = cuda.linear(x, *compressed(weight), None, "none", stream)
    assert_matches(output, linear_reference(x, weight))
    assert output.shape == (tokens, 32)
    assert output.is_contiguous()
    assert emulator.launches() == launches


@pytest.mark.parametrize(
    ("m", "k", "n"), [(4096, 4096, 61), (4096, 4096, 3001), (1024, 4096, 333), (64, 64, 9)]
)
def test_ragged_tokens_move_the_fewest_bytes(m: int, k: int, n: int) -> None:
    call = Call(HALF, HALF, m, n, k)
    counts = route.launched_tokens(call, m, k, 8)
    padded = 2 * n * k * 2
    again = m * k * (1 + 1 / 8) + 8 * (k + m) * 2
    assert counts == ([round_up(n, 8)] if padded <= again else [n // 8 * 8, 8])
    assert route.launched_tokens(call._replace(n=64), m, k, 8) == [64]
    assert route.launched_tokens(call._replace(n=3), m, k, 8) == [8]


@pytest.mark.parametrize("tokens", [1, 7])
def test_a_few_tokens_can_be_made_to_run_sparse(
    tokens: int, emulator: Emulator, stream: EmulatedStream
) -> None:
    weight, x = sparse_weight(32, 64, HALF), randn(tokens, 64)
    on = cusparselt.gpu(0)
    call = Call(HALF, HALF, 32, tokens, 64)
    route.measured[route.measured_key(call, on)] = Measured(Algorithm(), 1.0, 2.0, 3.0)
    output = cuda.linear(x, *compressed(weight), None, "none", stream)
    assert_matches(output, linear_reference(x, weight))
    assert emulator.launches() == 1


def test_no_tokens(stream: EmulatedStream) -> None:
    weight = compressed(sparse_weight(32, 64, HALF))
    assert cuda.linear(randn(0, 64), *weight, None, "none", stream).shape == (0, 32)
    assert cuda.linear(randn(3, 0, 64), *weight, None, "none", stream).shape == (3, 0, 32)


def _views() -> dict[str, Tensor]:
    whole = randn(4, 24, 96)
    return {
        "leading dims": whole[:, :, :64].contiguous().view(2, 2, 24, 64),
        "row stride": whole[0, :, 16:80],
        "columns apart": whole[0].t().contiguous().t()[:, :64],
        "misaligned": whole[0, :, 1:65],
        "slice of tokens": whole[:, 8:, :64],
        "one vector repeated": whole[0, 0, :64].expand(16, 64),
        "slice of odd tokens": whole[:, 1:, :64],
    }


@pytest.mark.parametrize("view", _views())
def test_inputs_of_every_layout(view: str, emulator: Emulator, stream: EmulatedStream) -> None:
    weight, x = sparse_weight(32, 64, HALF), _views()[view]
    output = cuda.linear(x, *compressed(weight), randn(32), "relu", stream)
    assert_matches(output, linear_reference(x, weight, randn(32), "relu"))


def test_a_slice_of_tokens_is_one_launch_without_a_copy(
    emulator: Emulator, stream: EmulatedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copied(*_: Any) -> None:
        raise AssertionError("the input was copied")

    weight = sparse_weight(32, 64, HALF)
    x = _views()["slice of tokens"]
    monkeypatch.setattr(cuda, "legal_input", copied)
    cuda.linear(x, *compressed(weight), None, "none", stream)
    assert emulator.launches() == 1


def test_relu_with_bounds(stream: EmulatedStream) -> None:
    weight, x = sparse_weight(32, 64, HALF), randn(16, 64)
    held = Canonical(*compressed(weight))
    epilogue = Epilogue(activation="relu", relu_bounds=(0.5, 6.0))
    call = Call(HALF, HALF, 32, 16, 64, "relu", relu_bounds=(0.5, 6.0))
    chosen = cuda.route_of(call, held, cusparselt.gpu(0))
    output = cuda.linear_sparse(x, held, epilogue, HALF, chosen, call, stream)
    product = linear_reference(x, weight)
    # Values at the threshold may round to either side of it.
    sure = (product - 0.5).abs() > 0.01
    assert_matches(output * sure, product.where(product > 0.5, 0).clamp(max=6) * sure)
