"""Layers that ``to_sparse`` and ``to_dense`` leave as they are, each with its reason."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import sparse24
from reference import prune_layers
from sparse24 import SparseConv2d, SparseLinear
from sparse24.nn import convert

from .conversions import reasons

pytestmark = pytest.mark.usefixtures("seeded")


class ScaledLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, 2 * self.weight, self.bias)


class OwnConvolution(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, -weight, bias)


class NamedLinear(nn.Linear):
    """Computes what nn.Linear does."""


class Adapted(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down = nn.Linear(inputs, 4)
        self.register_parameter("scale", nn.Parameter(torch.ones(())))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrized() -> nn.Module:
    layer = nn.Linear(16, 8)
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


def masked_by_hook() -> nn.Module:
    return prune.l1_unstructured(nn.Linear(16, 8), "weight", amount=3)


def replaced_forward() -> nn.Module:
    layer = nn.Linear(16, 8)
    layer.forward = lambda input: input  # type: ignore[method-assign]
    return layer


def renamed_state() -> nn.Module:
    layer = nn.Linear(16, 8)
    layer.register_state_dict_post_hook(lambda module, state, prefix, metadata: None)
    return layer


def wrapped_weight() -> nn.Module:
    layer = nn.Linear(16, 8)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(NamedTensor))
    return layer


def weight_as_attribute() -> nn.Module:
    layer = nn.Linear(16, 8)
    weight = layer.weight.detach()
    del layer.weight
    layer.weight = weight
    return layer


class NamedTensor(torch.Tensor):
    pass


STAY = {
    "own forward": (lambda: ScaledLinear(16, 8), "ScaledLinear is a subclass of Linear with its own forward"),
    "own conv forward": (
        lambda: OwnConvolution(8, 8, 1),
        "OwnConvolution is a subclass of Conv2d with its own _conv_forward",
    ),
    "extra weights": (lambda: Adapted(16, 8), "not 2:4: row 0"),
    "parametrized": (parametrized, "parametrized (weight): call torch.nn.utils.parametrize"),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(16, 8)), "parametrized (weight)"),
    "torch prune": (masked_by_hook, "holds more than a Linear does: weight_orig, weight_mask"),
    "replaced forward": (replaced_forward, "its forward was replaced by hand"),
    "plain weight": (weight_as_attribute, "weight is not a parameter"),
    "state hooks": (renamed_state, "has hooks that know its weight's name (_state_dict_hooks)"),
    "lazy": (lambda: nn.LazyLinear(8), "LazyLinear has no weight yet: run a batch through"),
    "meta": (lambda: nn.Linear(16, 8, device="meta"), "weight is on the meta device"),
    "float64": (lambda: prune_layers(nn.Linear(16, 8).double()), "weight is torch.float64: pass dtype="),
    "subclass tensor": (wrapped_weight, "weight is a NamedTensor: only plain tensors are pruned"),
    "conv1d": (lambda: nn.Conv1d(8, 8, 3), "not 2:4: row 0, tap (0, 0), channels 0-3 hold more"),
    "conv3d": (lambda: nn.Conv3d(8, 8, 3), "not 2:4: row 0, tap (0, 0, 0), channels 0-3 hold more"),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, groups=8), "2:4, but no smaller when compressed"),
    "dense conv": (lambda: nn.Conv2d(8, 8, 3), "not 2:4: row 0, tap (0, 0), channels 0-3 hold more than two"),
    "dense attention": (
        lambda: nn.MultiheadAttention(16, 2),
        "not 2:4: q_proj, row 0, columns 0-3 hold more",
    ),
    "sparse": (lambda: SparseLinear(16, 8), "already sparse"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize("case", list(STAY))
def test_a_layer_that_stays_is_reported_with_its_reason(case: str) -> None:
    build, reason = STAY[case]
    layer = build()
    model = nn.ModuleDict({"layer": layer, "good": prune_layers(nn.Linear(16, 8))})
    report = sparse24.to_sparse(model, when="always")
    rows = {row.name: row for row in report}
    assert rows["layer"].reason.startswith(reason)
    assert not rows["layer"].done
    assert rows["layer"].bytes_before == rows["layer"].bytes_after
    assert model["layer"] is layer
    assert rows["good"].done
    assert str(report)


def test_a_subclass_that_computes_the_same_is_converted_and_remarked() -> None:
    model = nn.ModuleDict({"layer": prune_layers(NamedLinear(16, 8))})
    report = sparse24.to_sparse(model, when="always")
    assert report[0].done
    assert report[0].reason == "was a NamedLinear, a subclass of Linear"


def test_other_layers_get_no_row() -> None:
    model = nn.ModuleList(
        [
            nn.Bilinear(8, 8, 4),
            nn.Embedding(8, 8),
            nn.LayerNorm(8),
        ]
    )
    assert len(sparse24.to_sparse(model, when="always")) == 0
    assert str(sparse24.to_sparse(model, when="always")).endswith("0 of 0 layers converted; 0 bytes -> 0")


def test_a_module_without_data_has_no_share() -> None:
    report = sparse24.to_sparse(nn.ModuleList([nn.Linear(16, 8, device="meta")]))
    assert math.isnan(report[0].kept)


def test_to_dense_leaves_what_fuses_an_activation() -> None:
    model = nn.Sequential(SparseLinear(8, 8, activation="relu"), SparseConv2d(8, 8, 1))
    report = sparse24.to_dense(model)
    assert reasons(report) == {"0": "fuses activation='relu'"}
    assert [type(layer) for layer in model] == [SparseLinear, nn.Conv2d]


@pytest.mark.parametrize("problem", ["", "no NVIDIA driver is loaded:\n  install one"])
def test_the_report_says_why_a_gpu_runs_layers_dense(problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(convert.cusparselt, "why_unavailable", lambda index: problem)
    told = convert.why_device_dense(torch.device("cuda"))
    assert told == "; ".join(problem.splitlines())
    assert convert.why_device_dense(torch.device("cpu")) == ""
