"""Products of 8-bit operands on the emulator, with CPU tensors. Not validation on a GPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from emulated import BF16, FLOAT, HALF, EmulatedStream, Emulator, compressed, eight_bit
from reference import relative_error
from sparse24 import masks, ops
from sparse24.ops import scaled
from sparse24.ops.cuda import cusparselt, launch, route
from sparse24.ops.cuda import scaled as cuda_scaled
from sparse24.ops.cuda.products import Window
from sparse24.ops.cuda.route import Call

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
