"""Three-dimensional convolutions, fp32, against stock torch: where they pay."""

from __future__ import annotations

import math

import torch
from torch import nn

from ... import SparseConv3d
from ...masks import prune_
from ...timing import interleaved_medians
from .table import Rows, Setting, Table, giga, ratios

Kernel = tuple[int, int, int]
SHAPES: list[tuple[int, int, tuple[int, int, int], Kernel]] = [  # in, out, depth x height x width, kernel
    (64, 64, (8, 28, 28), (3, 3, 3)),
    (128, 128, (8, 14, 14), (3, 3, 3)),
    (256, 256, (4, 14, 14), (3, 3, 3)),
    (64, 64, (16, 56, 56), (3, 3, 3)),
    (64, 64, (8, 28, 28), (1, 3, 3)),
    (64, 64, (8, 28, 28), (3, 1, 1)),
    (64, 144, (8, 28, 28), (1, 1, 1)),
    (256, 64, (8, 14, 14), (1, 1, 1)),
]


def tables(setting: Setting) -> list[Table]:
    """A row a shape."""
    head = ["in -> out, size, kernel", "torch GF/s", "2:4 GF/s", "x torch"]
    caption = (
        "3-D convolution fp32, batch 1, stride 1. Each column is the better of contiguous and "
        "channels_last_3d inputs."
    )
    with Rows(setting, "conv3d", caption, head) as rows:
        for c, o, size, kernel in SHAPES:
            dense, sparse = _times(c, o, size, kernel, 2 * setting.seconds)
            work = 2.0 * math.prod(size) * o * c * math.prod(kernel)
            names = ("x".join(map(str, each)) for each in (size, kernel))
            speeds = [giga(work, t) for t in (dense, sparse)]
            rows.add([f"{c} -> {o}, {', '.join(names)}", *speeds, *ratios(sparse, dense)])
    return [rows.table()]


def _times(c: int, o: int, size: tuple[int, int, int], kernel: Kernel, seconds: float) -> tuple[float, float]:
    """Seconds of torch and of the 2:4 layer, each in the better memory format."""
    last = torch.channels_last_3d
    dense = nn.Conv3d(c, o, kernel, padding=(kernel[0] // 2, kernel[1] // 2, kernel[2] // 2))
    prune_(dense.weight.data)
    sparse, x = SparseConv3d.from_dense(dense), torch.randn(1, c, *size)
    dense_last = SparseConv3d.to_dense(sparse).to(memory_format=last)  # type: ignore[call-overload]
    x_last = x.contiguous(memory_format=last)
    turns = [lambda: dense(x), lambda: dense_last(x_last), lambda: sparse(x), lambda: sparse(x_last)]
    with torch.no_grad():
        times = interleaved_medians(turns, seconds)
    return min(times[:2]), min(times[2:])
