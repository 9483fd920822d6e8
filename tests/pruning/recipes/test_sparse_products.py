"""Which layers are trained by sparse products: timed, chosen, reported, refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparse24 import Sparsifier
from sparse24.pruning import recipes
from sparse24.pruning.recipes import by_products
from sparse24.pruning.recipes.products import SparseProductLinear
from sparse24.timing import Pair

from .masked import network, pruned

pytestmark = pytest.mark.usefixtures("seeded")


def test_only_layers_that_win_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sparsifier = pruned()
    times = {(32, 16): Pair(2e-3, 1e-3), (24, 32): Pair(1e-3, 2e-3)}
    monkeypatch.setattr(by_products, "timed", lambda layer, *_: times[tuple(layer.weight.shape)])
    report = recipes.sparse_products(sparsifier, torch.randn(8, 16))
    assert [row.reason for row in report][:2] == [
        "forward and backward: dense 2 ms, sparse 1 ms at 8 tokens",
        "forward and backward: dense 1 ms, sparse 2 ms at 8 tokens: stays dense",
    ]
    assert [type(layer) for layer in model[::2]] == [SparseProductLinear, nn.Linear, nn.Linear]
    assert model.training
    recipes.dense_products(sparsifier)
    assert type(model[0]) is nn.Linear
    assert "_plain" not in vars(model[0])


@pytest.mark.parametrize("autocast", [False, True])
def test_timing_leaves_everything_as_it_was(autocast: bool) -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Dropout(), nn.Linear(32, 24))
    recipe = recipes.transposable(model, select=["0", "3"])
    before = copy.deepcopy(model.state_dict())
    state = torch.random.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        report = recipes.sparse_products(recipe, [torch.randn(8, 16, generator=torch.Generator())] * 2)
    assert all("dense" in row.reason for row in report)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


def test_a_report_says_why_a_layer_stays_dense() -> None:
    model = nn.Sequential(
        nn.Linear(16, 16), nn.Linear(16, 12), nn.Linear(12, 16), nn.Conv1d(4, 4, 1), nn.Linear(16, 8).double()
    )
    model[0].forward = model[0].forward  # type: ignore[method-assign]
    sparsifier = Sparsifier(model, select=["0", "1", "2", "3", "4"])
    sparsifier.prune()
    reasons = [row.reason for row in recipes.sparse_products(sparsifier, when="always")]
    assert reasons == [
        "its forward was replaced by hand",
        "",
        "12 input features: sparse products in training need a multiple of 8",
        "a Conv1d is trained by dense products: only Linear layers have sparse ones",
        "float64 has no sparse product",
    ]
    wide = network()
    other = Sparsifier(wide, pattern="4:8", select=["0"])
    assert [r.reason for r in recipes.sparse_products(other, when="always")] == [
        "4:8 is not 2:4",
        "not selected",
        "an output head: the last layer, with 5 outputs; select it by name to prune it",
    ]
    report = recipes.sparse_products(pruned()[1], [])
    assert report[0].reason == "not called by example_inputs: stays dense"


def test_refusals_change_nothing() -> None:
    model, sparsifier = pruned()
    for wrong, match in (
        ({"when": "never"}, "when must be"),
        ({}, 'when="faster" times layers'),
        ({"when": "always", "example_inputs": torch.randn(8, 16)}, 'when="faster" times layers'),
    ):
        with pytest.raises(ValueError, match=match):
            recipes.sparse_products(sparsifier, **wrong)
    with pytest.raises(TypeError, match="a Sparsifier or a recipe over one, not Sequential"):
        recipes.sparse_products(model)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a Sparsifier or a recipe over one, not Sequential"):
        recipes.dense_products(model)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError):
        recipes.sparse_products(sparsifier, torch.randn(8, 17))
    assert type(model[0]) is nn.Linear
    x = torch.randn(4, 16).requires_grad_()
    recipes.sparse_products(sparsifier, when="always")
    (gradient,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.randn(4, 15))
