"""A small network, and what tells whether anything changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import sparse24


def mlp(width: int = 32) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 8)
    )


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    """Bit for bit; NaN is NaN."""
    return all(
        torch.equal(tensor.nan_to_num(nan=7.0), before[name].nan_to_num(nan=7.0))
        for name, tensor in model.state_dict().items()
    )


def reasons(model: nn.Module, example: Any, **how: Any) -> dict[str, str]:
    return {row.name: row.reason for row in sparse24.permute(model, example, **how)}
