"""Permutation by calibrated scores: they are what pruning by them keeps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import sparse24
from sparse24.calibrated import methods, permutation

pytestmark = pytest.mark.usefixtures("seeded")


class Mixed(nn.Module):
    """A grouped convolution, an attention and linear layers; inputs whose channels differ in size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(4, 32, 3), nn.Conv2d(32, 32, 3, groups=2)
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(torch.relu(self.stem(x))).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.down(torch.relu(self.up(x)))


def batches(count: int = 3) -> list[Tensor]:
    sizes = torch.tensor([0.2, 1.0, 3.0, 9.0])[:, None, None]
    return [sizes * torch.randn(4, 4, 8, 8) for _ in range(count)]


@pytest.mark.parametrize("score", ["wanda", "hessian"])
def test_more_of_a_calibrated_score_is_kept(score: str) -> None:
    model = Mixed()
    twin = copy.deepcopy(model)
    report = sparse24.permute(model, batches(1)[0], score, batches=batches())
    assert report.gain > 0.0005
    assert {row.name for row in report.done} >= {"conv.weight", "attention.out_proj.weight", "down.weight"}
    x = batches(1)[0]
    assert torch.allclose(model(x), twin(x), atol=1e-4)


def test_wanda_is_magnitude_times_the_norm_of_inputs() -> None:
    layer, given = nn.Linear(8, 16), [torch.randn(64, 8) * torch.arange(1, 9)]
    scored = permutation._calibrated(layer, given, "wanda", None)(layer.weight, "weight")
    expected = layer.weight.detach().abs() * given[0].square().mean(0).sqrt()
    assert torch.allclose(scored, expected, rtol=1e-4)


def test_hessian_is_the_loss_of_pruning_one_weight() -> None:
    """w^2 / [H^-1]_jj is the least output error without a weight, where all others may change."""
    layer = nn.Linear(8, 2, bias=False)
    x = torch.randn(512, 8) @ torch.randn(8, 8)
    scored = permutation._calibrated(layer, [x], "hessian", None)(layer.weight, "weight").double()
    h = x.double().T @ x.double() / len(x)
    h += methods.DAMP * h.diagonal().mean() * torch.eye(8)
    w = layer.weight.detach().double()
    for j in range(8):
        rest = [i for i in range(8) if i != j]
        change = torch.linalg.solve(h[rest][:, rest], (w[:, [j]] * h[j, rest]).T)  # of the others, best
        delta = torch.zeros_like(w)
        delta[:, j], delta[:, rest] = -w[:, j], change.T
        assert torch.allclose(scored[:, j], (delta @ h * delta).sum(1), rtol=1e-3)


def test_transposed_weights_are_scored_as_they_lie() -> None:
    transformers = pytest.importorskip("transformers", reason="the extra dev brings it")
    layer = transformers.pytorch_utils.Conv1D(16, 8)
    x = torch.randn(32, 8) * torch.arange(1, 9)
    scored = permutation._calibrated(layer, [x], "wanda", None)(layer.weight, "weight")
    expected = layer.weight.detach().abs() * x.square().mean(0).sqrt()[:, None]
    assert torch.allclose(scored, expected, rtol=1e-4)


def test_layers_that_no_batch_reaches_go_by_magnitude() -> None:
    model = nn.ModuleDict({"used": nn.Linear(8, 16), "unused": nn.Linear(8, 16)})
    model.forward = model["used"].forward  # type: ignore[method-assign]
    scored = permutation._calibrated(model, [torch.randn(4, 8)], "wanda", ["*used"])
    assert torch.allclose(scored(model["unused"].weight, "unused.weight"), model["unused"].weight.abs())


@pytest.mark.parametrize("score", ["wanda", "hessian"])
def test_batches_with_nan_are_refused(score: str) -> None:
    model = Mixed()
    bad = batches()
    bad[1][0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"the inputs of .* hold NaN or Inf"):
        sparse24.permute(model, batches(1)[0], score, batches=bad)


def test_batches_of_a_wrong_kind_are_refused() -> None:
    with pytest.raises(TypeError, match="batches must be an iterable of batches, not a Tensor"):
        sparse24.permute(Mixed(), batches(1)[0], "wanda", batches=batches(1)[0])
    with pytest.raises(ValueError, match="at least one batch"):
        sparse24.permute(Mixed(), batches(1)[0], "wanda", batches=[])
