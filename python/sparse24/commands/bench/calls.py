"""What a call costs its host: layers too small for anything else to count, on one token or one pixel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ... import SparseConv2d, SparseLinear
from ...ops import panels
from ...timing import interleaved_medians
from .table import Setting, Table

REPEATS = 200  # calls to a turn: one is shorter than what a clock can tell


def tables(setting: Setting) -> list[Table]:
    dense, conv = nn.Linear(8, 8), nn.Conv2d(8, 8, 1)
    for layer in (dense, conv):
        torch.ops.sparse24.prune_(layer.weight.data, 2, 4, 1)
    sparse, sparse_conv = SparseLinear.from_dense(dense), SparseConv2d.from_dense(conv)
    token, pixel = torch.randn(1, 8), torch.randn(1, 8, 1, 1)
    calls: dict[str, Callable[[], object]] = {
        "kernel from Python": kernel_alone(sparse, token),
        "nn.Linear(8, 8)": lambda: dense(token),
        "SparseLinear(8, 8)": lambda: sparse(token),
        "nn.Conv2d(8, 8, 1)": lambda: conv(pixel),
        "SparseConv2d(8, 8, 1)": lambda: sparse_conv(pixel),
    }
    with torch.no_grad():
        medians = interleaved_medians([_repeated(call) for call in calls.values()], setting.seconds)
    times = {name: t / REPEATS * 1e6 for name, t in zip(calls, medians, strict=True)}
    kernel = times.pop("kernel from Python")
    rows = [["call, one token or pixel", "us", "us beyond the kernel"]]
    rows += [["kernel from Python", f"{kernel:.1f}", ""]]
    rows += [[name, f"{t:.1f}", f"{t - kernel:.1f}"] for name, t in times.items()]
    return [Table("calls", "Cost of a call in eager mode, without gradients.", rows)]


def kernel_alone(layer: SparseLinear, token: Tensor) -> Callable[[], Tensor]:
    """The product of ``layer`` with one token [1, in], by the extension's binding and nothing around it."""
    rows, cols = layer.out_features, layer.in_features
    y, bias = torch.empty(1, rows), layer.bias
    layer(token)
    packed = panels.panels_of(layer.values, layer.indices, 1)
    assert packed is not None
    addresses = (packed.address, token.data_ptr(), 0 if bias is None else bias.data_ptr(), y.data_ptr())

    def call(keep: object = (packed, token, bias)) -> Tensor:  # the addresses are theirs
        panels._C.linear(*addresses, 1, rows, cols, cols, 0, 1)  # type: ignore[attr-defined]
        return y

    return call


def _repeated(call: Callable[[], object]) -> Callable[[], object]:
    def turn() -> None:
        for _ in range(REPEATS):
            call()

    return turn
