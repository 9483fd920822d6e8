"""Convolutions of channels_last pixels as linear layers of windows, where those have kernels of pairs.

The shapes are those that do on AVX-512 with VNNI and BF16; other kernels multiply them as convolutions.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from reference import ACTIVATIONS, assert_matches, conv2d_reference
from sparse24 import SparseConv2d, masks, ops

pytestmark = pytest.mark.usefixtures("seeded")

GEOMETRIES: dict[str, dict[str, Any]] = {
    "pixels": {"kernel_size": 1},
    "strided pixels": {"kernel_size": 1, "stride": 2},
    "padded pixels": {"kernel_size": 1, "padding": 1},
    "3x3": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "padding": (0, 1), "stride": (2, 1)},
    "dilated": {"kernel_size": (2, 3), "padding": 2, "dilation": (1, 2)},
    "groups": {"kernel_size": 3, "padding": 1, "groups": 2},
}


def convolution(channels: int, dtype: torch.dtype, geometry: str, bias: bool = True) -> nn.Conv2d:
    dense = nn.Conv2d(channels, 256, **GEOMETRIES[geometry], bias=bias).to(dtype)
    masks.prune_(dense.weight.data)
    return dense


@pytest.mark.parametrize("channels", [64, 66, 70])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_bfloat16_matches_float64(geometry: str, channels: int) -> None:
    dense = convolution(channels, torch.bfloat16, geometry, bias=channels != 66)
    for threads in (1, 3):
        for activation in ACTIVATIONS:
            layer = SparseConv2d.from_dense(dense)
            layer.activation = activation
            x = torch.randn(3, channels, 9, 12).bfloat16().contiguous(memory_format=torch.channels_last)
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            output = layer(x)
            torch.set_num_threads(before)
            assert output.is_contiguous(memory_format=torch.channels_last)
            options = {k: v for k, v in GEOMETRIES[geometry].items() if k != "kernel_size"}
            assert_matches(output, conv2d_reference(x, dense.weight, dense.bias, activation, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("way", ["static", "dynamic"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_int8_matches_torch(geometry: str, way: str, dtype: torch.dtype) -> None:
    dense = convolution(66, dtype, geometry)
    layer = SparseConv2d.from_dense(dense).to_int8(way, 0.03 if way == "static" else None)
    x = torch.randn(3, 66, 9, 12).to(dtype).contiguous(memory_format=torch.channels_last)
    x[1] *= 3  # images differ in their scales
    output = layer(x)
    contiguous = layer(x.contiguous())  # by another kernel
    scale = layer.get_buffer("weight_scale")
    weight = ops.dequantized(layer.values, layer.indices, scale, torch.float64)
    if way == "static":
        met = (x.double() / 0.03).round().clamp(-127, 127) * 0.03
    else:
        step = x.double().abs().amax((1, 2, 3), keepdim=True) / 127
        met = (x.double() / step).round().clamp(-127, 127) * step
    options = {k: v for k, v in GEOMETRIES[geometry].items() if k != "kernel_size"}
    exact = conv2d_reference(met, layer._form.to_weight(weight), layer.bias, **options)
    for each in (output, contiguous):
        assert (each.double() - exact).abs().max() <= 0.01 * exact.abs().max()
    assert_matches(output, contiguous.double(), dtype)


def test_many_pixels_pass_in_parts() -> None:
    dense = convolution(64, torch.bfloat16, "3x3")
    layer = SparseConv2d.from_dense(dense)
    x = torch.randn(2, 64, 56, 60).bfloat16().contiguous(memory_format=torch.channels_last)
    assert_matches(layer(x), conv2d_reference(x, dense.weight, dense.bias, padding=1))
    assert layer(x[:0]).shape == (0, 256, 56, 60)


def test_damaged_indices_are_named() -> None:
    layer = SparseConv2d.from_dense(convolution(64, torch.bfloat16, "3x3"))
    layer.indices[9, 2] = 0
    with pytest.raises(ValueError, match="row 9"):
        layer(torch.randn(1, 64, 5, 5).bfloat16().contiguous(memory_format=torch.channels_last))
