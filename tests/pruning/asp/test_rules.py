"""What ASP prunes, by which rule, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from torch import nn

from sparse24.pruning.asp import ASP

from .networks import Doubled, SubclassedLinear, layers, network, reasons, same_state, sgd


def test_the_rules_of_asp() -> None:
    model = layers()
    ASP.init_model_for_pruning(model, verbosity=0)
    ASP.compute_sparse_masks()
    done = [row.name for row in ASP.report().done]
    assert done == ["subclass", "conv", "attention.in_proj_weight", "attention.out_proj"]
    left = reasons()
    assert left["rows"] == "12 x 16 (out x in): ASP needs multiples of 8 x 16"
    assert left["columns"] == "16 x 24 (out x in): ASP needs multiples of 8 x 16"
    assert "requires_grad is False" in left["frozen"]
    assert "tied to the embedding embed; put it into allowed_layer_names" in left["tied"]
    assert "an output head" in left["lm_head"]
    assert "not a layer that is pruned" in left["doubled.left"]
    assert "looked up" in left["embed"]


def test_layers_by_name_and_type() -> None:
    model = layers()
    ASP.init_model_for_pruning(
        model,
        verbosity=0,
        whitelist=[SubclassedLinear, nn.MultiheadAttention],
        disallowed_layer_names=["attention"],
        custom_layer_dict={Doubled: ["right"]},
    )
    ASP.compute_sparse_masks()
    assert [row.name for row in ASP.report().done] == ["subclass", "doubled.right"]
    assert reasons()["attention.in_proj_weight"] == "in disallowed_layer_names"
    assert reasons()["conv"] == "not of a type in whitelist"
    ASP.release(model)
    ASP.init_model_for_pruning(model, verbosity=0, allowed_layer_names=["conv", "tied", "lm_head"])
    ASP.compute_sparse_masks()
    assert [row.name for row in ASP.report().done] == ["conv", "tied", "lm_head"]
    assert reasons()["attention.out_proj"] == "not in allowed_layer_names"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": 1}, TypeError, "torch.nn.Module, not int"),
        ({"allow_permutation": True}, ValueError, "allow_permutation=True needs example_inputs="),
        (
            {"allow_permutation": True, "example_inputs": 1, "mask_calculator": "m4n2_2d_best"},
            ValueError,
            "is for mask_calculator='m4n2_1d', not 'm4n2_2d_best'",
        ),
        ({"mask_calculator": "m4n2_3d"}, ValueError, "unknown mask_calculator 'm4n2_3d'"),
        ({"mask_calculator": "m2n4_1d"}, ValueError, "N:M"),
        ({"mask_calculator": 24}, TypeError, "not int"),
        ({"whitelist": [nn.Bilinear]}, ValueError, "whitelist has Bilinear"),
        ({"allowed_layer_names": ["3", "fc"]}, ValueError, "no layer of the model is called fc"),
        ({"disallowed_layer_names": ["fc"]}, ValueError, "called fc"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    model = network()
    with pytest.raises(error, match=message):
        ASP.init_model_for_pruning(**{"model": model, "verbosity": 0, **arguments})
    with pytest.raises(ValueError, match=r"call ASP.init_model_for_pruning"):
        ASP.compute_sparse_masks()


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda w: None, TypeError, "returned NoneType"),
        (lambda w: w[:1] > 0, ValueError, r"\(1, 96\) for a weight of shape \(32, 96\)"),
    ],
)
def test_a_bad_mask_function_changes_nothing(function: Any, error: type[Exception], message: str) -> None:
    model = network()
    before = copy.deepcopy(model)
    ASP.init_model_for_pruning(model, lambda w: w > 0 if w.dim() == 4 else function(w), verbosity=0)
    with pytest.raises(error, match=message):
        ASP.compute_sparse_masks()
    assert same_state(model, before)


@pytest.mark.parametrize("name", ["init_model_for_pruning", "prune_trained_model"])
def test_apexs_functions_return_none_and_say_so_on_top(name: str) -> None:
    model = network()
    given = (model,) if name.startswith("init") else (model, sgd(model))
    assert getattr(ASP, name)(*given) is None
    for each in (name, "init_optimizer_for_pruning", "compute_sparse_masks", "restore_pruned_weights"):
        assert "eturns None" in "\n".join((getattr(ASP, each).__doc__ or "").splitlines()[:4])
