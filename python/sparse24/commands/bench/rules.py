"""From which sizes on a compressed layer gains: what ``sparse24.choose.rules`` is derived from."""

from __future__ import annotations

import torch
from torch import nn

from . import single
from .table import Setting, Table

DTYPES = ("fp32", "bf16", "fp16")
SIDES = [
    (8, 1024),
    (32, 32),
    (64, 64),
    (128, 128),
    (256, 256),
    (512, 512),
    (1024, 1024),
    (4096, 1024),
    (1024, 4096),
]
TOKENS = (1, 8, 32, 128, 1024)
CONVOLUTIONS = [  # in, out, height = width, kernel, groups, stride
    (3, 64, 224, 7, 1, 2),
    (32, 32, 28, 3, 32, 1),
    (512, 512, 28, 3, 32, 1),
    (64, 64, 56, 3, 1, 1),
    (64, 256, 56, 1, 1, 1),
    (256, 64, 56, 1, 1, 1),
    (128, 128, 28, 3, 1, 1),
    (256, 256, 14, 3, 1, 1),
    (256, 1024, 14, 1, 1, 1),
    (512, 512, 7, 3, 1, 1),
    (512, 1024, 28, 1, 1, 2),
]
BATCHES = (1, 8)


def tables(setting: Setting) -> list[Table]:
    """Ratios over a grid of sizes, a table of linear layers and one of convolutions."""
    return [_linear(setting), _conv2d(setting)]


def _linear(setting: Setting) -> Table:
    rows = [["dtype", "out, in", *(f"{tokens} tokens" if tokens > 1 else "1 token" for tokens in TOKENS)]]
    for name in DTYPES:
        for shape in SIDES[:2] if setting.quick else SIDES:
            ratios = []
            for tokens in TOKENS:
                found = single.linear(
                    single.KINDS[name], shape, tokens, setting.seconds / len(TOKENS), tokens == 1
                )
                ratios.append(f"{found.torch / found.sparse:.2f}")
            rows.append([name, f"{shape[0]}, {shape[1]}", *ratios])
            setting.progress("  " + " | ".join(rows[-1]))
    caption = "Where a compressed linear layer gains: x torch, weights cold at 1 token, else warm."
    return Table("rules-linear", caption, rows)


def _conv2d(setting: Setting) -> Table:
    orders = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    columns = [(batch, order) for batch in BATCHES for order in orders]
    rows = [["dtype", "in -> out, size, kernel, groups, stride", *(f"{b}, {order}" for b, order in columns)]]
    for name in DTYPES:
        for c, o, size, r, groups, stride in CONVOLUTIONS[1:2] if setting.quick else CONVOLUTIONS:
            ratios = []
            for batch, order in columns:
                layer = nn.Conv2d(c, o, r, stride, r // 2, groups=groups)
                x = torch.randn(batch, c, size, size).contiguous(memory_format=orders[order])
                layer = layer.to(memory_format=orders[order])  # type: ignore[call-overload]
                found = single.conv2d(single.KINDS[name], layer, x, setting.seconds / len(columns))
                ratios.append(f"{found.torch / found.sparse:.2f}")
            what = f"{c} -> {o}, {size}x{size}, {r}x{r}, {groups}, {stride}"
            rows.append([name, what, *ratios])
            setting.progress("  " + " | ".join(rows[-1]))
    caption = "Where a compressed convolution gains: x torch, by batch and memory format."
    return Table("rules-conv", caption, rows)
