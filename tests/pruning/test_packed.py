"""Masks are kept as bits: a sixteenth of a 16-bit weight, and what is given out is bool as ever."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparse24 import Sparsifier, magnitude_mask, ops
from sparse24.ops import mask_bits
from sparse24.pruning.packed import PackedMask

pytestmark = pytest.mark.usefixtures("seeded")

SIZES = [(0,), (1,), (7,), (8,), (9, 3), (64, 63), (3, 5, 7, 2), (700, 1000)]
BOTH_WAYS = pytest.mark.parametrize("in_torch", [False, True])


@pytest.fixture
def _elsewhere(in_torch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch does it, as on another device."""
    if in_torch:
        monkeypatch.setattr(ops, "pack_mask", mask_bits._pack_torch)
        monkeypatch.setattr(ops, "unpack_mask", mask_bits._unpack_torch)


@BOTH_WAYS
@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize("shape", SIZES)
def test_a_mask_comes_back_as_it_was(shape: tuple[int, ...], in_torch: bool) -> None:
    mask = torch.rand(shape) < 0.5
    packed = PackedMask(mask)
    assert torch.equal(packed.to_bool(), mask)
    assert packed.to_bool().dtype is torch.bool
    assert packed.nbytes == -(-mask.numel() // 8)
    assert torch.equal(PackedMask(mask.t() if mask.dim() == 2 else mask).to_bool().sum(), mask.sum())


def test_both_ways_make_the_same_bits() -> None:
    mask = torch.rand(33, 61) < 0.5
    bits = mask_bits.pack_mask(mask)
    assert torch.equal(bits, mask_bits._pack_torch(mask))
    first = mask.flatten()[:8].tolist()
    assert int(bits[0]) == sum(kept << place for place, kept in enumerate(first))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SIZES)
def test_what_is_pruned_becomes_plus_zero(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    mask = torch.rand(shape) < 0.5
    tensor = (torch.randn(shape) - 3).to(dtype)
    tensor.view(-1)[:2] = float("inf")
    expected = torch.where(mask, tensor.double(), 0.0)
    version = tensor._version
    PackedMask(mask).apply_(tensor)
    assert torch.equal(tensor.double(), expected)
    assert not tensor.double()[~mask].signbit().any()
    assert tensor._version > version


def test_other_orders_in_memory_are_masked_by_place() -> None:
    weight = torch.randn(8, 12, 3, 3).to(memory_format=torch.channels_last)
    mask = magnitude_mask(weight)
    expected = torch.where(mask, weight, 0.0)
    PackedMask(mask).apply_(weight)
    assert torch.equal(weight, expected)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    wide = torch.randn(8, 24)
    part = wide[:, ::2]
    PackedMask(torch.zeros(8, 12, dtype=torch.bool)).apply_(part)
    assert not part.any()
    assert wide[:, 1::2].all()


def test_a_sparsifier_holds_a_bit_a_weight() -> None:
    model = nn.Sequential(nn.Linear(256, 512), nn.Linear(512, 256)).bfloat16()
    sparsifier = Sparsifier(model)
    sparsifier.prune()
    held = sum(mask.nbytes for mask in sparsifier._masks.values())
    weights = sum(layer.weight.numel() for layer in model)
    assert held == weights // 8
    for name, mask in sparsifier.masks.items():
        assert mask.dtype is torch.bool
        assert torch.equal(mask, model.get_parameter(name) != 0)
    state = sparsifier.state_dict()["masks"]
    assert all(mask.dtype is torch.bool for mask in state.values())


def test_masks_that_are_given_out_are_copies() -> None:
    sparsifier = Sparsifier(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)))
    sparsifier.prune()
    given: Tensor = sparsifier.masks["0.weight"]
    given.fill_(False)
    assert sparsifier.masks["0.weight"].any()
