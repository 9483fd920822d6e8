"""Tensors on several devices are refused in torch's words, before an address reaches a kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from emulated import HALF, EmulatedStream, Emulator, compressed, randn, sparse_weight
from own_forms import K, M, new_layer, run
from sparse24 import SparseConv2d, SparseLinear
from sparse24.ops.cuda import operators

WORDS = "Expected all tensors to be on the same device, but found at least two devices, "


def test_operators_of_cuda_refuse_before_they_run() -> None:
    def kernel(input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, *, stream: Any) -> None:
        raise AssertionError("it ran")

    guarded = operators.on_current_stream("linear", kernel)
    with FakeTensorMode():
        here, there = torch.empty(8, 8, device="cuda"), torch.empty(8, 8)
        second = torch.empty(8, device="cuda:1")
    cases = [
        ((here, there, here, None), "cuda:0 and cpu! (when checking argument values of sparse24::linear)"),
        ((here, here, there, None), "cuda:0 and cpu! (when checking argument indices of"),
        ((here, here, here, second), "cuda:0 and cuda:1! (when checking argument bias of"),
        ((there, here, here, None), "cpu and cuda:0! (when checking argument values of"),
    ]
    for operands, words in cases:
        with pytest.raises(RuntimeError) as raised:
            guarded(*operands)
        assert str(raised.value).startswith(WORDS + words)


@pytest.mark.parametrize("name", sorted(operators.KERNELS))
def test_every_operator_of_cuda_looks_at_every_tensor(name: str) -> None:
    schema = getattr(torch.ops.sparse24, name).default._schema
    tensors = [argument.name for argument in schema.arguments if "Tensor" in str(argument.type)]
    for wrong in tensors[1:]:
        with FakeTensorMode():
            given = [
                torch.empty(8, 8, device="cpu" if argument.name == wrong else "cuda")
                if argument.name in tensors
                else 1
                for argument in schema.arguments
            ]
        with pytest.raises(RuntimeError, match=rf"argument {wrong} of sparse24::{name}"):
            operators.on_current_stream(name, operators.KERNELS[name])(*given)


def test_layers_and_inputs_apart() -> None:
    """Whatever device comes first, and convolutions: as far as meta tensors show it."""
    for layer, shape in ((SparseLinear(8, 8), (2, 8)), (SparseConv2d(8, 8, 1), (1, 8, 2, 2))):
        with pytest.raises(RuntimeError, match=r"on the same device.* meta and cpu"):
            layer(torch.empty(shape, device="meta"))
        with pytest.raises(RuntimeError, match=r"on the same device.* cpu and meta"):
            layer.to("meta")(torch.empty(shape))


@pytest.mark.usefixtures("on_emulator")
def test_a_bias_elsewhere(emulator: Emulator) -> None:
    layer = new_layer()
    layer._parameters["bias"] = torch.nn.Parameter(torch.empty(M, dtype=HALF, device="meta"), False)
    with pytest.raises(RuntimeError, match="argument bias of sparse24::linear"):
        run(layer, randn(32, K))
    assert emulator.launches() == 0


def test_bare_weights_elsewhere(stream: EmulatedStream) -> None:
    values, indices = compressed(sparse_weight(M, K, HALF))
    with pytest.raises(RuntimeError, match="on the same device"):
        torch.ops.sparse24.linear(randn(8, K), values.to("meta"), indices.to("meta"))
