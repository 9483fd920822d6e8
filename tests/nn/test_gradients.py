"""Gradients through compressed layers, whose weights are constants."""

from __future__ import annotations

import copy

import pytest
import torch

from reference import ACTIVATIONS, TOLERANCE, assert_matches, relative_error
from sparse24 import SparseConv2d, SparseLinear

from .layers import CONVOLUTIONS, compressed_layers, pruned_conv, pruned_linear

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_linear_passes_gradients_on(activation: str) -> None:
    dense = pruned_linear(21, 6)
    sparse = SparseLinear(21, 6, activation=activation)
    sparse.load_state_dict(SparseLinear.from_dense(dense).state_dict())
    sparse.requires_grad_()
    x = torch.randn(2, 5, 21, requires_grad=True)
    twin = x.detach().double().requires_grad_()
    upstream = torch.randn(2, 5, 6)
    sparse(x).backward(upstream)
    reference = copy.deepcopy(dense).double()
    ACTIVATIONS[activation](reference(twin)).backward(upstream.double())
    assert_matches(x.grad, twin.grad)
    assert_matches(sparse.bias.grad, reference.bias.grad)
    on_kept = SparseLinear.from_dense(dense)
    on_kept.values.data.copy_(sparse.values.grad)
    kept = dense.weight != 0
    assert relative_error(on_kept.weight[kept], reference.weight.grad[kept]) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize(
    "options", CONVOLUTIONS[:7], ids=lambda options: "-".join(map(str, options.values()))
)
def test_conv_passes_gradients_on(options: dict[str, object]) -> None:
    dense = pruned_conv(**options)
    sparse = SparseConv2d.from_dense(dense).requires_grad_()
    x = torch.randn(2, dense.in_channels, 11, 9, requires_grad=True)
    twin = x.detach().double().requires_grad_()
    sparse(x).square().sum().backward()
    reference = copy.deepcopy(dense).double()
    reference(twin).square().sum().backward()
    assert relative_error(x.grad, twin.grad) <= 2 * TOLERANCE[torch.float32]
    if dense.bias is not None:
        assert relative_error(sparse.bias.grad, reference.bias.grad) <= 2 * TOLERANCE[torch.float32]
    on_kept = SparseConv2d.from_dense(dense)
    on_kept.values.data.copy_(sparse.values.grad)
    kept = dense.weight != 0
    assert relative_error(on_kept.weight[kept], reference.weight.grad[kept]) <= 2 * TOLERANCE[torch.float32]


def test_a_frozen_layer_records_no_graph() -> None:
    linear, x = compressed_layers()[0]
    assert linear(x).grad_fn is None
    with torch.no_grad():
        assert linear(x.clone().requires_grad_()).grad_fn is None
    with torch.inference_mode():
        assert torch.equal(linear(x), linear(x))


def test_gradients_pass_through_autocast() -> None:
    linear, x = compressed_layers()[0]
    x = x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        linear(x).sum().backward()
    expected = linear.weight.sum(0).expand_as(x)
    assert x.grad.dtype == torch.float32
    assert relative_error(x.grad, expected) < 1e-2


def test_second_derivatives_are_refused() -> None:
    linear, x = compressed_layers()[0]
    x = x.requires_grad_()
    (gradient,) = torch.autograd.grad(linear(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
