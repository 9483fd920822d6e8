"""Part c: the talk's GEMM and convolution tables, dense against sparse on this machine."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ... import SparseConv2d, SparseLinear
from ...masks import prune_
from ...timing import Pair, interleaved_medians
from .outcome import Outcome, Progress, speed_row

TITLE = "c. the talk's tables"


class Gemm(NamedTuple):
    """y [n, m] = x [n, k] W^T; ``talk`` is the speedup that the talk reports."""

    m: int
    n: int
    k: int
    talk: float


class Conv(NamedTuple):
    """n images [c, hw, hw] to k channels."""

    n: int
    c: int
    k: int
    hw: int
    talk: float


#: "Accelerating Sparsity in the NVIDIA Ampere Architecture" (2020), BERT-Large, FP16 on an A100.
GEMMS = (
    Gemm(1024, 8192, 1024, 1.44),
    Gemm(1024, 16384, 1024, 1.73),
    Gemm(4096, 8192, 1024, 1.53),
    Gemm(4096, 16384, 1024, 1.78),
)
#: The same talk, FP16 on an A100. It does not state the kernel's size: 3x3 is chosen here.
CONVS = (
    Conv(32, 1024, 2048, 14, 1.52),
    Conv(32, 2048, 1024, 14, 1.77),
    Conv(32, 2048, 4096, 7, 1.64),
    Conv(32, 4096, 2048, 7, 1.75),
    Conv(256, 256, 512, 7, 1.85),
)
KERNEL = 3


def run(quick: bool, out: Path, progress: Progress) -> Outcome:
    """Time every row of both tables; ``out`` is not written to."""
    fewer_tokens, fewer_images = (16, 32) if quick else (1, 8)
    gemms = [gemm._replace(n=gemm.n // fewer_tokens) for gemm in GEMMS]
    convs = [conv._replace(n=conv.n // fewer_images) for conv in CONVS]
    if quick:  # these two hold 75 million weights each, which takes longer to make than to multiply
        convs = [conv for conv in convs if conv.c * conv.k < 2048 * 4096]
    progress.start(TITLE, len(gemms) + len(convs))
    rows: list[tuple[str, Pair, float]] = []
    with torch.inference_mode():
        for gemm in gemms:
            name = f"GEMM {gemm.m}x{gemm.n}x{gemm.k} (MxNxK)"
            progress.now(name)
            rows.append((name, time_gemm(gemm), gemm.talk))
        for conv in convs:
            name = f"conv {KERNEL}x{KERNEL}, N={conv.n}, {conv.c}->{conv.k}, {conv.hw}x{conv.hw}"
            progress.now(name)
            rows.append((name, time_conv(conv), conv.talk))
    table: list[tuple[str, ...]] = [("product", "dense", "sparse", "here", "talk (A100, FP16)")]
    table += [
        (*speed_row(name, pair)[:3], f"{pair.speedup:.2f}x", f"{talk:.2f}x") for name, pair, talk in rows
    ]
    notes = [
        "float32 on this CPU; stock torch for dense, the better of NCHW and channels_last for convolutions.",
        f"The talk does not state the kernel of its convolutions: {KERNEL}x{KERNEL} here. To fit the time, "
        f"their batch is the talk's / {fewer_images}"
        + (
            f", N of the GEMMs / {fewer_tokens}, and the two largest convolutions are left out."
            if quick
            else "."
        ),
    ]
    data = {
        "rows": [{"name": n, "dense": p.dense, "sparse": p.sparse, "talk_speedup": t} for n, p, t in rows],
        "batch_divided_by": fewer_images,
        "n_divided_by": fewer_tokens,
    }
    here, there = [pair.speedup for _, pair, _ in rows], [talk for *_, talk in rows]
    short = (
        f"The talk's shapes: {min(here):.2f}x to {max(here):.2f}x as fast as dense here, in fp32; the talk "
        f"has {min(there):.2f}x to {max(there):.2f}x on an A100, in FP16."
    )
    return Outcome(TITLE, short, table, notes, data)


def time_gemm(gemm: Gemm) -> Pair:
    """Dense ``nn.Linear`` against ``SparseLinear`` of one pruned weight."""
    dense = nn.Linear(gemm.k, gemm.m)
    prune_(dense.weight)
    x = torch.randn(gemm.n, gemm.k)
    sparse = SparseLinear.from_dense(dense)
    return Pair.measure(functools.partial(dense, x), functools.partial(sparse, x), seconds=0)


def time_conv(conv: Conv) -> Pair:
    """Dense ``nn.Conv2d`` against ``SparseConv2d``, each in the better of torch's two memory formats."""
    dense = nn.Conv2d(conv.c, conv.k, KERNEL, padding=KERNEL // 2)
    prune_(dense.weight)
    sparse = SparseConv2d.from_dense(dense)
    x = torch.randn(conv.n, conv.c, conv.hw, conv.hw)
    formats = (x, x.contiguous(memory_format=torch.channels_last))
    dense_last = copy.deepcopy(dense)
    dense_last.weight.data = dense.weight.detach().contiguous(memory_format=torch.channels_last)
    modules = (dense, dense_last, sparse, sparse)
    calls = [functools.partial(module, image) for module, image in zip(modules, formats * 2, strict=True)]
    times = interleaved_medians(calls, seconds=0)
    return Pair(min(times[:2]), min(times[2:]))
