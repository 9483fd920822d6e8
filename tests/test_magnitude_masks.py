"""Patterns and magnitude masks against a brute force in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparse24 import masks

from .mask_values import FLOATS, INF, NAN


def nm_mask_reference(weight: Tensor, n: int, m: int, dim: int) -> Tensor:
    """Every group sorted on its own: NaN first, then by magnitude, then by index."""
    rows = weight.double().movedim(dim, -1)
    mask = torch.zeros(rows.shape, dtype=torch.bool)
    for lead in itertools.product(*(range(size) for size in rows.shape[:-1])):
        values = rows[lead].tolist()
        for start in range(0, len(values), m):
            group = range(start, min(start + m, len(values)))
            ranked = sorted(group, key=lambda i: (not math.isnan(values[i]), -abs(values[i]), i))
            for i in ranked[:n]:
                mask[lead][i] = True
    return mask.movedim(-1, dim)


@pytest.mark.parametrize(
    ("text", "expected"), [("2:4", (2, 4)), ("1:1", (1, 1)), ("4:8", (4, 8)), ("1:32", (1, 32))]
)
def test_a_pattern_reads_n_of_m(text: str, expected: tuple[int, int]) -> None:
    pattern = masks.parse_pattern(text)
    assert pattern == expected
    assert str(pattern) == text


@pytest.mark.parametrize(
    "text", ["", "2", "2:", ":4", "0:4", "5:4", "2:4:8", "-2:4", "2 :4", "2.0:4", "٢:٤", "2:4\n"]
)
def test_a_bad_pattern_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="N:M"):
        masks.parse_pattern(text)


@pytest.mark.parametrize("pattern", [None, (2, 4), 24])
def test_a_pattern_must_be_a_string(pattern: object) -> None:
    with pytest.raises(TypeError, match='string like "2:4"'):
        masks.magnitude_mask(torch.ones(4, 4), pattern)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "1:2", "4:8", "3:5", "4:4"])
@pytest.mark.parametrize(
    ("shape", "dim"),
    [
        ((3, 8), 1),
        ((8, 3), 0),
        ((5, 30), 1),
        ((6, 10, 3), 1),
        ((2, 9, 3, 3), 1),
        ((2, 9, 3, 3), -1),
        ((13,), 0),
    ],
)
def test_magnitude_mask_is_the_brute_force(
    dtype: torch.dtype, pattern: str, shape: tuple[int, ...], dim: int
) -> None:
    generator = torch.Generator().manual_seed(len(shape) + dim)
    weight = torch.randn(shape, generator=generator).to(dtype)
    n, m = masks.parse_pattern(pattern)
    assert torch.equal(masks.magnitude_mask(weight, pattern, dim), nm_mask_reference(weight, n, m, dim))


@st.composite
def weights(draw: st.DrawFn) -> tuple[Tensor, int]:
    """A weight full of ties and special values, of any strides, and a dim of it."""
    shape = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    numel = math.prod(shape)
    some = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5, 6e-5, -3.25, INF, -INF, NAN])
    values = torch.tensor(draw(st.lists(some, min_size=numel, max_size=numel)))
    weight = values.to(draw(st.sampled_from(FLOATS))).view(shape)
    weight = weight.permute(draw(st.permutations(range(len(shape)))))
    if weight.shape[0] and draw(st.booleans()):
        weight = weight[:: draw(st.integers(1, 3))]
    if draw(st.booleans()):
        weight = torch.stack((weight, weight), -1)[..., 1]
    return weight, draw(st.integers(-weight.dim(), weight.dim() - 1))


@settings(max_examples=150, deadline=None)
@given(case=weights(), pattern=st.sampled_from(["2:4", "1:2", "2:3", "4:8", "1:7"]))
def test_masks_of_any_strides_and_values(case: tuple[Tensor, int], pattern: str) -> None:
    weight, dim = case
    before = weight.clone()
    expected = nm_mask_reference(weight, *masks.parse_pattern(pattern), dim)
    mask = masks.magnitude_mask(weight, pattern, dim)
    assert mask.dtype == torch.bool
    assert mask.is_contiguous()
    assert torch.equal(mask, expected)
    assert torch.equal(weight.nan_to_num(7), before.nan_to_num(7))

    assert torch.equal(masks.prune_(weight, pattern, dim), expected)
    pruned = weight[~expected]
    assert not pruned.any()
    assert not pruned.signbit().any()
    assert torch.equal(weight[expected].nan_to_num(7), before[expected].nan_to_num(7))


@settings(max_examples=100, deadline=None)
@given(case=weights(), share=st.floats(0, 1))
def test_applying_a_mask_is_masked_fill_with_positive_zeros(case: tuple[Tensor, int], share: float) -> None:
    weight, _ = case
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < share
    expected = weight.clone().masked_fill_(~mask, 0)
    parameter = torch.nn.Parameter(weight)
    assert masks.apply_mask_(parameter, mask) is parameter
    assert torch.equal(weight.nan_to_num(7), expected.nan_to_num(7))
    assert torch.equal(weight.signbit(), expected.signbit())


def test_masks_are_applied_across_runs_and_seen_by_autograd() -> None:
    weight = torch.nn.Parameter(torch.randn(3, (1 << 18) - 1))
    expected = torch.where(masks.magnitude_mask(weight), weight.detach(), torch.tensor(0.0))
    saved = (weight * weight).sum()
    masks.apply_mask_(weight, masks.magnitude_mask(weight))
    assert torch.equal(weight, expected)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()


@pytest.mark.parametrize("mask", [torch.ones(4, 4), torch.ones(16).bool()])
def test_a_mask_that_does_not_fit_is_refused(mask: Tensor) -> None:
    weight = torch.ones(4, 4)
    with pytest.raises(ValueError, match=r"a mask for \(4, 4\) must be bool of that shape"):
        masks.apply_mask_(weight, mask)
    assert weight.all()


def test_the_default_dim_is_the_input_channels_of_every_tap() -> None:
    weight = torch.randn(6, 8, 3, 2).to(memory_format=torch.channels_last)
    mask = masks.magnitude_mask(weight)
    for r, s in itertools.product(range(3), range(2)):
        assert torch.equal(mask[:, :, r, s], masks.magnitude_mask(weight[:, :, r, s]))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float8_e4m3fn])
def test_other_dtypes_are_ranked_too(dtype: torch.dtype) -> None:
    weight = torch.tensor([[1.0, -4.0, 3.0, 2.0, 0.0, 0.0, -1.0, 0.0]]).to(dtype)
    expected = torch.tensor([[0, 1, 1, 0, 1, 0, 1, 0]]).bool()
    assert torch.equal(masks.magnitude_mask(weight), expected)


def test_magnitude_masks_keep_the_share_that_theory_gives() -> None:
    weight = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0))
    total = weight.abs().sum()
    assert abs(float(weight[masks.magnitude_mask(weight)].abs().sum() / total) - 0.7446) < 0.002
    assert abs(float(weight[masks.transposable_mask(weight)].abs().sum() / total) - 0.7024) < 0.002


@pytest.mark.parametrize("function", [masks.magnitude_mask, masks.prune_])
def test_bad_arguments_are_named(function: object) -> None:
    assert callable(function)
    weight = torch.randn(6, 8)
    before = weight.clone()
    with pytest.raises(ValueError, match=r"dim 1 .*shape \(64,\).*dim 0"):
        function(torch.ones(64))
    for dim in (2, -3):
        with pytest.raises(ValueError, match=rf"dim {dim} of a weight of shape \(6, 8\)"):
            function(weight, dim=dim)
    with pytest.raises(ValueError, match="dim 0"):
        function(torch.ones(()), dim=0)
    with pytest.raises(ValueError, match="N:M"):
        function(weight, "4:2")
    with pytest.raises(TypeError, match="not list"):
        function([[1.0, 2.0]])
    for dtype in (torch.complex64, torch.bool):
        with pytest.raises(ValueError, match=str(dtype)):
            function(torch.ones(4, 4, dtype=dtype))
    assert torch.equal(weight, before)


def test_prune_changes_a_parameter_in_place_and_tells_autograd() -> None:
    weight = torch.nn.Parameter(torch.randn(8, 12))
    expected = torch.where(masks.magnitude_mask(weight), weight.detach(), torch.tensor(0.0))
    saved = (weight * weight).sum()
    mask = masks.prune_(weight)
    assert torch.equal(weight, expected)
    assert not mask.requires_grad
    assert weight.is_leaf
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()


def test_prune_takes_an_inference_tensor() -> None:
    with torch.inference_mode():
        weight = torch.randn(4, 8)
    with torch.inference_mode():
        masks.prune_(weight)
    assert masks.is_sparse24(weight)
