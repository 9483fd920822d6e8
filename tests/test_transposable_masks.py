"""Transposable masks against the best of 90 patterns, in float64."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparse24 import masks

from .mask_values import FLOATS


def transposable_sums_reference(matrix: Tensor) -> Tensor:
    """Largest kept sum of magnitudes of every 4x4 tile over the patterns with 2 a row and column."""
    rows = [r for r in itertools.product((0.0, 1.0), repeat=4) if sum(r) == 2]
    patterns = [
        p for p in itertools.product(rows, repeat=4) if all(sum(c) == 2 for c in zip(*p, strict=True))
    ]
    assert len(patterns) == 90
    tiles = matrix.double().abs().unfold(0, 4, 4).unfold(1, 4, 4)
    return (tiles.unsqueeze(2) * torch.tensor(patterns, dtype=torch.float64)).sum((-1, -2)).amax(2)


def tile_sums(matrix: Tensor, mask: Tensor) -> Tensor:
    kept = torch.where(mask, matrix.double().abs(), torch.zeros((), dtype=torch.float64))
    return kept.unfold(0, 4, 4).unfold(1, 4, 4).sum((-1, -2))


@st.composite
def tileable(draw: st.DrawFn) -> Tensor:
    """A finite matrix of whole 4x4 tiles, with and without ties."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    weight = torch.randn(4 * draw(st.integers(0, 4)), 4 * draw(st.integers(0, 4)), generator=generator)
    weight = (weight.round() if draw(st.booleans()) else weight).to(draw(st.sampled_from(FLOATS)))
    return weight.t() if draw(st.booleans()) else weight


@settings(max_examples=60, deadline=None)
@given(weight=tileable())
def test_transposable_masks_keep_as_much_as_the_best_of_90(weight: Tensor) -> None:
    mask = masks.transposable_mask(weight)
    assert mask.shape == weight.shape
    assert mask.dtype == torch.bool
    if weight.numel():
        assert (mask.view(mask.shape[0], -1, 4).sum(-1) == 2).all()
        assert (mask.view(-1, 4, mask.shape[1]).sum(1) == 2).all()
        torch.testing.assert_close(
            tile_sums(weight, mask), transposable_sums_reference(weight), rtol=1e-6, atol=0
        )


@pytest.mark.parametrize("kernel", [(3,), (3, 2), (2, 1, 2)])
def test_a_transposable_mask_of_a_convolution_is_that_of_every_tap(kernel: tuple[int, ...]) -> None:
    weight = torch.randn(8, 12, *kernel)
    mask = masks.transposable_mask(weight)
    assert mask.shape == weight.shape
    for tap in itertools.product(*map(range, kernel)):
        place = (slice(None), slice(None), *tap)
        assert torch.equal(mask[place], masks.transposable_mask(weight[place]))


@pytest.mark.parametrize(
    ("shape", "nearest"), [((6, 8), (8, 8)), ((8, 6), (8, 8)), ((3, 5, 3, 3), (4, 8, 3, 3))]
)
def test_a_transposable_mask_needs_multiples_of_four(
    shape: tuple[int, ...], nearest: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=re.escape(f"not {shape}; the nearest legal shape is {nearest}")):
        masks.transposable_mask(torch.ones(shape))


def test_bad_weights_for_a_transposable_mask() -> None:
    with pytest.raises(ValueError, match=r"\[K, C\].*not \(8,\)$"):
        masks.transposable_mask(torch.ones(8))
    with pytest.raises(TypeError, match="not list"):
        masks.transposable_mask([1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="floating"):
        masks.transposable_mask(torch.ones(4, 4, dtype=torch.int32))
