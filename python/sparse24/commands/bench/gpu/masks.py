"""Masks and compression on a GPU, against plain torch there."""

from __future__ import annotations

import torch

from ...validate.ground import Ground
from .. import masks
from ..table import Rows, Setting, Table
from . import medians, note

EMULATED_SIDE = 64


def tables(setting: Setting) -> list[Table]:
    """A row a mask."""
    ground = Ground(quick=setting.quick)
    side = EMULATED_SIDE if ground.emulated else masks.QUICK_SIDE if setting.quick else masks.SIDE
    weight = ground.tensor(side, side, dtype=torch.float32)
    head = [f"{side} x {side}, fp32", "torch us", "sparse24 us", "x torch", "GB/s"]
    caption = f"Masks and compression on the device, against the same in plain torch.{note(ground)}"
    with Rows(setting, "gpu-masks", caption, head) as rows, torch.no_grad():
        for name, calls in masks.pairs(weight).items():
            plain, own = medians(ground, calls, setting.seconds)
            times = [f"{plain * 1e6:.1f}", f"{own * 1e6:.1f}", f"{plain / own:.2f}"]
            rows.add([name, *times, f"{weight.nbytes / own / 1e9:.1f}"])
    return [rows.table()]
