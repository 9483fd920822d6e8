"""Programs that look into a model: torch.fx and TorchScript's trace; and inference mode."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse24
from reference import prune_layers
from sparse24 import SparseConv2d, SparseLinear, SparseMultiheadAttention
from sparse24.nn import onnx, tracing

from .layers import pruned_conv, pruned_linear

pytestmark = [
    pytest.mark.usefixtures("seeded"),
    pytest.mark.filterwarnings(
        "ignore:.torch.jit.* is deprecated:DeprecationWarning",
        "ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning",
        "ignore:The feature will be removed:DeprecationWarning",
        "ignore::torch.jit.TracerWarning",
    ),
]


class Block(nn.Module):
    """Layers that want gradients beside those that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.relu(self.norm(self.conv(x))).flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.linear(mixed + tokens)


@pytest.fixture
def model() -> nn.Module:
    block = prune_layers(Block()).eval()
    assert len(sparse24.to_sparse(block, when="always").done) == 3
    return block


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 8, 5, 5)


def test_sparse_layers_are_leaves_of_fx(model: nn.Module, x: Tensor) -> None:
    traced = torch.fx.symbolic_trace(model)
    called = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    assert called == {"conv", "norm", "attention", "linear"}
    assert torch.equal(traced(x), model(x))
    assert type(traced.linear) is SparseLinear
    again = torch.fx.symbolic_trace(traced)
    assert torch.equal(again(x), model(x))
    with torch.no_grad():
        model.linear.weight.mul_(2)
    assert torch.equal(traced(x), model(x))


@pytest.mark.parametrize("padding", [1, (0, 2)])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_a_layer_that_is_the_root_is_recorded_by_its_operators(padding: Any, mode: str, x: Tensor) -> None:
    conv = SparseConv2d.from_dense(
        pruned_conv(in_channels=8, out_channels=6, kernel_size=3, padding=padding, padding_mode=mode)
    )
    linear = SparseLinear.from_dense(pruned_linear(22, 9))
    for layer, input in ((conv, x), (linear, torch.randn(3, 22))):
        traced = torch.fx.symbolic_trace(layer)
        assert any("sparse24" in str(node.target) for node in traced.graph.nodes)
        assert torch.equal(traced(input), layer(input))


@pytest.mark.parametrize("wants_grad", [False, True])
def test_a_whole_model_passes_the_check_of_jit_trace(model: nn.Module, x: Tensor, wants_grad: bool) -> None:
    encoder = prune_layers(nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2))
    sparse24.to_sparse(encoder.eval(), when="always")
    for net, input in ((model, x), (encoder, torch.randn(2, 5, 16))):
        traced = torch.jit.trace(net, input.clone().requires_grad_(wants_grad))
        other = torch.randn(3, *input.shape[1:])
        torch.testing.assert_close(traced(other), net(other))
        saved = io.BytesIO()
        torch.jit.save(traced, saved)
        saved.seek(0)
        assert torch.equal(torch.jit.load(saved)(other), traced(other))


def test_script_is_refused_with_the_way_round(model: nn.Module) -> None:
    with pytest.raises(TypeError, match=r"cannot compile SparseConv2d: record .*torch\.jit\.trace"):
        torch.jit.script(model)
    with pytest.raises(TypeError, match=r"cannot compile SparseMulti\w+: .*call sparse24\.to_dense\(model\)"):
        torch.jit.script(model.attention)


def test_nobody_looks_in_during_a_plain_call() -> None:
    assert not tracing.is_traced()
    assert tracing.leaf_of(nn.Linear(2, 2), (torch.ones(2),)) is None
    assert not onnx.is_exported()


@pytest.mark.parametrize("built_inside", [False, True])
def test_layers_converted_in_inference_mode_pass_gradients_on(built_inside: bool, x: Tensor) -> None:
    with torch.inference_mode(built_inside):
        dense = prune_layers(Block()).eval()
    with torch.inference_mode():
        sparse24.to_sparse(dense, when="always")
    layers = [m for m in dense.modules() if isinstance(m, SparseLinear | SparseConv2d)]
    assert len(layers) == 6
    assert not any(t.is_inference() for m in layers for t in (*m.parameters(), *m.buffers()))
    input = torch.randn(2, 16, requires_grad=True)
    dense.linear(input).sum().backward()
    expected = dense.linear.weight.dense().sum(0).expand(2, 16)
    torch.testing.assert_close(input.grad, expected)
    dense.conv(x.requires_grad_()).sum().backward()
    with torch.inference_mode():
        sparse24.to_dense(dense)
    for name in ("conv", "linear"):
        assert not any(p.is_inference() for p in getattr(dense, name).parameters())
    dense.linear(input).sum().backward()
    assert dense.linear.weight.grad is not None


def test_an_attention_built_in_inference_mode_passes_gradients_on() -> None:
    with torch.inference_mode():
        attention = SparseMultiheadAttention.from_dense(
            prune_layers(nn.MultiheadAttention(16, 2, add_bias_kv=True))
        )
    q = torch.randn(3, 2, 16, requires_grad=True)
    attention(q, q, q)[0].sum().backward()
    assert q.grad is not None
    assert not any(p.is_inference() for p in attention.to_dense().parameters())
