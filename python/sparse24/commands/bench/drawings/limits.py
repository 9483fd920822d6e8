"""The roofline."""

from __future__ import annotations

from collections.abc import Iterator

from ...page import plots
from ..table import Table
from .drawing import HERE, Drawing, column, number


def roofline(tables: dict[str, Table]) -> Iterator[Drawing]:
    """Operations a byte against rates, under the roofs of dense and of 2:4 products."""
    limits = dict(
        zip(
            column(tables["roofline-limits"], "limit"),
            column(tables["roofline-limits"], "figure"),
            strict=True,
        )
    )
    peak, bandwidth = number(limits["operations"]), number(limits["reading"])
    assert peak is not None
    assert bandwidth is not None
    table = tables["roofline"]
    measured = {
        name: _points(column(table, intensity), column(table, speed))
        for name, intensity, speed in (
            ("torch", "operations a byte", "torch GF/s"),
            ("2:4", "operations a byte, 2:4", "2:4 GF/s"),
        )
    }
    every = [x for points in measured.values() for x, _ in points]
    if not every:
        raise ValueError("no product has a rate")
    roofs = {
        "roof, dense": _roof(peak, bandwidth, min(every), max(every)),
        "roof, 2:4": _roof(2 * peak, bandwidth, min(every), max(every)),
    }
    svg = plots.lines(
        roofs, "operations of the dense product a byte", "GF/s of the dense product", "Roofline, fp32",
        log_x=True, log_y=True, points=measured,
    )  # fmt: skip
    yield Drawing(
        "roofline", svg, f"Products and limits are {HERE}: {limits['operations']}, {limits['reading']}."
    )


def _points(xs: list[str], ys: list[str]) -> list[tuple[float, float]]:
    pairs = [(number(x), number(y)) for x, y in zip(xs, ys, strict=True)]
    return [(x, y) for x, y in pairs if x and y]


def _roof(peak: float, bandwidth: float, low: float, high: float) -> list[tuple[float, float]]:
    """Up to the peak, then along it."""
    bend = peak / bandwidth
    low, high = min(low, bend) / 1.5, max(high, bend) * 1.5
    return [(low, low * bandwidth), (bend, peak), (high, peak)]
