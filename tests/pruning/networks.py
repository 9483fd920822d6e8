"""A small network, its training, and what tells what became of it."""

from __future__ import annotations

import torch
from torch import nn

from sparse24 import Sparsifier


def mlp(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(14, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3)).to(
        dtype
    )


def reason_of(sparsifier: Sparsifier, layer: str) -> str:
    return next(row.reason for row in sparsifier.report() if row.name == layer)


def same_state(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def pruned() -> tuple[nn.Sequential, Sparsifier]:
    model = mlp()
    sparsifier = Sparsifier(model)
    sparsifier.prune()
    return model, sparsifier


def backward(model: nn.Module, step: int = 0) -> None:
    dtype = next(model.parameters()).dtype
    x = torch.randn(8, 14, generator=torch.Generator().manual_seed(step)).to(dtype)
    model(x).float().square().mean().backward()
