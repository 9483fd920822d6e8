"""Which weights the Sparsifier prunes, and why it leaves the others."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from sparse24 import Sparsifier, magnitude_mask
from sparse24.pruning.prunable import find_candidates

from .networks import mlp, reason_of


class TransposedLinear(nn.Module):
    """What transformers' Conv1D does."""

    def __init__(self, outs: int, ins: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(ins, outs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


Conv1D = type("Conv1D", (TransposedLinear,), {"__module__": "transformers.pytorch_utils"})


class Zoo(nn.Module):
    """One of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.stem = nn.Conv2d(3, 8, 3)
        self.conv = nn.Conv2d(8, 12, (3, 2))
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12)
        self.conv1d = nn.Conv1d(6, 4, 5)
        self.conv3d = nn.Conv3d(6, 4, 5)
        self.attention = nn.MultiheadAttention(16, 4)
        self.cross = nn.MultiheadAttention(16, 4, kdim=8, vdim=12)
        self.odd = nn.Linear(30, 24)
        self.shared = nn.Linear(30, 24)
        self.transposed = Conv1D(20, 16)
        self.lstm = nn.LSTM(8, 8)
        self.norm = nn.LayerNorm(16)
        self.half = nn.Linear(8, 8, dtype=torch.bfloat16)
        self.tied = nn.Linear(16, 40, bias=False)
        self.tied.weight = self.embed.weight
        self.twin = nn.Linear(30, 24)
        self.twin.weight = self.shared.weight
        self.classifier = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1000))


def test_every_kind_of_layer_is_pruned_along_its_input_channels() -> None:
    model = Zoo()
    before = copy.deepcopy(model.state_dict())
    sparsifier = Sparsifier(model)
    report = sparsifier.prune()
    dims = {
        "conv.weight": 1,
        "conv1d.weight": 1,
        "conv3d.weight": 1,
        "attention.in_proj_weight": 1,
        "attention.out_proj.weight": 1,
        "cross.q_proj_weight": 1,
        "cross.k_proj_weight": 1,
        "cross.v_proj_weight": 1,
        "cross.out_proj.weight": 1,
        "odd.weight": 1,
        "transposed.weight": 0,
        "lstm.weight_ih_l0": 1,
        "lstm.weight_hh_l0": 1,
        "half.weight": 1,
        "classifier.0.weight": 1,
    }
    assert list(sparsifier.masks) == list(dims)
    for name, value in model.state_dict().items():
        if name in dims:
            mask = magnitude_mask(before[name], dim=dims[name])
            assert torch.equal(sparsifier.masks[name], mask)
            assert torch.equal(value, torch.where(mask, before[name], torch.zeros_like(value)))
            assert not value[~mask].signbit().any()
        else:
            assert torch.equal(value, before[name])
    assert [row.name for row in report.done] == [name.removesuffix(".weight") for name in dims]
    assert all(row.kept < 0.67 for row in report.done)
    assert report.action == "pruned"


def test_the_report_says_why_a_layer_is_left_alone() -> None:
    sparsifier = Sparsifier(Zoo())
    expected = {
        "embed": "looked up, not multiplied",
        "stem": "3 input channels (dim 1): 2:4 needs 4",
        "depthwise": "1 input channels (dim 1): 2:4 needs 4",
        "tied": "tied to the embedding embed; select it by name",
        "classifier.2": "an output head by its name (classifier); select it by name",
        "odd": "not pruned yet: call prune()",
        "shared": "would stay dense: its weight is shared with twin.weight: untie it first",
        "twin": "would stay dense: its weight is shared with shared.weight: untie it first",
    }
    for layer, reason in expected.items():
        assert reason in reason_of(sparsifier, layer)
    sparsifier.prune()
    assert reason_of(sparsifier, "odd") == "30 input channels: the last group has 2 and keeps 2"
    assert reason_of(sparsifier, "conv") == ""
    for layer, reason in expected.items():
        assert layer == "odd" or reason in reason_of(sparsifier, layer)
    rows = {row.name: row for row in sparsifier.report()}
    assert rows["odd"].bytes_before == rows["odd"].bytes_after == 30 * 24 * 4
    assert rows["twin"].bytes_before == rows["tied"].bytes_before == 0
    assert rows["conv"].shape == (12, 8, 3, 2)
    assert "15 of 22 layers pruned" in str(sparsifier.report())


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (parametrizations.weight_norm(nn.Linear(8, 8)), "weight is parametrized by _WeightNorm"),
        (parametrizations.spectral_norm(nn.Linear(8, 8)), "weight is parametrized by _SpectralNorm"),
        (nn.LazyLinear(8), "not initialized"),
        (nn.Linear(8, 8, device="meta"), "meta device"),
        (nn.Linear(3, 8), "3 input channels"),
    ],
)
def test_layers_that_cannot_be_pruned_are_refused_by_name(layer: nn.Module, reason: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), layer, nn.Linear(8, 8))
    sparsifier = Sparsifier(model, select=["*"])
    assert reason in reason_of(sparsifier, "1")
    sparsifier.prune()
    assert reason in reason_of(sparsifier, "1")
    assert list(sparsifier.masks) == ["0.weight", "2.weight"]


def test_weights_that_are_not_parameters_are_refused_by_name() -> None:
    computed, missing, low, flat = (nn.Linear(8, 8) for _ in range(4))
    computed.weight_g, computed.weight_v = nn.Parameter(torch.ones(8, 1)), nn.Parameter(torch.randn(8, 8))
    del computed.weight, missing.weight
    low.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    flat.weight = nn.Parameter(torch.ones(64))
    sparsifier = Sparsifier(
        nn.ModuleDict({"computed": computed, "missing": missing, "low": low, "flat": flat})
    )
    assert "computed from weight_g, weight_v" in reason_of(sparsifier, "computed")
    assert reason_of(sparsifier, "missing") == "weight is not a parameter"
    assert "dtype int8" in reason_of(sparsifier, "low")
    assert reason_of(sparsifier, "flat") == "shape (64,): needs [out, in, ...]"
    assert not sparsifier.prune().done


def test_parametrized_attention_is_refused() -> None:
    attention = nn.MultiheadAttention(8, 2)
    parametrize.register_parametrization(attention, "in_proj_weight", nn.Identity())
    sparsifier = Sparsifier(attention)
    assert "in_proj_weight is parametrized by Identity" in reason_of(sparsifier, "in_proj_weight")
    assert "would stay dense: parametrized (in_proj_weight)" in reason_of(sparsifier, "out_proj")
    assert not Sparsifier(attention).prune().done


def test_a_weight_shared_along_different_dims_is_refused() -> None:
    linear, transposed = nn.Linear(8, 8), Conv1D(8, 8)
    transposed.weight = linear.weight
    sparsifier = Sparsifier(nn.ModuleDict({"a": linear, "b": transposed}))
    assert reason_of(sparsifier, "a") == "a and b share it, but group it along different dims"
    assert not sparsifier.prune().done


class Headed(nn.Module):
    def __init__(self, head: nn.Module, name: str, vocabulary: int = 0) -> None:
        super().__init__()
        if vocabulary:
            self.positions = nn.Embedding(16, 16)
            self.embed = nn.Embedding(vocabulary, 16)
        self.body = nn.Linear(16, 16)
        self.add_module(name, head)


class WithGetter(Headed):
    def get_output_embeddings(self) -> nn.Module:
        return self.decode


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (Headed(nn.Linear(16, 1000), "fc"), "fc"),
        (Headed(nn.Linear(16, 1000), "lm_head"), "lm_head"),
        (Headed(nn.ModuleDict({"classifier": nn.Linear(16, 64)}), "top"), "top.classifier"),
        (Headed(nn.Linear(16, 10), "last"), "last"),
        (Headed(nn.Linear(16, 48), "last", vocabulary=48), "last"),
        (WithGetter(nn.Linear(16, 64), "decode"), "decode"),
        (mlp(), "4"),
    ],
)
def test_output_heads_are_skipped_unless_selected(model: nn.Module, head: str) -> None:
    left = [row.name for row in Sparsifier(copy.deepcopy(model)).prune().left if row.kind != "Embedding"]
    assert left == [head]
    assert "an output head" in reason_of(Sparsifier(model), head)
    assert Sparsifier(model, select=[head]).prune().done[0].name == head


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(16, 10),
        nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)),
        Headed(nn.Linear(16, 16), "pooler"),
        Headed(nn.Linear(16, 48), "widen"),
        Headed(nn.Conv2d(16, 10, 1), "conv"),
        Headed(nn.Linear(16, 16), "pooler", vocabulary=48),
    ],
)
def test_no_head_is_seen_where_there_is_none(model: nn.Module) -> None:
    assert all(row.kind == "Embedding" for row in Sparsifier(model).prune().left)


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (["conv"], ["conv.weight"]),
        ("attention.in_proj_weight", ["attention.in_proj_weight"]),
        (["attention"], ["attention.in_proj_weight"]),
        (
            ["cross.*"],
            ["cross.q_proj_weight", "cross.k_proj_weight", "cross.v_proj_weight", "cross.out_proj.weight"],
        ),
        (["twin"], ["shared.weight"]),
        ({"tied"}, ["tied.weight"]),
        ([], []),
        (
            lambda name, layer: isinstance(layer, nn.Conv1d) or name == "half",
            ["conv1d.weight", "half.weight"],
        ),
    ],
)
def test_select_by_name_pattern_or_function(select: Any, expected: list[str]) -> None:
    sparsifier = Sparsifier(Zoo(), select=select)
    assert "not selected" in reason_of(sparsifier, "transposed")
    sparsifier.prune()
    assert list(sparsifier.masks) == expected


def test_wrappers_do_not_change_names() -> None:
    model = mlp()
    model[0] = torch.compile(model[0], backend="eager")
    compiled = torch.compile(model, backend="eager")
    sparsifier = Sparsifier(compiled)
    sparsifier.prune()
    assert list(sparsifier.masks) == ["0.weight", "2.weight"]
    assert [row.kind for row in sparsifier.report()] == ["Linear"] * 3
    assert Sparsifier(nn.DataParallel(mlp())).prune().done[0].name == "0"
    selected = Sparsifier(model, select=lambda name, layer: name == "0" and type(layer) is nn.Linear)
    assert [row.name for row in selected.prune().done] == ["0"]


def test_custom_layers_and_the_root_are_found() -> None:
    names = [(c.name, c.layer, c.dim) for c in find_candidates(nn.Linear(4, 4))]
    assert names == [("weight", "", 1)]
    bilinear = find_candidates(nn.Bilinear(4, 4, 4))
    assert bilinear[0].blocked
    assert not find_candidates(nn.Bilinear(4, 4, 4), {nn.Bilinear: ["weight"]})[0].blocked
