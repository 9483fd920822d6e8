"""The oracle (dense torch in float64) and the one tolerance table of all tests of products."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse24 import masks

#: Largest error allowed, over the largest magnitude of the reference. float32: accumulation of up to
#: some thousand products; the others: half a unit in the last place of the output, rounded up.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 6e-4, torch.bfloat16: 4.5e-3}

ACTIVATIONS = {
    "none": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def linear_reference(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """``activation(input @ weight.T + bias)`` in float64."""
    bias = None if bias is None else bias.double()
    return ACTIVATIONS[activation](F.linear(input.double(), weight.double(), bias))


def conv2d_reference(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none", **geometry: Any
) -> Tensor:
    """``activation(conv2d(input, weight) + bias)`` in float64."""
    bias = None if bias is None else bias.double()
    return ACTIVATIONS[activation](F.conv2d(input.double(), weight.double(), bias, **geometry))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest magnitude of ``expected``; 0 for empty tensors."""
    if expected.numel() == 0:
        return 0.0
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def assert_matches(actual: Tensor, expected: Tensor, dtype: torch.dtype | None = None) -> None:
    """``actual`` has the shape of ``expected`` and its values within the tolerance of its dtype."""
    assert actual.shape == expected.shape
    assert relative_error(actual, expected) <= TOLERANCE[dtype or actual.dtype]


def prune_layers(model: nn.Module) -> nn.Module:
    """Prune every weight of two or more dims along its input channels, in place."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if "weight" in name and parameter.dim() >= 2 and not isinstance(module, nn.Embedding):
                masks.prune_(parameter, dim=0 if type(module).__name__ == "Conv1D" else 1)
    return model
