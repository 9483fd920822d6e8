"""A trap: square roots of zeros are slow in MKL, and second moments of pruned weights are zeros."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.optim import Optimizer

from .sharding import local
from .steps import parameters_of

#: Numbers on the CPU from which on it is felt: milliseconds a step.
LARGE = 1 << 22
_ROOTED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.RMSprop)


def warn_of_slow_roots(optimizer: Optimizer) -> None:
    """Say once, at :meth:`Sparsifier.attach`, that ``fused=True`` is faster; the optimizer stays as it is.

    torch's steps that are not fused take ``exp_avg_sq.sqrt()``, which MKL does; measured (one thread, a
    million numbers of which half are zeros): 1.5 ms on Zen 4 where other numbers take 0.54; on an Intel
    server a whole step of AdamW grew from 32 to 83 ms.
    """
    mkl: Any = torch.backends.mkl
    if not mkl.is_available() or not isinstance(optimizer, _ROOTED):
        return
    fused = [group.get("fused") for group in optimizer.param_groups]
    count = sum(local(p).numel() for p in parameters_of(optimizer) if p.device.type == "cpu")
    if all(fused) or count < LARGE:
        return
    kind = type(optimizer).__name__
    has_fused = isinstance(optimizer, torch.optim.Adam)  # AdamW is one
    remedy = (
        f"{kind}(..., fused=True) does not have this"
        if has_fused
        else "Adam and AdamW with fused=True do not"
    )
    warnings.warn(
        f"{kind} takes square roots of the second moments of pruned weights, which are zeros, and MKL is "
        f"slow at them: steps may take twice their time; {remedy}",
        stacklevel=4,
    )
