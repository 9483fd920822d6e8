"""Networks in other dtypes, and parameters that are more than numbers of their own."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

import sparse24
from sparse24.pruning.permute import outputs

from .networks import mlp, reasons, same, state

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = mlp().to(dtype)
    twin = copy.deepcopy(model).double()
    report = sparse24.permute(model, torch.randn(2, 8, dtype=dtype))
    assert report.gain > 0
    x = torch.randn(4, 8, dtype=torch.float64)
    assert torch.allclose(twin(x), copy.deepcopy(model).double()(x), rtol=1e-9)


def test_where_float64_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "_fits", lambda _: False)
    report = sparse24.permute(mlp(), torch.randn(2, 8))
    assert report.done
    assert "the network's dtype" in report.remark


class OnlyFloat32(nn.Module):
    """Constants of its own dtype: float64 does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.constant = mlp(), [torch.randn(8, 8)]

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x @ self.constant[0])


def test_where_float64_does_not_run() -> None:
    model = OnlyFloat32()
    twin, x = copy.deepcopy(model), torch.randn(4, 8)
    report = sparse24.permute(model, torch.randn(2, 8))
    assert report.done
    assert "the network's dtype" in report.remark
    assert torch.allclose(model(x), twin(x), atol=1e-5)


def test_parameters_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = mlp()
    twin, x = copy.deepcopy(model), torch.randn(4, 8)
    assert sparse24.permute(model, torch.randn(2, 8)).done
    with torch.inference_mode():
        assert torch.allclose(model(x), twin(x), atol=1e-5)


def test_frozen_parameters_and_compiled_models() -> None:
    model = mlp().requires_grad_(False)
    assert sparse24.permute(nn.DataParallel(torch.compile(model, backend="eager")), torch.randn(2, 8)).done
    assert not any(p.requires_grad for p in model.parameters())


def test_masks_of_torch_stay_with_their_weights() -> None:
    """A mask is a buffer, a constant to us: what it is multiplied with stays."""
    model = mlp()
    prune.random_unstructured(model[2], "weight", 0.5)
    x = torch.randn(4, 8)
    expected = model(x)
    found = reasons(model, torch.randn(2, 8))
    assert torch.equal(model(x), expected)
    assert "in the order of a constant, 2.weight_mask" in found["4.weight"]


class SideBySide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 8), nn.Linear(32, 256)
        self.last = nn.Linear(264, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.last(F.relu(torch.cat([self.a(x), self.b(x)], 1)))


def test_what_is_pruned_already_stays_pruned() -> None:
    """Channels that a pruned layer and a dense one take."""
    model = SideBySide()
    sparse24.Sparsifier(model, select=["a"]).prune()
    before = state(model)
    found = reasons(model, torch.randn(2, 8))
    assert sparse24.is_sparse24(model.a.weight)
    assert found["a.weight"] == found["b.weight"] == "a.weight is 2:4 already, and would not be any more"
    assert torch.equal(model.first.weight, before["first.weight"])


def test_compressed_layers_are_left_and_the_rest_is_permuted() -> None:
    inner = [layer for _ in range(3) for layer in (nn.Linear(64, 64), nn.ReLU())]
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), *inner, nn.Linear(64, 8))
    sparse24.Sparsifier(model, select=["2"]).prune()
    sparse24.to_sparse(model, when="always", filter_fn=lambda name, _: name == "2")
    twin, x = copy.deepcopy(model), torch.randn(4, 8)
    rows = {row.name: row for row in sparse24.permute(model, torch.randn(2, 8))}
    assert rows["6.weight"].done
    assert rows["8.weight"].done
    assert "the order of what sparse24::linear gives, which has no rule" in rows["4.weight"].reason
    assert torch.allclose(model(x), twin(x), atol=1e-5)


def test_overlapping_memory_stays() -> None:
    model = mlp()
    model[2].weight = nn.Parameter(model[2].weight.detach())
    shared = torch.randn(64, 32)
    model[2].weight.data, model[4].weight.data = shared[:32], shared[24:32]
    before = state(model)
    found = reasons(model, torch.randn(2, 8))
    assert "it lies in the memory of" in found["4.weight"]
    assert same(model, before)


def test_unreached_layers_are_named() -> None:
    model = nn.ModuleDict({"used": mlp(), "unused": nn.Linear(32, 32)})
    model.forward = model["used"].forward  # type: ignore[method-assign]
    assert reasons(model, torch.randn(2, 8))["unused.weight"] == "the example inputs do not reach it"


def test_narrow_and_unselected_layers_are_named() -> None:
    model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
    found = reasons(model, torch.randn(2, 3), select=["0", "2"])
    assert "will not be pruned: 3 input channels" in found["0.weight"]
    assert found["4.weight"] == "will not be pruned: left out by select"
    assert found["2.weight"] == ""
