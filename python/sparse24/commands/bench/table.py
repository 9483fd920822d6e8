"""A table of figures, and how every benchmark writes them."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Table:
    """Figures as a terminal and a paper show them."""

    name: str  #: as in the markers of a paper
    caption: str
    rows: list[list[str]]  #: the first one is the header

    def markdown(self) -> str:
        """The caption above a table of Markdown."""
        head, *body = self.rows
        lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body]]
        return self.caption + "\n\n" + "\n".join(lines)


def as_csv(tables: Sequence[Table]) -> str:
    """All cells of some tables, one a line: table, row (from 1), what the row begins with, column, value."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["table", "row", "name", "column", "value"])
    for table in tables:
        head, *body = table.rows
        for index, row in enumerate(body, 1):
            pairs = zip(head, row, strict=True)
            writer.writerows([table.name, index, row[0], column, cell] for column, cell in pairs)
    return file.getvalue()


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a benchmark is asked for."""

    threads: int
    seconds: float  #: spent on each row
    quick: bool = False  #: smaller problems, to see that it works; the figures say little
    minutes: float = (
        60.0  #: that a benchmark of many rows may take; what is not reached is left out, and told
    )
    networks: tuple[str, ...] = ()  #: keys of the networks to measure; empty: all
    batches: tuple[int, ...] = ()  #: of the networks; empty: each one's own
    resume: bool = False  #: take over rows that an interrupted run has measured
    progress: Callable[[str], None] = print  #: told of every row


class Interrupted(KeyboardInterrupt):
    """A benchmark was interrupted; ``tables`` is what it had measured."""

    def __init__(self, tables: list[Table]) -> None:
        super().__init__()
        self.tables = tables


class Rows:
    """The rows of a table as they come: each is told, and an interruption loses none.

    As a context it turns KeyboardInterrupt into :class:`Interrupted`, with ``others`` and this table so far.
    """

    def __init__(
        self, setting: Setting, name: str, caption: str, head: list[str], others: Sequence[Table] = ()
    ) -> None:
        self._setting, self._name, self._caption = setting, name, caption
        self._rows = [head]
        self._others = others

    def add(self, cells: list[str]) -> None:
        """A row."""
        self._rows.append(cells)
        self._setting.progress("  " + " | ".join(cells))

    def table(self, remark: str = "") -> Table:
        """What there is."""
        return Table(self._name, self._caption + remark, self._rows)

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted([*self._others, self.table(" Interrupted: rows are missing.")]) from None


#: What every module of a benchmark has under the name ``tables``.
Benchmark = Callable[[Setting], list[Table]]


def pruned(*shape: int) -> Tensor:
    """A random 2:4 weight."""
    weight = torch.randn(*shape)
    torch.ops.sparse24.prune_(weight, 2, 4, 1)
    return weight


def giga(operations: float, seconds: float) -> str:
    """Operations a second, in 10^9."""
    return f"{operations / seconds / 1e9:.0f}"


def ratios(sparse: float, *rivals: float) -> list[str]:
    """How many times longer each rival took."""
    return [f"{rival / sparse:.2f}" for rival in rivals]
