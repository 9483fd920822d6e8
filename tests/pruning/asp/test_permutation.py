"""``allow_permutation=True``: channels are permuted when masks are first computed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparse24.pruning.asp import ASP

from .networks import network, same_state, sgd, train

pytestmark = pytest.mark.usefixtures("seeded")

EXAMPLE = torch.randn(2, 16, 2, 2)


def wide() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * 4, 64), nn.ReLU(), nn.Linear(64, 16),
    )  # fmt: skip


def kept(model: nn.Module) -> float:
    return sum(float(p.detach().abs().sum()) for p in model.parameters() if p.dim() > 1)


def pruned(**how: Any) -> tuple[nn.Module, nn.Module]:
    """A network pruned with some arguments, and as it was before."""
    model = wide()
    before = copy.deepcopy(model)
    ASP.init_model_for_pruning(model, verbosity=0, **how)
    ASP.compute_sparse_masks(model)
    return model, before


def test_masks_keep_more() -> None:
    model, before = pruned(allow_permutation=True, example_inputs=EXAMPLE)
    report = ASP.permutation_report(model)
    assert report is not None
    assert {row.name for row in report.done} == {"2.weight", "7.weight"}
    plain = copy.deepcopy(before)
    ASP.init_model_for_pruning(plain, verbosity=0)
    ASP.compute_sparse_masks(plain)
    assert ASP.permutation_report(plain) is None
    assert kept(model) > kept(plain) * 1.001
    assert kept(model) == pytest.approx(report.score_after, rel=1e-4)


def test_pruned_values_put_back_are_the_network_in_its_new_order() -> None:
    model, before = pruned(allow_permutation=True, example_inputs=EXAMPLE, allow_recompute_mask=True)
    ASP.restore_pruned_weights(model)
    x = torch.randn(3, 16, 2, 2)
    assert torch.allclose(model(x), before(x), atol=1e-5)
    report = ASP.permutation_report(model)
    ASP.compute_sparse_masks(model)
    assert ASP.permutation_report(model) is report  # once


def test_training_goes_on() -> None:
    model = network()
    optimizer = sgd(model)
    ASP.init_model_for_pruning(model, verbosity=0, allow_permutation=True, example_inputs=EXAMPLE)
    ASP.init_optimizer_for_pruning(optimizer)
    ASP.compute_sparse_masks()
    train(model, optimizer)
    assert all(abs(row.kept - 0.5) < 0.01 for row in ASP.report().done)


def test_state_of_an_optimizer_is_not_left_behind() -> None:
    model = wide()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer)
    ASP.init_model_for_pruning(model, verbosity=0, allow_permutation=True, example_inputs=EXAMPLE)
    ASP.init_optimizer_for_pruning(optimizer)
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match="Adam holds state or copies of weights"):
        ASP.compute_sparse_masks()
    assert same_state(model, before)


def test_it_prints_what_it_gained(capsys: pytest.CaptureFixture[str]) -> None:
    model = wide()
    ASP.init_model_for_pruning(model, verbosity=2, allow_permutation=True, example_inputs=EXAMPLE)
    ASP.compute_sparse_masks()
    assert "[ASP] 2 of 4 weights permuted; 2:4 keeps" in capsys.readouterr().out


def test_a_mask_that_fails_leaves_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wide()
    before = copy.deepcopy(model)
    ASP.init_model_for_pruning(model, verbosity=0, allow_permutation=True, example_inputs=EXAMPLE)

    def fails(*_: object) -> dict[str, Tensor]:
        raise RuntimeError("no")

    monkeypatch.setattr(ASP._session(model), "_compute_masks", fails)
    with pytest.raises(RuntimeError, match="no"):
        ASP.compute_sparse_masks()
    assert same_state(model, before)
    assert ASP.permutation_report(model) is None
