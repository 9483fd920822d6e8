"""int8 from layer to layer: the same bits, and nothing between that anybody else reads."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparse24
from sparse24 import ops
from sparse24.ops import int8_chain
from sparse24.quant import chain, quantize, reference

from .networks import NETWORKS, pruned

pytestmark = pytest.mark.usefixtures("seeded")


def perceptron() -> tuple[nn.Module, list[Tensor]]:
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 32))
    return pruned(model).eval(), [torch.randn(9, 32) for _ in range(2)]


def convolutions(last: bool = False) -> tuple[nn.Module, list[Tensor]]:
    odd = nn.Conv2d(16, 16, 3, padding="same", padding_mode="reflect")
    last_one = nn.Conv2d(16, 8, 1, groups=2)
    model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), odd, nn.ReLU(), last_one)
    batches = [torch.randn(3, 8, 7, 6) for _ in range(2)]
    if last:
        batches = [x.to(memory_format=torch.channels_last) for x in batches]
    return pruned(model).eval(), batches


MADE: dict[str, Any] = {
    "linear": perceptron, "conv": convolutions, "channels_last": lambda: convolutions(True),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MADE)
def test_outputs_are_the_same_bits(name: str, dtype: torch.dtype) -> None:
    model, batches = MADE[name]()
    model, batches = model.to(dtype), [x.to(dtype) for x in batches]
    sparse24.to_sparse(model, when="always", fuse=True)
    report = {row.name: row.reason for row in quantize(model, batches, activations="static", when="always")}
    assert "hands on int8 to 2" in report["0"]
    assert "hands on int8 to 4" in report["2"]
    handed: list[torch.dtype] = []
    model[2].register_forward_pre_hook(lambda _, args: handed.append(args[0].dtype))
    got = model(batches[1])
    assert handed == [torch.int8]
    assert got.dtype == dtype
    plain = copy.deepcopy(model)
    for layer in plain:
        layer._buffers.pop("output_scale", None)
    assert torch.equal(got, plain(batches[1]))
    assert torch.equal(got, copy.deepcopy(model)(batches[1]))


@pytest.mark.parametrize("name", MADE)
def test_kernels_do_what_torch_does(name: str) -> None:
    model, batches = MADE[name]()
    sparse24.to_sparse(model, when="always", fuse=True)
    quantize(model, batches, activations="static", when="always")
    x = batches[0]
    for layer in (model[0], model[2], model[4]):
        scales = [layer._buffers[n] for n in ("weight_scale", "input_scale")]
        weight = (layer.values, layer.indices, *scales)
        rest = (layer.activation, layer._buffers.get("output_scale"), torch.float32)
        if name == "linear":
            operator, torchs = torch.ops.sparse24.int8_linear_chained, int8_chain.int8_linear_chained_torch
            arguments = (x, *weight, layer.bias, *rest)
        else:
            x = x if layer._written_padding is None else F.pad(x, layer._written_padding, layer._written_mode)
            operator, torchs = torch.ops.sparse24.int8_conv2d_chained, int8_chain.int8_conv2d_chained_torch
            arguments = (x, *weight, layer.bias, list(layer._window), *rest)
        with torch.no_grad():
            y, other = operator(*arguments), torchs(*arguments)
        assert y.dtype == other.dtype
        assert (y.double() - other.double()).abs().max() <= (1 if y.dtype == torch.int8 else 1e-4)
        torch.library.opcheck(operator, arguments, test_utils=["test_schema", "test_faketensor"])
        x = y


def test_what_others_read_is_not_handed_on() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.c(y + self.b(y))

    model, batch = pruned(Residual()).eval(), torch.randn(4, 32)
    quantize(model, [batch], activations="static", when="always")
    assert chain(model, batch) == []
    assert not any("output_scale" in m._buffers for m in model.modules())
    attention, batches = NETWORKS["encoder"]()
    report = quantize(attention, batches, activations="static", when="always")
    assert not any(
        "hands on" in row.reason for row in report
    )  # q, k and v read one norm, and GELU is between


def test_chains_are_no_part_of_a_file_and_are_made_anew() -> None:
    model, batches = perceptron()
    sparse24.to_sparse(model, when="always", fuse=True)
    twin = copy.deepcopy(model)
    quantize(model, batches, activations="static", when="always")
    assert not any("output_scale" in key for key in model.state_dict())
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    twin.load_state_dict(torch.load(file))
    assert chain(twin, batches[0]) == [("0", "2"), ("2", "4")]
    assert torch.equal(twin(batches[1]), model(batches[1]))
    twin.load_state_dict(torch.load(io.BytesIO(file.getvalue())))
    assert torch.equal(twin(batches[1]), model(batches[1]))


def test_casts_exports_and_compilers_follow() -> None:
    model, batches = perceptron()
    sparse24.to_sparse(model, when="always", fuse=True)
    quantize(model, batches, activations="static", when="always")
    wanted = model(batches[0])
    program = torch.export.export(model, (batches[0],))
    assert torch.equal(program.module()(batches[0]), wanted)
    assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(batches[0]), wanted)
    assert (reference(model)(batches[0]) - wanted).abs().max() < 0.03 * wanted.abs().max()
    half = copy.deepcopy(model).bfloat16()
    assert half[0]._buffers["output_scale"].dtype == torch.float32
    assert half(batches[0].bfloat16()).dtype == torch.bfloat16
    assert not torch.equal(half(batches[0].bfloat16()).float(), wanted)


def test_an_int8_input_is_for_static_layers() -> None:
    layer = sparse24.SparseLinear(16, 8).to_int8("dynamic")
    with pytest.raises(TypeError, match="an int8 input is for layers whose activations are static"):
        layer(torch.zeros(2, 16, dtype=torch.int8))
    static = sparse24.SparseLinear(16, 8).to_int8("static", 0.1)
    with pytest.raises(TypeError, match=r"input must be int8 or torch\.float32"):
        ops.int8_linear_chained(
            torch.zeros(2, 16, dtype=torch.int32), static.values, static.indices, static.weight_scale,
            static.input_scale, None, "none", None, torch.float32,
        )  # fmt: skip
