"""Training of all blocks together on what the dense network gives."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparse24 import is_sparse24
from sparse24.calibrated import oneshot
from sparse24.calibrated.whole import call_of, first_tensor

from .networks import NETWORKS, network

pytestmark = pytest.mark.usefixtures("seeded")


def error(model: nn.Module, dense: nn.Module, batches: list[Any]) -> float:
    lost = size = 0.0
    with torch.no_grad():
        for batch in batches:
            call = call_of(batch)
            outputs = [first_tensor(m.eval()(*call.args, **call.kwargs)) for m in (dense, model)]
            assert all(output is not None for output in outputs)
            lost += float((outputs[0] - outputs[1]).square().sum())  # type: ignore[operator]
            size += float(outputs[0].square().sum())  # type: ignore[union-attr]
    return lost / size


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_nearer_to_the_dense_one_or_as_near(name: str) -> None:
    dense, batches = network(name)
    by_blocks, together = copy.deepcopy(dense), copy.deepcopy(dense)
    oneshot(by_blocks, batches, steps=20)
    said: list[str] = []
    report = oneshot(together, batches, steps=20, reconstruct="network", progress=said.append)
    assert said[-1].startswith("the whole network: output error")
    before, after = (float(part.split()[-1]) for part in said[-1].split(", trained"))
    assert after <= before
    assert error(together, dense, batches) <= error(by_blocks, dense, batches) * 1.05
    pruned = {row.name for row in report.done}
    assert pruned
    for key, parameter in together.named_parameters():
        if key in pruned and parameter.dim() == 2 and "conv1d" not in name:
            assert is_sparse24(parameter) or is_sparse24(parameter, dim=0)


def test_what_is_outside_of_blocks_stays() -> None:
    class Tail(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(20, 16)
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
            self.norm = nn.LayerNorm(16)

        def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
            x = self.words(ids)
            for layer in self.layers:
                x = x + torch.relu(layer(x))
            return {"ids": ids, "hidden": self.norm(x)}

    model = Tail()
    before = copy.deepcopy(model.state_dict())
    batches = [torch.randint(20, (4, 6)) for _ in range(8)]
    oneshot(model, batches, steps=20, reconstruct="network", select=["layers.*"])
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"}


def test_an_interruption_restores_and_a_folder_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    dense, batches = network("stack")
    whole, stopped = copy.deepcopy(dense), copy.deepcopy(dense)
    oneshot(whole, batches, steps=8, reconstruct="network")

    def stop(text: str) -> None:
        if text.startswith("the whole"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        oneshot(stopped, batches, steps=8, reconstruct="network", folder=tmp_path, progress=stop)
    assert all(torch.equal(p, dense.get_parameter(n)) for n, p in stopped.named_parameters())
    oneshot(stopped, batches, steps=8, reconstruct="network", folder=tmp_path)
    assert all(torch.equal(p, whole.get_parameter(n)) for n, p in stopped.named_parameters())


def test_a_network_without_a_tensor_to_compare_is_refused() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 8)])

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [self.layers[0](x).argmax(-1)]

    model = Counts()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="gives no floating tensor"):
        oneshot(model, [torch.randn(4, 8)], reconstruct="network", select=["*"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
