"""Optimizers that step copies of the weights: enforced by shape, order and numbers, or refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from sparse24 import Sparsifier
from sparse24.pruning.asp import ASP

from .networks import backward, mlp, pruned


def masters_of(model: nn.Module) -> list[nn.Parameter]:
    return [nn.Parameter(p.detach().float().clone()) for p in model.parameters()]


def step_of_masters(model: nn.Module, masters: list[nn.Parameter], optimizer: Optimizer, step: int) -> None:
    for p in model.parameters():
        p.grad = None
    backward(model, step)
    for p, master in zip(model.parameters(), masters, strict=True):
        master.grad = p.grad.float()
    optimizer.step()
    with torch.no_grad():
        for p, master in zip(model.parameters(), masters, strict=True):
            p.copy_(master)


def wide() -> nn.Sequential:
    """Several weights of one shape, in bfloat16."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(14, 14) for _ in range(3)), nn.Linear(14, 3)).bfloat16()


@pytest.mark.parametrize("prune_first", [True, False])
@pytest.mark.parametrize("groups", ["one", "weights and biases"])
def test_float32_masters_are_enforced_with_what_is_copied_from_them(groups: str, prune_first: bool) -> None:
    model = wide()
    sparsifier = Sparsifier(model)
    masters = masters_of(model)
    split = [[p for p in masters if p.dim() == 2], [p for p in masters if p.dim() == 1]]
    given = masters if groups == "one" else [{"params": p} for p in split]
    optimizer = Adam(given, lr=0.01)
    calls = [sparsifier.prune, lambda: sparsifier.attach(optimizer)]
    for call in calls if prune_first else reversed(calls):
        call()
    for step in range(3):
        step_of_masters(model, masters, optimizer, step)
        sparsifier.verify()
        for i, name in enumerate(["0.weight", "1.weight", "2.weight"]):
            assert torch.equal(masters[2 * i] != 0, sparsifier.masks[name])
    assert masters[0].dtype is torch.float32


def test_masters_that_cannot_be_told_apart_are_refused_by_name() -> None:
    model = wide()
    sparsifier = Sparsifier(model)
    sparsifier.prune()
    others = masters_of(model)
    others[0], others[2] = others[2], others[0]  # of one shape, in another order
    with pytest.raises(ValueError, match=r"Adam holds copies.*0\.weight \(14, 14\) cannot be told.*tensor 0"):
        sparsifier.attach(Adam(others))
    flat = [nn.Parameter(torch.cat([p.detach().float().flatten() for p in model.parameters()]))]
    message = r"Adam holds none of the model's parameters.*1 tensors, the first \(\d+,\); pass the optimizer"
    with pytest.raises(ValueError, match=message):
        sparsifier.attach(Adam(flat))
    with pytest.raises(ValueError, match="holds none of the model's parameters"):
        sparsifier.attach(Adam(mlp(seed=3).parameters()))
    assert not sparsifier.optimizers()


def test_a_failed_prune_of_asp_forgets_the_model() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(8, 8))
    with pytest.raises(ValueError, match="holds none of the model's parameters"):
        ASP.prune_trained_model(model, SGD(mlp().parameters()))
    assert not ASP._sessions
    assert model[0].weight.all()


def test_parameters_of_others_in_the_same_optimizer_are_none_of_its_business() -> None:
    model, sparsifier = pruned()
    centres = nn.Parameter(torch.ones(20, 14))
    optimizer = SGD([*model.parameters(), centres], lr=0.1)
    sparsifier.attach(optimizer)
    backward(model)
    centres.grad = torch.ones_like(centres)
    optimizer.step()
    sparsifier.verify()
    assert centres.all()


def test_a_copy_keeps_its_masters() -> None:
    model = wide()
    sparsifier = Sparsifier(model)
    sparsifier.prune()
    masters = masters_of(model)
    optimizer = Adam(masters, lr=0.01)
    sparsifier.attach(optimizer)
    with torch.no_grad():
        masters[0].add_(1)  # not copied back yet
    net, copies, stepper, other = copy.deepcopy((model, masters, optimizer, sparsifier))
    step_of_masters(net, copies, stepper, 0)
    other.verify()
    assert torch.equal(copies[0] != 0, other.masks["0.weight"])


def test_masks_that_a_checkpoint_brings_later_reach_the_masters() -> None:
    model = wide()
    masters = masters_of(model)
    optimizer = Adam(masters, lr=0.01)
    sparsifier = Sparsifier(model)
    sparsifier.attach(optimizer)
    chosen = Sparsifier(model, select=["*"])  # with the head, which is left alone by default
    chosen.prune()
    sparsifier.load_state_dict(chosen.state_dict())
    for step in range(2):
        step_of_masters(model, masters, optimizer, step)
        sparsifier.verify()
    assert torch.equal(masters[6] != 0, sparsifier.masks["3.weight"])
