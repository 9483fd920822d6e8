"""The compiled CUDA kernels, as far as a machine without a GPU shows them: which are called, with what."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from torch import Tensor

from emulated import BF16, FLOAT, HALF, EmulatedStream, compressed, randn, sparse_weight
from sparse24 import _C, ops
from sparse24.ops.cuda import device_kernels
from sparse24.ops.cuda import operators as cuda_ops


class KernelsOnCpu:
    """The functions of ``_CUDA`` on CPU memory, by the kernels that the CUDA bodies are tested against."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.called.append(name)
        return getattr(self, f"on_{name}")

    @staticmethod
    def on_mask24(weight: int, dtype: int, rows: int, cols: int, mask: int, stream: int) -> None:
        _C.nm_mask(weight, dtype, rows, cols, 1, 2, 4, mask, 1)

    @staticmethod
    def on_prune24(weight: int, dtype: int, rows: int, cols: int, mask: int, stream: int) -> None:
        _C.nm_prune(weight, dtype, rows, cols, 1, 2, 4, mask, 1)

    @staticmethod
    def on_transposable_mask(weight: int, dtype: int, rows: int, cols: int, mask: int, stream: int) -> None:
        _C.transposable_mask(weight, dtype, rows, cols, mask, 1)

    @staticmethod
    def on_compress(
        dense: int, dtype: int, rows: int, cols: int, stride: int, values: int, indices: int, crowded: int,
        stream: int,
    ) -> None:  # fmt: skip
        assert stride == cols
        try:
            _C.compress(dense, dtype, rows, cols, values, indices)
        except ValueError:  # the kernel leaves row * groups + group: here the test's only crowded group
            ctypes.c_int64.from_address(crowded).value = 3

    @staticmethod
    def on_expand(
        values: int, indices: int, dtype: int, rows: int, padded: int, dense: int, dense_rows: int,
        dense_cols: int, stream: int,
    ) -> None:  # fmt: skip
        assert (dense_rows, dense_cols) == (rows, padded)
        _C.expand(values, indices, dtype, rows, padded, dense)

    @staticmethod
    def on_quantize_per_token(
        x: int, dtype: int, n: int, k: int, stride: int, out: int, out_dtype: int, padded: int, given: int,
        scale: int, stream: int,
    ) -> None:  # fmt: skip
        assert (dtype, out_dtype, padded, given) == (0, 3, k, 0)
        rows = [(ctypes.c_float * k).from_address(x + 4 * stride * row) for row in range(n)]
        quantized, scales = device_kernels.quantize_per_token(torch.tensor([list(row) for row in rows]), -1)
        ctypes.memmove(out, quantized.data_ptr(), n * k)
        ctypes.memmove(scale, scales.data_ptr(), 4 * n)

    @staticmethod
    def on_im2col(
        x: int, matrix: int, size: int, image: Any, channels: Any, window: Any, k: int, ld: int, tokens: Any,
        stream: int,
    ) -> None:  # fmt: skip
        assert (size, k, tokens[0]) == (2, ld, 0)
        batch, height, width, all_channels = image
        pixels = (ctypes.c_uint16 * (batch * height * width * all_channels)).from_address(x)
        whole = torch.tensor(list(pixels), dtype=torch.int32).to(torch.int16).view(HALF).view(image)
        sizes = tuple(
            (image[1 + i] + 2 * window[4 + i] - window[6 + i] * (window[i] - 1) - 1) // window[2 + i] + 1
            for i in range(2)
        )
        rows = device_kernels.im2col(
            whole, *channels, window[:2], window[2:4], window[4:6], window[6:], sizes, k, -1
        )
        assert rows.shape == (tokens[1], ld)
        ctypes.memmove(matrix, rows.data_ptr(), rows.numel() * 2)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> KernelsOnCpu:
    """``_CUDA`` as if it were built and every stream but -1 on a GPU."""
    found = KernelsOnCpu()
    monkeypatch.setattr(device_kernels, "BUILT", True)
    monkeypatch.setattr(device_kernels, "_CUDA", found, raising=False)
    return found


@pytest.mark.parametrize("dtype", [HALF, BF16, FLOAT])
def test_masks_of_cuda_weights_come_from_the_kernels(dtype: torch.dtype, kernels: KernelsOnCpu) -> None:
    stream = EmulatedStream()
    weight = randn(3, 8, 40, dtype=dtype)
    expected = torch.ops.sparse24.nm_mask(weight, 2, 4, -1)
    assert torch.equal(cuda_ops.KERNELS["nm_mask"](weight, 2, 4, 2, stream=stream), expected)
    pruned = weight.clone()
    version = pruned._version
    assert torch.equal(cuda_ops.KERNELS["prune_"](pruned, 2, 4, -1, stream=stream), expected)
    assert torch.equal(pruned, weight.masked_fill(~expected, 0))
    assert pruned._version > version
    tiles = torch.ops.sparse24.transposable_mask(weight[0])
    assert torch.equal(cuda_ops.KERNELS["transposable_mask"](weight[0], stream=stream), tiles)
    assert kernels.called == ["mask24", "prune24", "transposable_mask"]


def test_other_patterns_and_layouts_are_left_to_torch(kernels: KernelsOnCpu) -> None:
    stream, weight = EmulatedStream(), randn(8, 40)
    run = cuda_ops.KERNELS["nm_mask"]
    for n, m, dim in ((1, 4, -1), (2, 4, 0)):
        assert torch.equal(run(weight, n, m, dim, stream=stream), ops.nm_mask_torch(weight, n, m, dim))
    turned = weight.t()
    assert torch.equal(run(turned, 2, 4, 1, stream=stream), ops.nm_mask_torch(turned, 2, 4, 1))
    pruned = turned.clone(memory_format=torch.preserve_format)
    mask = cuda_ops.KERNELS["prune_"](pruned, 2, 4, 1, stream=stream)
    assert torch.equal(pruned != 0, mask)
    double = weight[:, :8].double()
    tiles = cuda_ops.KERNELS["transposable_mask"](double, stream=stream)
    assert torch.equal(tiles, ops.transposable_mask_torch(double))
    assert kernels.called == []


def test_cuda_weights_are_compressed_by_the_kernel(kernels: KernelsOnCpu) -> None:
    stream, weight = EmulatedStream(), sparse_weight(6, 20, HALF).view(2, 3, 20)
    values, indices = cuda_ops.KERNELS["compress"](weight, stream=stream)
    expected = torch.ops.sparse24.compress(weight)
    assert torch.equal(values, expected[0])
    assert torch.equal(indices, expected[1])
    crowded = torch.zeros(2, 8, dtype=HALF)
    crowded[1, 4:7] = 1
    with pytest.raises(ValueError, match=r"not 2:4: row 1, group 1 \(columns 4 to 7\) holds more than two"):
        cuda_ops.KERNELS["compress"](crowded, stream=stream)
    assert set(kernels.called) == {"compress"}


def test_expanding_quantizing_and_patches_by_the_kernels(
    kernels: KernelsOnCpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = sparse_weight(6, 24, HALF)
    values, indices = compressed(weight)
    x, image = randn(5, 33, dtype=FLOAT), randn(2, 7, 6, 8)
    patches = (image, 2, 5, (3, 2), (2, 1), (1, 0), (1, 2), (4, 4), 48)
    without = (
        device_kernels.expand(values, indices, 6, 24, 0),
        *device_kernels.quantize_per_token(x, 0),
        device_kernels.im2col(*patches, 0),
    )
    inside = []

    def usable(tensor: Tensor) -> bool:  # the stand-ins call the torch versions in their turn
        inside.append(tensor)
        return len(inside) in (1, 2, 4)

    monkeypatch.setattr(device_kernels, "usable", usable)
    by_kernels = (
        device_kernels.expand(values, indices, 6, 24, 0),
        *device_kernels.quantize_per_token(x, 0),
        device_kernels.im2col(*patches, 0),
    )
    for one, other in zip(by_kernels, without, strict=True):
        assert torch.equal(one, other)
    assert kernels.called == ["expand", "quantize_per_token", "im2col"]
