"""Networks for the tests of ASP, trained a little, and what is asked of them."""

from __future__ import annotations

import torch
from torch import nn

from sparse24.pruning.asp import ASP


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(16, 24, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 4, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range = range(3)) -> None:
    for step in steps:
        x = torch.randn(4, 16, 2, 2, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def same_state(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def reasons(model: nn.Module | None = None) -> dict[str, str]:
    return {row.name: row.reason for row in ASP.report(model)}


class SubclassedLinear(nn.Linear):
    pass


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.randn(16, 32))
        self.right = nn.Parameter(torch.randn(16, 32))


def layers() -> nn.ModuleDict:
    tied = nn.Linear(16, 64, bias=False)
    frozen = nn.Linear(16, 16).requires_grad_(False)
    model = nn.ModuleDict(
        {
            "embed": nn.Embedding(64, 16),
            "subclass": SubclassedLinear(16, 16),
            "conv": nn.Conv1d(32, 8, 3),
            "rows": nn.Linear(16, 12),
            "columns": nn.Linear(24, 16),
            "frozen": frozen,
            "attention": nn.MultiheadAttention(16, 2),
            "doubled": Doubled(),
            "tied": tied,
            "lm_head": nn.Linear(16, 32),
        }
    )
    tied.weight = model["embed"].weight
    return model
