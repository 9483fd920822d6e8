"""Layers whose storage is int8: made, called, cast, copied, saved and loaded."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparse24
from reference import TOLERANCE, assert_matches, relative_error
from sparse24 import SparseConv2d, SparseLinear, masks
from sparse24.ops import int8

from .layers import (
    CONVOLUTIONS,
    DTYPES,
    assert_same_state,
    exact_state,
    pruned_conv,
    pruned_linear,
)
from .layers import (
    INT8_WAYS as WAYS,
)
from .layers import (
    int8_linear as linear,
)

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("way", WAYS)
def test_storage_is_values_indices_and_scales(way: str) -> None:
    layer = linear(40, 24, **WAYS[way])
    state = layer.state_dict()
    names = ["values", "bias", "indices", "weight_scale"] + ["input_scale"] * (way != "weight only")
    assert list(state) == names
    assert (state["values"].dtype, state["values"].shape) == (torch.int8, (24, 20))
    assert (state["weight_scale"].dtype, state["weight_scale"].shape) == (torch.float32, (24,))
    if way != "weight only":
        assert state["input_scale"].shape == ()
        assert float(state["input_scale"]) == pytest.approx(0.0 if way == "dynamic" else 0.03)
    assert layer.is_int8


def test_rounding_is_to_nearest_and_zeros_stay() -> None:
    dense = pruned_linear(64, 16)
    with torch.no_grad():
        dense.weight[3] = 0
        dense.weight[4] *= 1e-42
    layer = SparseLinear.from_dense(dense).to_int8()
    error = (layer.weight.dense() - dense.weight).abs()
    assert (error <= layer.weight_scale.unsqueeze(1) * 0.5000001).all()
    assert (layer.weight.dense()[dense.weight == 0] == 0).all()
    assert float(layer.weight_scale[3]) == 1
    assert layer.values.abs().amax(1)[[0, 1, 2]].eq(127).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 40])
def test_linear_computes_with_what_it_stores(tokens: int, dtype: torch.dtype, way: str) -> None:
    layer = linear(**WAYS[way]).to(dtype)
    x = torch.randn(2, tokens, 40).to(dtype)
    scale = layer._buffers.get("input_scale")
    multiplied = x.double()
    if scale is not None:
        quantized, own = int8.quantize_input(x, scale, [-1])
        multiplied = quantized.double() * own.double()
    weight = int8.dequantized(layer.values, layer.indices, layer.weight_scale, torch.float64)
    output = layer(x)
    assert output.dtype == dtype
    assert_matches(output, F.linear(multiplied, weight, layer.bias.double()), dtype)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_convolutions_stay_close_to_the_dense_one(options: dict[str, Any], way: str) -> None:
    dense = pruned_conv(**options)
    x = torch.randn(2, options["in_channels"], 11, 12).clamp(-3.8, 3.8)  # 127 * 0.03 is 3.81
    layer = SparseConv2d.from_dense(dense).to_int8(**WAYS[way])
    assert relative_error(layer(x), dense(x)) < 0.03
    assert torch.equal(layer(x[0]), layer(x[:1])[0])


def test_the_short_way_is_the_operator() -> None:
    for way in WAYS.values():
        layer = linear(**way)
        x = torch.randn(5, 40)
        direct = sparse24.ops.call_linear(x, layer.__dict__)
        assert direct is not NotImplemented
        assert torch.equal(direct, layer._general(x))
        conv = SparseConv2d.from_dense(pruned_conv(in_channels=8, out_channels=6, kernel_size=3)).to_int8(
            **way
        )
        image = torch.randn(2, 8, 6, 6)
        direct = sparse24.ops.call_conv2d(image, conv.__dict__)
        assert direct is not NotImplemented
        assert torch.equal(direct, conv._general(image))


def test_a_wrong_scale_in_the_layer_is_refused_by_name() -> None:
    layer = linear(activations="dynamic")
    layer.input_scale.fill_(-1)
    with pytest.raises(ValueError, match=r"positive and finite, not -1\.0"):
        layer(torch.randn(2, 40))


def test_casts_leave_scales_alone() -> None:
    layer = linear(activations="static", input_scale=0.0301)
    before = exact_state(layer)
    x = torch.randn(4, 40)
    expected = layer(x)
    layer.to(torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16
    assert layer.bias.dtype == torch.bfloat16
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    layer.float()
    for name in ("values", "indices", "weight_scale", "input_scale"):
        assert torch.equal(layer.state_dict()[name], before[name])
    assert relative_error(layer(x), expected) <= TOLERANCE[torch.bfloat16]  # the bias was rounded
    assert layer.to_dense().weight.dtype == torch.float32


def test_copies_and_pickles() -> None:
    layer = linear(activations="dynamic")
    x = torch.randn(4, 40)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for twin in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert_same_state(twin, exact_state(layer))
        assert torch.equal(twin(x), layer(x))
        twin.values.zero_()
        assert not torch.equal(twin(x), layer(x))


def test_writes_to_scales_and_values_take_effect() -> None:
    layer = linear()
    x = torch.randn(4, 40)
    plain = layer(x) - layer.bias
    layer.weight_scale.mul_(2)
    assert torch.allclose(layer(x) - layer.bias, 2 * plain, rtol=1e-5, atol=1e-6)
    layer.values.data.zero_()
    assert torch.equal(layer(x), layer.bias.expand(4, 24))


def test_the_weight_is_read_and_not_written() -> None:
    layer = linear()
    weight = layer.weight
    assert (weight.dtype, weight.shape) == (torch.float32, (24, 40))
    expected = int8.dequantized(layer.values, layer.indices, layer.weight_scale, torch.float32)
    assert torch.equal(weight + 0, expected)
    assert torch.equal(weight[3].clone(), expected[3])
    before = exact_state(layer)
    for write in (
        lambda: weight.mul_(2),
        weight[0].zero_,
        lambda: nn.init.zeros_(layer.weight),
        lambda: setattr(layer, "weight", torch.zeros(24, 40)),
    ):
        with torch.no_grad(), pytest.raises(ValueError, match="stored as int8 and is only read"):
            write()
    assert_same_state(layer, before)
    x = torch.randn(3, 40)
    assert relative_error(F.linear(x, layer.weight, layer.bias), layer(x)) < 2e-6


@pytest.mark.parametrize("way", WAYS)
def test_gradients_pass_through_the_dequantized_weight(way: str) -> None:
    layer = linear(**WAYS[way])
    layer.bias.requires_grad_()
    x = torch.randn(4, 40, requires_grad=True)
    output = layer(x)
    assert torch.equal(output, layer(x.detach()))
    output.backward(torch.ones_like(output))
    dense = layer.weight.dense()
    assert torch.allclose(x.grad, torch.ones(4, 24) @ dense, atol=1e-5)
    assert torch.equal(layer.bias.grad, torch.full((24,), 4.0))
    conv = SparseConv2d.from_dense(pruned_conv(in_channels=8, out_channels=6, kernel_size=3)).to_int8(
        **WAYS[way]
    )
    image = torch.randn(1, 8, 5, 5, requires_grad=True)
    conv(image).sum().backward()
    twin = image.detach().clone().requires_grad_()
    F.conv2d(twin, conv.weight.dense()).sum().backward()
    assert torch.allclose(image.grad, twin.grad, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_compiled_and_exported(way: str) -> None:
    model = nn.Sequential(linear(40, 24, **WAYS[way]), nn.ReLU(), linear(24, 8, **WAYS[way])).eval()
    x = torch.randn(4, 40)
    expected = model(x)
    assert torch.equal(torch.compile(model, backend="aot_eager", fullgraph=True)(x), expected)
    assert torch.equal(torch.export.export(model, (x,)).module()(x), expected)


def test_back_to_dense_and_sparse() -> None:
    layer = linear(activations="dynamic")
    dense = layer.to_dense()
    assert dense.weight.requires_grad
    assert torch.equal(dense.weight, layer.weight.dense())
    again = SparseLinear.from_dense(dense).to_int8("dynamic")
    assert torch.equal(again.values, layer.values)
    assert torch.allclose(again.weight_scale, layer.weight_scale, rtol=1e-6, atol=0)
    model = nn.Sequential(layer)
    report = sparse24.to_dense(model)
    assert isinstance(model[0], nn.Linear)
    assert len(report.done) == 1


def test_attention_runs_with_int8_projections() -> None:
    attention = nn.MultiheadAttention(16, 2)
    for parameter in attention.parameters():
        if parameter.dim() == 2:
            masks.prune_(parameter.data)
    layer = sparse24.SparseMultiheadAttention.from_dense(attention)
    x = torch.randn(4, 3, 16)
    expected = layer(x, x, x)[0]
    for projection in (layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj):
        projection.to_int8("dynamic")
    assert relative_error(layer(x, x, x)[0], expected) < 0.05


def test_what_cannot_become_int8_is_left_as_it_was() -> None:
    layer = SparseLinear.from_dense(pruned_linear(40, 24))
    for arguments, text in (
        ({"activations": "per token"}, "must be None, 'dynamic' or 'static', not 'per token'"),
        ({"activations": "static"}, "input_scale belongs to activations='static'"),
        ({"input_scale": 0.1}, "input_scale belongs to activations='static'"),
        ({"activations": "static", "input_scale": 0.0}, "positive and finite, not 0.0"),
    ):
        with pytest.raises(ValueError, match=text):
            layer.to_int8(**arguments)
    layer.values.data[7, 3] = torch.nan
    with pytest.raises(ValueError, match="row 7 holds NaN or Inf"):
        layer.to_int8()
    assert layer.values.dtype == torch.float32
    assert list(layer.state_dict()) == ["values", "bias", "indices"]
    with pytest.raises(ValueError, match="int8 already"):
        linear().to_int8()
    with pytest.raises(TypeError, match=r"not torch.int8: to_int8\(\)"):
        SparseLinear(40, 24, dtype=torch.int8)


def test_representation() -> None:
    assert repr(linear()) == "SparseLinear(in_features=40, out_features=24, dtype=torch.int8, weight only)"
    assert repr(linear(activations="dynamic")).endswith('dtype=torch.int8, activations="dynamic")')
    assert repr(linear(**WAYS["static"])).endswith('dtype=torch.int8, activations="static")')
