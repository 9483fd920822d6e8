"""Accelerate: what it prepares is enforced, and its own checkpoints hold the masks, without a callback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparse24 import Sparsifier
from sparse24.pruning import recipes

accelerate = pytest.importorskip("accelerate", reason="the extra dev brings it")
pytestmark = pytest.mark.filterwarnings("ignore")
MAKES: dict[str, Any] = {
    "sparsifier": Sparsifier,
    "recipe": lambda model: recipes.DynamicSparsity(Sparsifier(model), begin=2, refresh=2, freeze=7),
}


def start(make: str) -> tuple[Any, nn.Module, Any, Any]:
    torch.manual_seed(0)
    accelerator = accelerate.Accelerator(cpu=True)
    model: Any = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    enforced = MAKES[make](accelerator.unwrap_model(model))
    if make == "sparsifier":
        enforced.prune()
    enforced.attach(optimizer)
    accelerator.register_for_checkpointing(enforced)
    return accelerator, model, optimizer, enforced


def train(accelerator: Any, model: nn.Module, optimizer: Any, steps: range) -> None:
    for step in steps:
        x = torch.randn(8, 8, generator=torch.Generator().manual_seed(step))
        with accelerator.accumulate(model):
            optimizer.zero_grad()
            accelerator.backward(F.cross_entropy(model(x), (x[:, 0] > 0).long()))
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()


@pytest.mark.parametrize("make", MAKES)
def test_its_checkpoints_hold_the_masks(make: str, tmp_path: Path) -> None:
    accelerator, whole, optimizer, _ = start(make)
    train(accelerator, whole, optimizer, range(5))
    accelerator.save_state(str(tmp_path))
    train(accelerator, whole, optimizer, range(5, 10))

    accelerator, again, optimizer, enforced = start(make)
    train(accelerator, again, optimizer, range(20, 23))
    accelerator.load_state(str(tmp_path))
    train(accelerator, again, optimizer, range(5, 10))
    sparsifier = enforced if make == "sparsifier" else enforced.sparsifier
    sparsifier.verify()
    for one, other in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)
