"""Memory that layers hold on a GPU after they ran with many tokens, dense and 2:4."""

from __future__ import annotations

import gc

import torch

from ...validate.ground import Ground
from ..memory import live_storages
from ..table import Rows, Setting, Table
from . import linear, note

TOKENS = 1024
COUNT = 4  #: layers of a shape


def tables(setting: Setting) -> list[Table]:
    """A row a dtype and shape."""
    ground = Ground(quick=setting.quick)
    shapes = linear.SMALL if ground.emulated else linear.SHAPES[1:2] if setting.quick else linear.SHAPES
    head = ["layers", "dtype", "dense MB", "2:4 MB", "ratio"]
    caption = (
        f"Memory of {COUNT} linear layers after a call with {TOKENS} tokens: what torch's allocator has "
        f"given out, less what it had before.{note(ground)}"
    )
    with Rows(setting, "gpu-memory", caption, head) as rows, torch.no_grad():
        for kind in linear.KINDS:
            for shape in shapes:
                dense, sparse = (_held(ground, kind, shape, which) for which in (0, 1))
                name = f"{COUNT} x Linear({shape[1]}, {shape[0]})"
                megabytes = [f"{each / 1e6:.2f}" for each in (dense, sparse)]
                rows.add([name, kind, *megabytes, f"{sparse / dense:.2f}"])
    return [rows.table()]


def _held(ground: Ground, kind: str, shape: tuple[int, int], which: int) -> int:
    x = ground.tensor(TOKENS, shape[1], dtype=linear.KINDS[kind])
    gc.collect()
    before = _allocated(ground)
    layers = [linear.layers(ground, kind, shape)[which] for _ in range(COUNT)]
    with ground.layers_run_here():
        for layer in layers:
            layer(x)
    gc.collect()
    return _allocated(ground) - before


def _allocated(ground: Ground) -> int:
    if ground.emulated:
        return sum(live_storages().values())
    torch.cuda.synchronize(ground.device)
    return torch.cuda.memory_allocated(ground.device)
