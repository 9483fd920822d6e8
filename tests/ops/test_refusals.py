"""What the operators refuse, with the message of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from .operands import compressed_conv, compressed_linear, pruned, sparse

pytestmark = pytest.mark.usefixtures("seeded")


def linear_call(**changes: Any) -> Callable[[], Tensor]:
    _, values, indices, bias = compressed_linear(6, 20)
    arguments = {"input": torch.randn(3, 20), "values": values, "indices": indices, "bias": bias} | changes
    return lambda: sparse.linear(**arguments)


def conv_call(**changes: Any) -> Callable[[], Tensor]:
    _, values, indices, bias = compressed_conv(6, 8, 3, 3)
    arguments = {
        "input": torch.randn(1, 8, 5, 5), "values": values, "indices": indices, "bias": bias,
        "kernel_size": [3, 3],
    } | changes  # fmt: skip
    return lambda: sparse.conv2d(**arguments)


def crowded() -> Tensor:
    weight = pruned(6, 20)
    weight[4, 12:15] = 1
    return weight


REFUSALS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "pattern": (lambda: sparse.nm_mask(torch.randn(4, 8), 5, 4, 1), ValueError, "1 <= N <= M, not 5:4"),
    "pattern 0": (lambda: sparse.prune_(torch.randn(4, 8), 0, 4, 1), ValueError, "1 <= N <= M, not 0:4"),
    "dim": (lambda: sparse.nm_mask(torch.randn(4, 8), 2, 4, 2), ValueError, r"dim 2 .* \(4, 8\)"),
    "complex": (
        lambda: sparse.nm_mask(torch.zeros(4, 8) + 1j, 2, 4, 1),
        ValueError,
        "complex64 cannot be ranked",
    ),
    "tile shape": (
        lambda: sparse.transposable_mask(torch.randn(6, 8)),
        ValueError,
        r"nearest legal shape is \(8, 8\)",
    ),
    "tile dtype": (
        lambda: sparse.transposable_mask(torch.ones(4, 4, dtype=torch.int8)),
        ValueError,
        r"floating dtype, not torch\.int8",
    ),
    "scalar": (lambda: sparse.compress(torch.tensor(1.0)), ValueError, "not a scalar"),
    "compress dtype": (lambda: sparse.compress(torch.zeros(4, 8).double()), TypeError, r"not torch\.float64"),
    "crowded": (lambda: sparse.compress(crowded()), ValueError, "row 4.*group 3"),
    "values dtype": (
        lambda: sparse.decompress(torch.zeros(2, 4).double(), torch.zeros(2, 1, dtype=torch.uint8)),
        TypeError,
        r"not torch\.float64 and torch\.uint8",
    ),
    "pair shape": (
        lambda: sparse.decompress(torch.zeros(2, 4), torch.zeros(2, 2, dtype=torch.uint8)),
        ValueError,
        r"do not fit: \(2, 4\) and \(2, 2\)",
    ),
    "damaged": (
        lambda: sparse.decompress(torch.zeros(2, 4), torch.zeros(2, 1, dtype=torch.uint8)),
        ValueError,
        "row 0",
    ),
    "damaged linear": (linear_call(indices=torch.zeros(6, 3, dtype=torch.uint8)), ValueError, "row 0"),
    "activation": (linear_call(activation="tanh"), ValueError, "'tanh' is not one of"),
    "input dtype": (linear_call(input=torch.randn(3, 20).half()), TypeError, "one dtype, not torch.float16"),
    "bias dtype": (linear_call(bias=torch.randn(6).double()), TypeError, "one dtype"),
    "compute dtype": (
        linear_call(
            input=torch.zeros(3, 20, dtype=torch.int8), values=torch.zeros(6, 12, dtype=torch.int8), bias=None
        ),
        TypeError,
        "products need values of float32, float16, bfloat16, not torch.int8",
    ),
    "matrix": (
        linear_call(values=torch.zeros(2, 6, 12), indices=torch.zeros(2, 6, 3, dtype=torch.uint8)),
        ValueError,
        r"\[rows, K/2\]",
    ),
    "bias shape": (linear_call(bias=torch.randn(5)), ValueError, r"bias must be \[6\], not \(5,\)"),
    "width": (linear_call(input=torch.randn(3, 30)), ValueError, r"\(3, 30\).*K = 24"),
    "no dims": (linear_call(input=torch.tensor(1.0)), ValueError, r"shape \(\)"),
    "image dims": (conv_call(input=torch.randn(8, 5, 5)), ValueError, r"\[N, C, H, W\], not \(8, 5, 5\)"),
    "stride": (conv_call(stride=[0, 1]), ValueError, "must be positive"),
    "padding": (conv_call(padding=[0, -1]), ValueError, "padding not negative"),
    "channels": (conv_call(input=torch.randn(1, 16, 5, 5)), ValueError, "needs K = 144 columns"),
    "groups": (conv_call(groups=3), ValueError, "groups 3"),
    "too small": (conv_call(input=torch.randn(1, 8, 2, 5)), ValueError, "smaller than the kernel"),
}


@pytest.mark.parametrize("case", list(REFUSALS))
def test_bad_arguments_are_refused(case: str) -> None:
    call, error, message = REFUSALS[case]
    with pytest.raises(error, match=message):
        call()
