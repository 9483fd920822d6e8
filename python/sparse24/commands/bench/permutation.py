"""How much more 2:4 keeps of a score in a better order of its columns, and what the search takes."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor

from ... import masks, ops
from .table import Rows, Setting, Table


class Goal(NamedTuple):
    """A score, what its order has to gain in percentage points, and in how many seconds."""

    name: str
    rows: int
    columns: int
    scaled: bool  #: columns of sizes that differ (lognormal), as those of trained networks do
    points: float
    seconds: float


GOALS = (
    Goal("Gaussian", 1024, 1024, False, 0.80, 0.5),
    Goal("Gaussian, lognormal columns", 1024, 1024, True, 2.4, 0.5),
    Goal("Gaussian", 512, 4608, False, 1.25, 4.0),
)


def score_of(goal: Goal) -> Tensor:
    """Magnitudes [rows, columns] of random weights."""
    weight = torch.randn(goal.rows, goal.columns)
    return (weight * torch.randn(goal.columns).exp() if goal.scaled else weight).abs()


def kept(score: Tensor) -> float:
    """What 2:4 keeps, in percent."""
    return 100 * float(score[masks.magnitude_mask(score)].double().sum() / score.double().sum())


def tables(setting: Setting) -> list[Table]:
    """Gains and times of each goal, the fastest of some searches."""
    head = ["score", "rows, columns", "2:4 keeps", "after", "points", "asked", "s", "asked"]
    caption = "An order of columns by iterated linear assignment: what 2:4 keeps of sum |w|, in percent."
    with Rows(setting, "permutation", caption, head) as rows:
        for goal in GOALS:
            smaller = goal._replace(rows=64, columns=64) if setting.quick else goal
            score = score_of(smaller)
            best, order = float("inf"), torch.arange(smaller.columns)
            end = time.perf_counter() + setting.seconds
            while best == float("inf") or time.perf_counter() < end:
                begin = time.perf_counter()
                order = ops.search_columns(score)
                best = min(best, time.perf_counter() - begin)
            before, after = kept(score), kept(score[:, order])
            shape = f"{smaller.rows}, {smaller.columns}"
            gained = f"{after - before:+.2f}"
            rows.add(
                [goal.name, shape, f"{before:.2f}", f"{after:.2f}", gained, f"{goal.points:+.2f}",
                 f"{best:.2f}", f"{goal.seconds:.1f}"]
            )  # fmt: skip
    return [rows.table()]
