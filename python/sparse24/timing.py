"""Timing that a reader can trust: rivals in one process, interleaved, medians, with the machine named."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from . import ops
from .ops.machine import cpu_name


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a figure depends on besides the code."""

    cpu: str
    cores: int  #: that this process may use
    threads: int  #: that torch and the kernels use
    torch: str
    kernels: str  #: instruction set of the sparse kernels

    @classmethod
    def here(cls) -> Machine:
        """This process, now."""
        affinity = getattr(os, "sched_getaffinity", None)
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        return cls(cpu_name(), cores, torch.get_num_threads(), torch.__version__, ops.cpu_isa())

    def __str__(self) -> str:
        return (
            f"{self.cpu}, {self.cores} cores, {self.threads} threads; torch {self.torch}, "
            f"sparse24 kernels: {self.kernels}"
        )


def interleaved_medians(
    calls: Sequence[Callable[[], object]], seconds: float = 1.0, min_rounds: int = 5
) -> list[float]:
    """Median time of every call, in seconds, with the calls taking turns.

    Each is called once to warm up; then all are called in turn, A B A B ..., at least ``min_rounds``
    times and until ``seconds`` are over, so that a slow spell of the machine falls on all of them.
    """
    return [statistics.median(each) for each in interleaved_times(calls, seconds, min_rounds)]


def interleaved_times(
    calls: Sequence[Callable[[], object]],
    seconds: float,
    min_rounds: int,
    before: Callable[[], object] | None = None,
) -> list[list[float]]:
    """The times behind :func:`interleaved_medians`, a list of seconds for every call.

    ``before`` runs ahead of each call and is not timed: it can put the caches into the state that counts.
    """
    for call in calls:
        call()
    samples: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while len(samples[0]) < min_rounds or time.perf_counter() < end:
        for call, into in zip(calls, samples, strict=True):
            if before is not None:
                before()
            start = time.perf_counter()
            call()
            into.append(time.perf_counter() - start)
    return samples


@dataclasses.dataclass(frozen=True)
class Pair:
    """Median seconds of a dense call and of its sparse counterpart, measured in turns."""

    dense: float
    sparse: float

    @property
    def speedup(self) -> float:
        return self.dense / self.sparse

    @classmethod
    def measure(cls, dense: Callable[[], object], sparse: Callable[[], object], seconds: float = 1.0) -> Pair:
        """Time two callables with :func:`interleaved_medians`."""
        return cls(*interleaved_medians((dense, sparse), seconds))


def in_units(seconds: float) -> str:
    """A time as a reader likes it: 3 digits, in s, ms or us."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
