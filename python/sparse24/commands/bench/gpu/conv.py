"""The talk's convolutions on a GPU, channels_last, in fp16 and bf16."""

from __future__ import annotations

import functools

import torch
from torch import nn

from .... import SparseConv2d
from ....masks import prune_
from ...demo.tables import CONVS, KERNEL, Conv
from ...validate.ground import Ground
from .. import published
from ..table import Rows, Setting, Table
from . import medians, note

KINDS = {"fp16": torch.float16, "bf16": torch.bfloat16}
KERNELS = (1, KERNEL)
SMALL = (Conv(2, 64, 64, 4, 1.0),)


def tables(setting: Setting) -> list[Table]:
    """A row a dtype, kernel size and convolution."""
    ground = Ground(quick=setting.quick)
    head = ["convolution", "dtype", "torch us", "2:4 us", "x dense", "published: A100, FP16"]
    caption = (
        f"The convolutions of the talk {published.TALK}, channels_last. It does not state their kernel: both "
        f"are here. Its figures stand in the last column and were not measured here.{note(ground)}"
    )
    convs = SMALL if ground.emulated else CONVS[:1] if setting.quick else CONVS
    with Rows(setting, "gpu-conv", caption, head) as rows, torch.no_grad():
        for kind, dtype in KINDS.items():
            for kernel in KERNELS:
                for conv in convs:
                    times = _times(ground, conv, kernel, dtype, setting.seconds)
                    name = f"{kernel}x{kernel}, N={conv.n}, {conv.c}->{conv.k}, {conv.hw}x{conv.hw}, {kind}"
                    cells = [f"{times[0] * 1e6:.1f}", f"{times[1] * 1e6:.1f}", f"{times[0] / times[1]:.2f}"]
                    rows.add([name, kind, *cells, f"{conv.talk:.2f}"])
    return [rows.table()]


def _times(ground: Ground, conv: Conv, kernel: int, dtype: torch.dtype, seconds: float) -> list[float]:
    dense = nn.Conv2d(conv.c, conv.k, kernel, padding=kernel // 2).requires_grad_(False)
    prune_(dense.weight.data)
    dense = dense.to(dtype).eval()
    sparse = SparseConv2d.from_dense(dense).to(ground.device)
    last = torch.channels_last
    dense = dense.to(ground.device).to(memory_format=last)  # type: ignore[call-overload]
    x = ground.tensor(conv.n, conv.c, conv.hw, conv.hw, dtype=dtype).contiguous(memory_format=last)
    with ground.layers_run_here():
        return medians(ground, [functools.partial(layer, x) for layer in (dense, sparse)], seconds)
