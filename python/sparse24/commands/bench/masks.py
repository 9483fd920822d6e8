"""Masks from Python: the package's functions against the same in plain torch."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from ... import compress, magnitude_mask, transposable_mask
from ...timing import interleaved_medians
from .table import Rows, Setting, Table

Call = Callable[[], object]

SIDE, QUICK_SIDE = 4096, 256


def tables(setting: Setting) -> list[Table]:
    """A row a mask: milliseconds, and the weight's bytes a second."""
    side = QUICK_SIDE if setting.quick else SIDE
    weight = torch.randn(side, side)
    head = [f"{side} x {side}, fp32", "torch ms", "sparse24 ms", "x torch", "GB/s"]
    caption = (
        "Masks and compression from Python, against the same in plain torch operators (topk of each group; "
        "all 90 patterns of a 4x4 tile; gather). GB/s: of the weight that is read."
    )
    with Rows(setting, "masks-python", caption, head) as rows, torch.no_grad():
        for name, (plain, own) in pairs(weight).items():
            dense, ours = interleaved_medians([plain, own], setting.seconds, 3)
            speed = f"{weight.nbytes / ours / 1e9:.1f}"
            rows.add([name, f"{dense * 1e3:.2f}", f"{ours * 1e3:.2f}", f"{dense / ours:.2f}", speed])
    return [rows.table()]


def pairs(weight: Tensor) -> dict[str, tuple[Call, Call]]:
    """Plain torch and the package's function, by what they do to ``weight``."""
    pruned = torch.where(magnitude_mask(weight), weight, 0.0)
    return {
        "2:4 mask": (functools.partial(_plain, weight, 2, 4), functools.partial(magnitude_mask, weight)),
        "4:8 mask": (
            functools.partial(_plain, weight, 4, 8),
            functools.partial(magnitude_mask, weight, "4:8"),
        ),
        "1:2 mask": (
            functools.partial(_plain, weight, 1, 2),
            functools.partial(magnitude_mask, weight, "1:2"),
        ),
        "transposable 2:4 mask": (
            functools.partial(_plain_transposable, weight),
            functools.partial(transposable_mask, weight),
        ),
        "compress": (functools.partial(_plain_compress, pruned), functools.partial(compress, pruned)),
    }


def _plain(weight: Tensor, kept: int, group: int) -> Tensor:
    groups = weight.abs().view(-1, group)
    mask = torch.zeros(groups.shape, dtype=torch.bool, device=weight.device)
    return mask.scatter_(1, groups.topk(kept, 1).indices, True).view_as(weight)


@functools.cache
def _patterns() -> Tensor:
    """[90, 16]: every 4x4 tile with two in each row and column."""
    rows = [row for row in itertools.product((0.0, 1.0), repeat=4) if sum(row) == 2]
    tiles = (
        tile
        for tile in itertools.product(rows, repeat=4)
        if all(sum(c) == 2 for c in zip(*tile, strict=True))
    )
    return torch.tensor([[value for row in tile for value in row] for tile in tiles])


def _plain_transposable(weight: Tensor) -> Tensor:
    rows, columns = weight.shape
    tiles = weight.abs().view(rows // 4, 4, columns // 4, 4).transpose(1, 2).reshape(-1, 16)
    patterns = _patterns().to(weight.device, weight.dtype)
    chosen = patterns[(tiles @ patterns.t()).argmax(1)].bool().view(rows // 4, columns // 4, 4, 4)
    return chosen.transpose(1, 2).reshape(rows, columns)


def _plain_compress(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Values in column order and their columns, two bits each."""
    groups = weight.view(weight.shape[0], -1, 4)
    kept = (groups != 0).to(torch.uint8).topk(2, -1).indices.sort(-1).values
    values = groups.gather(-1, kept).flatten(1)
    quads = kept.flatten(1).view(weight.shape[0], -1, 4)
    return values, (quads << torch.tensor([0, 2, 4, 6], device=weight.device)).sum(-1).to(torch.uint8)
