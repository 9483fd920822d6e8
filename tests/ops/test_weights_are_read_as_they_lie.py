"""Weights packed for the CPU: once, again when they changed, and dropped with their module."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn

from reference import assert_matches, linear_reference, prune_layers, relative_error
from sparse24 import SparseConv2d, SparseLinear, ops

pytestmark = pytest.mark.usefixtures("seeded")


def packable(kind: str) -> tuple[nn.Module, Tensor]:
    if kind == "linear":
        return SparseLinear.from_dense(prune_layers(nn.Linear(40, 16))), torch.randn(3, 40)
    return SparseConv2d.from_dense(prune_layers(nn.Conv2d(8, 16, 3))), torch.randn(1, 8, 6, 6)


@pytest.fixture(params=["linear", "conv"])
def layer(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    return packable(request.param)


def test_a_weight_is_packed_once(layer: tuple[nn.Module, Tensor], packs: list[int]) -> None:
    module, x = layer
    first = module(x)
    for _ in range(5):
        assert torch.equal(module(x), first)
    module.eval()
    with torch.no_grad():
        module(x[:1])
    with torch.inference_mode():
        module(x)
    assert len(packs) == 1


def test_a_weight_is_packed_again_after_it_changed(layer: tuple[nn.Module, Tensor], packs: list[int]) -> None:
    module, x = layer
    before = module(x)
    with torch.no_grad():
        module.values.mul_(2)
    assert len(packs) == 1
    assert not torch.equal(module(x), before)
    assert len(packs) == 2
    state = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    state["values"] /= 2
    module.load_state_dict(state)
    assert_matches(module(x), before)
    assert len(packs) == 3
    module.load_state_dict(state, assign=True)
    assert_matches(module(x), before)
    module.values.data = module.values.data.clone()
    assert_matches(module(x), before)
    module.half().float()
    assert relative_error(module(x), before) < 1e-3


def test_changed_indices_are_seen(packs: list[int]) -> None:
    module = SparseLinear(8, 1, bias=False)
    x = torch.arange(8.0)
    with torch.no_grad():
        module.values.fill_(1)
    assert module(x).item() == 0 + 1 + 4 + 5
    module.indices.fill_(0b1110_1110)
    assert module(x).item() == 2 + 3 + 6 + 7
    assert len(packs) == 2


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("swap_data", [False, True])
def test_panels_die_with_their_module(kind: str, swap_data: bool) -> None:
    gc.collect()
    before = set(ops.panels._panels)
    module, x = packable(kind)
    module(x)
    if swap_data:
        module.values.data = module.values.data.clone()
        module(x)
    assert len(set(ops.panels._panels) - before) == 1
    del module
    gc.collect()
    assert set(ops.panels._panels) <= before


def test_two_modules_of_one_shape_do_not_mix(packs: list[int]) -> None:
    x = torch.randn(2, 40)
    for _ in range(20):
        dense = prune_layers(nn.Linear(40, 8))
        assert_matches(SparseLinear.from_dense(dense)(x), linear_reference(x, dense.weight, dense.bias))
    assert len(packs) == 20
