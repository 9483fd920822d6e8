"""float8 storage of a linear layer: the product, casts, files, gradients; on the emulator sparse."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

import sparse24
from emulated import EmulatedStream, Emulator
from reference import relative_error
from sparse24 import SparseLinear, to_sparse
from sparse24.ops.cuda import launch
from sparse24.ops.cuda import operators as cuda_ops

from .layers import pruned_linear

pytestmark = pytest.mark.usefixtures("seeded")

E4M3 = torch.float8_e4m3fn


def pair(inputs: int = 64, outputs: int = 48, bias: bool = True) -> tuple[SparseLinear, nn.Linear]:
    dense = pruned_linear(inputs, outputs, bias=bias)
    return SparseLinear.from_dense(dense).to_float8(), dense


def by_hand(layer: SparseLinear, x: torch.Tensor) -> torch.Tensor:
    """The definition, in float64 but for the roundings that it names."""
    scale = x.float().abs().amax(-1, keepdim=True) / 448
    rounded = (x.float() / scale).clamp(-448, 448).to(E4M3).double() * scale.double()
    output = rounded @ layer.weight.detach().double().t()
    return output if layer.bias is None else output + layer.bias.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5,), (2, 3), (1,)])
def test_the_product_is_that_of_rounded_numbers(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    layer, dense = pair()
    layer.to(dtype)
    x = torch.randn(*shape, 64).to(dtype)
    output = layer(x)
    assert output.dtype is dtype
    assert output.shape == (*shape, 48)
    # A number on the border of two codes may fall to either side of it.
    assert relative_error(output, by_hand(layer, x)) <= 2e-2
    assert relative_error(output, dense(x.float())) <= 8e-2


def test_the_storage_is_a_quarter_of_float32_and_zeros_are_exact() -> None:
    layer, dense = pair()
    assert layer.values.dtype is E4M3
    assert layer.values.nbytes * 8 == dense.weight.nbytes
    assert layer.is_float8
    assert not layer.is_int8
    assert layer.weight.dtype is torch.float32
    assert bool((layer.weight.detach()[dense.weight == 0] == 0).all())
    assert relative_error(layer.weight.detach(), dense.weight) <= 2**-4
    assert "dtype=torch.float8_e4m3fn, activations float8" in repr(layer)
    back = layer.to_dense()
    assert torch.equal(back.weight, layer.weight.detach())


def test_a_cast_and_a_move_leave_float8_and_its_scales() -> None:
    layer, _ = pair()
    values, scale = layer.values.clone(), layer.weight_scale.clone()
    for change in (nn.Module.half, nn.Module.bfloat16, lambda m: m.to(torch.float32), nn.Module.cpu):
        change(layer)
        assert torch.equal(layer.values.view(torch.uint8), values.view(torch.uint8))
        assert torch.equal(layer.weight_scale, scale)
    layer.half()
    assert (layer.weight.dtype, layer.bias.dtype, layer.values.dtype) == (torch.float16, torch.float16, E4M3)
    file = io.BytesIO()
    torch.save(layer, file)  # plain pickle cannot: no tensor of float8, whoever's it is
    file.seek(0)
    for other in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        x = torch.randn(3, 64).half()
        assert torch.equal(other(x), layer(x))
    assert layer.to("meta").values.device.type == "meta"


def test_a_float8_layer_loads_float8_and_another_widens_it() -> None:
    layer, dense = pair()
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    x = torch.randn(3, 64)
    same = SparseLinear(64, 48).to_float8()
    same.load_state_dict(state)
    assert torch.equal(same(x), layer(x))
    wide = SparseLinear(64, 48)
    wide.load_state_dict(state)
    assert wide.values.dtype is torch.float32
    assert torch.equal(wide.weight.detach(), layer.weight.detach())
    same.load_state_dict(SparseLinear.from_dense(dense).state_dict())
    assert not same.is_float8
    assert torch.equal(same.weight.detach(), dense.weight)
    int8 = SparseLinear.from_dense(dense).to_int8()
    layer.load_state_dict(int8.state_dict())
    assert layer.is_int8
    assert layer._float_dtype is torch.float32
    assert torch.equal(layer(x), int8(x))


def test_gradients_are_those_of_the_weight() -> None:
    layer, _ = pair()
    x = torch.randn(5, 64, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert relative_error(x.grad, layer.weight.detach().sum(0).expand(5, 64)) <= 1e-5


def test_activations_autocast_and_compile() -> None:
    layer, _ = pair()
    layer.activation = "relu"
    x = torch.randn(5, 64)
    expected = layer(x)
    assert (expected >= 0).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype is torch.bfloat16
    torch._dynamo.reset()
    with torch.no_grad():
        assert torch.equal(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), expected)


def test_what_is_refused_changes_nothing() -> None:
    layer, dense = pair()
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    for change in (layer.to_float8, layer.to_int8):
        with pytest.raises(ValueError, match="the weight is float8_e4m3fn already"):
            change()
    with torch.no_grad(), pytest.raises(ValueError, match="stored as float8_e4m3fn and is only read"):
        layer.weight.mul_(2)
    with pytest.raises(ValueError, match="holds K = 64"):
        sparse24.ops.float8_linear(torch.randn(3, 72), layer.values, layer.indices, layer.weight_scale)
    with pytest.raises(TypeError, match="values must be float8_e4m3fn"):
        sparse24.ops.float8_linear(
            torch.randn(3, 64), layer.values.float(), layer.indices, layer.weight_scale
        )
    assert all(torch.equal(before[key].float(), value.float()) for key, value in layer.state_dict().items())
    dense.weight.data[0, dense.weight[0].nonzero()[0]] = float("nan")
    other = SparseLinear.from_dense(dense)
    with pytest.raises(ValueError, match="only finite weights can become float8_e4m3fn, but row 0"):
        other.to_float8()
    assert other.values.dtype is torch.float32


def test_models_with_float8_layers_are_left_as_they_are() -> None:
    layer, _ = pair()
    model = nn.Sequential(layer, SparseLinear.from_dense(pruned_linear(48, 16)))
    (row, _) = to_sparse(model)
    assert "already sparse" in row.reason
    report = sparse24.quantize(model, [torch.randn(4, 64)])
    assert [r.reason for r in report if r.name == "0"] == ["float8 already"]
    assert layer.is_float8


@pytest.mark.parametrize(("sm", "sparse"), [(90, True), (89, True), (86, False)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_gpu_with_float8_tensor_cores_multiplies_sparse(
    sm: int, sparse: bool, dtype: torch.dtype, emulator: Emulator, stream: EmulatedStream
) -> None:
    emulator.set_sm(sm)
    launch.forget()
    layer, _ = pair()
    layer.to(dtype)
    kernel: Any = cuda_ops.KERNELS["float8_linear"]
    for shape in ((32,), (3, 7), (0,)):
        x = torch.randn(*shape, 64).to(dtype)
        before = emulator.launches()
        operands = (x, layer.values.detach(), layer.indices, layer.weight_scale, layer.bias.detach(), "gelu")
        output = kernel(*operands, stream=stream)
        expected = torch.ops.sparse24.float8_linear(*operands)
        assert output.dtype is dtype
        assert output.shape == expected.shape
        assert output.numel() == 0 or relative_error(output, expected) <= 1e-2
        assert (emulator.launches() > before) == (sparse and output.numel() > 0)
