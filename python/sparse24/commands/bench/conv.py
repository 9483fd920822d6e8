"""Convolutions, fp32: against stock torch, and against oneDNN with weights packed beforehand.

torch's own path through MKL is held back on AMD; with prepacked weights, as ``torch.compile`` with freezing
has them, it is the best dense that runs here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import ops
from ...timing import interleaved_medians
from .table import Rows, Setting, Table, giga, pruned, ratios

SHAPES = [  # in, out, height = width, kernel
    (64, 64, 56, 3),
    (128, 128, 28, 3),
    (256, 256, 14, 3),
    (512, 512, 7, 3),
    (256, 1024, 14, 1),
    (1024, 256, 14, 1),
    (512, 2048, 7, 1),
]
BATCH = 8


def tables(setting: Setting) -> list[Table]:
    head = ["in -> out, size, kernel", "torch GF/s", "prepacked oneDNN", "2:4 GF/s", "x torch", "x prepacked"]
    caption = (
        f"Convolution fp32, batch {BATCH}, stride 1. Each column is the better of contiguous and "
        "channels_last inputs."
    )
    with Rows(setting, "conv", caption, head) as rows:
        for c, o, size, r in SHAPES:
            dense, packed, sparse = _times(c, o, size, r, 2 * setting.seconds)
            work = 2.0 * BATCH * size * size * o * c * r * r
            speeds = [giga(work, t) for t in (dense, packed, sparse)]
            rows.add([f"{c} -> {o}, {size}x{size}, {r}x{r}", *speeds, *ratios(sparse, dense, packed)])
    return [rows.table()]


def _times(c: int, o: int, size: int, r: int, seconds: float) -> tuple[float, float, float]:
    """Seconds of torch, of prepacked oneDNN, and of the 2:4 product, each in the better memory format."""
    last, pad = torch.channels_last, r // 2
    weight, bias, x = pruned(o, c, r, r), torch.randn(o), torch.randn(BATCH, c, size, size)
    values, indices = torch.ops.sparse24.compress(ops.conv_weight_to_matrix(weight))
    x_last, weight_last = x.contiguous(memory_format=last), weight.contiguous(memory_format=last)

    def sparse(x: Tensor) -> object:
        return torch.ops.sparse24.conv2d(x, values, indices, bias, (r, r), (1, 1), (pad, pad))

    turns: list[Callable[[], object]] = [
        lambda: F.conv2d(x, weight, bias, 1, pad),
        lambda: F.conv2d(x_last, weight_last, bias, 1, pad),
        _prepacked(weight, bias, x, pad),
        _prepacked(weight, bias, x_last, pad),
        lambda: sparse(x),
        lambda: sparse(x_last),
    ]
    with torch.no_grad():
        times = interleaved_medians(turns, seconds)
    return min(times[:2]), min(times[2:4]), min(times[4:])


def _prepacked(weight: Tensor, bias: Tensor, x: Tensor, pad: int) -> Callable[[], object]:
    """The convolution as torch.compile with freezing runs it: oneDNN, weights in its own layout."""
    onednn, one = torch.ops.mkldnn, [1, 1]
    packed = onednn._reorder_convolution_weight(weight, [pad, pad], one, one, 1, list(x.shape))
    return lambda: onednn._convolution_pointwise(x, packed, bias, [pad, pad], one, one, 1, "none", [], "")
