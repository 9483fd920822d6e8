"""Checks of sparsity, and the canonical format as the user sees it."""

from __future__ import annotations

import pytest
import torch

from sparse24 import masks

from .mask_values import NAN


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
