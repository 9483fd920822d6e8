"""The table of goals, and the layers that it, the rules and the narrow dtypes are measured with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparse24 import SparseLinear
from sparse24.__main__ import main
from sparse24.commands.bench import goals, keeping, linear, narrow, networks, rules, single, table

pytestmark = pytest.mark.usefixtures("seeded")

BRIEF = table.Setting(1, 0.001)


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE24_CACHE", str(tmp_path / "cache"))
    for module in (linear, narrow):
        monkeypatch.setattr(module, "SHAPES", [(16, 24), (8, 16)])
    monkeypatch.setattr(single, "COLD_BYTES", 4e3)
    monkeypatch.setattr(goals.conv, "SHAPES", [(64, 64, 5, 3), (256, 256, 3, 1)])
    monkeypatch.setattr(goals.conv, "BATCH", 2)
    monkeypatch.setattr(rules, "SIDES", [(8, 16)])
    monkeypatch.setattr(rules, "CONVOLUTIONS", [(8, 8, 5, 3, 2, 1)])


def point(torch_s: float, packed: float, sparse: float, cold: bool = False) -> goals.Point:
    return goals.Point(single.Times(torch_s, packed, sparse, 2 * 10**9), torch_s, 4e9, cold)


def test_a_goal_is_a_geometric_mean_and_no_shape_below_one() -> None:
    goal = goals.Goal(goals.AVX2, "fp32", "fp32", (128,), goals.NO_CHANNELS, 1.9, "2.0")
    cells = goals.row(goal, [point(4.0, 2.0, 1.0), point(1.0, 1.0, 1.0)], 10.0)
    assert cells[:6] == ["fp32", "1.9 (prototype: 2.0)", "2.00", "1.00", "1.41", "met"]
    assert goals.row(goal, [point(4.0, 4.0, 1.0), point(0.99, 4.0, 1.0)], 10.0)[5] == "missed"
    assert goals.row(goal, [point(1.8, 4.0, 1.0)], 10.0)[5] == "missed"
    assert goals.row(goal._replace(prototype=""), [point(2.0, 2.0, 1.0)], 10.0)[1] == "1.9"


def test_what_bounds_a_product() -> None:
    said = goals.bound([point(4.0, 2.0, 1.25)], 10.0)  # 2e9 multiply-adds' worth in 1.25 s, dense 4e9 in 2 s
    assert said == "executes 2 GF/s, 80% of the best dense rate (2); at that rate the ratio would be 4.00"
    assert (
        goals.bound([point(4.0, 2.0, 0.5, cold=True)], 8.0) == "weights read at 4.0 GB/s, 50% of a plain read"
    )


@pytest.mark.parametrize("kernels", ["avx2", "avx512_vnni", "amx", "neon"])
def test_goals_of_this_class_are_measured_and_the_others_named(
    kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goals, "cpu_isa", lambda: kernels)
    monkeypatch.setattr(goals, "points", lambda goal, setting: [point(4.0, 2.0, 1.0, "cold" in goal.what)])
    (made,) = goals.tables(BRIEF)
    head, *rows = made.rows
    assert all(len(row) == len(head) for row in rows)
    own = [row for row in rows if row[5] in ("met", "missed")]
    assert len(own) == sum(goal.kernels[0] == kernels.split("_", maxsplit=1)[0] for goal in goals.GOALS)
    others = [row for row in rows if row[5].endswith(": a prediction")]
    assert len(own) + len(others) == len(goals.GOALS)
    assert rows[: len(own)] == own
    assert not any(row[5].startswith(f"for {kernels}:") for row in others)
    assert [
        "networks: .95 of Amdahl's prediction",
        "0.95",
        "",
        "",
        "",
        "not measured",
        "--only networks",
    ] in rows


def test_goals_of_networks_come_from_kept_rows() -> None:
    def cells(of_amdahl: str, ratio: str) -> list[str]:
        known = {"x torch": ratio, "x best dense": "1.00", "of Amdahl": of_amdahl, "in products": "61%"}
        return [known.get(name, "") for name in networks.HEADER]

    rows = keeping.Rows("networks", table.Setting(1, 0.001, resume=True))
    rows.put("bert fp32 eager 1", cells("0.96", "1.50"))
    rows.put("bert bf16 eager 1", cells("0.90", "0.98"))
    rows.put("bert int8 eager 1", cells("", "2.00"))
    amdahl, slower = goals._of_networks(BRIEF)
    assert amdahl[2:6] == ["0.93", "0.90", "1.00", "missed"]
    assert amdahl[6] == "least: bert bf16 eager 1, 61% of whose time is in products"
    assert slower[2:6] == ["1.43", "0.98", "1.00", "met"]


def test_every_goal_finds_its_shapes() -> None:
    for goal in goals.GOALS:
        found = goals.points(goal, table.Setting(1, 1e-4))
        assert found, goal.what
        for each in found:
            assert each.cold == goal.is_cold
            assert min(each.rival, each.times.sparse, each.times.best) > 0
        if goal.tokens:
            assert len(found) == 2 * len(goal.tokens)


def test_a_goal_over_float32_is_compared_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"fp32": 8.0, "bf16": 5.0}

    def timed(kind: single.Kind, *given: Any) -> single.Times:
        return single.Times(seconds[kind.name], 9.0, 1.0, 1)

    monkeypatch.setattr(single, "linear", timed)
    goal = next(g for g in goals.GOALS if g.what == "bf16, 1 token, cold, over fp32")
    assert [p.rival for p in goals.points(goal, BRIEF)] == [8.0, 8.0]


@pytest.mark.parametrize("kind", single.KINDS.values(), ids=list(single.KINDS))
@pytest.mark.parametrize("cold", [False, True])
def test_a_layer_is_timed_against_its_rivals(kind: single.Kind, cold: bool) -> None:
    found = single.linear(kind, (16, 24), 3, 0.001, cold)
    assert min(found) > 0
    assert found.best <= found.torch
    layer = SparseLinear(24, 16, dtype=kind.dtype)
    bytes_of_layer = sum(
        t.nbytes for n, t in (layer.to_int8() if kind.is_int8 else layer).state_dict().items() if n != "bias"
    )
    assert bytes_of_layer <= found.weight_bytes <= bytes_of_layer + 4  # a scale of activations


def test_a_convolution_is_timed_against_its_rivals() -> None:
    for kind in single.KINDS.values():
        found = single.conv2d(kind, nn.Conv2d(8, 8, 3), torch.randn(2, 8, 5, 5), 0.001)
        assert min(found.torch, found.sparse) > 0


@pytest.mark.parametrize(
    ("name", "rows"), [("narrow", [4 * 2 * 5]), ("rules", [3, 3])], ids=["narrow", "rules"]
)
def test_tables_have_a_row_for_every_case(name: str, rows: list[int], tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert main(["bench", "--only", name, "--seconds", "0.001", "--threads", "1", "--out", str(out)]) == 0
    found = json.loads(out.read_text())["tables"]
    assert [len(made["rows"]) - 1 for made in found] == rows
    for made in found:
        assert all(len(row) == len(made["rows"][0]) for row in made["rows"])


def test_quick_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = table.Setting(1, 0.001, quick=True)
    assert len(narrow.tables(quick)[0].rows) == 1 + 4 * 2
    monkeypatch.setattr(goals, "read_gigabytes", lambda seconds: 1.0)
    assert len(goals.tables(quick)[0].rows) == 1 + 1 + 1


def test_a_read_has_a_speed() -> None:
    assert 0 < goals.read_gigabytes(0.0) < 1e4
