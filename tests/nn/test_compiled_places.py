"""Weights that are compressed in their places, where torch compiles or exports: operators, not copies."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparse24
from reference import relative_error

pytestmark = [
    pytest.mark.usefixtures("seeded"),
    # What torch's exporters and its compiler say of themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


class Padded(nn.Conv2d):
    """As timm's: it pads, and leaves the product to torch's class."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(F.pad(input, (1, 1, 1, 1)), self.weight, self.bias)


class Cast(nn.Linear):
    """It multiplies by itself: a compiler gets a dense copy."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.to(self.weight.dtype), self.weight, self.bias)


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "linear": (nn.Linear(16, 24), (3, 16), 1),
    "conv1d": (nn.Conv1d(8, 12, 3, 2, 1, groups=2), (2, 8, 9), 1),
    "conv1d, circular": (nn.Conv1d(8, 12, 3, padding=1, padding_mode="circular"), (8, 9), 1),
    "conv1d, same": (nn.Conv1d(8, 12, 3, padding="same", dilation=2), (2, 8, 9), 1),
    "conv2d": (nn.Conv2d(8, 12, 3, 1, (1, 0)), (2, 8, 6, 7), 1),
    "conv3d": (nn.Conv3d(8, 12, 3, (2, 1, 1), (1, 0, 1)), (2, 8, 4, 6, 7), 1),
    "padded": (Padded(8, 12, 3), (2, 8, 6, 7), 1),
    "lstm": (nn.LSTM(16, 16, bidirectional=True, proj_size=8), (2, 2, 16), 2 * (1 + 2 * 2)),
    "gru": (nn.GRU(16, 16, batch_first=True), (2, 2, 16), 3),
    "cell": (nn.LSTMCell(16, 16), (3, 16), 2),
    "cast": (Cast(16, 24), (3, 16), 0),
    "attention": (nn.MultiheadAttention(16, 2), (3, 2, 16), 0),
}

#: Layers that multiply by themselves, and how many weights they read.
COPIES = {"cast": 1, "attention": 2}


def held(name: str) -> tuple[nn.Module, tuple[Tensor, ...], int]:
    layer, shape, products = LAYERS[name]
    model = nn.ModuleList([copy.deepcopy(layer).eval()])
    sparse24.Sparsifier(model, select=["*"]).prune()
    report = sparse24.to_sparse(model, when="always", how="tensors")
    assert report.done
    x = torch.randn(shape)
    return model[0], (x, x, x) if name == "attention" else (x,), products


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def operators(program: torch.export.ExportedProgram) -> list[str]:
    found = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    return [name for name in found if name.startswith("sparse24.")]


@pytest.mark.parametrize("name", list(LAYERS))
def test_programs_hold_sparse_products(name: str) -> None:
    layer, inputs, products = held(name)
    with torch.no_grad():
        expected = first(layer(*inputs))
        program = torch.export.export(layer, inputs).run_decompositions({})
        assert relative_error(first(program.module()(*inputs)), expected) < 1e-5
    found = operators(program)
    assert sum("linear" in each or "conv2d" in each for each in found) == products
    copies = sum("decompress" in each for each in found)
    assert copies == COPIES.get(name, 0), found


@pytest.mark.parametrize("name", ["conv1d", "conv3d", "cell"])
def test_compiled_modules_compute_the_same_with_gradients(name: str) -> None:
    layer, (x,), _ = held(name)
    compiled: Any = torch.compile(layer, backend="aot_eager", fullgraph=True)  # Dynamo breaks at an LSTM
    gradients = []
    for each in (layer, compiled):
        own = x.clone().requires_grad_()
        first(each(own)).square().sum().backward()
        gradients.append(own.grad)
    assert relative_error(gradients[1], gradients[0]) < 1e-5
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert relative_error(first(compiled(x)), first(layer(x))) < 2e-2
