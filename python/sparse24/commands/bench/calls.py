"""What a call costs its host: layers too small for anything else to count, on one token or one pixel.

The kernels that they come down to are timed by the C++ program (kernels.py), where nothing is around them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ... import SparseConv2d, SparseLinear
from ...timing import interleaved_medians
from . import kernels
from .papers import checkout
from .table import Setting, Table

REPEATS = 200  # calls to a turn: one is shorter than what a clock can tell


def tables(setting: Setting) -> list[Table]:
    alone = kernel_times(setting.threads)
    dense, conv = nn.Linear(8, 8), nn.Conv2d(8, 8, 1)
    for layer in (dense, conv):
        torch.ops.sparse24.prune_(layer.weight.data, 2, 4, 1)
    sparse, sparse_conv = SparseLinear.from_dense(dense), SparseConv2d.from_dense(conv)
    token, pixel = torch.randn(1, 8), torch.randn(1, 8, 1, 1)
    calls: list[Callable[[], object]] = [
        lambda: dense(token),
        lambda: sparse(token),
        lambda: conv(pixel),
        lambda: sparse_conv(pixel),
    ]
    with torch.no_grad():
        medians = interleaved_medians([_repeated(call) for call in calls], setting.seconds)
    linear_dense, linear_sparse, conv_dense, conv_sparse = (t / REPEATS * 1e6 for t in medians)
    rows = [["call, one token or pixel", "us", "kernel us", "us beyond its kernel", "that / dense call"]]
    for dense_name, sparse_name, whole_dense, whole, kernel in (
        ("nn.Linear(8, 8)", "SparseLinear(8, 8)", linear_dense, linear_sparse, alone["linear 8x8"]),
        ("nn.Conv2d(8, 8, 1)", "SparseConv2d(8, 8, 1)", conv_dense, conv_sparse, alone["conv2d 8x8 1x1"]),
    ):
        beyond = whole - kernel
        rows += [
            [dense_name, f"{whole_dense:.2f}", "", "", ""],
            [sparse_name, f"{whole:.2f}", f"{kernel:.2f}", f"{beyond:.2f}", f"{beyond / whole_dense:.2f}"],
        ]
    caption = "Cost of a call in eager mode, without gradients; its kernel alone is timed from C++."
    return [Table("calls", caption, rows)]


def kernel_times(threads: int) -> dict[str, float]:
    """Microseconds of the kernels alone, by their names in bench/kernels_bench.cpp."""
    found = kernels.run(checkout(), threads, "call")
    return {each["name"]: each["us"] for each in found if each["table"] == "call"}


def _repeated(call: Callable[[], object]) -> Callable[[], object]:
    def turn() -> None:
        for _ in range(REPEATS):
            call()

    return turn
