"""From which sizes on a compressed layer gains: what ``sparse24.choose.rules`` is derived from."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from . import single
from .table import Rows, Setting, Table

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
    linear = _linear(setting)
    return [linear, _conv2d(setting, linear)]


def _linear(setting: Setting) -> Table:
    head = ["dtype", "out, in", *(f"{tokens} tokens" if tokens > 1 else "1 token" for tokens in TOKENS)]
    caption = "Where a compressed linear layer gains: x torch, weights cold at 1 token, else warm."
    shapes = SIDES[:2] if setting.quick else SIDES
    with Rows(setting, "rules-linear", caption, head) as rows:
        for name, shape in itertools.product(DTYPES, shapes):
            found = [
                single.linear(single.KINDS[name], shape, tokens, setting.seconds / len(TOKENS), tokens == 1)
                for tokens in TOKENS
            ]
            rows.add(
                [name, f"{shape[0]}, {shape[1]}", *(f"{each.torch / each.sparse:.2f}" for each in found)]
            )
    return rows.table()


def _conv2d(setting: Setting, before: Table) -> Table:
    orders = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    columns = [(batch, order) for batch in BATCHES for order in orders]
    head = ["dtype", "in -> out, size, kernel, groups, stride", *(f"{b}, {order}" for b, order in columns)]
    caption = "Where a compressed convolution gains: x torch, by batch and memory format."
    shapes = CONVOLUTIONS[1:2] if setting.quick else CONVOLUTIONS
    with Rows(setting, "rules-conv", caption, head, [before]) as rows:
        for name, (c, o, size, r, groups, stride) in itertools.product(DTYPES, shapes):
            ratios = []
            for batch, order in columns:
                layer = nn.Conv2d(c, o, r, stride, r // 2, groups=groups)
                x = torch.randn(batch, c, size, size).contiguous(memory_format=orders[order])
                layer = layer.to(memory_format=orders[order])  # type: ignore[call-overload]
                found = single.conv2d(single.KINDS[name], layer, x, setting.seconds / len(columns))
                ratios.append(f"{found.torch / found.sparse:.2f}")
            rows.add([name, f"{c} -> {o}, {size}x{size}, {r}x{r}, {groups}, {stride}", *ratios])
    return rows.table()
