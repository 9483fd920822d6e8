"""What a report says of the weights that were calibrated, and of those that were not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ..pruning.prunable import Candidate
from ..report import Row
from .matrices import Matrix


class Outcome(NamedTuple):
    """What training a block brought: mean squared error of the held-out outputs over their mean square."""

    before: float
    after: float
    rate: float  #: 0: nothing helped


def left_row(model: nn.Module, candidate: Candidate, why: str = "") -> Row:
    """The row of a weight that stays dense; ``why`` goes before what is known of it."""
    weight = dict(model.named_parameters()).get(candidate.name)
    shape = () if weight is None else tuple(weight.shape)
    size = 0 if weight is None else weight.numel() * weight.element_size()
    reason = why or candidate.blocked or candidate.dense or candidate.skipped or "left out by select"
    return Row(
        candidate.name,
        candidate.kind,
        shape,
        done=False,
        reason=reason,
        kept=1.0,
        bytes_before=size,
        bytes_after=size,
    )


def row_of(matrix: Matrix, mask: Tensor, remark: str, outcome: Outcome | None) -> Row:
    if outcome is not None and outcome.rate > 0:
        remark += f"; of the block {outcome.before:.2g}, trained {outcome.after:.2g}"
    return as_row(matrix, float(mask.float().mean()), done=True, reason=remark)


def as_row(matrix: Matrix, kept: float, *, done: bool, reason: str) -> Row:
    weight = matrix.parameter
    size = weight.numel() * weight.element_size()
    return Row(matrix.name, matrix.kind, tuple(weight.shape), done, reason, kept, size, size)


def merged(rows: Sequence[Row]) -> list[Row]:
    """One row for each parameter: of several matrices, the first one's remark."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.name, row)
    return list(first.values())
