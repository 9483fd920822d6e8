"""Autocast on a GPU: a float32 weight is cast once, and runs sparse in autocast's dtype. On the emulator.

Passing here is not validation on a GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from emulated import BF16, FLOAT, HALF, EmulatedStream, Emulator, compressed, randn
from own_forms import FEW, MANY, K, M, forms, held_bytes, is_away, run
from reference import assert_matches, conv2d_reference, linear_reference
from sparse24 import SparseConv2d, SparseLinear, masks
from sparse24.choose.prepare import prepare_layer
from sparse24.ops import registry
from sparse24.ops.cuda import products as cuda
from sparse24.ops.cuda import weights

pytestmark = pytest.mark.usefixtures("on_emulator")


def float_layer(seed: int = 0) -> tuple[SparseLinear, torch.Tensor]:
    weight = randn(M, K, dtype=FLOAT, seed=seed)
    masks.prune_(weight)
    return SparseLinear.from_weight(weight, randn(M, dtype=FLOAT, seed=5)), weight


@pytest.mark.parametrize("dtype", [HALF, BF16])
@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_a_float32_weight_is_cast_once(
    tokens: int, dtype: torch.dtype, emulator: Emulator, compressions: list[Any]
) -> None:
    layer, weight = float_layer()
    x = randn(tokens, K, dtype=FLOAT)
    expected = linear_reference(x.to(dtype), weight.to(dtype), layer.bias)
    for _ in range(3):
        with torch.autocast("cpu", dtype):
            output = run(layer, x)
        assert output.dtype is dtype
        assert_matches(output, expected)
    derived = forms(layer)._derived
    assert list(derived.casts) == [dtype]
    assert derived.blobs == {}
    if tokens == MANY:
        assert emulator.launches() == 3
        assert compressions == [(0, M)]
        assert is_away(layer)
        held = held_bytes(layer)
        assert (held.canonical, held.dense) == (0, 0)
        assert 0 < held.blobs <= 0.65 * weight.to(dtype).nbytes
    else:
        assert emulator.launches() == 0
        cast = derived.casts[dtype].values
        assert cast is not None
        with torch.autocast("cpu", dtype):
            run(layer, x)
        assert derived.casts[dtype].values is cast


def test_without_autocast_it_stays_float32(emulator: Emulator) -> None:
    layer, weight = float_layer()
    x = randn(MANY, K, dtype=FLOAT)
    assert_matches(run(layer, x), linear_reference(x, weight, layer.bias))
    assert emulator.launches() == 0
    with torch.autocast("cpu", BF16):
        run(layer, x)
    assert emulator.launches() == 1
    assert_matches(run(layer, x), linear_reference(x, weight, layer.bias))


def test_a_write_reaches_the_cast(compressions: list[Any]) -> None:
    layer, weight = float_layer()
    for factor in (1, 2, 4):
        if factor > 1:
            layer.values.data.mul_(2)
        for tokens in (FEW, MANY):
            x = randn(tokens, K, dtype=FLOAT)
            with torch.autocast("cpu", HALF):
                output = run(layer, x)
            assert_matches(output, linear_reference(x.half(), factor * weight.half(), layer.bias))
    assert compressions == [(0, M)] * 3


@pytest.mark.usefixtures("patches_gain")
def test_convolutions(emulator: Emulator) -> None:
    dense = nn.Conv2d(32, 64, 3, padding=1)
    masks.prune_(dense.weight.data)
    layer = SparseConv2d.from_dense(dense)
    x = randn(2, 32, 6, 6, dtype=FLOAT).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", HALF):
        output = run(layer, x)
    expected = conv2d_reference(x.half(), dense.weight.half(), dense.bias.half(), padding=1)
    assert_matches(output, expected)
    assert emulator.launches() > 0


def test_prepare_under_autocast_makes_what_it_wants(stream: EmulatedStream, emulator: Emulator) -> None:
    layer, weight = float_layer()
    with torch.autocast("cpu", HALF):
        row = prepare_layer("up", layer, (MANY,), stream)
        assert (row.sparse, row.dense) == ((MANY,), ())
        assert row.bytes is not None
        assert row.bytes.canonical == row.bytes.dense == 0
        assert 0 < row.bytes.blobs <= 0.65 * weight.half().nbytes
        allocations = emulator.synchronizations()
        run(layer, randn(MANY, K, dtype=FLOAT))
        assert emulator.synchronizations() == allocations  # nothing was made


def test_operators_cast_once(stream: EmulatedStream, emulator: Emulator) -> None:
    """What a compiled program calls: the float32 weight and an input of 16 bits."""
    _, weight = float_layer()
    values, indices = compressed(weight)
    for tokens in (FEW, MANY, FEW, MANY):
        x = randn(tokens, K)
        output = cuda.linear(x, values, indices, randn(M), "relu", stream)
        assert_matches(output, linear_reference(x, weight.half(), randn(M), "relu"))
    cast = weights.derived_of(values, indices).casts[HALF]
    assert len(cast.blobs) == 1
    assert emulator.launches() == 2


def test_the_rule_of_the_dispatcher_for_each_device() -> None:
    given: list[tuple[torch.dtype, torch.dtype]] = []

    def operator(input: torch.Tensor, values: torch.Tensor, *rest: Any) -> torch.Tensor:
        given.append((input.dtype, values.dtype))
        return input

    x = torch.zeros(2, 2)
    for on_gpu, dtype in ((True, FLOAT), (True, HALF), (False, FLOAT)):
        product = registry.under_autocast(operator, "cpu", on_gpu)
        with torch.autocast("cpu", BF16):
            assert product(x, x.to(dtype), x.byte()).dtype is BF16
    assert given == [(BF16, FLOAT), (HALF, HALF), (FLOAT, FLOAT)]
