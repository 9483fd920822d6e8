"""Plots of whole networks: speed against batch, Amdahl's law against what was measured, an encoder layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from ...page import plots
from .. import published
from ..table import Table
from .drawing import HERE, Drawing, column, number


def networks(tables: dict[str, Table]) -> Iterator[Drawing]:
    """Ratios by batch of each network, then predicted against measured ratios of all."""
    yield from _networks(tables["networks"], "amdahl")


def batches(tables: dict[str, Table]) -> Iterator[Drawing]:
    """The same of networks at batches that were asked for."""
    yield from _networks(tables["batches"], "amdahl-batches")


def _networks(table: Table, amdahl: str) -> Iterator[Drawing]:
    names, dtypes, modes, batches = (column(table, head) for head in ("network", "dtype", "mode", "batch"))
    ratios, laws = column(table, "x torch"), column(table, "Amdahl")
    series: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for name, dtype, mode, batch, cell, law in zip(names, dtypes, modes, batches, ratios, laws, strict=True):
        measured, predicted = number(cell), number(law)
        if measured is None:
            continue
        if mode == "eager":
            series[name][dtype].append((float(batch), measured))
        if predicted is not None:
            points[dtype].append((predicted, measured))
    for name, lines in series.items():
        yield _by_batch(name, lines)
    if points:
        values = [value for pairs in points.values() for pair in pairs for value in pair]
        ends = 0.95 * min(values), 1.05 * max(values)
        svg = plots.lines(
            {"as predicted": [(end, end) for end in ends]}, "times as fast, by Amdahl's law",
            "times as fast, measured", "Networks: Amdahl's law and what is measured", points=points,
        )  # fmt: skip
        caption = (
            f"Every row of the table, {HERE}. Predicted: from the share of the sparse layers in the dense "
            "pass, and from the ratios of those layers alone."
        )
        yield Drawing(amdahl, svg, caption)


def _by_batch(name: str, lines: dict[str, list[tuple[float, float]]]) -> Drawing:
    key = "".join(c if c.isalnum() else "-" for c in name.rpartition(",")[0].lower())
    title = f"{name}, over stock torch in the same dtype"
    caption = f"Whole network, eager, {HERE}."
    said = [
        f"{each.dtype} {each.gain} ({each.scenario}; {each.throughput})"
        for each in published.NETWORKS
        if each.key in key or key.startswith(each.key)
    ]
    if said:
        caption += f" Published for an A100, not measured here: {', '.join(said)}; {published.TALK}."
    if all(len(points) == 1 for points in lines.values()):
        rows = [(f"{dtype}, batch {points[0][0]:.0f}", points[0][1]) for dtype, points in lines.items()]
        return Drawing(f"network-{key}", plots.bars(rows, "times as fast as torch", title, 1.0), caption)
    svg = plots.lines(lines, "batch", "times as fast as torch", title, log_x=True)
    return Drawing(f"network-{key}", svg, caption)


def encoder(tables: dict[str, Table]) -> Iterator[Drawing]:
    """An encoder layer as stacks of its parts, dense, 2:4, and by Amdahl's law."""
    table = tables["encoder"]
    columns = [column(table, head) for head in ("dtype", "part", "dense ms", "2:4 ms")]
    stacks: dict[str, list[tuple[str, float]]] = {}
    said = []
    for dtype, part, before, after in zip(*columns, strict=True):
        dense, sparse = number(before), number(after)
        assert dense is not None
        assert sparse is not None
        if part in ("whole layer", "by Amdahl's law"):
            said.append(f"{dtype}, {part}: {dense / sparse:.2f} times as fast")
            continue
        stacks.setdefault(f"dense, {dtype}", []).append((part, dense))
        stacks.setdefault(f"2:4, {dtype}", []).append((part, sparse))
    svg = plots.stacked(list(stacks.items()), "ms", "One encoder layer of BERT-Large")
    caption = f"Where its time goes, {HERE}: products shrink, the rest stays. {'; '.join(said)}."
    yield Drawing("encoder", svg, caption)


def gpu_networks(tables: dict[str, Table]) -> Iterator[Drawing]:
    """Ratios by batch of each network on a GPU."""
    table = tables["gpu-networks"]
    rows = zip(*(column(table, head) for head in ("network", "dtype", "batch", "x dense")), strict=True)
    series: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for name, dtype, batch, cell in rows:
        measured = number(cell)
        if measured is not None:
            series[name][dtype].append((float(batch), measured))
    for name, lines in series.items():
        drawing = _by_batch(name, lines)
        yield drawing._replace(name=f"gpu-{drawing.name}")
