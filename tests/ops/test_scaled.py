"""The schemas of the 8-bit operators, on any device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from emulated import BF16, FLOAT, HALF, compressed, eight_bit, randn
from sparse24.ops import scaled


@pytest.mark.parametrize("out_dtype", scaled.OUT_DTYPES[torch.int8], ids=str)
def test_scaled_operators_are_well_formed(out_dtype: torch.dtype) -> None:
    x, weight = eight_bit(3, 40, dtype=torch.int8), eight_bit(8, 40, dtype=torch.int8, sparse=True)
    values, indices = compressed(weight)
    scale = torch.full((8,), 0.25)
    torch.library.opcheck(
        torch.ops.sparse24.scaled_linear.default, (x, values, indices, scale, None, out_dtype, "relu")
    )
    image = eight_bit(2, 40, 4, 4, dtype=torch.int8).contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(
        torch.ops.sparse24.scaled_conv2d.default, (image, values, indices, scale, None, out_dtype, (1, 1))
    )
    torch.library.opcheck(torch.ops.sparse24.quantize_per_token.default, (randn(2, 3, 8),))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"activation": "swish"}, ValueError, "'swish' is not one of"),
        ({"input": torch.zeros(3, 40)}, TypeError, "float32, float16 and bfloat16 are for linear"),
        (
            {"out_dtype": torch.float32},
            TypeError,
            "int8 gives int8, int32, float16, bfloat16, not torch.float32",
        ),
        ({"scale": torch.zeros(7)}, ValueError, r"scale must be float32 \[8\], not torch.float32 \(7,\)"),
        ({"bias": torch.zeros(8, dtype=HALF)}, ValueError, r"bias must be float32 \[8\], not torch.float16"),
        ({"input": torch.zeros(3, 64, dtype=torch.int8)}, ValueError, "K = 40 columns"),
        ({"values": torch.zeros(20, dtype=torch.int8)}, ValueError, "must be .rows, K/2. and .rows, K/8."),
    ],
    ids=str,
)
def test_scaled_linear_refuses(change: dict[str, Any], error: type[Exception], text: str) -> None:
    values, indices = compressed(eight_bit(8, 40, dtype=torch.int8, sparse=True))
    given = {
        "input": eight_bit(3, 40, dtype=torch.int8), "values": values, "indices": indices, "scale": None,
        "bias": None, "out_dtype": torch.int8, "activation": "none",
    }  # fmt: skip
    with pytest.raises(error, match=text):
        torch.ops.sparse24.scaled_linear(*{**given, **change}.values())


def test_scaled_conv2d_refuses_another_kernel() -> None:
    values, indices = compressed(eight_bit(8, 40, dtype=torch.int8, sparse=True))
    image = eight_bit(1, 40, 4, 4, dtype=torch.int8)
    with pytest.raises(ValueError, match="needs K = 360 columns"):
        torch.ops.sparse24.scaled_conv2d(image, values, indices, None, None, torch.int8, (3, 3))


@pytest.mark.parametrize("dtype", [FLOAT, HALF, BF16])
def test_quantize_per_token(dtype: torch.dtype) -> None:
    x = randn(3, 5, 33, dtype=dtype)
    x[0, 0] = 0
    x[0, 1, 3] = float("nan")
    x[0, 2, 4] = float("inf")
    x[0, 3] = 127 * 2**-3
    quantized, scale = torch.ops.sparse24.quantize_per_token(x)
    assert (quantized.dtype, scale.dtype, scale.shape) == (torch.int8, FLOAT, (3, 5))
    assert (quantized[0, 0] == 0).all()
    assert scale[0, 0] == 1
    assert scale[0, 1:3].isnan().all()
    assert (quantized[0, 1:3] == 0).all()
    assert (quantized[0, 3] == 127).all()
    finite = x.double()[1:]
    assert (scale[1:] - finite.abs().amax(-1) / 127).abs().max() <= 1e-7
    off = (quantized[1:] * scale[1:].double().unsqueeze(-1) - finite).abs() / scale[1:].unsqueeze(-1)
    assert off.max() <= 0.5 + 1e-4
    turned = x[1:].transpose(0, 1)
    assert torch.equal(torch.ops.sparse24.quantize_per_token(turned)[0], quantized[1:].transpose(0, 1))


def test_quantize_per_token_refuses() -> None:
    with pytest.raises(ValueError, match="not a scalar"):
        torch.ops.sparse24.quantize_per_token(torch.tensor(1.0))
    with pytest.raises(TypeError, match=r"not torch.int8"):
        torch.ops.sparse24.quantize_per_token(torch.zeros(3, dtype=torch.int8))


def test_an_input_is_divided_once_as_in_the_kernels() -> None:
    """x * (127 / absmax), each rounded once; by a reciprocal times 127 this one would be 64."""
    x = torch.zeros(1, 8)
    x[0, 0], x[0, 1] = 1.4482421875, 2.8964843750
    quantized, scale = torch.ops.sparse24.quantize_per_token(x)
    assert quantized[0, :2].tolist() == [63, 127]
    assert float(scale[0]) == float(torch.tensor(2.8964843750) / 127)
