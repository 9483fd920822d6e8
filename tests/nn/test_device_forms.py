"""The forms of a weight that a layer owns on a GPU: which it makes, keeps and frees. On the emulator.

Passing here is not validation on a GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparse24
from emulated import Emulator, randn, sparse_weight
from own_forms import FEW, MANY, K, M, check, forms, held_bytes, is_away, new_layer, run
from reference import assert_matches, conv2d_reference, linear_reference, relative_error
from sparse24 import SparseConv2d, SparseConv3d, SparseLinear, masks
from sparse24.nn.planes import stacked, unstacked

HALF, BF16, FLOAT = torch.float16, torch.bfloat16, torch.float32

pytestmark = pytest.mark.usefixtures("on_emulator")


# ---- one form for each way of running ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [HALF, BF16])
def test_many_tokens_leave_the_blob_alone_on_the_device(
    dtype: torch.dtype, emulator: Emulator, compressions: list[tuple[int, int]]
) -> None:
    layer, weight = new_layer(dtype=dtype), sparse_weight(M, K, dtype)
    for tokens in (MANY, 8, 77):
        check(layer, weight, tokens)
    held = held_bytes(layer)
    assert (held.canonical, held.dense) == (0, 0)
    assert 0 < held.blobs <= 0.65 * weight.nbytes
    assert compressions == [(0, M)]
    assert emulator.launches() == 3


def test_few_tokens_leave_the_canonical_form_alone_on_the_device(compressions: list[Any]) -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    before = layer._parameters
    check(layer, weight, FEW)
    held = held_bytes(layer)
    assert (held.blobs, held.dense) == (0, 0)
    assert 0 < held.canonical <= 0.65 * weight.nbytes
    assert compressions == []
    assert layer._parameters is before
    assert type(before) is dict


@pytest.mark.parametrize("order", [(FEW, MANY), (MANY, FEW)], ids=str)
def test_both_forms_are_there_after_both_ways_ran(order: tuple[int, int], compressions: list[Any]) -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    for tokens in (*order, *order):
        check(layer, weight, tokens)
    held = held_bytes(layer)
    assert held.blobs > 0
    assert held.canonical > 0
    assert held.dense == 0
    assert len(compressions) == 1
    assert is_away(layer)


def test_a_dense_copy_is_kept_only_where_it_was_asked_for(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    assert sparse24.keep_dense(layer) == 1
    check(layer, weight, FEW)
    assert held_bytes(layer) == (0, 0, weight.nbytes)
    first = forms(layer)._derived.dense
    check(layer, weight, FEW)
    assert forms(layer)._derived.dense is first
    layer.values.mul_(2)
    check(layer, 2 * weight, FEW)
    assert forms(layer)._derived.dense is not first
    sparse24.keep_dense(layer, keep=False)
    check(layer, 2 * weight, FEW)
    held = held_bytes(layer)
    assert (held.blobs, held.dense) == (0, 0)
    assert held.canonical > 0
    assert emulator.launches() == 0


@pytest.mark.usefixtures("patches_gain")
def test_convolutions_own_a_blob_for_each_group(compressions: list[Any]) -> None:
    dense = nn.Conv2d(32, 64, 3, padding=1, groups=2, dtype=HALF)
    masks.prune_(dense.weight.data)
    layer = SparseConv2d.from_dense(dense)
    x = randn(2, 32, 6, 6).contiguous(memory_format=torch.channels_last)
    for factor in (1, 1, 2):
        if factor == 2:
            layer.values.mul_(2)
        expected = conv2d_reference(x, factor * dense.weight, dense.bias, padding=1, groups=2)
        output = run(layer, x)
        assert_matches(output, expected)
        assert output.is_contiguous(memory_format=torch.channels_last)
        assert is_away(layer)
    assert compressions == [(0, 32), (32, 32)] * 2
    image = x[:1, :, :2, :2]
    assert_matches(
        run(layer, image), conv2d_reference(image, 2 * dense.weight, dense.bias, padding=1, groups=2)
    )
    assert held_bytes(layer).canonical > 0  # four pixels are few


@pytest.mark.usefixtures("patches_gain")
@pytest.mark.parametrize("kernel", [(3, 1, 1), (2, 3, 3), (1, 1, 1)], ids=str)
def test_volumes_own_a_blob(kernel: tuple[int, int, int], compressions: list[Any]) -> None:
    dense = nn.Conv3d(30, 64, kernel, padding="same", dtype=HALF)
    masks.prune_(dense.weight.data)
    layer = SparseConv3d.from_dense(dense)
    x = randn(2, 30, 3, 6, 6).contiguous(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        for factor in (1, 1, 2):
            if factor == 2:
                layer.values.mul_(2)
            if layer._is_flat:
                output = run(layer, x.flatten(3)).unflatten(3, (6, 6))
            else:
                padded = F.pad(x, layer._written_padding).contiguous(memory_format=torch.channels_last_3d)
                output = unstacked(run(layer, stacked(padded, layer._depth)), padded, layer._depth)
            weight = factor * dense.weight.double()
            assert dense.bias is not None
            wanted = F.conv3d(x.double(), weight, dense.bias.double(), padding="same")
            assert_matches(output, wanted)
            assert is_away(layer)
    assert compressions == [(0, 64)] * 2


@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_autocast_uses_the_layers_own_forms(tokens: int) -> None:
    layer, x = new_layer(), randn(tokens, K, dtype=FLOAT)
    expected = linear_reference(x.half(), sparse_weight(M, K, HALF), layer.bias)
    for _ in range(2):
        with torch.autocast("cpu", BF16):
            output = run(layer, x)
        assert output.dtype is BF16
        assert_matches(output, expected)
    assert is_away(layer) == (tokens == MANY)


def test_float32_takes_a_blob_where_its_weight_is_1_of_2() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        halved, weight, x = new_layer(dtype=FLOAT), sparse_weight(M, K, FLOAT), randn(MANY, K, dtype=FLOAT)
        assert relative_error(run(halved, x), linear_reference(x, weight, halved.bias)) <= 1e-3  # TF32
        run(halved, x)
        assert is_away(halved)
        assert held_bytes(halved).canonical == 0
        crowded = torch.zeros(M, K)
        crowded[:, ::4] = crowded[:, 1::4] = 1.5  # 2:4, but both in one pair
        layer = SparseLinear.from_weight(crowded)
        for factor in (1, 2):
            layer.values.data.mul_(factor)
            check(layer, factor * crowded)
            assert held_bytes(layer).blobs == 0
    finally:
        torch.set_float32_matmul_precision(before)


def test_no_tokens_make_no_form() -> None:
    layer = new_layer()
    assert run(layer, randn(3, 0, K)).shape == (3, 0, M)
    conv = SparseConv2d(16, 32, 3, dtype=HALF)
    assert run(conv, randn(0, 16, 5, 5)).shape == (0, 32, 3, 3)
    assert not is_away(layer)
    assert not is_away(conv)


def test_bad_inputs_change_nothing() -> None:
    layer = new_layer()
    check(layer, sparse_weight(M, K, HALF))
    with pytest.raises(TypeError, match="must have one dtype"):
        run(layer, randn(MANY, K, dtype=BF16))
    with pytest.raises(ValueError, match="holds K = 128"):
        run(layer, randn(MANY, K + 8))
    assert is_away(layer)
    assert repr(layer) == f"SparseLinear(in_features={K}, out_features={M}, dtype=torch.float16)"
    assert is_away(layer)


# ---- who has to see the canonical form ---------------------------------------------------------------


def test_operators_are_left_what_somebody_watches() -> None:
    layer, x = new_layer(), randn(MANY, K)
    check(layer, sparse_weight(M, K, HALF))
    watched = x.clone().requires_grad_()
    assert layer._on_device(watched) is None
    with torch.no_grad():
        assert layer._on_device(watched) is not None
    assert torch.func.vmap(lambda row: torch.ones(()) * (layer._on_device(row) is None))(x).all()
    with torch.utils._python_dispatch.TorchDispatchMode():
        assert layer._on_device(x) is None
    with torch._subclasses.FakeTensorMode() as mode:
        assert layer._on_device(mode.from_tensor(x)) is None
    assert is_away(layer)
    layer.bias.requires_grad_()
    assert layer._on_device(x) is None


def test_a_weight_that_wants_gradients_is_no_blob() -> None:
    layer, x = new_layer(), randn(MANY, K)
    layer.values.requires_grad_()
    assert layer._on_device(x) is None
    with torch.no_grad():
        check(layer, sparse_weight(M, K, HALF))
    assert not is_away(layer)
    assert layer.values.requires_grad


def test_a_tensor_elsewhere_is_left_to_the_operators() -> None:
    layer = new_layer()
    assert layer._on_device(torch.empty(MANY, K, dtype=HALF, device="meta")) is None
    check(layer, sparse_weight(M, K, HALF))
    assert layer._on_device(torch.empty(MANY, K, dtype=HALF, device="meta")) is None


@pytest.mark.parametrize("first", ["compiled", "eager"])
def test_compiled_programs_and_eager_calls_take_turns(first: str) -> None:
    layer, x = new_layer(), randn(MANY, K)
    expected = linear_reference(x, sparse_weight(M, K, HALF), layer.bias)
    if first == "eager":
        check(layer, sparse_weight(M, K, HALF))
        assert is_away(layer)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    with torch.no_grad():
        for _ in range(3):
            assert_matches(compiled(x), expected)
            check(layer, sparse_weight(M, K, HALF))
        layer.values.mul_(2)
        assert_matches(compiled(x), linear_reference(x, 2 * sparse_weight(M, K, HALF), layer.bias))
        check(layer, 2 * sparse_weight(M, K, HALF))
    torch._dynamo.reset()


def test_an_exported_program_has_the_weight() -> None:
    layer, x = new_layer(), randn(MANY, K)
    check(layer, sparse_weight(M, K, HALF))
    exported = torch.export.export(layer, (x,))
    assert_matches(exported.module()(x), linear_reference(x, sparse_weight(M, K, HALF), layer.bias))
    check(layer, sparse_weight(M, K, HALF))
