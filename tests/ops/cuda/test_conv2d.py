"""The convolution of CUDA on the emulator, with CPU tensors. Not validation on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from emulated import FLOAT, HALF, EmulatedStream, Emulator, compressed, randn
from reference import assert_matches, conv2d_reference
from sparse24 import masks, ops
from sparse24.ops.cuda import cusparselt, device_kernels, patches, route, weights
from sparse24.ops.cuda import products as cuda
from sparse24.ops.cuda.cusparselt import Algorithm
from sparse24.ops.cuda.launch import Epilogue
from sparse24.ops.cuda.products import Window
from sparse24.ops.cuda.route import Measured
from sparse24.ops.cuda.weights import Canonical

from .precision import close

WINDOWS = [  # channels, out_channels, kernel, stride, padding, dilation, groups
    (16, 32, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (16, 32, (3, 3), (2, 2), (1, 1), (1, 1), 1),
    (16, 32, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    (16, 32, (1, 1), (2, 2), (0, 0), (1, 1), 1),
    (20, 40, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    (6, 24, (2, 3), (1, 2), (0, 1), (2, 1), 1),
    (32, 64, (3, 3), (1, 1), (1, 1), (1, 1), 2),
    (32, 64, (1, 1), (1, 1), (0, 0), (1, 1), 4),
]


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [HALF, FLOAT])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.usefixtures("tf32", "patches_gain")
def test_conv2d(
    window: tuple[Any, ...],
    dtype: torch.dtype,
    channels_last: bool,
    emulator: Emulator,
    stream: EmulatedStream,
) -> None:
    channels, out_channels, *geometry, groups = window
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = randn(3, channels, 9, 8, dtype=dtype).contiguous(memory_format=layout)
    weight = randn(out_channels, channels // groups, *geometry[0], dtype=FLOAT, seed=3)
    masks.prune_(weight, pattern="1:2" if dtype is FLOAT else "2:4")
    weight, bias = weight.to(dtype), randn(out_channels, dtype=dtype, seed=4)
    operands = compressed(ops.conv_weight_to_matrix(weight))
    output = cuda.conv2d(x, *operands, bias, Window(*geometry, groups), "relu", stream)
    stride, padding, dilation = geometry[1:]
    expected = conv2d_reference(
        x, weight, bias, "relu", stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    close(output, expected)
    assert output.is_contiguous(memory_format=layout)
    assert emulator.launches() >= groups


@pytest.mark.usefixtures("patches_gain")
@pytest.mark.parametrize(
    ("bytes", "launches"),
    [(2 * 64 * 144 * 2, 3), (64 * 144 * 2 - 1, 10), (3 * 8 * 144 * 2, 15), (1, 40)],
    ids=["two images", "most of an image", "three lines", "a line"],
)
def test_patches_are_written_for_as_much_as_fits(
    bytes: int, launches: int, emulator: Emulator, stream: EmulatedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = randn(5, 16, 8, 8), randn(32, 16, 3, 3, dtype=FLOAT)
    masks.prune_(weight)
    operands = compressed(ops.conv_weight_to_matrix(weight.half()))
    window = Window((3, 3), (1, 1), (1, 1), (1, 1), 1)
    monkeypatch.setattr(patches, "IM2COL_BYTES", bytes)
    output = cuda.conv2d(x, *operands, None, window, "none", stream)
    assert_matches(output, conv2d_reference(x, weight.half(), padding=1))
    assert emulator.launches() == launches


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("kept", [True, False])
def test_patches_are_not_copied_untuned(
    kept: bool,
    channels_last: bool,
    emulator: Emulator,
    stream: EmulatedStream,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A 3 x 3 convolution runs dense, through the copy where one is kept, until tuning found it to gain."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = randn(5, 16, 8, 8).contiguous(memory_format=layout)
    weight = randn(32, 16, 3, 3, dtype=FLOAT)
    masks.prune_(weight)
    operands = compressed(ops.conv_weight_to_matrix(weight.half()))
    weights.keep_dense(*operands, kept)
    window = Window((3, 3), (1, 1), (1, 1), (1, 1), 1)
    expanded: list[Any] = []
    expand = device_kernels.expand
    monkeypatch.setattr(device_kernels, "expand", lambda *given: expanded.append(given) or expand(*given))
    for _ in range(3):
        output = cuda.conv2d(x, *operands, None, window, "relu", stream)
        assert_matches(output, conv2d_reference(x, weight.half(), None, "relu", padding=1))
        assert output.is_contiguous(memory_format=layout)
    assert emulator.launches() == 0
    assert len(expanded) == (1 if kept else 3)
    call = cuda.conv2d_call(x, 32, window, (8, 8), HALF, Epilogue())
    on = cusparselt.gpu(0)
    assert "a 3 x 3 convolution copies its patches" in route.choose(call, on, kept).reason
    for sparse, runs in ((10.0, True), (30.0, False)):
        route.measured[route.measured_key(call, on)] = Measured(Algorithm(), sparse, 20.0, 20.0)
        route.forget()
        assert route.choose(call, on, kept).sparse == runs
    other = call._replace(window=(3, 3, 2, 2, 1, 1, 1, 1, 1))
    assert "copies its patches" in route.choose(other, on, kept).reason  # figures are of one window
    pointwise = Window((1, 1), (1, 1), (0, 0), (1, 1), 1)
    assert cuda.conv2d_call(x, 32, pointwise, (8, 8), HALF, Epilogue()).window == ()


@pytest.mark.usefixtures("patches_gain")
def test_groups_of_no_legal_size_run_dense(emulator: Emulator, stream: EmulatedStream) -> None:
    x, weight = randn(2, 16, 6, 6), randn(24, 8, 3, 3, dtype=FLOAT)
    masks.prune_(weight)
    values, indices = compressed(ops.conv_weight_to_matrix(weight.half()))
    window = Window((3, 3), (1, 1), (1, 1), (1, 1), 2)
    output = cuda.conv2d(x, values, indices, None, window, "none", stream)
    assert_matches(output, conv2d_reference(x, weight.half(), padding=1, groups=2))
    assert emulator.launches() == 0
    call = cuda.conv2d_call(x, len(values), window, (6, 6), HALF, Epilogue())
    reason = cuda.conv2d_route(call, Canonical(values, indices), window, cusparselt.gpu(0)).reason
    assert reason == "12 output channels in each of 2 groups are no legal size; nearest: 16"
