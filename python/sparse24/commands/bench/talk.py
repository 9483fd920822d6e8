"""The talk's products at its own sizes, here in fp32 and bf16, beside its figures of an A100."""

from __future__ import annotations

import functools

import torch
from torch import nn

from ..demo.tables import CONVS, GEMMS, KERNEL, Conv, Gemm
from . import published, single
from .table import Rows, Setting, Table

#: A quick look has so many times fewer tokens and images.
QUICK = 32
DTYPES = ("fp32", "bf16")


def tables(setting: Setting) -> list[Table]:
    """A row a product; its last column is published, the others are measured here."""
    head = [
        "product",
        *(f"{column}, {kind}" for kind in DTYPES for column in ("torch ms", "2:4 ms", "x torch")),
    ]
    head.append("published: A100, FP16")
    caption = (
        f"The products of the talk {published.TALK}, at its sizes, against stock torch. Its figures stand in "
        f"the last column and were not measured here; it does not state the kernel of its convolutions, "
        f"{KERNEL}x{KERNEL} here."
    )
    fewer = QUICK if setting.quick else 1
    gemms = [gemm._replace(n=gemm.n // fewer) for gemm in GEMMS]
    convs = [conv._replace(n=max(1, conv.n // fewer)) for conv in CONVS]
    if setting.quick:
        gemms, convs = gemms[:1], convs[-1:]
    with Rows(setting, "talk", caption, head) as rows:
        for gemm in gemms:
            timed = functools.partial(_gemm, gemm)
            rows.add(
                [f"GEMM {gemm.m}x{gemm.n}x{gemm.k} (MxNxK)", *_cells(timed, setting), f"{gemm.talk:.2f}"]
            )
        for conv in convs:
            name = f"conv {KERNEL}x{KERNEL}, N={conv.n}, {conv.c}->{conv.k}, {conv.hw}x{conv.hw}"
            rows.add([name, *_cells(functools.partial(_conv, conv), setting), f"{conv.talk:.2f}"])
    return [rows.table()]


def _cells(timed: functools.partial[single.Times], setting: Setting) -> list[str]:
    cells = []
    for kind in DTYPES:
        found = timed(single.KINDS[kind], setting.seconds / len(DTYPES))
        milliseconds = (f"{each * 1e3:.1f}" for each in (found.torch, found.sparse))
        cells += [*milliseconds, f"{found.torch / found.sparse:.2f}"]
    return cells


def _gemm(gemm: Gemm, kind: single.Kind, seconds: float) -> single.Times:
    return single.linear(kind, (gemm.m, gemm.k), gemm.n, seconds)


def _conv(conv: Conv, kind: single.Kind, seconds: float) -> single.Times:
    layer = nn.Conv2d(conv.c, conv.k, KERNEL, padding=KERNEL // 2)
    layer = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(conv.n, conv.c, conv.hw, conv.hw).contiguous(memory_format=torch.channels_last)
    return single.conv2d(kind, layer, x, seconds)
