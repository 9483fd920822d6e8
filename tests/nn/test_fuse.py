"""Activations folded into the product before them: where the graph is plain, and nowhere else."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparse24
from reference import assert_matches, prune_layers
from sparse24 import SparseConv2d
from sparse24.nn.fuse import FoldedActivation, FoldedAttribute

pytestmark = pytest.mark.usefixtures("seeded")


def converted(model: nn.Module) -> sparse24.Report:
    prune_layers(model).eval()
    return sparse24.to_sparse(model, when="always", fuse=True)


def test_activations_of_a_sequence_are_folded_named_and_right() -> None:
    model = nn.Sequential(
        nn.Conv2d(8, 16, 3), nn.ReLU(inplace=True), nn.Conv2d(16, 8, 1), nn.GELU(), nn.Flatten(),
        nn.Linear(32, 16), nn.GELU("tanh"), nn.Linear(16, 8), nn.SiLU(),
    )  # fmt: skip
    prune_layers(model).eval()
    x = torch.randn(2, 8, 4, 4)
    expected = copy.deepcopy(model).double()(x.double())
    report = sparse24.to_sparse(model, when="always", fuse=True)
    assert [row.reason for row in report] == [
        "ReLU (1) folded in",
        "GELU (3) folded in",
        "GELU (6) folded in",
        "",
    ]
    assert [model[i].activation for i in (0, 2, 5, 7)] == ["relu", "gelu", "gelu_tanh", "none"]
    assert [type(model[i]) for i in (1, 3, 6, 8)] == [FoldedActivation] * 3 + [nn.SiLU]
    assert_matches(model(x), expected)
    assert "(1): FoldedActivation(ReLU, in the layer before)" in str(model)


def test_an_activation_after_a_volume_is_folded() -> None:
    model = nn.Sequential(nn.Conv3d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv3d(16, 8, 1))
    prune_layers(model).eval()
    x = torch.randn(2, 8, 4, 5, 6)
    expected = copy.deepcopy(model).double()(x.double())
    report = converted(model)
    assert [row.reason for row in report] == ["ReLU (1) folded in", ""]
    assert_matches(model(x), expected)
    sparse24.to_dense(model)
    assert [type(m) for m in model] == [nn.Conv3d, nn.ReLU, nn.Conv3d]


def test_files_do_not_depend_on_it_and_copies_work() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
    converted(model)
    plain = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
    sparse24.to_sparse(prune_layers(plain), when="always")
    assert list(model.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(model.state_dict())
    x = torch.randn(3, 16)
    for twin in (plain, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_matches(twin(x), model(x).double())


def test_to_dense_puts_them_back() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(8, 8, 1), relu, nn.Conv2d(8, 8, 1, bias=False), relu)
    prune_layers(model).eval()
    x = torch.randn(1, 8, 3, 3)
    expected = model(x)
    converted_report = sparse24.to_sparse(model, when="always", fuse=True)
    assert [row.reason for row in converted_report] == ["ReLU (1) folded in", "ReLU (3) folded in"]
    sparse = model[0]
    assert len(sparse24.to_dense(model).done) == 2
    assert [type(layer) for layer in model] == [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU]
    assert model[1] is model[3] is relu
    assert_matches(model(x), expected)
    assert isinstance(sparse, SparseConv2d)
    assert sparse.activation == "relu"  # what somebody else holds is as it was


def test_an_activation_that_was_not_folded_is_no_dense_layers() -> None:
    model = nn.Sequential(sparse24.SparseLinear(16, 8, activation="relu"), nn.Identity())
    (row,) = sparse24.to_dense(model)
    assert not row.done
    assert row.reason == "fuses activation='relu'"


@pytest.mark.parametrize("activation", ["relu", "gelu", F.gelu, nn.ReLU(), nn.GELU("tanh")], ids=str)
@pytest.mark.parametrize("kind", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
def test_transformer_layers(kind: type[nn.Module], activation: object) -> None:
    layer = kind(32, 4, 64, activation=activation, batch_first=True)
    prune_layers(layer).eval()
    x = torch.randn(2, 5, 32)
    inputs = (x,) if kind is nn.TransformerEncoderLayer else (x, x)
    expected = layer.double()(*(each.double() for each in inputs))
    own = layer.float().activation
    report = {row.name: row.reason for row in sparse24.to_sparse(layer, when="always", fuse=True)}
    assert report["linear1"].endswith("(activation) folded in")
    assert layer.linear1.activation != "none"
    assert_matches(layer(*inputs), expected)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_matches(twin(*inputs), expected)
    sparse24.to_dense(layer)
    assert layer.activation is own
    assert layer.linear1.in_features == 32
    assert_matches(layer(*inputs), expected)


class Subclass(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self[0](x)


def listened_layer() -> nn.Module:
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU())
    model[0].register_forward_hook(lambda module, args, output: None)
    return model


def listened_activation() -> nn.Module:
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU())
    model[1].register_forward_pre_hook(lambda module, args: None)
    return model


def two_places() -> nn.Module:
    layer = nn.Linear(16, 16)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.Tanh())


def own_forward() -> nn.Module:
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU())
    model.forward = model[0]  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize(
    "build",
    [
        listened_layer,
        listened_activation,
        two_places,
        own_forward,
        lambda: Subclass(nn.Linear(16, 8), nn.ReLU()),
        lambda: nn.Sequential(nn.Linear(16, 8), nn.Dropout(), nn.ReLU()),
        lambda: nn.Sequential(nn.Linear(16, 8), nn.ReLU6()),
        lambda: nn.ModuleList([nn.Linear(16, 8), nn.ReLU()]),
        lambda: nn.Sequential(nn.Linear(16, 8), nn.LeakyReLU()),
        lambda: nn.TransformerEncoderLayer(16, 2, 32, activation=torch.sigmoid),
    ],
)
def test_where_the_graph_is_not_plain_nothing_is_folded(build: object) -> None:
    model = build()  # type: ignore[operator]
    report = converted(model)
    assert report.done
    assert not any("folded" in row.reason for row in report)
    kept = [value for module in model.modules() for value in (module, *vars(module).values())]
    assert not any(isinstance(each, FoldedActivation | FoldedAttribute) for each in kept)
    assert all(getattr(module, "activation", "none") in ("none", torch.sigmoid) for module in model.modules())


def test_a_layer_that_stays_dense_keeps_its_activation() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU())
    assert not sparse24.to_sparse(model, when="always", fuse=True).done
    assert type(model[1]) is nn.ReLU


def test_without_fuse_nothing_is_folded() -> None:
    model = prune_layers(nn.Sequential(nn.Linear(16, 8), nn.ReLU()))
    sparse24.to_sparse(model, when="always")
    assert type(model[1]) is nn.ReLU


transformers = pytest.importorskip("transformers", reason="transformers brings the blocks")


def bert(activation: str) -> nn.Module:
    config = transformers.BertConfig(hidden_size=32, intermediate_size=64, hidden_act=activation)
    return transformers.models.bert.modeling_bert.BertIntermediate(config)


def mlp_of(kind: str, activation: str) -> nn.Module:
    if kind == "gpt2":
        config = transformers.GPT2Config(n_embd=32, n_head=4, activation_function=activation)
        return transformers.models.gpt2.modeling_gpt2.GPT2MLP(64, config)
    if kind == "clip":
        config = transformers.CLIPTextConfig(hidden_size=32, intermediate_size=64, hidden_act=activation)
        return transformers.models.clip.modeling_clip.CLIPMLP(config)
    config = transformers.ViTConfig(hidden_size=32, intermediate_size=64, hidden_act=activation)
    return transformers.models.vit.modeling_vit.ViTMLP(config)


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_new", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "clip", "vit"])
def test_blocks_of_transformers(kind: str, activation: str) -> None:
    block = bert(activation) if kind == "bert" else mlp_of(kind, activation)
    model = nn.Sequential(prune_layers(block)).eval()
    x = torch.randn(3, 5, 32)
    expected = copy.deepcopy(model).double()(x.double())
    report = sparse24.to_sparse(model, when="always", fuse=True)
    assert sum("folded in" in row.reason for row in report) == 1
    assert_matches(model(x), expected)


def test_other_activations_of_transformers_stay() -> None:
    model = nn.Sequential(prune_layers(bert("gelu_fast")))
    assert not any("folded" in row.reason for row in sparse24.to_sparse(model, when="always", fuse=True))
