"""``tune`` and ``explain`` on a CPU: every layer against its dense self, remembered for ``to_sparse``."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import sparse24
from reference import assert_matches, prune_layers
from sparse24 import ops
from sparse24.choose import cpu, measured
from sparse24.choose.example import LayerCall
from sparse24.timing import Pair

from .clocks import mlp, set_clock

pytestmark = pytest.mark.usefixtures("seeded")

MS = 1e-3
KERNELS = f"sparse: CPU kernels for {ops.cpu_isa()}"


def quiet(line: str) -> None:
    """No progress."""


def test_every_distinct_layer_is_timed_at_every_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = set_clock(monkeypatch, lambda out, n: (2 * MS, MS) if n == 1 else (MS, 1.5 * MS))
    model = nn.Sequential(mlp(), mlp())  # the same two layers twice
    sparse24.to_sparse(model, when="always")
    lines: list[str] = []
    rows = sparse24.tune(model, (1, 100), progress=lines.append)
    assert [(row.m, row.k, row.tokens) for row in rows] == [
        (64, 32, 1),
        (64, 32, 100),
        (16, 64, 1),
        (16, 64, 100),
    ]
    assert [row.remark for row in rows] == ["", "dense is faster: to_sparse leaves it dense"] * 2
    assert rows[0].measured is not None
    assert (rows[0].measured.dense, rows[0].measured.sparse) == (2000, 1000)
    assert len(lines) == 4
    assert lines[0].startswith("1/4 float32  64 x 32")
    assert "1000.0     2000.0" in str(rows)
    assert len(clock.asked) == 4
    again = sparse24.tune(model, (1, 100), progress=quiet)
    assert [row.remark.split(";")[0] for row in again] == ["measured before"] * 4
    assert len(clock.asked) == 4
    sparse24.tune(model, (1,), again=True, progress=quiet)
    assert len(clock.asked) == 6


def test_what_was_tuned_decides_without_examples_and_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    set_clock(monkeypatch, lambda out, n: (2 * MS, 3 * MS) if out == 64 else (2 * MS, MS))
    model = mlp()
    sparse24.to_sparse(model, when="always")
    sparse24.tune(model, (100,), progress=quiet)
    assert sparse24.explain(model[0], (100, 32)) == f"{KERNELS}; tuned: dense 2 ms, sparse 3 ms at 100 tokens"
    assert (
        sparse24.explain(model[0], (4, 32, 32)) == f"{KERNELS}; tuned: dense 2 ms, sparse 3 ms at 100 tokens"
    )
    assert "tuned" not in sparse24.explain(model[0], (129, 32))
    assert sparse24.explain(model[0], (129, 32)).endswith("; tune measures")
    report = sparse24.to_sparse(mlp())
    assert [(row.done, row.reason) for row in report] == [
        (False, "tuned: dense 2 ms, sparse 3 ms at 100 tokens: stays dense"),
        (True, "tuned: dense 2 ms, sparse 1 ms at 100 tokens"),
    ]
    other = sparse24.to_sparse(mlp(torch.bfloat16))
    assert not any("tuned" in row.reason for row in other)
    assert sparse24.to_sparse(mlp(torch.float64), torch.float32)[1].reason.startswith("tuned")


def test_when_the_budget_is_spent_the_rest_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = set_clock(monkeypatch, lambda out, n: (2.0, 1.0))
    model = mlp()
    sparse24.to_sparse(model, when="always")
    rows = sparse24.tune(model, (1,), budget_seconds=0, progress=quiet)
    assert [(row.measured, row.remark) for row in rows] == [(None, "the budget is spent")] * 2
    assert not clock.asked


def shapes_asked_for(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Of the inputs that layers are to be timed on, as they come: the two must give the same on each."""
    seen: list[Any] = []

    def measure(self: measured.Chooser, dense: Any, sparse: Any, call: LayerCall) -> Pair:
        (x,), _ = call.arguments(torch.Generator())
        seen.append(tuple(x.shape))
        assert_matches(sparse(x), dense(x).double())
        return Pair(2.0, 1.0)

    monkeypatch.setattr(measured.Chooser, "measure", measure)
    return seen


def test_a_convolution_is_tuned_on_an_image_of_that_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = shapes_asked_for(monkeypatch)
    model = prune_layers(nn.Sequential(nn.Conv2d(8, 16, 5, stride=2, padding=2), nn.ReLU())).eval()
    sparse24.to_sparse(model, when="always", fuse=True)
    rows = sparse24.tune(model, (1, 49), progress=quiet)
    assert seen == [(1, 8, 5, 5), (1, 8, 14, 14)]  # the second has 7x7 pixels of output
    assert [(row.m, row.k) for row in rows] == [(16, 200)] * 2


def test_a_volume_is_tuned_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = shapes_asked_for(monkeypatch)
    model = prune_layers(nn.Sequential(nn.Conv3d(8, 16, 3, stride=(1, 2, 1), padding=1))).eval()
    plain = copy.deepcopy(model)
    sparse24.to_sparse(model, when="always")
    rows = sparse24.tune(model, (1, 64), progress=quiet)
    assert seen == [(1, 8, 3, 3, 3), (1, 8, 4, 8, 4)]  # the second has 4x4x4 voxels of output
    assert [(row.m, row.k) for row in rows] == [(16, 216)] * 2
    said = sparse24.explain(model[0], (1, 8, 4, 8, 4))
    assert said == f"{KERNELS}; tuned: dense 2 s, sparse 1 s at 64 tokens"
    row = sparse24.to_sparse(plain)[0]
    assert row.done
    assert row.reason.startswith("tuned: dense 2 s, sparse 1 s at 1 token")


def test_layers_in_int8_have_figures_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = set_clock(monkeypatch, lambda out, n: (2.0, 1.0))
    model = mlp()
    sparse24.to_sparse(model, when="always")
    for _ in range(2):
        sparse24.tune(model, (3,), progress=quiet)
    assert len(clock.asked) == 2
    clock = set_clock(monkeypatch, lambda out, n: (2.0, 9.0))
    for activations in (None, "dynamic"):
        other = mlp()
        sparse24.to_sparse(other, when="always")
        rows = sparse24.tune(nn.Sequential(other[0].to_int8(activations)), (3,), progress=quiet)
        assert [row.dtype for row in rows] == [torch.int8]
    assert len(clock.asked) == 2
    assert sparse24.to_sparse(mlp())[0].reason == "tuned: dense 2 s, sparse 1 s at 3 tokens"


def test_real_layers_are_really_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "_SECONDS", 0.01)
    model = mlp()
    sparse24.to_sparse(model, when="always", fuse=True)
    for row in sparse24.tune(model, (3,), progress=quiet):
        assert row.measured is not None
        assert 0 < row.measured.sparse < 1e6
        assert 0 < row.measured.dense < 1e6
    assert cpu.explain(model[0], 3).startswith(f"{KERNELS}; tuned: dense ")
