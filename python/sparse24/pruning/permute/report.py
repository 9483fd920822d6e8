"""What a permutation did to every weight, and why to some nothing."""

from __future__ import annotations

import dataclasses
import math

from ...report import Report, Row, format_table


@dataclasses.dataclass(frozen=True)
class PermutedRow(Row):
    """One weight; ``done``: its input channels were permuted. ``kept``: what 2:4 keeps of its score now."""

    kept_before: float  #: share of its score that 2:4 kept before; NaN: it will not be pruned


@dataclasses.dataclass(frozen=True)
class PermutationReport(Report):
    """Rows in model order; ``print(report)`` shows what 2:4 keeps of every score, before and after."""

    action: str = "permuted"
    score_before: float = 0.0  #: kept of all scores, before
    score_after: float = 0.0
    score_whole: float = 0.0  #: all scores
    difference: float = 0.0  #: of the outputs before and after, over their size
    remark: str = ""  #: on the whole network: why nothing was permuted, or how outputs were compared

    @property
    def gain(self) -> float:
        """How much more of the scores is kept, as a share of all of them."""
        return (self.score_after - self.score_before) / self.score_whole if self.score_whole > 0 else 0.0

    def __str__(self) -> str:
        header = ("layer", "kind", "shape", self.action, "kept before", "after", "why not / remark")
        table = [header] + [
            (
                row.name,
                row.kind,
                "x".join(map(str, row.shape)),
                "yes" if row.done else "no",
                _share(getattr(row, "kept_before", math.nan)),
                _share(row.kept),
                row.reason,
            )
            for row in self.rows
        ]
        return "\n".join([format_table(table), self.summary, *([self.remark] if self.remark else [])])

    @property
    def summary(self) -> str:
        """One line on the whole network."""
        whole = self.score_whole or 1.0
        return (
            f"{len(self.done)} of {len(self.rows)} weights permuted; 2:4 keeps "
            f"{self.score_before / whole:.2%} -> {self.score_after / whole:.2%} of the score"
        )


def _share(number: float) -> str:
    return "-" if math.isnan(number) else f"{number:.2%}"
