"""A layer's matrices and its inputs as rows: their product is what the layer computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from reference import relative_error
from sparse24 import masks
from sparse24.calibrated.matrices import input_rows, matrices_of
from sparse24.calibrated.moments import Moments

pytestmark = pytest.mark.usefixtures("seeded")

CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 1},
    {"kernel_size": (2, 3), "stride": (2, 1), "dilation": (1, 2)},
    {"kernel_size": 3, "padding": "same", "padding_mode": "reflect"},
    {"kernel_size": 3, "groups": 2, "padding": 2},
]


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_convolutions(options: dict[str, Any]) -> None:
    layer = nn.Conv2d(6, 8, bias=False, **options)
    x = torch.randn(2, 6, 9, 10)
    parts = [
        rows @ matrix.read().T
        for matrix, rows in zip(matrices_of("", layer), input_rows(layer, (x,), {}), strict=True)
    ]
    expected = layer(x).permute(0, 2, 3, 1).reshape(-1, 8)
    assert torch.allclose(torch.cat(parts, 1), expected, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(10, 8, bias=False), nn.Conv1d(10, 8, 3, padding=1, stride=2, bias=False)],
    ids=lambda layer: type(layer).__name__,
)
def test_linear_and_conv1d(layer: nn.Module) -> None:
    x = torch.randn(2, 10, 10)
    (matrix,), (rows,) = matrices_of("", layer), input_rows(layer, (x,), {})
    output = layer(x)
    expected = (
        output.reshape(-1, 8) if isinstance(layer, nn.Linear) else output.transpose(1, 2).reshape(-1, 8)
    )
    assert torch.allclose(rows @ matrix.read().T, expected, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"kdim": 12, "vdim": 10}, {"batch_first": True}], ids=str)
def test_attention(options: dict[str, Any]) -> None:
    layer = nn.MultiheadAttention(8, 2, **options).eval()
    q = torch.randn(3, 4, 8)
    k = torch.randn(3, 4, options.get("kdim", 8))
    v = torch.randn(3, 4, options.get("vdim", 8))
    before = layer.out_proj.weight.clone()
    *_, merged = input_rows(layer, (q, k, v), {"need_weights": False})
    found = matrices_of("", layer)
    assert [m.name for m in found[:1]] == (["q_proj_weight"] if "kdim" in options else ["in_proj_weight"])
    expected = layer(q, k, v)[0].reshape(-1, 8)
    assert torch.allclose(merged @ found[3].read().T + layer.out_proj.bias, expected, atol=1e-5)
    assert torch.equal(layer.out_proj.weight, before)


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(10, 8), nn.Conv1d(10, 8, 3), nn.Conv2d(6, 8, 3, groups=2), nn.MultiheadAttention(8, 2)],
    ids=lambda layer: type(layer).__name__,
)
def test_what_is_read_is_what_is_written(layer: nn.Module) -> None:
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    for matrix in matrices_of("", layer):
        matrix.write(matrix.read())
    assert all(torch.equal(p, before[name]) for name, p in layer.named_parameters())
    for matrix in matrices_of("", layer):
        weight = matrix.read()
        matrix.write(weight * masks.magnitude_mask(weight))
    assert all(masks.is_sparse24(p.detach()) for p in layer.parameters() if p.dim() > 1)


def test_moments_are_those_of_all_rows() -> None:
    rows = [torch.randn(5000, 4) + 300, torch.randn(2, 4) - 40]
    moments = Moments(4, torch.device("cpu"))
    for part in rows:
        moments.add(part)
    moments.check("x")
    whole = torch.cat(rows).double()
    assert relative_error(moments.second, whole.T @ whole / len(whole)) < 1e-6
    assert relative_error(moments.covariance, whole.T.cov(correction=0)) < 1e-5
    assert relative_error(moments.mean, whole.mean(0)) < 1e-6


def test_a_mean_does_not_drown_the_covariance() -> None:
    rows = torch.randn(4096, 3, generator=torch.Generator().manual_seed(5)) + 1e4
    moments = Moments(3, torch.device("cpu"))
    moments.add(rows)
    assert relative_error(moments.covariance, rows.double().T.cov(correction=0)) < 1e-3


def test_moments_without_rows_let_magnitudes_decide() -> None:
    moments = Moments(3, torch.device("cpu"))
    assert torch.equal(moments.second, torch.eye(3))
    assert torch.equal(moments.covariance, torch.eye(3))
    assert torch.equal(moments.mean, torch.zeros(3))


def test_rows_with_nan_are_refused_by_name() -> None:
    moments = Moments(3, torch.device("cpu"))
    moments.add(torch.tensor([[1.0, torch.nan, 2.0]]))
    with pytest.raises(ValueError, match=r"inputs of layer\.weight hold NaN or Inf"):
        moments.check("layer.weight")


def test_other_layers_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="a ConvTranspose3d is not calibrated"):
        matrices_of("", nn.ConvTranspose3d(4, 4, 1))
