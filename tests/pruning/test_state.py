"""The state of a Sparsifier: saved, loaded, refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sparse24 import Sparsifier

from .networks import mlp


def pruned_state() -> dict[str, Any]:
    sparsifier = Sparsifier(mlp())
    sparsifier.prune()
    return sparsifier.state_dict()


def with_masks(**changes: Any) -> dict[str, Any]:
    state = pruned_state()
    masks = {**state["masks"], **{name.replace("_", "."): mask for name, mask in changes.items()}}
    return {**state, "masks": {name: mask for name, mask in masks.items() if mask is not None}}


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ([], TypeError, 'holds "pattern" and "masks", not list'),
        ({"masks": {}}, TypeError, "not \\['masks'\\]"),
        ({"pattern": "1:4", "masks": {}}, ValueError, "'1:4', this Sparsifier is '2:4'"),
        ({"pattern": "2:4", "masks": []}, TypeError, "not be a list"),
        (with_masks(**{"2_weight": None}), ValueError, r"missing \['2.weight'\], unknown \[\]"),
        (with_masks(**{"3_weight": torch.ones(3, 16).bool()}), ValueError, r"unknown \['3.weight'\]"),
        (
            with_masks(**{"2_weight": torch.ones(16, 20)}),
            TypeError,
            "2.weight must be a bool tensor, not torch.float32",
        ),
        (with_masks(**{"2_weight": 1}), TypeError, "not int"),
        (
            with_masks(**{"2_weight": torch.zeros(20, 16).bool()}),
            ValueError,
            r"2.weight is \(20, 16\), the weight \(16, 20\)",
        ),
        (
            with_masks(**{"2_weight": torch.ones(16, 20).bool()}),
            ValueError,
            "group 0 along dim 1 at .0. keeps more than 2 of 4",
        ),
    ],
)
def test_a_bad_state_changes_nothing(state: Any, error: type[Exception], message: str) -> None:
    sparsifier = Sparsifier(mlp(seed=5))
    sparsifier.prune()
    before = sparsifier.masks
    with pytest.raises(error, match=message):
        sparsifier.load_state_dict(state)
    assert sparsifier.masks.keys() == before.keys()
    assert all(torch.equal(sparsifier.masks[name], mask) for name, mask in before.items())


def test_a_transposable_state_is_checked_in_both_directions() -> None:
    model = nn.Linear(8, 8)
    sparsifier = Sparsifier(model, "transposable")
    sparsifier.prune()
    state = sparsifier.state_dict()
    sparsifier.load_state_dict(state)
    assert sparsifier.verify()[0].reason == ""
    rows_only = torch.tensor([True, True, False, False]).repeat(8, 2)
    with pytest.raises(ValueError, match="along dim 0"):
        sparsifier.load_state_dict({**state, "masks": {"weight": rows_only}})


def test_a_state_from_before_pruning_loads() -> None:
    sparsifier = Sparsifier(mlp())
    sparsifier.prune()
    sparsifier.load_state_dict(Sparsifier(mlp()).state_dict())
    assert not sparsifier.masks


def test_loaded_masks_are_copies() -> None:
    state = pruned_state()
    sparsifier = Sparsifier(mlp())
    sparsifier.load_state_dict(state)
    state["masks"]["0.weight"].fill_(False)
    assert sparsifier.masks["0.weight"].any()
