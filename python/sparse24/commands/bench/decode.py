"""Products with few tokens, fp32, and weights that no cache holds: bound by the memory that is read."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ...timing import interleaved_medians
from .linear import SHAPES
from .table import Setting, Table, pruned, ratios

COLD_BYTES = 160e6  # weights that take turns: more than any cache holds
TOKENS = (1, 2, 4, 8)


def tables(setting: Setting) -> list[Table]:
    rows = [["out, in", "tokens", "torch", "2:4", "x torch", "weights read, GB/s"]]
    for m, k in SHAPES:
        weights = [pruned(m, k) for _ in range(int(COLD_BYTES / (4 * m * k)) + 2)]
        compressed = [torch.ops.sparse24.compress(weight) for weight in weights]
        weight_bytes = m * k * (2 + 1 / 8)  # half the fp32 values, two bits each
        for n in TOKENS:
            x = torch.randn(n, k)
            for values, indices in compressed:
                torch.ops.sparse24.linear(x, values, indices, None)
            dense, sparse = interleaved_medians(_turns(x, weights, compressed), setting.seconds)
            times = [f"{dense * 1e6:.0f} us", f"{sparse * 1e6:.0f} us"]
            rows.append(
                [f"{m}, {k}", str(n), *times, *ratios(sparse, dense), f"{weight_bytes / sparse / 1e9:.1f}"]
            )
    caption = "Linear fp32, few tokens, cold weights (more of them than any cache holds, taking turns)."
    return [Table("decode", caption, rows)]


def _turns(
    x: Tensor, weights: list[Tensor], compressed: list[tuple[Tensor, Tensor]]
) -> list[Callable[[], object]]:
    dense, sparse = itertools.cycle(weights), itertools.cycle(compressed)
    return [
        lambda: F.linear(x, next(dense)),
        lambda: torch.ops.sparse24.linear(x, *next(sparse), None),
    ]
