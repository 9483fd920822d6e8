"""The demo's shapes, timed."""

from __future__ import annotations

import pytest

from sparse24 import timing
from sparse24.commands.demo import tables
from sparse24.commands.demo.outcome import speed_row

pytestmark = pytest.mark.usefixtures("seeded")


def test_a_losing_shape_is_called_slower() -> None:
    assert speed_row("a", timing.Pair(3e-3, 1e-3)) == ("a", "3 ms", "1 ms", "3.00x faster")
    assert speed_row("a", timing.Pair(1e-3, 2e-3))[-1] == "2.00x slower"


def test_gemm_and_conv_rows_measure_what_they_say() -> None:
    pair = tables.time_gemm(tables.Gemm(16, 8, 32, 1.0))
    assert pair.dense > 0
    assert pair.sparse > 0
    pair = tables.time_conv(tables.Conv(1, 8, 8, 5, 1.0))
    assert pair.dense > 0
    assert pair.sparse > 0
