"""Scales from histograms, against what the whole tensor says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sparse24.quant.observers import LEVELS, METHODS, Observer, threshold

pytestmark = pytest.mark.usefixtures("seeded")


def observed(*parts: Tensor) -> Observer:
    observer = Observer()
    for part in parts:
        observer.add(part)
    return observer


def error(x: Tensor, limit: float) -> float:
    step = limit / LEVELS
    return float(((x / step).round().clamp(-LEVELS, LEVELS) * step - x).double().square().mean())


@pytest.mark.parametrize("kind", ["normal", "relu", "outliers", "growing"])
def test_thresholds_are_those_of_the_whole_tensor(kind: str) -> None:
    x = torch.randn(60_000)
    if kind == "relu":
        x = x.relu()
    elif kind == "outliers":
        x[::5000] *= 30
    elif kind == "growing":  # the range doubles again and again
        x *= torch.linspace(0.01, 10, len(x))
    observer = observed(*x.split(7000))
    size = x.abs()
    assert observer.absmax == float(size.max())
    assert observer.count == len(x)
    for percent in (90.0, 99.0, 99.9, 100.0):
        low, high = (
            float(torch.quantile(size.double(), percent / 100, interpolation=how))
            for how in ("lower", "higher")
        )
        width = 2 * observer.absmax / 2048  # of a bin, at most
        assert low - 1e-6 <= observer.at_percentile(percent) <= high + width
    best = min(error(x, float(size.max()) * part / 400) for part in range(20, 401))
    assert error(x, observer.of_least_error()) <= 1.03 * best


def test_entropy_clips_outliers_and_not_the_rest() -> None:
    x = torch.randn(200_000)
    x[:10] = 60.0
    limit = observed(x).of_least_divergence()
    assert 3 < limit < 30
    assert observed(torch.rand(100_000)).of_least_divergence() > 0.9


def test_zeros_of_relu_do_not_decide() -> None:
    x = torch.cat([torch.randn(50_000).abs(), torch.zeros(500_000)])
    with_zeros, without = observed(x).of_least_divergence(), observed(x[:50_000]).of_least_divergence()
    assert with_zeros == pytest.approx(without, rel=0.2)


@pytest.mark.parametrize("method", METHODS)
def test_zeros_alone_have_no_threshold(method: str) -> None:
    assert threshold(observed(torch.zeros(100)), method, 99.0) == 0
    assert threshold(observed(torch.zeros(0)), method, 99.0) == 0
    constant = threshold(observed(torch.full((100,), 3.0)), method, 99.0)
    assert constant == pytest.approx(3.0, rel=0.01)


def test_zeros_before_a_range_is_known_are_counted() -> None:
    observer = observed(torch.zeros(90), torch.ones(10))
    assert observer.at_percentile(85) < 0.01
    assert observer.at_percentile(95) == pytest.approx(1.0, abs=1e-2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="holds NaN or Inf"):
        observed(torch.tensor([1.0, bad]))
