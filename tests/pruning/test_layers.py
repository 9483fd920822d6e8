"""What prune() prunes by default is what to_sparse converts, and both say the same of the rest."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import sparse24
from sparse24 import Sparsifier, magnitude_mask
from sparse24.pruning.asp import ASP

from .networks import reason_of


class StaticPadding(nn.Conv2d):
    """As EfficientNet's: pads by itself, then convolves."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (1, 1, 1, 1)))


class WeightStandardized(nn.Conv2d):
    """Its effective weight is not what is stored: zeros are shifted away."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return self._conv_forward(input, weight, self.bias)


class OwnLinear(nn.Linear):
    """As Falcon's."""

    def forward(self, input: Tensor) -> Tensor:
        output = input @ self.weight.t()
        return output if self.bias is None else output + self.bias


class NamedLinear(nn.Linear):
    """Computes what nn.Linear does."""


class OwnAttention(nn.MultiheadAttention):
    def forward(self, *inputs: Any, **options: Any) -> Any:
        return super().forward(*inputs, **options)


def by_hand(layer: nn.Module | None = None) -> nn.Module:
    layer = layer or nn.Linear(16, 8)
    layer.forward = lambda input: input  # type: ignore[method-assign]
    return layer


def attention_with_own_projection() -> nn.Module:
    attention = nn.MultiheadAttention(16, 2)
    attention.out_proj = OwnLinear(16, 16)
    return attention


class Model(nn.Module):
    """One of everything, with a layer at the end that is no head."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 8)
        self.conv = nn.Conv2d(8, 8, 3)
        self.attention = nn.MultiheadAttention(16, 2)
        self.named = NamedLinear(16, 8)
        self.padded = StaticPadding(8, 8, 3)
        self.standardized = WeightStandardized(8, 8, 3)
        self.own = OwnLinear(16, 8)
        self.by_hand = by_hand()
        self.conv1d = nn.Conv1d(8, 8, 3)
        self.conv3d = nn.Conv3d(8, 8, 3)
        self.conv3d_by_hand = by_hand(nn.Conv3d(8, 8, 3))
        self.small = nn.Linear(4, 8)
        self.own_attention = OwnAttention(16, 2)
        self.half_attention = attention_with_own_projection()
        self.narrow_attention = nn.MultiheadAttention(16, 2, kdim=3, vdim=8)
        self.normed = parametrizations.weight_norm(nn.Linear(16, 8))
        self.a = nn.Linear(16, 16)
        self.b = nn.Linear(16, 16)
        self.b.weight = self.a.weight
        self.stem = nn.Conv2d(3, 8, 3)
        self.last = nn.Linear(16, 16)


DONE = [
    "linear", "conv", "attention.in_proj_weight", "attention.out_proj", "named", "padded", "own", "conv1d",
    "conv3d", "last",
]  # fmt: skip
LEFT = {
    "standardized": "WeightStandardized is a subclass of Conv2d with its own forward, which computes "
    "something else from its weight (mean)",
    "by_hand": "its forward was replaced by hand",
    "conv3d_by_hand": "its forward was replaced by hand",
    "own_attention": "OwnAttention is a subclass of MultiheadAttention with its own forward",
    "half_attention": "OwnLinear is a subclass of Linear with its own forward",
}


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Model()


def layer_of(row: str) -> str:
    return row.removesuffix(".in_proj_weight").removesuffix(".out_proj")


def test_what_is_pruned_by_default_is_what_is_converted(model: nn.Module) -> None:
    before = copy.deepcopy(model.state_dict())
    report = Sparsifier(model).prune()
    assert [row.name for row in report.done] == DONE
    for name, value in model.state_dict().items():
        if name.removesuffix(".weight") not in DONE:
            assert torch.equal(value, before[name])
    converted = sparse24.to_sparse(model, when="always")
    assert [row.name for row in converted.done] == list(dict.fromkeys(map(layer_of, DONE)))


def test_both_give_the_same_reason(model: nn.Module) -> None:
    pruned = {row.name: row.reason for row in Sparsifier(model).prune().left}
    converted = {row.name: row.reason for row in sparse24.to_sparse(model, when="always").left}
    for name, reason in LEFT.items():
        parts = [row for row in pruned if row == name or row.startswith(f"{name}.")]
        assert parts
        for part in parts:
            assert pruned[part] == f"would stay dense: {reason}; select it by name to prune it"
        assert converted[name] == reason
    assert "shared with b.weight" in pruned["a"]
    assert "shared with b.weight" in converted["a"]
    assert "one of its weights has 3 input channels" in pruned["narrow_attention.v_proj_weight"]
    assert "3 input channels" in pruned["narrow_attention.k_proj_weight"]
    assert "no smaller when compressed" in pruned["small"]


def test_a_small_layer_is_no_smaller_for_both() -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 16))
    sparse24.masks.prune_(model[0].weight)
    report = sparse24.to_sparse(model, when="always")
    assert "no smaller when compressed" in report[0].reason
    assert (
        "no smaller when compressed"
        in Sparsifier(nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 16))).report()[0].reason
    )


def test_select_overrides_and_the_report_still_says_it(model: nn.Module) -> None:
    sparsifier = Sparsifier(model, select=["standardized", "conv3d_by_hand", "linear", "small"])
    assert (
        reason_of(sparsifier, "conv3d_by_hand")
        == "not pruned yet: call prune(); stays dense: its forward was replaced by hand"
    )
    reasons = {row.name: row.reason for row in sparsifier.prune().done}
    assert reasons == {
        "linear": "",
        "standardized": f"stays dense: {LEFT['standardized']}",
        "conv3d_by_hand": f"stays dense: {LEFT['conv3d_by_hand']}",
        "small": "stays dense: it is no smaller when compressed (136 bytes)",
    }


def test_asp_keeps_apexs_set_with_the_remark() -> None:
    model = nn.ModuleDict(
        {
            "body": nn.Linear(16, 16),
            "conv3d": by_hand(nn.Conv3d(16, 16, 3)),
            "own": WeightStandardized(16, 16, 3),
            "last": nn.Linear(16, 16),
        }
    )
    ASP.init_model_for_pruning(model, verbosity=0)
    ASP.compute_sparse_masks()
    rows = {row.name: row for row in ASP.report()}
    assert all(row.done for row in rows.values())
    assert rows["conv3d"].reason == "stays dense: its forward was replaced by hand"
    assert rows["own"].reason == f"stays dense: {LEFT['standardized']}"
    assert rows["body"].reason == ""
    ASP.release(model)


def test_masks_of_version_0_1_load(model: nn.Module) -> None:
    """It pruned by default what would stay dense, and heads inside wrappers."""
    layers = (nn.Linear(16, 16), by_hand(nn.Conv3d(8, 8, 3)), nn.Linear(16, 10))
    wrapped = nn.ModuleDict({"net": nn.Sequential(*layers)})
    masks = {
        name: magnitude_mask(wrapped.get_parameter(name))
        for name in ("net.0.weight", "net.1.weight", "net.2.weight")
    }
    sparsifier = Sparsifier(wrapped)
    assert [row.name for row in sparsifier.prune().done] == ["net.0"]
    sparsifier.load_state_dict({"pattern": "2:4", "masks": masks})
    assert sparsifier.masks.keys() == masks.keys()
    assert all(torch.equal(sparsifier.masks[name], mask) for name, mask in masks.items())
    again = Sparsifier(wrapped)
    again.load_state_dict(sparsifier.state_dict())
    assert len(again.report().done) == 3
    with pytest.raises(ValueError, match=r"unknown \['net\.1\.weight', 'net\.2\.weight'\]"):
        Sparsifier(wrapped, select=["net.0"]).load_state_dict({"pattern": "2:4", "masks": masks})


def test_a_network_sparser_than_the_pattern_keeps_its_zeros() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    for layer in model:
        layer.weight.data *= torch.rand(64, 64) < 0.25
    before = copy.deepcopy(model)
    regrown = []
    for from_zeros in (False, True):
        net = copy.deepcopy(before)
        sparsifier = Sparsifier(net)
        sparsifier.prune(from_zeros=from_zeros)
        masks = sparsifier.masks
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        sparsifier.attach(optimizer)
        net(torch.randn(16, 64)).square().mean().backward()
        optimizer.step()
        sparsifier.verify()
        zeros = before[0].weight == 0
        regrown.append(float((net[0].weight[zeros] != 0).float().mean()))
        if from_zeros:
            two_of_four = magnitude_mask(before[0].weight)
            assert torch.equal(masks["0.weight"], two_of_four & ~zeros)
            other = Sparsifier(net)
            other.load_state_dict(sparsifier.state_dict())
            assert torch.equal(other.masks["0.weight"], masks["0.weight"])
    assert regrown[0] > 0.3
    assert regrown[1] == 0
