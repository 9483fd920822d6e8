"""Compressed layers of every kind, pruned and small, and what two of them are compared by."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import nn

from reference import TOLERANCE, prune_layers
from sparse24 import SparseConv2d, SparseLinear, SparseMultiheadAttention

DTYPES = list(TOLERANCE)
CONVOLUTIONS = [
    {"in_channels": 8, "out_channels": 6, "kernel_size": 3},
    {"in_channels": 8, "out_channels": 6, "kernel_size": 1, "bias": False},
    {"in_channels": 7, "out_channels": 5, "kernel_size": 3, "padding": 1},
    {"in_channels": 12, "out_channels": 9, "kernel_size": (2, 5), "stride": (2, 1), "padding": (1, 2)},
    {"in_channels": 12, "out_channels": 8, "kernel_size": 3, "groups": 2, "dilation": 2, "padding": 2},
    {"in_channels": 6, "out_channels": 6, "kernel_size": 3, "groups": 6, "padding": 1},
    {"in_channels": 10, "out_channels": 4, "kernel_size": 3, "groups": 2, "padding": "valid"},
    {"in_channels": 9, "out_channels": 4, "kernel_size": 5, "padding": "same", "dilation": (1, 2)},
    {"in_channels": 9, "out_channels": 4, "kernel_size": 3, "padding": (1, 2), "padding_mode": "reflect"},
    {"in_channels": 9, "out_channels": 4, "kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    {"in_channels": 9, "out_channels": 4, "kernel_size": 4, "padding": "same", "padding_mode": "replicate"},
]


def pruned_linear(in_features: int, out_features: int, **options: object) -> nn.Linear:
    return prune_layers(nn.Linear(in_features, out_features, **options))


def pruned_conv(**options: object) -> nn.Conv2d:
    return prune_layers(nn.Conv2d(**options))


def exact_state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def assert_same_state(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    now = module.state_dict()
    assert now.keys() == state.keys()
    assert all(torch.equal(now[key], state[key]) for key in state)


def compressed_layers() -> list[tuple[nn.Module, torch.Tensor]]:
    linear = SparseLinear.from_dense(pruned_linear(19, 8))
    conv = SparseConv2d.from_dense(pruned_conv(in_channels=6, out_channels=8, kernel_size=3, padding=1))
    attention = SparseMultiheadAttention.from_dense(prune_layers(nn.MultiheadAttention(16, 2)))
    return [
        (linear, torch.randn(4, 19)),
        (conv, torch.randn(2, 6, 5, 5)),
        (SelfAttention(attention), torch.randn(4, 3, 16)),
    ]


class SelfAttention(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x)[0]


#: Arguments of to_int8.
INT8_WAYS: dict[str, dict[str, Any]] = {
    "weight only": {},
    "dynamic": {"activations": "dynamic"},
    "static": {"activations": "static", "input_scale": 0.03},
}


def int8_linear(columns: int = 40, rows: int = 24, **way: Any) -> SparseLinear:
    return SparseLinear.from_dense(pruned_linear(columns, rows)).to_int8(**way)


def int8_convolution(**way: Any) -> SparseConv2d:
    return SparseConv2d.from_dense(pruned_conv(in_channels=8, out_channels=6, kernel_size=3)).to_int8(**way)


def saved(module: nn.Module) -> dict[str, torch.Tensor]:
    """A state_dict that went through a file."""
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)
