"""What the operators compute, over shapes, strides, dtypes, layouts and values."""

from __future__ import annotations

import pytest
import torch

from reference import (
    ACTIVATIONS,
    TOLERANCE,
    assert_matches,
    conv2d_reference,
    linear_reference,
    relative_error,
)
from sparse24 import ops

from .operands import DTYPES, compressed_conv, compressed_linear, sparse

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_plain_torch_bodies_agree_with_the_kernels(dtype: torch.dtype, activation: str) -> None:
    _, values, indices, bias = compressed_linear(9, 30, dtype)
    x = torch.randn(5, 30).to(dtype)
    arguments = (x, values, indices, bias, activation)
    assert relative_error(ops.linear_torch(*arguments), sparse.linear(*arguments)) <= 2 * TOLERANCE[dtype]
    _, values, indices, bias = compressed_conv(8, 6, 3, 2, dtype=dtype)
    image = torch.randn(2, 12, 6, 7).to(dtype)
    arguments = (image, values, indices, bias, (3, 2), (1, 2), (1, 0), (1, 1), 2, activation)
    assert relative_error(ops.conv2d_torch(*arguments), sparse.conv2d(*arguments)) <= 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 8, 9, 15, 16, 17, 40, 113, 257])
def test_linear_over_token_counts(tokens: int) -> None:
    weight, values, indices, bias = compressed_linear(71, 150)
    x = torch.randn(tokens, 150)
    assert_matches(sparse.linear(x, values, indices, bias), linear_reference(x, weight, bias))


@pytest.mark.parametrize("shape", [(1, 4), (8, 64), (9, 65), (16, 129), (33, 1000), (390, 72)])
def test_linear_over_weight_shapes(shape: tuple[int, int]) -> None:
    weight, values, indices, bias = compressed_linear(*shape)
    for tokens in (1, 5, 70):
        x = torch.randn(tokens, shape[1])
        assert_matches(sparse.linear(x, values, indices, bias), linear_reference(x, weight, bias))


def test_linear_of_strided_broadcast_and_empty_inputs() -> None:
    weight, values, indices, bias = compressed_linear(10, 24)
    base = torch.randn(24, 12, 3)
    inputs = [
        base[:, :, 0].t(),
        base.permute(2, 1, 0),
        torch.randn(12, 48)[:, ::2],
        torch.randn(12, 100)[:, 7:31],
        torch.randn(1, 24).expand(50, 24),
        torch.randn(24).expand(3, 2, 24),
        torch.randn(0, 24),
        torch.randn(24),
        torch.randn(24).flip(0)[None],
    ]
    for x in inputs:
        assert_matches(sparse.linear(x, values, indices, bias), linear_reference(x, weight, bias))


def test_weights_may_be_views() -> None:
    weight, values, indices, bias = compressed_linear(10, 24)
    x = torch.randn(7, 24)
    for rows in (slice(2, 7), slice(0, 10, 3)):
        output = sparse.linear(x, values[rows], indices[rows], bias[rows])
        assert_matches(output, linear_reference(x, weight[rows], bias[rows]))
    transposed = values.t().contiguous().t()
    assert_matches(sparse.linear(x, transposed, indices, bias), linear_reference(x, weight, bias))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_conv_of_strided_broadcast_and_empty_inputs(layout: torch.memory_format) -> None:
    weight, values, indices, bias = compressed_conv(6, 7, 3, 3)
    inputs = [
        torch.randn(2, 7, 9, 10)[:, :, ::2, 1:],
        torch.randn(9, 2, 8, 7).permute(1, 3, 0, 2),
        torch.randn(1, 7, 6, 6).expand(3, 7, 6, 6),
        torch.randn(2, 14, 5, 5)[:, ::2],
        torch.randn(0, 7, 5, 5),
    ]
    for x in inputs:
        for image in (x, x.contiguous(memory_format=layout)):
            output = sparse.conv2d(image, values, indices, bias, (3, 3))
            assert_matches(output, conv2d_reference(image, weight, bias))


def test_results_ignore_the_default_dtype() -> None:
    weight, values, indices, bias = compressed_linear(10, 24)
    kernel, conv_values, conv_indices, conv_bias = compressed_conv(6, 8, 3, 3)
    x, image = torch.randn(3, 24), torch.randn(1, 8, 5, 5)
    torch.set_default_dtype(torch.float64)
    try:
        linear = sparse.linear(x, values, indices, bias)
        conv = sparse.conv2d(image, conv_values, conv_indices, conv_bias, (3, 3))
    finally:
        torch.set_default_dtype(torch.float32)
    assert (linear.dtype, conv.dtype) == (torch.float32, torch.float32)
    assert_matches(linear, linear_reference(x, weight, bias))
    assert_matches(conv, conv2d_reference(image, kernel, conv_bias))


def test_results_ignore_the_default_device() -> None:
    weight, values, indices, bias = compressed_linear(10, 24)
    x = torch.randn(3, 24)
    with torch.device("meta"):
        output = sparse.linear(x, values, indices, bias)
    assert_matches(output, linear_reference(x, weight, bias))


def test_nan_and_inf_reach_their_outputs_and_no_others() -> None:
    weight, values, indices, bias = compressed_linear(12, 32)
    x = torch.randn(20, 32)
    x[3, 5], x[8, 0] = torch.nan, torch.inf
    output = sparse.linear(x, values, indices, bias)
    clean = torch.tensor([row not in (3, 8) for row in range(20)])
    assert_matches(output[clean], linear_reference(x[clean], weight, bias))
    touched = weight[:, 5] != 0
    assert output[3, touched].isnan().all()
    assert not output[8, weight[:, 0] != 0].isfinite().any()
