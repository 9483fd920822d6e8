"""A file does not depend on what was converted: dense and compressed weights load into either layer."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse24
from reference import assert_matches, prune_layers
from sparse24 import SparseConv2d, SparseLinear
from sparse24.nn.dense_loads import accept_compressed

from .layers import assert_same_state, exact_state

pytestmark = pytest.mark.usefixtures("seeded")


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 8, 3, padding=1)
        self.body = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 12))
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.cross = nn.MultiheadAttention(12, 2, kdim=8, vdim=16, bias=False, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).flatten(2).transpose(1, 2)
        z = self.body(y)
        z = self.attention(z, z, z)[0]
        return self.cross(z, y, self.body[1](self.body[0](y)))[0]


def network() -> nn.Module:
    return prune_layers(Network()).eval()


def sparse_network() -> nn.Module:
    model = network()
    assert len(sparse24.to_sparse(model, when="always").done) == 5
    return model


def left_dense() -> nn.Module:
    model = network()
    assert len(sparse24.to_sparse(model, when="always", filter_fn=lambda name, module: False).left) == 5
    return model


def half_dense() -> nn.Module:
    model = network()
    sparse24.to_sparse(model, when="always", filter_fn=lambda name, module: name in ("conv", "cross"))
    return model


def made_dense() -> nn.Module:
    model = sparse_network()
    sparse24.to_dense(model)
    return model


def always_dense() -> nn.Module:
    model = network()
    assert not sparse24.to_dense(model)
    return model


BUILDS = (network, sparse_network, left_dense, half_dense, made_dense, always_dense)


@pytest.mark.parametrize("target", [b for b in BUILDS if b is not network])
@pytest.mark.parametrize("source", BUILDS)
@pytest.mark.parametrize("assign", [False, True])
def test_every_kind_loads_what_every_kind_wrote(
    source: Callable[[], nn.Module], target: Callable[[], nn.Module], assign: bool
) -> None:
    written, model = source(), target()
    x = torch.randn(2, 6, 4, 4)
    state = written.state_dict()
    keys, kinds = list(state), [type(module) for module in model.modules()]
    found = model.load_state_dict(state, assign=assign)
    assert not found.missing_keys
    assert not found.unexpected_keys
    assert list(state) == keys  # the caller's own is as it was
    assert [type(module) for module in model.modules()] == kinds
    assert_matches(model(x), written(x).double())
    assert not any(p.requires_grad for n, p in model.named_parameters() if n.endswith(".values"))


def test_a_checkpoint_is_cast_to_the_layers_dtype() -> None:
    written = sparse_network()
    model = left_dense().to(torch.bfloat16)
    model.load_state_dict(written.state_dict())
    assert model.conv.weight.dtype == torch.bfloat16
    assert torch.equal(model.conv.weight, written.conv.weight.dense().to(torch.bfloat16))
    other = sparse_network().to(torch.bfloat16)
    other.load_state_dict(network().state_dict())
    assert other.body[0].values.dtype == torch.bfloat16


def test_a_layer_that_was_left_dense_can_still_be_converted_and_copied() -> None:
    model = copy.deepcopy(left_dense())
    model.load_state_dict(sparse_network().state_dict())
    report = sparse24.to_sparse(model, when="always")
    assert not report.left
    again = left_dense()
    sparse24.to_sparse(again, when="always", filter_fn=lambda name, module: False)
    assert all(len(m._load_state_dict_pre_hooks) <= 1 for m in again.modules())


def test_a_pickled_layer_still_loads_both() -> None:
    layer = nn.Sequential(nn.Linear(16, 8))
    sparse24.to_dense(layer)
    twin = pickle.loads(pickle.dumps(layer))
    sparse = SparseLinear.from_dense(prune_layers(nn.Linear(16, 8)))
    twin.load_state_dict({f"0.{key}": tensor for key, tensor in sparse.state_dict().items()})
    assert torch.equal(twin[0].weight, sparse.weight.dense())


def test_transformers_conv1d() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils", reason="transformers brings Conv1D").Conv1D
    model, other = (nn.Sequential(prune_layers(conv1d(8, 16))) for _ in range(2))
    x = torch.randn(3, 16)
    sparse24.to_sparse(model, when="always")
    sparse24.to_sparse(other, when="always", filter_fn=lambda name, module: False)
    other.load_state_dict(model.state_dict())
    assert other[0].weight.shape == (16, 8)
    assert_matches(other(x), model(x).double())


def test_int8_values_load_with_their_scales() -> None:
    layer = SparseLinear.from_dense(prune_layers(nn.Linear(16, 8)))
    state = layer.state_dict()
    scale = state["values"].abs().amax(1) / 127
    state["values"] = (state["values"] / scale[:, None]).round().to(torch.int8)
    state.update(weight_scale=scale, input_scale=torch.ones(()))
    dense = nn.Linear(16, 8)
    accept_compressed(dense)
    dense.load_state_dict(state)
    expected = torch.ops.sparse24.decompress(state["values"].float() * scale[:, None], state["indices"])
    assert torch.equal(dense.weight, expected)
    for wrong, message in (
        (None, "no weight_scale is beside them"),
        (scale[:3], r"weight_scale must be \[8\]"),
    ):
        bad = {**state, "weight_scale": wrong}
        bad = {key: value for key, value in bad.items() if value is not None}
        with pytest.raises(RuntimeError, match=message):
            dense.load_state_dict(bad)


@pytest.mark.parametrize("activations", [None, "dynamic"])
def test_int8_layers_and_dense_ones_exchange_files(activations: str | None) -> None:
    layer = SparseLinear.from_dense(prune_layers(nn.Linear(16, 8))).to_int8(activations)
    dense = nn.Linear(16, 8)
    accept_compressed(dense)
    dense.load_state_dict(layer.state_dict())
    assert torch.equal(dense.weight, layer.to_dense().weight)
    layer.load_state_dict(dense.state_dict())
    assert not layer.is_int8  # the file decides
    assert torch.equal(layer.weight.dense(), dense.weight)


def test_float8_values_load_into_a_dense_layer() -> None:
    state = SparseLinear.from_dense(prune_layers(nn.Linear(16, 8))).state_dict()
    state["values"] = state["values"].to(torch.float8_e4m3fn)
    dense = nn.Linear(16, 8)
    accept_compressed(dense)
    dense.load_state_dict(state)
    assert torch.equal(dense.weight, torch.ops.sparse24.decompress(state["values"].float(), state["indices"]))


def damage_order(state: dict[str, Tensor], key: str) -> None:
    state[f"{key}.indices"][0, 0] = 0


def damage_shape(state: dict[str, Tensor], key: str) -> None:
    state[f"{key}.values"] = state[f"{key}.values"][:, :2]


def damage_pair(state: dict[str, Tensor], key: str) -> None:
    del state[f"{key}.indices"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_order, "indices are damaged: .* must increase, but do not in row 0, group 0"),
        (damage_shape, r"values has shape \(\d+, 2\) in the checkpoint, \(\d+, \d+\) here"),
        (damage_pair, "values and indices belong together"),
    ],
)
@pytest.mark.parametrize("key", ["conv", "body.2", "attention.k_proj"])
def test_a_dense_layer_refuses_a_damaged_weight_and_keeps_its_own(
    key: str, damage: Any, message: str
) -> None:
    model, state = left_dense(), {k: t.clone() for k, t in sparse_network().state_dict().items()}
    layer = model.get_submodule(key.removesuffix(".k_proj"))
    before = exact_state(layer)
    damage(state, key)
    with pytest.raises(RuntimeError, match=message) as raised:
        model.load_state_dict(state)
    assert "Missing" not in str(raised.value)
    assert "Unexpected" not in str(raised.value)
    assert_same_state(layer, before)


def test_a_newer_format_is_refused_by_a_dense_layer() -> None:
    layer = nn.Linear(16, 8)
    accept_compressed(layer)
    before = exact_state(layer)
    state = SparseLinear(16, 8).state_dict()
    state._metadata[""]["version"] = 2  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="format 2, newer than 1: update sparse24"):
        layer.load_state_dict(state)
    assert_same_state(layer, before)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(8, 16), r"weight: at most two of every four .* row 0, columns 0-3 .*\(8, 16\) hold more"),
        (torch.zeros(8, 12), r"weight: has shape \(8, 12\) in the checkpoint, \(8, 16\) here"),
        (torch.zeros(8, 16, dtype=torch.int8), r"weight: a dense weight must be floating, not torch\.int8"),
        (torch.empty(8, 16, device="meta"), "weight: the weight is on the meta device"),
    ],
)
def test_a_compressed_layer_refuses_a_dense_weight_that_it_cannot_hold(weight: Tensor, message: str) -> None:
    layer = SparseLinear.from_dense(prune_layers(nn.Linear(16, 8)))
    before = exact_state(layer)
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict({"weight": weight, "bias": torch.ones(8)})
    assert_same_state(layer, before)


def test_a_convolution_compresses_what_it_loads() -> None:
    dense = prune_layers(nn.Conv2d(6, 8, 3))
    sparse = SparseConv2d(6, 8, 3)
    sparse.load_state_dict(dense.state_dict())
    assert torch.equal(sparse.weight.dense(), dense.weight)
    assert torch.equal(sparse.bias, dense.bias)
