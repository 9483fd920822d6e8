"""``sparse24 report``: what it tells about the weights of a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import sparse24
from sparse24 import files as io
from sparse24.__main__ import main

from .state_files import SUFFIXES, network, saved

pytestmark = pytest.mark.usefixtures("seeded")


@SUFFIXES
def test_report_tells_what_is_24_and_what_it_weighs(suffix: str, tmp_path: Path) -> None:
    model = network()
    sparse24.Sparsifier(model).prune()
    report = io.report(io.read(saved(tmp_path / f"model{suffix}", model.state_dict())))
    rows = {row.name: row for row in report}
    assert set(rows) == {"embed.weight", "conv.weight", "body.weight", "head.weight"}
    assert {name for name, row in rows.items() if row.done} == {"conv.weight", "body.weight"}
    assert rows["body.weight"].kept == rows["conv.weight"].kept == 0.5
    assert "not 2:4 along dim 1" in rows["head.weight"].reason
    assert rows["head.weight"].bytes_after == rows["head.weight"].bytes_before == 10 * 24 * 4


def test_report_counts_the_bytes_that_conversion_leaves(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(6, 5, 3, bias=False), nn.Linear(13, 7, bias=False))
    for layer in model:
        sparse24.masks.prune_(layer.weight)
    said = io.report(io.read(saved(tmp_path / "model.pt", model.state_dict())))
    converted = sparse24.to_sparse(model, when="always")
    assert [row.bytes_after for row in said] == [row.bytes_after for row in converted]
    again = io.report(io.read(saved(tmp_path / "sparse.pt", model.state_dict())))
    assert [row.reason for row in again] == ["compressed already"] * 2
    assert [row.bytes_before for row in again] == [row.bytes_after for row in converted]


def test_report_names_damaged_and_foreign_weights(tmp_path: Path) -> None:
    state = {
        "broken.values": torch.ones(2, 4),
        "broken.indices": torch.zeros(2, 1, dtype=torch.uint8),
        "double.weight": torch.zeros(4, 8, dtype=torch.float64),
        "empty.weight": torch.zeros(0, 8),
        "counts": torch.zeros(4, 4, dtype=torch.int64),
        "vector": torch.zeros(4),
    }
    broken, double, empty = io.report(io.read(saved(tmp_path / "model.pt", state)))
    assert not broken.done
    assert "row 0, group 0" in broken.reason
    assert double.reason == "sparse layers hold float32, float16, bfloat16: cast it"
    assert double.bytes_after == double.bytes_before
    assert (empty.done, empty.kept) == (True, 1.0)


def test_report_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(saved(tmp_path / "model.safetensors"))]) == 0
    out = capsys.readouterr().out
    assert "body.weight" in out
    assert "0 of 4 layers 2:4" in out
