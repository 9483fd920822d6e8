"""Masks against a brute force in float64, and the canonical format as the user sees it."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparse24 import masks

FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
NAN, INF = math.nan, math.inf


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


# ---- patterns ---------------------------------------------------------------------------------------


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


# ---- magnitude masks --------------------------------------------------------------------------------


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


def test_masks_are_applied_across_chunks_and_seen_by_autograd() -> None:
    weight = torch.nn.Parameter(torch.randn(3, masks._CHUNK - 1))
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


# ---- transposable masks -----------------------------------------------------------------------------


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


# ---- checks and the canonical format ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([1, 1, 0, 0], True),
        ([1, 1, 1, 0], False),
        ([0, 0, 1, 1, 1, 1, 0, 0], True),
        ([0, 0, 1, 1, 1, 1], True),
        ([0, 0, 1, 1, 1, 1, 1], False),
        ([1, -0.0, 2, -0.0], True),
        ([NAN, NAN, 0, NAN], False),
        ([], True),
    ],
)
def test_is_sparse24_counts_non_zeros(row: list[float], expected: bool) -> None:
    weight = torch.tensor([row, [0.0] * len(row)])
    assert masks.is_sparse24(weight) is expected
    assert masks.is_sparse24(weight.t(), dim=0) is expected
    assert masks.is_sparse24(weight[0], dim=-1) is expected


def test_is_sparse24_names_bad_arguments() -> None:
    with pytest.raises(ValueError, match="dim 1"):
        masks.is_sparse24(torch.ones(8))
    with pytest.raises(TypeError, match="not int"):
        masks.is_sparse24(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.float8_e5m2]
)
@pytest.mark.parametrize("shape", [(3, 16), (5, 30), (2, 3, 12), (7,), (0, 8), (1, 1)])
def test_compress_and_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    weight = (torch.randn(shape) * 9).round()
    masks.prune_(weight, dim=-1)
    weight = weight.to(dtype)
    values, indices = masks.compress(weight)
    padded = -(-shape[-1] // 8) * 8
    assert values.shape == (*shape[:-1], padded // 2)
    assert values.dtype == dtype
    assert indices.shape == (*shape[:-1], padded // 8)
    assert indices.dtype == torch.uint8
    assert torch.equal(masks.decompress(values, indices, shape[-1]).float(), weight.float())
    assert masks.decompress(values, indices).shape == (*shape[:-1], padded)


def test_compress_takes_parameters_and_strides() -> None:
    weight = torch.nn.Parameter(torch.randn(16, 6).t())
    masks.prune_(weight)
    values, indices = masks.compress(weight)
    assert not values.requires_grad
    assert torch.equal(masks.decompress(torch.nn.Parameter(values), indices), weight)


def test_compress_refuses_what_is_not_sparse() -> None:
    weight = torch.zeros(3, 16)
    weight[2, 8:11] = 1
    with pytest.raises(ValueError, match="row 2, group 2"):
        masks.compress(weight)
    with pytest.raises(TypeError, match="float64"):
        masks.compress(weight.double())
    with pytest.raises(ValueError, match="scalar"):
        masks.compress(torch.ones(()))


@pytest.mark.parametrize("in_features", [8, 17, -1, 0])
def test_decompress_refuses_sizes_that_do_not_fit(in_features: int) -> None:
    values, indices = masks.compress(torch.zeros(3, 16))
    with pytest.raises(ValueError, match="9 to 16 columns"):
        masks.decompress(values, indices, in_features)


def test_decompress_refuses_damaged_pairs() -> None:
    values, indices = masks.compress(torch.zeros(3, 16))
    with pytest.raises(ValueError, match="do not fit"):
        masks.decompress(values[:, :4], indices)
    with pytest.raises(ValueError, match="damaged indices"):
        masks.decompress(values, torch.zeros_like(indices))
    with pytest.raises(TypeError, match="uint8"):
        masks.decompress(values, indices.int())
