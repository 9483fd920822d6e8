"""A plot, and how cells of tables are read as numbers again."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from ..table import Table

HERE = "measured here"


class Drawing(NamedTuple):
    """A plot."""

    name: str  #: of its file, without ".svg"
    svg: str
    caption: str


def column(table: Table, name: str) -> list[str]:
    """The cells under a heading."""
    index = table.rows[0].index(name)
    return [row[index] for row in table.rows[1:]]


def number(cell: str) -> float | None:
    """The number that a cell begins with: "22.1 (prepacked)" is 22.1, "36%" is 36; None: no number."""
    found = re.match(r"[-+]?\d[\d,]*(?:\.\d+)?", cell.strip())
    return float(found[0].replace(",", "")) if found else None


def mean(numbers: Sequence[float]) -> float:
    """Geometric."""
    return math.exp(sum(map(math.log, numbers)) / len(numbers))


def by_tokens(tokens: Sequence[str], cells: Sequence[str]) -> dict[int, list[float]]:
    """The numbers of each count of tokens, over whatever else differs; in the order of counts."""
    found: dict[int, list[float]] = defaultdict(list)
    for count, cell in zip(tokens, cells, strict=True):
        value = number(cell)
        if value:  # a rate that was rounded to 0 says nothing
            found[int(count)].append(value)
    return dict(sorted(found.items()))


def line(grouped: dict[int, list[float]]) -> list[tuple[float, float]]:
    """Geometric means."""
    return [(count, mean(values)) for count, values in grouped.items()]


def band(grouped: dict[int, list[float]]) -> list[tuple[float, float, float]]:
    """From the least to the most."""
    return [(count, min(values), max(values)) for count, values in grouped.items()]
