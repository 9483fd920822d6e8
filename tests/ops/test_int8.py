"""Products of int8 weights: against float64, for every way to treat the input, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from reference import TOLERANCE, assert_matches, conv2d_reference, linear_reference, relative_error
from sparse24.nn.int8 import quantize_rows
from sparse24.ops import int8

from .operands import DTYPES, compressed_conv, compressed_linear, sparse

pytestmark = pytest.mark.usefixtures("seeded")

#: input_scale of weight-only, dynamic and static; the last one saturates some inputs.
SCALES = {"weight only": None, "dynamic": 0.0, "static": 0.03, "saturating": 0.01}


def scale_of(name: str) -> Tensor | None:
    number = SCALES[name]
    return None if number is None else torch.tensor(number)


def int8_linear_operands(rows: int, columns: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The dense weight in float64; values, indices, weight_scale; bias."""
    _, values, indices, bias = compressed_linear(rows, columns)
    kept, scale = quantize_rows(values)
    weight = sparse.decompress(kept, indices)[:, :columns].double() * scale.double().unsqueeze(1)
    return weight, kept, indices, scale, bias.to(dtype)


def as_multiplied(x: Tensor, input_scale: Tensor | None, dim: list[int]) -> Tensor:
    """What of x meets the weight, in float64."""
    if input_scale is None:
        return x.double()
    quantized, scale = int8.quantize_input(x, input_scale, dim)
    return quantized.double() * scale.double()


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 9, 130])
def test_linear_matches_float64(tokens: int, dtype: torch.dtype, name: str) -> None:
    for rows, columns in ((1, 4), (9, 65), (40, 200)):
        weight, values, indices, scale, bias = int8_linear_operands(rows, columns, dtype)
        x = torch.randn(tokens, columns).to(dtype)
        output = sparse.int8_linear(x, values, indices, scale, scale_of(name), bias, "relu")
        expected = linear_reference(as_multiplied(x, scale_of(name), [-1]), weight, bias, "relu")
        assert output.dtype == dtype
        assert_matches(output, expected, dtype)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_conv2d_matches_float64(dtype: torch.dtype, name: str, channels_last: bool) -> None:
    for shape, groups in (((6, 7, 3, 3), 1), ((8, 4, 1, 1), 2), ((8, 5, 2, 3), 4)):
        _, values, indices, bias = compressed_conv(*shape)
        kept, scale = quantize_rows(values)
        matrix = sparse.decompress(kept, indices).double() * scale.double().unsqueeze(1)
        weight = int8.conv_matrix_to_weight(matrix, shape[1], shape[2:])
        x = torch.randn(2, shape[1] * groups, 9, 11).to(dtype)
        x[1] *= 3  # a scale of its own for each image
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        window = (shape[2:], (1, 2), (1, 0), (1, 1), groups)
        output = sparse.int8_conv2d(x, kept, indices, scale, scale_of(name), bias.to(dtype), *window, "none")
        expected = conv2d_reference(
            as_multiplied(x, scale_of(name), [1, 2, 3]), weight, bias.to(dtype), stride=(1, 2),
            padding=(1, 0), groups=groups,
        )  # fmt: skip
        assert output.dtype == dtype
        assert output.is_contiguous(memory_format=torch.channels_last) == channels_last
        assert_matches(output, expected, dtype)


@pytest.mark.parametrize("name", SCALES)
def test_the_torch_path_gives_the_same(name: str) -> None:
    _, values, indices, scale, bias = int8_linear_operands(9, 65, torch.float32)
    x = torch.randn(2, 3, 65)
    operands = (x, values, indices, scale, scale_of(name), bias, "gelu")
    assert relative_error(sparse.int8_linear(*operands), int8.int8_linear_torch(*operands)) < 2e-6
    _, values, indices, bias = compressed_conv(6, 5, 3, 3)
    kept, scale = quantize_rows(values)
    operands = (torch.randn(2, 10, 7, 7), kept, indices, scale, scale_of(name), bias, (3, 3), (2, 1), (1, 1))
    options = ((1, 1), 2, "relu")
    expected = int8.int8_conv2d_torch(*operands, *options)
    assert relative_error(sparse.int8_conv2d(*operands, *options), expected) < 2e-6


@pytest.mark.parametrize("name", ["dynamic", "static"])
def test_integers_are_exact(name: str) -> None:
    """K = 4096 sums of int8 products are the same integer however they are summed up."""
    weight, values, indices, _, _ = int8_linear_operands(16, 4096, torch.float32)
    x = torch.randint(-127, 128, (33, 4096)).float()
    x[:, 0] = 127
    one = torch.ones(16)
    input_scale = torch.tensor(0.0 if name == "dynamic" else 1.0)
    output = sparse.int8_linear(x, values, indices, one, input_scale)
    dense = sparse.decompress(values, indices).double()
    assert torch.equal(output, (x.double() @ dense.T).float())
    assert weight.shape == dense.shape


@pytest.mark.parametrize("tokens", [3, 40])
@pytest.mark.parametrize("name", ["weight only", "dynamic", "static"])
def test_what_is_not_finite_stays_in_its_token(name: str, tokens: int) -> None:
    _, values, indices, scale, bias = int8_linear_operands(24, 64, torch.float32)
    x = torch.randn(tokens, 64)
    clean = sparse.int8_linear(x, values, indices, scale, scale_of(name), bias)
    x[1, 5] = torch.inf
    output = sparse.int8_linear(x, values, indices, scale, scale_of(name), bias)
    others = torch.arange(tokens) != 1
    assert torch.equal(output[others], clean[others])
    assert not output[1].isfinite().all()


def test_zero_tokens_scales_and_rows_give_the_bias() -> None:
    _, values, indices, scale, bias = int8_linear_operands(8, 40, torch.float32)
    zeros = torch.zeros(2, 40)
    expected = bias.expand(2, 8)
    for name in SCALES:
        assert torch.equal(sparse.int8_linear(zeros, values, indices, scale, scale_of(name), bias), expected)
    nothing = torch.zeros(8)
    output = sparse.int8_linear(torch.randn(2, 40), values, indices, nothing, torch.tensor(0.0), bias)
    assert torch.equal(output, expected)
    assert sparse.int8_linear(torch.zeros(0, 40), values, indices, scale, torch.tensor(0.0)).shape == (0, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_the_input_and_no_scale(dtype: torch.dtype) -> None:
    weight, values, indices, scale, bias = int8_linear_operands(8, 40, torch.float32)
    x = torch.randn(5, 40)
    with torch.autocast("cpu", dtype):
        output = sparse.int8_linear(x, values, indices, scale, None, bias)
    assert output.dtype == dtype
    expected = linear_reference(x.to(dtype), weight, bias)
    assert relative_error(output, expected) <= 2 * TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"activation": "swish"}, ValueError, "'swish' is not one of"),
        ({"values": torch.zeros(8, 20)}, TypeError, "values must be int8, not torch.float32"),
        ({"input": torch.zeros(3, 40, dtype=torch.int8)}, TypeError, "must have one dtype of float32"),
        ({"bias": torch.zeros(8, dtype=torch.float16)}, TypeError, "must have one dtype of float32"),
        ({"bias": torch.zeros(7)}, ValueError, r"bias must be \[8\], not \(7,\)"),
        ({"weight_scale": torch.zeros(7)}, ValueError, r"weight_scale must be \[8\], not \(7,\)"),
        (
            {"weight_scale": torch.zeros(8).half()},
            TypeError,
            "weight_scale must be float32, not torch.float16",
        ),
        ({"input_scale": torch.zeros(3)}, ValueError, r"input_scale must be a scalar \[\], not \(3,\)"),
        ({"input_scale": torch.tensor(1)}, TypeError, "input_scale must be float32, not torch.int64"),
        ({"input_scale": torch.tensor(-1.0)}, ValueError, "positive and finite, not -1.0"),
        ({"input_scale": torch.tensor(torch.nan)}, ValueError, "positive and finite, not nan"),
        ({"input": torch.zeros(3, 64)}, ValueError, "K = 40 columns"),
        ({"values": torch.zeros(20, dtype=torch.int8)}, ValueError, "must be .rows, K/2. and .rows, K/8."),
    ],
    ids=str,
)
def test_int8_linear_refuses(change: dict[str, Any], error: type[Exception], text: str) -> None:
    _, values, indices, scale, bias = int8_linear_operands(8, 40, torch.float32)
    given = {
        "input": torch.zeros(3, 40), "values": values, "indices": indices, "weight_scale": scale,
        "input_scale": None, "bias": bias, "activation": "none",
    }  # fmt: skip
    with pytest.raises(error, match=text):
        sparse.int8_linear(*{**given, **change}.values())


def test_int8_conv2d_refuses_another_kernel() -> None:
    _, values, indices, scale, _ = int8_linear_operands(8, 40, torch.float32)
    with pytest.raises(ValueError, match="needs K = 360 columns"):
        sparse.int8_conv2d(torch.zeros(1, 40, 4, 4), values, indices, scale, None, None, (3, 3))


def test_damaged_indices_are_named() -> None:
    _, values, indices, scale, _ = int8_linear_operands(8, 40, torch.float32)
    indices[2, 1] = 0
    for tokens in (1, 33):
        for input_scale in (None, torch.tensor(0.0)):
            with pytest.raises(ValueError, match="row 2"):
                sparse.int8_linear(torch.randn(tokens, 40), values, indices, scale, input_scale)
