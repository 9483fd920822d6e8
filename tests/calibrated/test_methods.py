"""Masks and kept weights of one matrix, against references and least squares in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparse24 import masks
from sparse24.calibrated import methods
from sparse24.ops import sparsegpt

pytestmark = pytest.mark.usefixtures("seeded")


def correlated(columns: int, rows: int = 2048) -> Tensor:
    """Inputs [rows, columns] whose columns depend on each other and differ in size."""
    shared = torch.randn(rows, max(columns // 4, 1)) @ torch.randn(max(columns // 4, 1), columns)
    return (shared + torch.randn(rows, columns)) * torch.randn(columns).mul(0.5).exp()


def problem(rows: int = 24, columns: int = 64) -> tuple[Tensor, Tensor]:
    """A weight, and the second moments of its inputs."""
    x = correlated(columns)
    return torch.randn(rows, columns), x.T @ x / len(x)


def frantar(weight: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
    """SparseGPT's algorithm as published, in float64: a column after the other, the whole inverse updated."""
    w = weight.double()
    h = moments.double()
    h = h + methods.DAMP * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    upper = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    mask = torch.ones_like(w, dtype=torch.bool)
    for column in range(w.shape[1]):
        if column % 4 == 0:
            group = slice(column, column + 4)
            score = (w[:, group] / upper.diagonal()[group]) ** 2
            mask[:, group] = masks.magnitude_mask(score.float())
        error = torch.where(mask[:, column], 0.0, w[:, column] / upper[column, column])
        w[:, column:] -= error.unsqueeze(1) * upper[column, column:]
    return mask, w * mask


@pytest.mark.parametrize("columns", [4, 18, 64, 300])
def test_sparsegpt_is_the_published_algorithm(columns: int) -> None:
    weight, moments = problem(columns=columns)
    mask, updated = methods.sparsegpt(weight, moments)
    expected_mask, expected = frantar(weight, moments)
    assert float((mask == expected_mask).float().mean()) > 0.999
    same = (mask == expected_mask).all(1)
    assert same.sum() > 20
    assert torch.allclose(updated[same].double(), expected[same], atol=1e-3)
    assert masks.is_sparse24(updated)


@pytest.mark.parametrize("columns", [10, 64, 300])
def test_the_loop_in_cpp_is_the_one_in_torch(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moments = problem(columns=columns)
    factor = methods.inverse_factor(moments)
    ours = weight.clone()
    mask = sparsegpt.sparsegpt_(ours, factor)
    given = weight.clone()
    assert torch.equal(sparsegpt.sparsegpt_(given, factor, mask), mask)
    assert torch.equal(given, ours)
    monkeypatch.setattr(sparsegpt, "_block_cpu", sparsegpt._block_torch)
    theirs = weight.clone()
    their_mask = sparsegpt.sparsegpt_(theirs, factor)
    same = (mask == their_mask).all(1)
    assert same.float().mean() > 0.9
    assert torch.allclose(ours[same], theirs[same], atol=1e-4)


def test_the_factor_is_of_the_inverse() -> None:
    _, moments = problem(columns=40)
    upper = methods.inverse_factor(moments).double()
    damped = moments.double() + methods.DAMP * moments.double().diagonal().mean() * torch.eye(40)
    assert torch.equal(upper, upper.triu())
    assert torch.allclose(upper.T @ upper @ damped, torch.eye(40, dtype=torch.float64), atol=1e-3)


@pytest.mark.parametrize("method", methods.METHODS)
@pytest.mark.parametrize("columns", [7, 64])
def test_every_method_gives_a_mask_and_weights_in_it(method: str, columns: int) -> None:
    weight, moments = problem(columns=columns)
    mask, updated = methods.prune_matrix(weight, moments, method, 10)
    assert masks.is_sparse24(updated)
    assert torch.equal(updated != 0, (updated != 0) & mask)
    assert not torch.signbit(updated[~mask]).any()
    groups = torch.nn.functional.pad(mask, (0, -columns % 4)).view(24, -1, 4).sum(-1)
    assert (groups[:, : columns // 4] == 2).all()
    simple = weight * methods.magnitude(weight, moments)
    error = methods.output_error(weight, updated, moments)
    assert error < methods.output_error(weight, simple, moments) * 0.9


def test_errors_rank_as_published() -> None:
    weight, moments = problem(128, 128)
    error = {}
    for method in methods.METHODS:
        for steps in (0, 10):
            _, updated = methods.prune_matrix(weight, moments, method, steps)
            error[method, steps] = methods.output_error(weight, updated, moments)
    assert error["wanda", 0] < error["magnitude", 0]
    assert error["sparsegpt", 0] < error["wanda", 0]
    assert error["sparsegpt", 10] <= 0.6 * error["sparsegpt", 0]
    assert error["admm", 0] <= 0.58 * error["sparsegpt", 0]


def test_refit_ends_at_least_squares() -> None:
    weight, moments = problem(8, 32)
    mask = methods.magnitude(weight, moments)
    fitted = methods.refit(weight, mask, moments, 200)
    h = moments.double()
    for row in range(8):
        kept = mask[row]
        exact = torch.linalg.solve(h[kept][:, kept], h[kept] @ weight[row].double())
        assert torch.allclose(fitted[row, kept].double(), exact, rtol=1e-2, atol=1e-2)
    errors = [
        methods.output_error(weight, methods.refit(weight, mask, moments, n), moments) for n in (0, 1, 5, 20)
    ]
    assert errors == sorted(errors, reverse=True)


def test_dead_and_dependent_inputs_have_a_defined_result() -> None:
    weight, x = torch.randn(8, 32), correlated(32)
    x[:, 5], x[:, 9] = 0, x[:, 8]
    moments = x.T @ x / len(x)
    for method in methods.METHODS:
        mask, updated = methods.prune_matrix(weight, moments, method, 10)
        assert updated.isfinite().all(), method
        assert masks.is_sparse24(updated)
        assert mask.dtype == torch.bool


def test_inputs_that_are_not_finite_are_refused() -> None:
    weight, moments = problem(8, 32)
    moments[3, 3] = torch.nan
    with pytest.raises(ValueError, match="hold NaN or Inf"):
        methods.sparsegpt(weight, moments)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"weight": torch.zeros(3, 8).double()}, TypeError, "must be float32, not torch.float64"),
        ({"factor": torch.zeros(7, 7)}, ValueError, r"needs a factor \[K, K\], not \(3, 8\) and \(7, 7\)"),
        ({"mask": torch.zeros(3, 4, dtype=torch.bool)}, ValueError, r"mask must be bool \(3, 8\)"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(change: dict[str, Tensor], error: type[Exception], text: str) -> None:
    given = {"weight": torch.zeros(3, 8), "factor": torch.eye(8), "mask": None, **change}
    with pytest.raises(error, match=text):
        sparsegpt.sparsegpt_(**given)


@pytest.mark.parametrize("size", [1e-18, 1e-12, 1e12, 1e17])
@pytest.mark.parametrize("method", methods.METHODS)
def test_the_size_of_inputs_does_not_matter(method: str, size: float) -> None:
    weight, moments = problem(24, 32)
    mask, updated = methods.prune_matrix(weight, moments, method, 5)
    other_mask, other = methods.prune_matrix(weight, moments * size * size, method, 5)
    assert (mask == other_mask).float().mean() > 0.99
    assert bool(other.isfinite().all())
    assert (updated - other).norm() < 0.1 * updated.norm()


@pytest.mark.parametrize("method", methods.METHODS)
def test_inputs_of_next_to_nothing_leave_finite_weights(method: str) -> None:
    weight = torch.randn(24, 32)
    mask, updated = methods.prune_matrix(weight, torch.full((32, 32), 1e-44), method, 5)
    assert bool(updated.isfinite().all())
    assert masks.is_sparse24(updated)
    assert int(mask.sum()) == weight.numel() // 2
