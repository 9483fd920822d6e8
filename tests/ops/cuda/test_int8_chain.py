"""Chained int8 products of CUDA on the emulator, against the torch definition. Not validation on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from emulated import BF16, FLOAT, EmulatedStream, Emulator, compressed, eight_bit, randn
from sparse24 import masks, ops
from sparse24.ops import int8_chain
from sparse24.ops.cuda import operators as cuda_ops


def assert_equal_to_the_definition(found: Tensor, expected: Tensor) -> None:
    assert (found.dtype, found.shape, found.stride()) == (expected.dtype, expected.shape, expected.stride())
    if found.numel() == 0:
        return
    if found.dtype is torch.int8:  # a sum on the border of two numbers may fall to either side
        assert (found.int() - expected.int()).abs().max() <= 1
        assert (found != expected).float().mean() <= 0.01
    else:
        assert torch.allclose(found, expected, rtol=1e-2 if found.dtype is BF16 else 1e-5, atol=1e-3)


@pytest.mark.parametrize("dtype", [FLOAT, BF16])
@pytest.mark.parametrize("handed_on", [True, False])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("shape", [(48,), (3, 7), (0,)])
def test_linear(
    shape: tuple[int, ...], given: bool, handed_on: bool, dtype: torch.dtype, emulator: Emulator
) -> None:
    weight = compressed(eight_bit(32, 64, dtype=torch.int8, sparse=True, seed=2))
    x = eight_bit(*shape, 64, dtype=torch.int8) if given else randn(*shape, 64, dtype=dtype)
    output_scale = torch.tensor(0.5) if handed_on else None
    operands = (
        x, *weight, torch.rand(32) / 16, torch.tensor(0.05), randn(32, dtype=dtype), "gelu", output_scale,
        dtype,
    )  # fmt: skip
    found = cuda_ops.KERNELS["int8_linear_chained"](*operands, stream=EmulatedStream())
    assert_equal_to_the_definition(found, int8_chain.int8_linear_chained_torch(*operands))
    assert emulator.launches() == (1 if x.numel() else 0)


@pytest.mark.parametrize("handed_on", [True, False])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("images", [2, 0])
@pytest.mark.usefixtures("patches_gain")
def test_conv2d(images: int, channels_last: bool, given: bool, handed_on: bool, emulator: Emulator) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    weight = eight_bit(32, 16, 3, 3, dtype=FLOAT, seed=5)
    masks.prune_(weight)
    matrix = compressed(ops.conv_weight_to_matrix(weight.to(torch.int8)))
    x = eight_bit(images, 16, 6, 5, dtype=torch.int8) if given else randn(images, 16, 6, 5, dtype=FLOAT)
    x = x.contiguous(memory_format=layout)
    output_scale = torch.tensor(0.5) if handed_on else None
    operands = (
        x, *matrix, torch.rand(32) / 16, torch.tensor(0.05), randn(32, dtype=FLOAT),
        [3, 3, 2, 1, 1, 1, 1, 1, 1], "relu", output_scale, FLOAT,
    )  # fmt: skip
    found = cuda_ops.KERNELS["int8_conv2d_chained"](*operands, stream=EmulatedStream())
    expected = int8_chain.int8_conv2d_chained_torch(*operands)
    if images:
        assert_equal_to_the_definition(found, expected)
        assert emulator.launches() >= 1
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)


def test_a_row_that_is_not_finite_is_zeros_as_elsewhere(emulator: Emulator) -> None:
    weight = compressed(eight_bit(32, 64, dtype=torch.int8, sparse=True, seed=2))
    x = randn(16, 64, dtype=FLOAT)
    x[3, 5], x[7, 0] = float("nan"), float("inf")
    operands = (x, *weight, torch.rand(32), torch.tensor(0.05), None, "none", None, FLOAT)
    found = cuda_ops.KERNELS["int8_linear_chained"](*operands, stream=EmulatedStream())
    assert_equal_to_the_definition(found, int8_chain.int8_linear_chained_torch(*operands))
    assert not found[3].any()
    assert emulator.launches() == 1
