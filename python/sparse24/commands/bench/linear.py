"""Products with many tokens, fp32: against stock torch, and against the best dense that runs here.

That is the fastest of torch, of oneDNN with its weight packed beforehand, and of numpy's BLAS.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from ...timing import interleaved_medians
from .table import Rows, Setting, Table, giga, pruned, ratios

SHAPES = [(1024, 1024), (4096, 1024), (1024, 4096)]  # (out, in): BERT-Large
TOKENS = (16, 128, 512, 2048)
BLOCKS = 3


def tables(setting: Setting) -> list[Table]:
    head = ["out, in", "tokens", "torch GF/s", "best dense GF/s", "2:4 GF/s", "x torch", "x best dense"]
    with _numpy_threads(setting.threads) as blas:
        best_of = f"the fastest of torch, oneDNN with prepacked weights and {blas}"
        rows = Rows(setting, "linear", f"Linear fp32, warm. Best dense: {best_of}.", head)
        with rows:
            _fill(rows, setting)
    return [rows.table()]


def _fill(rows: Rows, setting: Setting) -> None:
    for (m, k), n in itertools.product(SHAPES, TOKENS):
        dense, packed, numpy, sparse = _times(m, k, n, setting.seconds)
        best, work = min(dense, packed, numpy), 2.0 * m * k * n
        speeds = [giga(work, t) for t in (dense, best, sparse)]
        rows.add([f"{m}, {k}", str(n), *speeds, *ratios(sparse, dense, best)])


def _times(m: int, k: int, n: int, seconds: float) -> tuple[float, float, float, float]:
    """Seconds of torch, of prepacked oneDNN, of numpy's BLAS, and of the 2:4 product."""
    weight, bias, x = pruned(m, k), torch.randn(m), torch.randn(n, k)
    values, indices = torch.ops.sparse24.compress(weight)
    a, b, out = x.numpy(), weight.numpy().T, np.empty((n, m), np.float32)
    packed_weight = torch.ops.mkldnn._reorder_linear_weight(weight, n)
    turns = [
        lambda: F.linear(x, weight, bias),
        lambda: torch.ops.mkldnn._linear_pointwise(x, packed_weight, bias, "none", [], ""),
        lambda: torch.ops.sparse24.linear(x, values, indices, bias),
    ]
    blocks = []
    for _ in range(BLOCKS):
        dense, packed, sparse = interleaved_medians(turns, seconds / 4)
        (numpy,) = interleaved_medians([lambda: np.matmul(a, b, out=out)], seconds / 12)
        time.sleep(0.2)  # OpenBLAS's threads spin for a while, on the cores of the next turn
        blocks.append((dense, packed, numpy, sparse))
    dense, packed, numpy, sparse = (statistics.median(each) for each in zip(*blocks, strict=True))
    return dense, packed, numpy, sparse


@contextlib.contextmanager
def _numpy_threads(count: int) -> Iterator[str]:
    """OpenBLAS limited to ``count`` threads; yields its name for the caption."""
    try:
        import threadpoolctl  # noqa: PLC0415
    except ImportError:
        yield "numpy's BLAS, its own number of threads (threadpoolctl is missing)"
        return
    with threadpoolctl.threadpool_limits(count, user_api="blas"):
        found = [i for i in threadpoolctl.threadpool_info() if i["user_api"] == "blas"]
        blas = [i for i in found if "numpy" in i["filepath"]]
        yield (
            f"{blas[0]['internal_api']} {blas[0]['version']} ({blas[0]['architecture']})" if blas else "numpy"
        )
