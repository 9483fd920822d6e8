"""Copies and pickles of a Sparsifier with its model and optimizer."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam

from sparse24 import Sparsifier

from .networks import backward, pruned, same_state


@pytest.mark.parametrize("sparsifier_first", [True, False])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda all_: pickle.loads(pickle.dumps(all_))])
def test_a_copy_of_model_optimizer_and_sparsifier_stays_pruned(how: Any, sparsifier_first: bool) -> None:
    model, sparsifier = pruned()
    optimizer = Adam(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    backward(model)
    optimizer.step()
    if sparsifier_first:
        other, stepper, net = how((sparsifier, optimizer, model))
    else:
        net, stepper, other = how((model, optimizer, sparsifier))
    assert other.optimizers() == [stepper]
    assert sparsifier.optimizers() == [optimizer]
    for each, of in ((net, stepper), (model, optimizer)):
        of.zero_grad()
        backward(each, 1)
        of.step()
    other.verify()
    assert same_state(net, model)
    net[0].weight.data.fill_(1)
    sparsifier.verify()  # nothing is shared


def test_a_copy_alone_is_attached_to_nothing() -> None:
    model, sparsifier = pruned()
    optimizer = SGD(model.parameters())
    sparsifier.attach(optimizer)
    alone = copy.deepcopy(sparsifier)
    assert alone.optimizers() == []
    assert len(optimizer._optimizer_step_post_hooks) == 1
    alone.verify()


def test_a_pickle_of_version_0_1_loads() -> None:
    """It held bool masks, and neither knew what is selected by default nor warned."""
    model, sparsifier = pruned()
    state = sparsifier.__getstate__()
    del state["_selects_all"], state["_steps_without_masks"]
    state["_masks"] = sparsifier.masks
    old = Sparsifier.__new__(Sparsifier)
    old.__setstate__(state)
    assert old.verify()[0].done
    assert all(torch.equal(old.masks[name], mask) for name, mask in sparsifier.masks.items())
    optimizer = SGD(model.parameters(), lr=0.1)
    old.attach(optimizer)
    backward(model)
    optimizer.step()
    old.verify()
