"""What becomes of each layer: int8, or floating for a reason; and the rows that say so."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from ..choose.measured import TIE
from ..nn.kinds import ProductLayer
from ..report import Report, Row
from ..timing import Pair, in_units
from .watching import Noise


class Way(NamedTuple):
    """How layers become int8."""

    method: str
    activations: str | None
    percentile: float
    min_sqnr: float
    budget: float
    when: str


def store(
    name: str,
    layer: ProductLayer,
    twin: ProductLayer | None,
    way: Way,
    measured: tuple[Noise | None, Pair | None],
    *,
    is_spared: bool,
) -> Row:
    """Make a layer what its twin is, or say why not."""
    noise, times = measured
    told = []
    if noise is not None:
        told.append(f"SQNR {noise.sqnr:.1f} dB")
    if times is not None:
        told.append(f"floating {in_units(times.dense)}, int8 {in_units(times.sparse)}")
    if twin is None:
        return row_of(
            name, layer, done=False, reason="no batch reached it: it has no scale, and stays floating"
        )
    if is_spared:
        return row_of(
            name, layer, done=False, reason=f"{told[0]}: among the noisiest, stays floating by budget"
        )
    if noise is not None and noise.sqnr < way.min_sqnr:
        return row_of(name, layer, done=False, reason=f"{told[0]}, below {way.min_sqnr:g}: stays floating")
    if times is not None and times.sparse > TIE * times.dense:
        return row_of(name, layer, done=False, reason=f"{'; '.join(told)}: stays floating")
    before = _bytes(layer)
    scale = twin._buffers.get("input_scale")
    if way.activations == "static" and scale is not None:
        told.insert(0, f"input scale {float(scale):.3g}")
    layer.to_int8(
        way.activations, float(scale) if way.activations == "static" and scale is not None else None
    )
    return row_of(name, layer, done=True, reason="; ".join(told), before=before)


def _bytes(layer: ProductLayer) -> int:
    return sum(t.nbytes for t in (*layer.parameters(), *layer.buffers()))


def row_of(name: str, layer: ProductLayer, *, done: bool, reason: str, before: int = 0) -> Row:
    size = _bytes(layer)
    shape = tuple(layer.weight.shape)
    return Row(name, type(layer).__name__, shape, done, reason, 0.5, before or size, size)


def row_chained(row: Row, chained: dict[str, str]) -> Row:
    """A row that says to which layer int8 is handed on."""
    if row.name not in chained:
        return row
    return dataclasses.replace(row, reason=f"{row.reason}; hands on int8 to {chained[row.name]}")


def report_of(model: nn.Module, rows: Sequence[Row]) -> Report:
    """Rows in model order."""
    order = {name: i for i, (name, _) in enumerate(model.named_modules())}
    return Report(tuple(sorted(rows, key=lambda row: order.get(row.name, 0))), "quantized")
