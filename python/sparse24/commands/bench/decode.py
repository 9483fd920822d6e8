"""Products with few tokens, fp32, and weights that no cache holds: bound by the memory that is read."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ...timing import interleaved_medians
from .linear import SHAPES
from .table import Rows, Setting, Table, pruned, ratios

COLD_BYTES = 160e6  # weights that take turns: more than any cache holds
TOKENS = (1, 2, 4, 8)


def tables(setting: Setting) -> list[Table]:
    caption = "Linear fp32, few tokens, cold weights (more of them than any cache holds, taking turns)."
    times = ("torch", "prepacked oneDNN", "2:4")
    head = ["out, in", "tokens", *times, "x torch", "x best dense", "weights read, GB/s"]
    with Rows(setting, "decode", caption, head) as rows:
        for m, k in SHAPES:
            _fill(rows, m, k, setting.seconds)
    return [rows.table()]


def _fill(rows: Rows, m: int, k: int, seconds: float) -> None:
    """The rows of a weight [m, k]."""
    weights = [pruned(m, k) for _ in range(int(COLD_BYTES / (4 * m * k)) + 2)]
    compressed = [torch.ops.sparse24.compress(weight) for weight in weights]
    packed = [torch.ops.mkldnn._reorder_linear_weight(weight, 1) for weight in weights]
    weight_bytes = m * k * (2 + 1 / 8)  # half the fp32 values, two bits each
    for n in TOKENS:
        x = torch.randn(n, k)
        for values, indices in compressed:
            torch.ops.sparse24.linear(x, values, indices, None)
        found = interleaved_medians(_turns(x, weights, packed, compressed), seconds)
        dense, onednn, sparse = found
        times = [f"{each * 1e6:.0f} us" for each in found]
        speed = f"{weight_bytes / sparse / 1e9:.1f}"
        rows.add([f"{m}, {k}", str(n), *times, *ratios(sparse, dense, min(dense, onednn)), speed])


def _turns(
    x: Tensor, weights: list[Tensor], packed: list[Tensor], compressed: list[tuple[Tensor, Tensor]]
) -> list[Callable[[], object]]:
    dense, onednn, sparse = itertools.cycle(weights), itertools.cycle(packed), itertools.cycle(compressed)
    return [
        lambda: F.linear(x, next(dense)),
        lambda: torch.ops.mkldnn._linear_pointwise(x, next(onednn), None, "none", [], ""),
        lambda: torch.ops.sparse24.linear(x, *next(sparse), None),
    ]
