"""Checkpoints in apex's keys."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparse24 import magnitude_mask
from sparse24.pruning.asp import ASP

from .networks import Doubled, network, reasons, same_state, sgd, train


def masks_of(state: dict[str, Any]) -> list[str]:
    return [key for key in state if "_mma_" in key]


def apex_checkpoint(model: nn.Module, layers: set[str]) -> dict[str, Tensor]:
    """What apex saves: masks as buffers, and -0.0 where a negative weight was multiplied away."""
    state = {}
    for name, value in model.state_dict().items():
        layer, _, attribute = name.rpartition(".")
        state[name] = value.clone()
        if layer in layers and attribute == "weight":
            mask = magnitude_mask(value)
            state[name] = value * mask
            state[f"{layer}.__weight_mma_mask"] = mask
    return state


def test_a_checkpoint_of_apex_loads_and_training_goes_on() -> None:
    trained = network(3)
    state = apex_checkpoint(trained, {"0", "3"})
    assert state["3.weight"].eq(0).logical_and(state["3.weight"].signbit()).any()
    model = network(4)
    optimizer = sgd(model)
    ASP.init_model_for_pruning(model, verbosity=0)
    ASP.init_optimizer_for_pruning(optimizer)
    ASP.load_state_dict(model, state)
    assert ASP.is_sparsity_enabled()
    assert torch.equal(model[3].weight, state["3.weight"])
    assert not model[3].weight[~state["3.__weight_mma_mask"]].signbit().any()
    train(model, optimizer)
    assert torch.equal(model[3].weight != 0, state["3.__weight_mma_mask"])


def test_masks_of_layers_that_asp_leaves_alone_here_are_taken_over() -> None:
    model = nn.ModuleDict({"body": network()[:5], "fc": nn.Linear(32, 1000)})
    state = apex_checkpoint(model, {"body.0", "body.3", "fc"})
    ASP.init_model_for_pruning(model, verbosity=0)
    assert "an output head" in reasons()["fc"]
    ASP.load_state_dict(model, state)
    assert ASP.report()[-1].reason == ""
    assert [row.name for row in ASP.report().done] == ["body.0", "body.3", "fc"]
    assert masks_of(ASP.state_dict(model)) == masks_of(state)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("pruned", [False, True])
def test_state_in_apex_keys_survives_a_file(recompute: bool, pruned: bool) -> None:
    model = network()
    dense = copy.deepcopy(model)
    ASP.init_model_for_pruning(model, verbosity=0, allow_recompute_mask=recompute)
    if pruned:
        ASP.compute_sparse_masks()
    state = ASP.state_dict(model)
    expected = [f"{layer}.__weight_mma_{what}" for layer in "03" for what in ("mask", "pruned_p")]
    assert masks_of(state) == (expected if recompute else expected[::2])
    assert state["0.__weight_mma_mask"].dtype == torch.bool
    assert bool(state["0.__weight_mma_mask"].all()) is not pruned
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)

    other = network(1)
    ASP.init_model_for_pruning(other, verbosity=0, allow_recompute_mask=recompute)
    ASP.load_state_dict(other, torch.load(file, weights_only=True))
    assert same_state(other, model)
    assert ASP.is_sparsity_enabled(other) is pruned
    if recompute:
        ASP.restore_pruned_weights(other)
        assert same_state(other, dense)


def test_wrapped_models_keep_their_prefix() -> None:
    base = network()
    base[3] = torch.compile(base[3], backend="eager")
    model = nn.DataParallel(base)
    ASP.prune_trained_model(model, sgd(model))
    state = ASP.state_dict(model)
    assert masks_of(state) == ["module.0.__weight_mma_mask", "module.3._orig_mod.__weight_mma_mask"]
    ASP.load_state_dict(model, state)
    assert ASP.is_sparsity_enabled(base)


def test_shared_weights_have_one_mask() -> None:
    model = nn.ModuleDict({"a": nn.Linear(16, 16), "b": nn.Linear(16, 16)})
    model["b"].weight = model["a"].weight
    ASP.prune_trained_model(model, sgd(model))
    state = ASP.state_dict(model)
    assert masks_of(state) == ["a.__weight_mma_mask"]
    state["b.__weight_mma_mask"] = state["a.__weight_mma_mask"]
    ASP.load_state_dict(model, state)
    assert list(ASP._session(model).masks) == ["a.weight"]


def long_network(seed: int) -> nn.Sequential:
    """With a layer that cannot be pruned (6), and one whose shape does not allow it (7)."""
    return network(seed).extend([Doubled(), nn.Linear(3, 8)])


def pruned_state() -> dict[str, Any]:
    model = long_network(0)
    ASP.init_model_for_pruning(model, verbosity=0, allow_recompute_mask=True)
    ASP.compute_sparse_masks(model)
    return ASP.state_dict(model)


ONES = torch.ones(32, 96).bool()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"3.weight": None}, ValueError, r"missing \['3.weight'\], unexpected \[\]"),
        ({"9.weight": ONES}, ValueError, r"unexpected \['9.weight'\]"),
        ({"3.weight": ONES[:1]}, ValueError, r"3.weight is .*\[1, 96\].* in the checkpoint, \(32, 96\) in"),
        ({"3.weight": 3}, ValueError, "3.weight is int in the checkpoint"),
        ({"3.__weight_mma_mask": None}, ValueError, r"no masks for \['3.weight'\]"),
        ({"4.__weight_mma_mask": ONES}, ValueError, r"masks for \['4.weight'\], which the model does not"),
        ({"3.__weight_mma_mask": ONES}, ValueError, "mask of 3.weight is not m4n2_1d: group 0"),
        ({"3.__weight_mma_mask": ONES[:1]}, ValueError, r"of 3.weight is \(1, 96\), the weight \(32, 96\)"),
        ({"3.__weight_mma_mask": 1}, TypeError, "3.__weight_mma_mask must be a tensor, not int"),
        ({"6.__left_mma_mask": ONES}, ValueError, "mask for 6.left: not a layer that is pruned"),
        ({"7.__weight_mma_mask": ONES[:8, :3]}, ValueError, "mask for 7.weight: 3 input channels"),
        ({"3.__weight_mma_pruned_p": None}, ValueError, r"of 3.weight, \(32, 96\), .* no pruned values"),
        ({"3.__weight_mma_pruned_p": ONES[:1]}, ValueError, r"pruned values of shape \(1, 96\)"),
    ],
)
def test_a_bad_checkpoint_changes_nothing(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    state = {**pruned_state(), **changes}
    model = long_network(5)
    ASP.init_model_for_pruning(model, verbosity=0, allow_recompute_mask=True)
    before = copy.deepcopy(model)
    with pytest.raises(error, match=message):
        ASP.load_state_dict(model, {key: value for key, value in state.items() if value is not None})
    assert same_state(model, before)
    assert not ASP.is_sparsity_enabled()


def test_pruned_values_are_ignored_where_they_are_not_kept() -> None:
    state = pruned_state()
    model = long_network(1)
    with pytest.raises(ValueError, match="no such model"):
        ASP.load_state_dict(model, state)
    ASP.init_model_for_pruning(model, verbosity=0)
    ASP.load_state_dict(model, state)
    assert ASP.is_sparsity_enabled()
