"""The fastest algorithm of one product on this GPU, by trials in a process of their own, beside dense."""

from __future__ import annotations

import time

from ... import _C
from ..registry import Error
from . import route
from .cusparselt import Algorithm, Stream
from .trials import Trial, Trials

#: Splits of K are tried for so many of the ids that are fastest without: sm_100 has 108 ids.
IDS_TO_SPLIT = 4
#: Algorithms whose times are kept: one has to serve every count of tokens (``route.algorithm_of``).
KEPT = 8


def measure(
    call: route.Call, trials: Trials, *, launches: int, by_library: bool, seconds: float
) -> tuple[route.Measured, list[Trial]]:
    """Figures of a call, and what was tried.

    The default algorithm and the library's own choice are always among those tried; then come every id, and
    splits of K for the fastest. An algorithm is refused that fails, that took no time, whose results differ
    from the default one's beyond rounding, or that ends the process.

    Args:
        by_library: try the default and the library's choice only.
        seconds: no further algorithm is begun after this time.

    Raises:
        Error: the default algorithm fails.
    """
    end = time.monotonic() + seconds
    every = trials.algorithms(call)
    first = trials.try_out(Algorithm(), launches)
    if first.refused:
        raise Error(f"the default algorithm: {first.refused}")
    tried = {Algorithm(): first}

    def try_all(candidates: list[Algorithm]) -> None:
        for algorithm in candidates:
            if algorithm in tried:
                continue
            if time.monotonic() >= end:
                return
            tried[algorithm] = trials.try_out(algorithm, launches)

    chosen = trials.choice_of_library(launches)
    if chosen is not None:
        tried[chosen] = tried.get(chosen) or trials.try_out(chosen, launches)
    if not by_library:
        try_all([algorithm for algorithm in every if algorithm.split_k == 0])
        fastest = list(dict.fromkeys(trial.algorithm.id for trial in _right(tried)))[:IDS_TO_SPLIT]
        try_all([algorithm for algorithm in every if algorithm.split_k != 0 and algorithm.id in fastest])
    right = _right(tried)
    sparse, dense, expanded = trials.figures(right[0].algorithm, launches)
    others = {trial.algorithm: trial.microseconds for trial in right[:KEPT]}
    others[Algorithm()] = first.microseconds
    found = route.Measured(right[0].algorithm, sparse, dense, expanded, tuple(others.items()))
    return found, list(tried.values())


def _right(tried: dict[Algorithm, Trial]) -> list[Trial]:
    """Those that are right, the fastest first."""
    return sorted(
        (trial for trial in tried.values() if not trial.refused), key=lambda trial: trial.microseconds
    )


def algorithms(call: route.Call, stream: Stream) -> list[Algorithm]:
    """What the library has for a call whose sizes are legal, the default first. Nothing is tried."""
    form = route.product(call, "none", Algorithm())
    return _C.cusparselt_algorithms(stream.device, form, stream.handle)
