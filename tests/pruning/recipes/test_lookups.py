"""What a recipe looks up in a step, and when."""

from __future__ import annotations

from typing import Any

from torch import nn

from sparse24 import Sparsifier, is_sparse24
from sparse24.pruning import recipes

from ..networks import mlp
from .test_dynamic import sgd, train


def test_weights_are_looked_up_again_only_where_the_model_holds_others() -> None:
    model = mlp()
    recipe = recipes.DynamicSparsity(Sparsifier(model), refresh=2, decay=0.1)
    walks = []
    plain = recipe.sparsifier._prunable

    def counted() -> Any:
        walks.append(recipe.step)
        return plain()

    recipe.sparsifier._prunable = counted  # type: ignore[method-assign]
    optimizer = sgd(model)
    recipe.attach(optimizer)
    train(model, optimizer, range(1))
    del walks[:]
    train(model, optimizer, range(1, 5))
    assert walks == [2, 4]  # for the masks alone, which are new there

    model[2].weight = nn.Parameter(model[2].weight.detach().clone())
    optimizer.add_param_group({"params": [model[2].weight]})
    train(model, optimizer, range(5, 6))
    assert walks == [2, 4, 5, 6]
    assert is_sparse24(model[2].weight)
