"""Sparse against dense, paired by seed, beside what dense seeds differ by among themselves.

A row passes if the mean of its paired differences is no worse than -2 s / sqrt(n): s the spread of dense
seeds, pooled over the rows of one task, n the number of pairs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .ways import Unit

Scores = Mapping[tuple[str, str], Mapping[int, float]]  # (row, way) to seed to score


class Verdict(NamedTuple):
    """A row's difference."""

    pairs: int
    dense: float  #: mean over the pairs
    sparse: float
    difference: float  #: mean of sparse - dense, turned so that more is better
    bound: float  #: what it must not be worse than; nan where no spread is known
    spread: float  #: s

    @property
    def passed(self) -> bool | None:
        """None where it cannot be told yet: fewer than two seeds."""
        return None if math.isnan(self.bound) else self.difference >= self.bound


def scores_of(results: Sequence[tuple[Unit, Mapping[str, Any]]]) -> dict[tuple[str, str], dict[int, float]]:
    """Scores by row and way, and seed."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for unit, result in results:
        found.setdefault((unit.row, unit.way), {})[unit.seed] = float(result["score"])
    return found


def pooled_spread(groups: Sequence[Sequence[float]]) -> float:
    """The standard deviation within groups, pooled by degrees of freedom; nan without any."""
    some = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in some)
    if not freedom:
        return math.nan
    return math.sqrt(sum(statistics.variance(group) * (len(group) - 1) for group in some) / freedom)


def verdict(
    scores: Scores, row: str, way: str, spread: float, *, better: int, base: str = "dense"
) -> Verdict | None:
    """Of a row's way against ``base``; None without a pair.

    Args:
        better: 1 where a higher score is better, else -1.
    """
    dense, sparse = scores.get((row, base), {}), scores.get((row, way), {})
    seeds = sorted(set(dense) & set(sparse))
    if not seeds:
        return None
    mean = statistics.fmean(better * (sparse[seed] - dense[seed]) for seed in seeds)
    bound = -2 * spread / math.sqrt(len(seeds)) if len(seeds) > 1 else math.nan
    of = [statistics.fmean(side[seed] for seed in seeds) for side in (dense, sparse)]
    return Verdict(len(seeds), of[0], of[1], mean, bound, spread)
