"""float8 storage of a convolution: the product, casts, files, gradients; on the emulator sparse."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import sparse24
from emulated import EmulatedStream, Emulator
from reference import assert_matches, conv2d_reference, relative_error
from sparse24 import SparseConv2d, to_sparse
from sparse24.nn.dense_loads import accept_compressed
from sparse24.ops.cuda import launch
from sparse24.ops.cuda import operators as cuda_ops
from sparse24.ops.cuda import scaled as cuda_scaled

from .layers import CONVOLUTIONS, DTYPES, int8_convolution, pruned_conv, saved

pytestmark = pytest.mark.usefixtures("seeded")

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
SMALL: dict[str, Any] = {"in_channels": 8, "out_channels": 6, "kernel_size": 3, "padding": 1}
GROUPED: dict[str, Any] = {"in_channels": 32, "out_channels": 64, "kernel_size": 3, "padding": 1, "groups": 2}
POINTS: dict[str, Any] = {"in_channels": 32, "out_channels": 48, "kernel_size": 1}


def pair(**options: Any) -> tuple[SparseConv2d, nn.Conv2d]:
    dense = pruned_conv(**(options or SMALL))
    return SparseConv2d.from_dense(dense).to_float8(), dense


def as_multiplied(x: torch.Tensor) -> torch.Tensor:
    """The definition: float8 of each image, and back by its scale, in float64."""
    absmax = x.float().abs().amax((1, 2, 3), keepdim=True)
    inverse = torch.full_like(absmax, 448) / absmax  # 448 / absmax would be rounded twice
    codes = (x.float() * inverse).clamp(-448, 448).to(E4M3)
    return codes.double() * (absmax / 448).double()


def uneven(*shape: int) -> torch.Tensor:
    """Images whose scales differ."""
    return torch.randn(*shape) * torch.logspace(-1, 1, shape[0]).view(-1, 1, 1, 1)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_the_product_is_that_of_rounded_numbers(
    options: dict[str, Any], dtype: torch.dtype, channels_last: bool
) -> None:
    layer, dense = pair(**options)
    layer.to(dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = uneven(3, options["in_channels"], 9, 8).to(dtype).contiguous(memory_format=layout)
    output = layer(x)
    assert output.dtype is dtype
    if layer.padding_mode != "circular":  # which torch's F.pad makes contiguous
        assert output.is_contiguous(memory_format=layout)
    # Padded by the layer itself, the images are what the kernel sees, and their largest numbers the same.
    reference = copy.deepcopy(dense).double()
    weight = layer.values.double() * layer.weight_scale.double().unsqueeze(1)
    weight = layer._form.to_weight(torch.ops.sparse24.decompress(weight.float(), layer.indices))
    reference.weight.data.copy_(weight)
    if layer.bias is not None:
        reference.bias.data.copy_(layer.bias)
    assert_matches(output, reference(as_multiplied(x)), dtype)
    for one, exact in zip(output, dense(x.float()), strict=True):
        assert relative_error(one, exact) <= 8e-2  # of every image by itself
    assert torch.equal(layer(x[0]), layer(x[:1])[0])


def test_images_do_not_meet() -> None:
    layer, _ = pair()
    x = uneven(4, 8, 5, 5)
    x[3] = 0
    clean = layer(x)
    assert torch.equal(clean[3], layer.bias.detach().view(-1, 1, 1).expand(6, 5, 5))
    x[1, 2, 3, 4] = torch.inf
    output = layer(x)
    assert output[1].isnan().all()
    assert torch.equal(output[[0, 2, 3]], clean[[0, 2, 3]])
    assert layer(x[:0]).shape == (0, 6, 5, 5)


def test_the_storage_is_a_quarter_of_float32_and_zeros_are_exact() -> None:
    layer, dense = pair()
    assert layer.values.dtype is E4M3
    assert layer.values.nbytes * 8 == dense.weight.nbytes
    assert layer.weight_scale.shape == (6,)
    assert (layer.is_float8, layer.is_int8) == (True, False)
    assert bool((layer.weight.detach()[dense.weight == 0] == 0).all())
    assert relative_error(layer.weight.detach(), dense.weight) <= 2**-4
    assert "dtype=torch.float8_e4m3fn, activations float8" in repr(layer)
    assert torch.equal(layer.to_dense().weight, layer.weight.detach())
    values, scale = layer.values.clone(), layer.weight_scale.clone()
    layer.half().float().bfloat16()
    assert torch.equal(layer.values.view(torch.uint8), values.view(torch.uint8))
    assert torch.equal(layer.weight_scale, scale)
    assert (layer.weight.dtype, layer.bias.dtype) == (torch.bfloat16, torch.bfloat16)


def test_files_go_round() -> None:
    layer, dense = pair()
    state, x = saved(layer), torch.randn(2, 8, 5, 5)
    assert {key: tensor.dtype for key, tensor in state.items()} == {
        "values": E4M3, "indices": torch.uint8, "bias": torch.float32, "weight_scale": torch.float32,
    }  # fmt: skip
    same = SparseConv2d(**SMALL).to_float8()
    same.load_state_dict(state)
    assert torch.equal(same(x), layer(x))
    plain = pruned_conv(**SMALL)
    accept_compressed(plain)
    plain.load_state_dict(state)
    assert torch.equal(plain.weight, layer.weight.detach())
    same.load_state_dict(SparseConv2d.from_dense(dense).state_dict())
    assert not same.is_float8
    assert torch.equal(same.weight.detach(), dense.weight)
    int8 = int8_convolution(activations="dynamic")
    other = SparseConv2d(8, 6, 3).to_float8()
    other.load_state_dict(saved(int8))
    assert other.is_int8
    assert torch.equal(other(x), int8(x))


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=str)
@pytest.mark.parametrize("own", ["floating", "int8", "float8"])
def test_a_float8_file_is_widened_by_a_layer_that_is_not(own: str, dtype: torch.dtype, scaled: bool) -> None:
    state = saved(SparseConv2d.from_dense(pruned_conv(**SMALL)))
    state["values"] = state["values"].to(dtype)
    expected = state["values"].float()
    if scaled:
        state["weight_scale"] = torch.rand(6) + 0.5
        expected = expected * state["weight_scale"].unsqueeze(1)
    layer = SparseConv2d(**SMALL)
    if own != "floating":
        layer = layer.to_float8() if own == "float8" else layer.to_int8("dynamic")
    layer.load_state_dict(state)
    if own == "float8" and dtype is E4M3 and scaled:
        assert layer.is_float8
        assert torch.equal(layer.values.float(), state["values"].float())
        return
    assert (layer.is_float8, layer.is_int8) == (False, False)
    assert torch.equal(layer.values, expected)
    name = str(dtype).removeprefix("torch.")
    assert f"dequantized from {name}" in repr(layer)
    (row,) = to_sparse(nn.Sequential(layer))
    assert row.reason == f"already sparse, dequantized from {name}"
    x = torch.randn(2, 8, 5, 5)
    weight = layer._form.to_weight(torch.ops.sparse24.decompress(expected, state["indices"]))
    assert_matches(layer(x), conv2d_reference(x, weight, layer.bias.detach(), padding=1))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"weight_scale": torch.ones(5)}, r"weight_scale must be \[6\], not \(5,\)"),
        ({"weight_scale": torch.full((6,), torch.nan)}, "weight_scale of row 0 is nan"),
        ({"values": torch.zeros(6, 3).to(E4M3)}, r"values has shape \(6, 3\) in the checkpoint"),
        ({"indices": None}, "values and indices belong together"),
    ],
)
def test_damaged_files_change_nothing(change: dict[str, Any], text: str) -> None:
    layer, _ = pair()
    state = {key: tensor for key, tensor in (saved(layer) | change).items() if tensor is not None}
    for other in (copy.deepcopy(layer), SparseConv2d(**SMALL)):
        before = saved(other)
        with pytest.raises(RuntimeError, match=text):
            other.load_state_dict(state)
        after = other.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key].float(), before[key].float()) for key in before)


@pytest.mark.parametrize("activation", ["none", "relu"])
def test_gradients_are_those_of_the_weight(activation: str) -> None:
    layer, _ = pair()
    layer.activation = activation
    layer.bias.requires_grad_()
    x = torch.randn(2, 8, 5, 5, requires_grad=True)
    output = layer(x)
    with torch.no_grad():
        assert torch.equal(output, layer(x))
    output.sum().backward()
    ones = (output > 0).float() if activation == "relu" else torch.ones_like(output)
    expected = torch.nn.grad.conv2d_input(x.shape, layer.weight.dense(), ones, padding=1)
    assert relative_error(x.grad, expected) <= 1e-5
    assert relative_error(layer.bias.grad, ones.sum((0, 2, 3))) <= 1e-5


def test_activations_autocast_and_compile() -> None:
    layer, _ = pair()
    layer.activation = "relu"
    x = torch.randn(2, 8, 5, 5).contiguous(memory_format=torch.channels_last)
    expected = layer(x)
    assert (expected >= 0).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert_matches(layer(x), copy.deepcopy(layer).bfloat16()(x.bfloat16()))
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
    assert torch.equal(compiled, expected)
    assert compiled.stride() == expected.stride()


def test_what_is_refused_changes_nothing() -> None:
    layer, dense = pair()
    before = saved(layer)
    for change in (layer.to_float8, layer.to_int8):
        with pytest.raises(ValueError, match="the weight is float8_e4m3fn already"):
            change()
    with torch.no_grad(), pytest.raises(ValueError, match="stored as float8_e4m3fn and is only read"):
        layer.weight.mul_(2)
    operands, x = (layer.values.detach(), layer.indices, layer.weight_scale, None), torch.randn(1, 8, 5, 5)
    product = torch.ops.sparse24.float8_conv2d
    for values in (operands[0].float(), operands[0].to(E5M2)):
        with pytest.raises(TypeError, match=r"values must be float8_e4m3fn.*conv2d and int8_conv2d"):
            product(x, values, *operands[1:], (3, 3))
    with pytest.raises(ValueError, match="needs K = 8 columns"):
        product(x, *operands, (1, 1))
    with pytest.raises(ValueError, match="is smaller than the kernel"):
        product(x[..., :2], *operands, (3, 3))
    with pytest.raises(ValueError, match=r"weight_scale must be \[6\]"):
        product(x, *operands[:2], torch.ones(5), None, (3, 3))
    with pytest.raises(TypeError, match="input and bias must have one dtype"):
        product(x, *operands[:3], torch.ones(6).half(), (3, 3))
    with pytest.raises(TypeError, match="input and bias must have one dtype"):
        product(x.double(), *operands, (3, 3))
    with pytest.raises(ValueError, match="activation"):
        product(x, *operands, (3, 3), activation="tanh")
    assert all(torch.equal(before[key].float(), value.float()) for key, value in layer.state_dict().items())
    dense.weight.data[2, dense.weight[2, :, 0, 0].nonzero()[0], 0, 0] = float("nan")
    other = SparseConv2d.from_dense(dense)
    with pytest.raises(ValueError, match="only finite weights can become float8_e4m3fn, but row 2"):
        other.to_float8()
    assert other.values.dtype is torch.float32
    assert "weight_scale" not in dict(other.named_buffers())


def test_models_with_float8_convolutions_are_left_as_they_are() -> None:
    layer, _ = pair()
    model = nn.Sequential(layer, SparseConv2d.from_dense(pruned_conv(**SMALL | {"in_channels": 6})))
    (row, _) = to_sparse(model)
    assert "already sparse" in row.reason
    report = sparse24.quantize(model, [torch.randn(2, 8, 5, 5)])
    assert [r.reason for r in report if r.name == "0"] == ["float8 already"]
    assert layer.is_float8


@pytest.mark.parametrize(("sm", "sparse"), [(90, True), (89, True), (86, False)])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [GROUPED, POINTS], ids=["patches", "1x1"])
@pytest.mark.usefixtures("patches_gain")
def test_a_gpu_with_float8_tensor_cores_multiplies_sparse(  # noqa: PLR0917  every one is a parameter
    options: dict[str, Any], dtype: torch.dtype, channels_last: bool, sm: int, sparse: bool,
    emulator: Emulator, stream: EmulatedStream,
) -> None:  # fmt: skip
    emulator.set_sm(sm)
    launch.forget()
    layer, _ = pair(**options)
    layer.to(dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    kernel: Any = cuda_ops.KERNELS["float8_conv2d"]
    for images in (3, cuda_scaled.MANY_IMAGES, 0):
        x = torch.randn(images, 32, 5, 4).to(dtype).contiguous(memory_format=layout)
        before = emulator.launches()
        weight = (layer.values.detach(), layer.indices, layer.weight_scale, layer.bias.detach())
        operands = (x, *weight, *layer._geometry(), "gelu")
        output = kernel(*operands, stream=stream)
        expected = torch.ops.sparse24.float8_conv2d(*operands)
        assert output.dtype is dtype
        assert output.shape == expected.shape
        assert output.is_contiguous(memory_format=layout)
        if images:
            assert_matches(output, expected)
        assert (emulator.launches() > before) == (sparse and images > 0)
