"""What happened to every layer, and why: the table that pruning and conversion return."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import overload


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer. ``reason`` is never empty for a layer that was left as it was."""

    name: str  #: qualified name in the model
    kind: str  #: class name, e.g. "Linear"
    shape: tuple[int, ...]  #: of the weight
    done: bool  #: pruned or converted; False: left dense
    reason: str  #: why the layer was left dense, or a remark
    kept: float  #: share of weights that are not zero, 0 to 1; NaN where they cannot be read
    bytes_before: int
    bytes_after: int


@dataclasses.dataclass(frozen=True)
class Report(Sequence[Row]):
    """Rows in model order; ``print(report)`` shows them as a table with totals."""

    rows: tuple[Row, ...]
    action: str = "converted"  #: what ``done`` means: "pruned", "converted", "measured"

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Row, ...]: ...
    def __getitem__(self, index: int | slice) -> Row | tuple[Row, ...]:
        return self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @property
    def done(self) -> list[Row]:
        return [row for row in self.rows if row.done]

    @property
    def left(self) -> list[Row]:
        return [row for row in self.rows if not row.done]

    def __str__(self) -> str:
        header = ("layer", "kind", "shape", self.action, "kept", "bytes", "after", "why not / remark")
        table = [header] + [
            (
                row.name or "(root)",
                row.kind,
                "x".join(map(str, row.shape)),
                "yes" if row.done else "no",
                "-" if math.isnan(row.kept) else f"{row.kept:.1%}",
                f"{row.bytes_before:,}",
                f"{row.bytes_after:,}",
                row.reason,
            )
            for row in self.rows
        ]
        before, after = sum(r.bytes_before for r in self.rows), sum(r.bytes_after for r in self.rows)
        summary = f"{len(self.done)} of {len(self.rows)} layers {self.action}; {before:,} bytes -> {after:,}"
        return format_table(table) + "\n" + summary


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows (the first one a header) as left-aligned columns under a rule."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
