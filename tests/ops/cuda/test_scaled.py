"""Products of 8-bit operands on the emulator, with CPU tensors. Not validation on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from emulated import BF16, FLOAT, HALF, EmulatedStream, Emulator, compressed, eight_bit, randn
from reference import relative_error
from sparse24 import masks, ops
from sparse24.ops import scaled
from sparse24.ops.cuda import cusparselt, device_kernels, launch, route
from sparse24.ops.cuda import operators as cuda_ops
from sparse24.ops.cuda import scaled as cuda_scaled
from sparse24.ops.cuda.products import Window
from sparse24.ops.cuda.route import Call
from sparse24.ops.int8 import quantize_input

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
PAIRS = [(dtype, out) for dtype, outs in scaled.OUT_DTYPES.items() for out in outs]


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("scales", [True, False], ids=["scale", "no scale"])
@pytest.mark.parametrize(("dtype", "out_dtype"), PAIRS, ids=str)
def test_scaled_linear(
    dtype: torch.dtype, out_dtype: torch.dtype, scales: bool, activation: str, emulator: Emulator
) -> None:
    stream = EmulatedStream()
    if dtype in FP8:
        emulator.set_sm(90)
        launch.forget()
    m, n, k = 64, 37, 70
    x, weight = eight_bit(n, k, dtype=dtype), eight_bit(m, k, dtype=dtype, seed=1, sparse=True)
    scale = torch.rand(m, generator=torch.Generator().manual_seed(2)) / 16 if scales else None
    bias = torch.randint(-3, 4, (m,), generator=torch.Generator().manual_seed(3)).float()
    operands = (x, *compressed(weight), scale, bias, out_dtype)
    output = cuda_scaled.scaled_linear(*operands, activation, stream)
    expected = scaled.scaled_linear_torch(*operands, activation)
    assert output.dtype is out_dtype
    if out_dtype.is_floating_point:
        # float32 sums in another order, and GELU of a rounded float16
        assert relative_error(output, expected) <= 2e-3 if out_dtype is not BF16 else 1e-2
    else:
        # Half-way cases fall to either side where float32 and float64 differ in the last bit.
        assert int((output.int() - expected.int()).abs().max()) <= (0 if not scales else 1)
    assert emulator.launches() == 1  # 37 tokens are padded


def test_int8_convolution_is_exact(emulator: Emulator, stream: EmulatedStream) -> None:
    x = eight_bit(2, 32, 7, 7, dtype=torch.int8).contiguous(memory_format=torch.channels_last)
    weight = eight_bit(64, 16, 3, 3, dtype=FLOAT, seed=5)
    masks.prune_(weight)
    weight = weight.to(torch.int8)
    operands = compressed(ops.conv_weight_to_matrix(weight))
    window = Window((3, 3), (1, 1), (1, 1), (1, 1), 2)
    output = cuda_scaled.scaled_conv2d(x, *operands, None, None, torch.int32, window, "none", stream)
    expected = F.conv2d(x.double(), weight.double(), padding=1, groups=2)
    assert torch.equal(output.double(), expected)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert emulator.launches() == 4  # two groups, and the last tokens of each


def test_8_bit_products_without_a_device_run_in_torch(emulator: Emulator, stream: EmulatedStream) -> None:
    emulator.set_driver(0)
    x, weight = eight_bit(9, 64, dtype=torch.int8), eight_bit(32, 64, dtype=torch.int8, sparse=True)
    operands = (x, *compressed(weight), None, None, torch.int32)
    assert torch.equal(
        cuda_scaled.scaled_linear(*operands, "none", stream).double(), x.double() @ weight.double().t()
    )
    window = Window((1, 1), (1, 1), (0, 0), (1, 1), 1)
    image = x.view(1, 9, 8, 8)[:, :8].contiguous()
    kernel = eight_bit(32, 8, dtype=torch.int8, sparse=True)
    output = cuda_scaled.scaled_conv2d(
        image, *compressed(kernel), None, None, torch.int32, window, "none", stream
    )
    assert torch.equal(output.double(), F.conv2d(image.double(), kernel.double().view(32, 8, 1, 1)))
    emulator.reset()
    emulator.set_deferred(0)


def test_fp8_needs_a_gpu_that_has_it(emulator: Emulator, stream: EmulatedStream) -> None:
    x = eight_bit(16, 64, dtype=FP8[0])
    weight = eight_bit(32, 64, dtype=FP8[0], sparse=True)
    operands = (x, *compressed(weight), None, None, HALF)
    output = cuda_scaled.scaled_linear(*operands, "none", stream)  # sm_86: in torch
    assert torch.equal(output, scaled.scaled_linear_torch(*operands))
    assert emulator.launches() == 0
    chosen = route.choose(Call(FP8[0], HALF, 32, 16, 64), cusparselt.gpu(0), False)
    assert "needs an sm_89 GPU" in chosen.reason


@pytest.mark.parametrize("k", [64, 1024, 1025, 4096])
def test_dense_products_of_int8_are_exact(k: int) -> None:
    """Without float64: the largest sums that there are, in parts that a float32 holds."""
    x = torch.full((3, k), 127, dtype=torch.int8)
    x[1] = -128
    weight = torch.full((8, k), 127, dtype=torch.int8)
    weight[::2] = -127
    sums = cuda_scaled._dense_product(x, weight)
    assert sums.dtype is torch.int32
    assert torch.equal(sums.double(), x.double() @ weight.double().t())
    assert cuda_scaled._dense_product(x.view(3, 1, k), weight).shape == (3, 1, 8)


@pytest.mark.parametrize("dtype", FP8)
def test_dense_products_of_float8_are_float32(dtype: torch.dtype) -> None:
    x, weight = eight_bit(5, 96, dtype=dtype), eight_bit(8, 96, dtype=dtype, seed=1)
    found = cuda_scaled._dense_product(x, weight)
    assert found.dtype is FLOAT
    assert relative_error(found, x.double() @ weight.double().t()) <= 1e-6


class _Epilogue:
    """``_CUDA.epilogue`` on CPU memory, by torch: what is called, with what."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(  # noqa: PLR0917  as the kernel's function
        self, product: Tensor, token_scale: Tensor | None, scale: Tensor | None, bias: Tensor | None,
        activation: str, out_dtype: torch.dtype, stream: int,
    ) -> Tensor:  # fmt: skip
        self.calls += 1
        assert product.dim() == 2
        value = product.float() if token_scale is None else product * token_scale.unsqueeze(1)
        return scaled.finish(value, scale, bias, activation, out_dtype)


def test_one_kernel_does_what_follows_a_product(
    emulator: Emulator, stream: EmulatedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator.set_sm(90)
    launch.forget()
    one = _Epilogue()
    monkeypatch.setattr(device_kernels, "usable", lambda tensor: True)
    monkeypatch.setattr(device_kernels, "epilogue", one)
    monkeypatch.setattr(device_kernels, "expand", _expanded)
    monkeypatch.setattr(device_kernels, "quantize_per_token", _quantized)
    x, weight = eight_bit(40, 64, dtype=FP8[0]), eight_bit(32, 64, dtype=FP8[0], sparse=True, seed=1)
    scale, bias = torch.rand(32) + 0.5, torch.randn(32)
    operands = (x, *compressed(weight), scale, bias, BF16, "gelu")
    output = cuda_scaled.scaled_linear(*operands, stream)
    assert relative_error(output, scaled.scaled_linear_torch(*operands)) <= 1e-2
    assert one.calls == 1
    # int8 by int8, a scale a token: scales of tokens and rows, bias, activation and the cast in one.
    floats = torch.randn(40, 64)
    eight = compressed(eight_bit(32, 64, dtype=torch.int8, sparse=True, seed=2))
    given = (floats, *eight, scale, torch.zeros(()), bias, "relu")
    found = cuda_scaled.int8_linear(*given, stream)
    assert relative_error(found, torch.ops.sparse24.int8_linear(*given)) <= 1e-5
    assert one.calls == 2


@pytest.mark.parametrize(("images", "by_kernel"), [(3, 0), (40, 1)])
def test_one_kernel_does_what_follows_a_float8_convolution(
    images: int, by_kernel: int, emulator: Emulator, stream: EmulatedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator.set_sm(90)
    launch.forget()
    one, quantized = _Epilogue(), []

    def quantize(x: Tensor, stream: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        quantized.append(x.shape)
        return device_kernels.quantize_in_torch(x, dtype)

    monkeypatch.setattr(device_kernels, "usable", lambda tensor: True)
    monkeypatch.setattr(device_kernels, "epilogue", one)
    monkeypatch.setattr(device_kernels, "expand", _expanded)
    monkeypatch.setattr(device_kernels, "quantize_per_token", quantize)
    x = torch.randn(images, 64, 4, 4).contiguous(memory_format=torch.channels_last)
    weight = compressed(eight_bit(32, 64, dtype=FP8[0], sparse=True, seed=1))
    operands = (x, *weight, torch.rand(32) + 0.5, torch.randn(32), (1, 1), (1, 1), (0, 0), (1, 1), 1, "gelu")
    output = cuda_ops.KERNELS["float8_conv2d"](*operands, stream=stream)
    assert relative_error(output, torch.ops.sparse24.float8_conv2d(*operands)) <= 2e-6
    assert (one.calls, emulator.launches()) == (1, 1)
    assert quantized == by_kernel * [(images, 1024)]  # a row an image


def _quantized(
    x: Tensor, stream: int, dtype: torch.dtype = torch.int8, given: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    assert given is not None
    quantized, scale = quantize_input(x, given, [-1])
    return quantized, scale.flatten()


def _expanded(values: Tensor, indices: Tensor, rows: int, cols: int, stream: int) -> Tensor:
    dense = torch.zeros(rows, cols, dtype=values.dtype)
    found = torch.ops.sparse24.decompress(values, indices)
    dense.view(torch.uint8)[: found.shape[0], : found.shape[1]] = found.view(torch.uint8)
    return dense


@pytest.mark.parametrize("input_scale", [0.0, 0.05])
def test_int8_layers_multiply_sparse(input_scale: float, emulator: Emulator, stream: EmulatedStream) -> None:
    floats, scale = torch.randn(48, 64), torch.rand(32) + 0.5
    eight = compressed(eight_bit(32, 64, dtype=torch.int8, sparse=True, seed=2))
    given = (floats, *eight, scale, torch.tensor(input_scale), None, "gelu")
    found = cuda_scaled.int8_linear(*given, stream)
    assert relative_error(found, torch.ops.sparse24.int8_linear(*given)) <= 1e-5
    assert emulator.launches() == 1


@pytest.mark.parametrize("input_scale", [0.0, 0.05])
@pytest.mark.parametrize("images", [3, 40])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("shape", [(32, 64, (3, 2), (2, 1), (1, 0), 2), (16, 32, (1, 1), (1, 1), (0, 0), 1)])
@pytest.mark.usefixtures("patches_gain")
def test_int8_convolutions_multiply_sparse(
    shape: tuple[Any, ...], channels_last: bool, images: int, input_scale: float, emulator: Emulator
) -> None:
    stream = EmulatedStream()
    channels, out_channels, kernel, stride, padding, groups = shape
    layout = torch.channels_last if channels_last else torch.contiguous_format
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(images, channels, 5, 4, generator=generator).contiguous(memory_format=layout)
    weight = eight_bit(out_channels, channels // groups, *kernel, dtype=FLOAT, seed=5)
    masks.prune_(weight)
    operands = compressed(ops.conv_weight_to_matrix(weight.to(torch.int8)))
    given = (
        x,
        *operands,
        torch.rand(out_channels) + 0.5,
        torch.tensor(input_scale),
        torch.randn(out_channels),
    )
    window = Window(kernel, stride, padding, (1, 1), groups)
    found = cuda_ops.KERNELS["int8_conv2d"](*given, *window, "gelu", stream=stream)
    assert relative_error(found, torch.ops.sparse24.int8_conv2d(*given, *window, "gelu")) <= 1e-5
    assert found.dtype is FLOAT
    assert found.is_contiguous(memory_format=layout)
    assert emulator.launches() >= groups


def test_int8_convolutions_of_weights_alone_and_of_nothing(stream: EmulatedStream) -> None:
    weight = eight_bit(8, 8, 3, 3, dtype=FLOAT)
    masks.prune_(weight)
    operands = compressed(ops.conv_weight_to_matrix(weight.to(torch.int8)))
    window = Window((3, 3), (1, 1), (0, 0), (1, 1), 1)
    for x, input_scale in ((randn(2, 8, 5, 5, dtype=FLOAT), None), (randn(0, 8, 5, 5), torch.zeros(()))):
        given = (x, *operands, torch.rand(8) + 0.5, input_scale, None)
        found = cuda_scaled.int8_conv2d(*given, window, "none", stream)
        expected = torch.ops.sparse24.int8_conv2d(*given, *window, "none")
        assert found.shape == expected.shape
        assert found.numel() == 0 or relative_error(found, expected) <= 1e-3


@pytest.mark.parametrize("dtype", [torch.int8, FP8[0]], ids=str)
@pytest.mark.parametrize("given", [None, 0.0, 0.02])
def test_rows_are_quantized_as_the_kernel_does(dtype: torch.dtype, given: float | None) -> None:
    """What torch does where the kernel is not: the same definition, in float64."""
    x = randn(7, 33, dtype=FLOAT)
    x[1], x[2, 3], x[3, 4], x[4] = 0, float("nan"), float("inf"), 1e-40
    scale_of_all = None if given is None else torch.tensor(given)
    out, scale = device_kernels.quantize_per_token(x, 0, dtype, scale_of_all)
    largest = 127 if dtype is torch.int8 else 448
    assert out.dtype is dtype
    for row in range(7):
        if row in (2, 3):
            assert scale[row].isnan()
            assert not out[row].float().any()
            continue
        want = given or (1.0 if row in (1, 4) else float(x[row].abs().max().double() / largest))
        assert abs(float(scale[row]) / want - 1) <= 2**-23
        wide = (x[row].double() / want).clamp(-largest, largest)
        step = 0.5 if dtype is torch.int8 else 2.0**-4 * wide.abs().clamp(min=2**-6)
        zeros = row in (1, 4) and not given
        assert ((out[row].double() - (wide * 0 if zeros else wide)).abs() <= step * (1 + 1e-5)).all()


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.int8, *FP8], ids=str)
@pytest.mark.parametrize("shape", [(20, 24, (3, 2), (2, 1), (1, 0), 2), (16, 24, (1, 1), (1, 1), (0, 0), 1)])
def test_dense_convolutions_of_8_bits(
    shape: tuple[Any, ...], dtype: torch.dtype, channels_last: bool, emulator: Emulator
) -> None:
    """Where there is no sparse product: by patches, without float64."""
    emulator.set_driver(0)
    channels, out_channels, kernel, stride, padding, groups = shape
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = eight_bit(2, channels, 7, 6, dtype=dtype).contiguous(memory_format=layout)
    weight = eight_bit(out_channels, channels // groups, *kernel, dtype=FLOAT, seed=5)
    masks.prune_(weight)
    operands = compressed(ops.conv_weight_to_matrix(weight.to(dtype)))
    window = Window(kernel, stride, padding, (1, 1), groups)
    scale, bias = torch.rand(out_channels) + 0.5, torch.randn(out_channels)
    found = cuda_scaled.scaled_conv2d(x, *operands, scale, bias, HALF, window, "relu", EmulatedStream())
    expected = scaled.scaled_conv2d_torch(x, *operands, scale, bias, HALF, *window, "relu")
    assert relative_error(found, expected) <= 1e-3
    assert found.is_contiguous(memory_format=layout)
    emulator.reset()
    emulator.set_deferred(0)
