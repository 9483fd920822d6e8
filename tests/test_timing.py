"""Timing: rivals take turns, and the machine is named."""

from __future__ import annotations

import pytest
import torch

from sparse24 import timing

from .commands.demo.small import medians

pytestmark = pytest.mark.usefixtures("seeded")


def test_calls_take_turns() -> None:
    order: list[str] = []
    times = medians([lambda: order.append("a"), lambda: order.append("b")], seconds=0, min_rounds=3)
    assert order == ["a", "b"] * 4
    assert all(0 < t < 0.1 for t in times)


def test_timing_goes_on_for_the_time_given() -> None:
    calls: list[int] = []
    pair = timing.Pair.measure(lambda: calls.append(1), lambda: None, seconds=0.05)
    assert len(calls) > 10
    assert pair.speedup == pair.dense / pair.sparse


def test_the_machine_is_named() -> None:
    machine = timing.Machine.here()
    assert machine.threads == torch.get_num_threads()
    assert machine.cores >= 1
    assert torch.__version__ in str(machine)
    assert machine.cpu


def test_units_have_three_digits() -> None:
    assert [timing.in_units(t) for t in (2.5, 0.0123456, 3.4e-6)] == ["2.5 s", "12.3 ms", "3.4 us"]
