"""The mask patterns by apex's names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparse24 import magnitude_mask, transposable_mask
from sparse24.pruning.asp import ASP
from sparse24.pruning.asp.patterns import greedy_transposable_mask

from .networks import network


@pytest.mark.parametrize(
    ("name", "mask_of"),
    [
        ("m4n2_1d", magnitude_mask),
        ("m4n1_1d", lambda w: magnitude_mask(w, "1:4")),
        ("m8n4_1d", lambda w: magnitude_mask(w, "4:8")),
        ("m4n2_2d_best", transposable_mask),
        ("m4n2_2d_greedy", greedy_transposable_mask),
        (lambda w: (w > 0).float(), lambda w: w > 0),
        (torch.ones_like, lambda w: torch.ones_like(w).bool()),
    ],
)
def test_mask_patterns(name: Any, mask_of: Any) -> None:
    model = network()
    before = [model[layer].weight.detach().clone() for layer in (0, 3)]
    ASP.init_model_for_pruning(model, name, verbosity=0)
    ASP.compute_sparse_masks()
    for layer, weight in zip((0, 3), before, strict=True):
        assert torch.equal(model[layer].weight, torch.where(mask_of(weight), weight, torch.tensor(0.0)))


def greedy_reference(tile: Tensor) -> Tensor:
    """One 4x4 tile: entries in decreasing magnitude, kept while row and column have room."""
    mask = torch.zeros(4, 4, dtype=torch.bool)
    magnitudes = tile.double().abs()
    for place in sorted(range(16), key=lambda i: (-float(magnitudes[i // 4, i % 4]), i)):
        row, column = divmod(place, 4)
        if mask[row].sum() < 2 and mask[:, column].sum() < 2:
            mask[row, column] = True
    return mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_masks_are_those_of_every_tile(dtype: torch.dtype) -> None:
    weight = torch.randn(16, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[:4] = weight[:4].round()  # ties
    mask = greedy_transposable_mask(weight)
    for row in range(0, 16, 4):
        for column in range(0, 24, 4):
            tile = (slice(row, row + 4), slice(column, column + 4))
            assert torch.equal(mask[tile], greedy_reference(weight[tile]))


def test_greedy_masks_keep_less_than_the_best() -> None:
    weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    kept = weight[greedy_transposable_mask(weight)].abs().sum() / weight.abs().sum()
    assert abs(float(kept) - 0.6934) < 0.002
    with pytest.raises(ValueError, match="multiples of 4"):
        greedy_transposable_mask(torch.ones(6, 8))
