"""The rows of ``tune``, whatever device it ran on."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..ops.cuda import route
from ..report import format_table


class Tuned(NamedTuple):
    """What :func:`tune` found for one product."""

    dtype: torch.dtype
    m: int
    k: int
    tokens: int
    measured: route.Measured | None  #: None: not measured, see ``remark``
    trials: int  #: algorithms that were tried
    wrong: int  #: of them, those that were refused: wrong results or an error
    remark: str


class Tuning(tuple[Tuned, ...]):
    """Rows of :func:`tune`; ``print`` shows them as a table."""

    def __str__(self) -> str:
        header = (
            "dtype",
            "m x k",
            "tokens",
            "algorithm",
            "sparse us",
            "dense us",
            "expanded us",
            "tried",
            "remark",
        )
        rows: list[tuple[str, ...]] = [header]
        for row in self:
            found = row.measured
            figures: tuple[str, ...] = ("", "", "", "")
            if found is not None:
                figures = (
                    _algorithm(found),
                    *(f"{t:.1f}" if t else "" for t in (found.sparse, found.dense, found.expanded)),
                )
            name = str(row.dtype).removeprefix("torch.")
            tried = (f"{row.trials}" if row.trials else "") + (f", {row.wrong} refused" if row.wrong else "")
            rows.append((name, f"{row.m} x {row.k}", str(row.tokens), *figures, tried, row.remark))
        return format_table(rows)


def _algorithm(found: route.Measured) -> str:
    """Its id and split; empty: a CPU has none."""
    if not found.expanded:
        return ""
    return f"{found.algorithm.id}" + (f", split {found.algorithm.split_k}" if found.algorithm.split_k else "")
