"""Benchmarks on a GPU, through cuSPARSELt; without one, on an emulator of it, which only tests these modules.

Dense rivals are torch's own products (cuBLASLt, cuDNN). Times are the device's, by events; rivals take turns.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...validate.ground import Ground

ROUNDS, EMULATED_ROUNDS = 9, 2
#: Calls between two events.
REPEATS = 5


def medians(
    ground: Ground, calls: Sequence[Callable[[], object]], seconds: float, flush: Tensor | None = None
) -> list[float]:
    """Median seconds of each call on the device, in turns; about ``seconds`` in all, nine rounds at least.

    Args:
        flush: written before each call, so that no cache holds the weights.
    """
    stream = ground.stream
    for call in calls:
        call()
    if ground.emulated:
        rounds, repeats = EMULATED_ROUNDS, 1
    else:
        once = sum(stream.microseconds(call, REPEATS) for call in calls) * 1e-6 * REPEATS
        rounds, repeats = max(ROUNDS, min(200, int(seconds / max(once, 1e-6)))), REPEATS
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, into in zip(calls, times, strict=True):
            into.append(stream.microseconds(call, repeats, flush) * 1e-6)
    return [statistics.median(each) for each in times]


def flushing(ground: Ground) -> Tensor | None:
    """Memory that no cache holds besides the weights; none on the emulator, which has no cache."""
    if ground.emulated:
        return None
    size = 2 * torch.cuda.get_device_properties(ground.device).L2_cache_size
    return torch.empty(max(size, 64 << 20), dtype=torch.int8, device=ground.device)


def note(ground: Ground) -> str:
    """What stands in a caption where no GPU was there."""
    return " ON THE EMULATOR: no figure of a GPU." if ground.emulated else ""
