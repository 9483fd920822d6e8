"""Networks with masks, dense and by sparse products."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from sparse24 import Sparsifier
from sparse24.pruning import recipes


def network(width: int = 32) -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, width), nn.Tanh(), nn.Linear(width, 24), nn.Tanh(), nn.Linear(24, 5))


def pruned(pattern: str = "2:4", model: nn.Module | None = None) -> tuple[Any, Sparsifier]:
    model = model or network()
    sparsifier = Sparsifier(model, pattern=pattern, select=["0", "2"])
    sparsifier.prune()
    return model, sparsifier


def twins(pattern: str) -> tuple[Any, Any, Sparsifier]:
    """A network that computes dense, and its copy by sparse products."""
    model, sparsifier = pruned(pattern)
    dense = copy.deepcopy(model)
    report = recipes.sparse_products(sparsifier, when="always")
    assert [row.done for row in report] == [True, True, False]
    return dense, model, sparsifier
