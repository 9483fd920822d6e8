"""README's three plots: speed, size, accuracy."""

from __future__ import annotations

from collections.abc import Sequence

from ...page import plots
from ..table import Table
from .drawing import by_tokens, column, mean, number

#: Of networks: the rows that stand for them.
MODE, BATCHES = "eager", ("8", "1")
RIVALS = ("x torch", "x best dense")


def speed(tables: Sequence[Table], where: str) -> str:
    """Products and whole networks in fp32, over torch and over the best dense.

    Raises:
        ValueError: there is no table that could be drawn.
    """
    rows = [*_products(tables), *_networks(tables)]
    if not rows:
        raise ValueError("none of linear, decode, conv and networks is there")
    return plots.grouped(
        rows, "times as fast as dense (1: as fast)", f"Speed in fp32: {where}", reference=1.0
    )


def _newest(tables: Sequence[Table], name: str) -> Table | None:
    """The table with the most threads."""
    found = sorted(table.name for table in tables if table.name.rpartition("-")[0] == name)
    return next((table for table in tables if found and table.name == found[-1]), None)


def _products(tables: Sequence[Table]) -> list[tuple[str, dict[str, float]]]:
    rows = []
    for name, few in (("decode", True), ("linear", False)):
        table = _newest(tables, name)
        if table is None:
            continue
        tokens = column(table, "tokens")
        ratios = [by_tokens(tokens, column(table, rival)) for rival in RIVALS]
        counts = list(ratios[0])[:1] if few else list(ratios[0])[-2:]
        for count in counts:
            label = f"linear layers, {count} token{'s' if count > 1 else ', cold weights'}"
            rows.append((label, _pair([mean(each[count]) for each in ratios])))
    table = _newest(tables, "conv")
    if table is not None:
        heads = ("x torch", "x prepacked")
        cells = [[value for cell in column(table, head) if (value := number(cell))] for head in heads]
        rows.append(("convolutions, batch 8", _pair([mean(each) for each in cells])))
    return rows


def _networks(tables: Sequence[Table]) -> list[tuple[str, dict[str, float]]]:
    """The eager row in fp32 of each network, at the first batch of ``BATCHES`` that was measured."""
    table = _newest(tables, "networks")
    if table is None:
        return []
    heads = ("network", "dtype", "mode", "batch", *RIVALS)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, dtype, mode, batch, *cells in zip(*(column(table, head) for head in heads), strict=True):
        values = [value for cell in cells if (value := number(cell))]
        if (dtype, mode) == ("fp32", MODE) and len(values) == len(RIVALS):
            found.setdefault(name.rpartition(",")[0], {})[batch] = _pair(values)
    rows = []
    for name, batches in found.items():
        batch = next((each for each in BATCHES if each in batches), None)
        if batch is not None:
            rows.append((f"{name}, batch {batch}", batches[batch]))
    return rows


def _pair(values: Sequence[float]) -> dict[str, float]:
    return dict(zip(("over torch", "over the best dense"), values, strict=True))


def size(tables: Sequence[Table], where: str) -> str:
    """Memory that is held, dense and 2:4: of the benchmark of memory, else of the networks.

    Raises:
        ValueError: neither is there.
    """
    table = _newest(tables, "memory")
    if table is not None:
        heads: tuple[str, ...] = ("network", "dtype", "dense MB", "2:4 MB")
        cells = [list(each) for each in zip(*(column(table, head) for head in heads), strict=True)]
    else:
        table = _newest(tables, "networks")
        if table is None:
            raise ValueError("neither memory nor networks is there")
        heads = ("network", "dtype", "dense MB", "2:4 MB", "mode", "batch")
        every = zip(*(column(table, head) for head in heads), strict=True)
        cells = [list(each[:4]) for each in every if each[4:] == (MODE, "1") and each[1] == "fp32"]
    rows = [
        (f"{name}, {dtype}", {"dense": number(dense) or 0.0, "2:4": number(sparse) or 0.0})
        for name, dtype, dense, sparse in cells
    ]
    return plots.grouped(rows, "MB", f"Memory that networks hold: {where}")


def accuracy(rows: Sequence[tuple[str, float, float, bool]], against: str) -> str:
    """Differences in units of what dense seeds differ by; a band ends where a row stops passing."""
    label = f"{against}, in standard deviations of dense seeds"
    return plots.differences(rows, label, "Accuracy after the recipe")
