"""ASP by apex's names: the lines of the talk."""

from __future__ import annotations

import copy

import pytest
import torch

from sparse24 import is_sparse24, magnitude_mask
from sparse24.pruning.asp import ASP

from .networks import network, same_state, sgd, train


def test_the_three_lines_of_the_talk() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    keys = list(model.state_dict())

    ASP.prune_trained_model(model, optimizer)

    train(model, optimizer)
    assert is_sparse24(model[0].weight)
    assert is_sparse24(model[3].weight)
    assert model[5].weight.all()
    assert list(model.state_dict()) == keys
    assert ASP.is_sparsity_enabled()
    for layer in (0, 3):
        zeros = model[layer].weight[model[layer].weight == 0]
        assert not zeros.signbit().any()


def test_the_steps_one_by_one() -> None:
    model = network()
    before = copy.deepcopy(model)
    ASP.init_model_for_pruning(model, "m4n2_1d", verbosity=0)
    optimizer = sgd(model)
    ASP.init_optimizer_for_pruning(optimizer)
    ASP.init_optimizer_for_pruning(optimizer)
    assert len(optimizer._optimizer_step_post_hooks) == 1
    assert not ASP.is_sparsity_enabled()
    assert same_state(model, before)
    ASP.compute_sparse_masks()
    assert ASP.is_sparsity_enabled()
    mask = magnitude_mask(before[3].weight)
    assert torch.equal(model[3].weight, torch.where(mask, before[3].weight, torch.tensor(0.0)))
    train(model, optimizer)
    assert torch.equal(model[3].weight != 0, mask)


def test_nothing_else_is_changed() -> None:
    model = network()
    state, flag = torch.get_rng_state(), torch.backends.cudnn.deterministic
    ASP.prune_trained_model(model, sgd(model))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.cudnn.deterministic == flag


@pytest.mark.parametrize("verbosity", [0, 1, 2, 3])
def test_verbosity(verbosity: int, capsys: pytest.CaptureFixture[str]) -> None:
    model = network()
    ASP.init_model_for_pruning(model, verbosity=verbosity)
    ASP.compute_sparse_masks()
    said = capsys.readouterr().out
    assert ("[ASP] Not sparsifying 5 of size=(10, 32): an output head" in said) is (verbosity >= 1)
    assert ("[ASP] Enabled 50.00% sparsity for 3 of size=(32, 96)" in said) is (verbosity >= 2)
    assert ("[ASP] Sparsifying 0 of size=(24, 16, 3, 3)" in said) is (verbosity >= 3)
