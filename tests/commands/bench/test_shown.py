"""What stands beside the terminal's tables: names of groups, CSV, plots, and figures of others."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import pytest
import torch

from sparse24 import compress, magnitude_mask, transposable_mask
from sparse24.__main__ import main
from sparse24.commands import bench
from sparse24.commands.bench import (
    conv,
    decode,
    drawings,
    encoder,
    linear,
    masks,
    papers,
    published,
    roofline,
    talk,
)
from sparse24.commands.bench.drawings.drawing import number
from sparse24.commands.bench.machine import MachineClass
from sparse24.commands.bench.table import Setting, Table, as_csv
from sparse24.files import FileError

pytestmark = pytest.mark.usefixtures("seeded")
BRIEF = ("--seconds", "0.001", "--threads", "1", "--quick")
CHECKOUT = Path(__file__).parents[3]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (linear, decode, roofline):
        monkeypatch.setattr(module, "SHAPES", [(16, 24)])
    monkeypatch.setattr(roofline.single, "COLD_BYTES", 4e3)
    monkeypatch.setattr(decode, "COLD_BYTES", 4e3)
    monkeypatch.setattr(conv, "SHAPES", [(8, 12, 5, 3)])
    monkeypatch.setattr(conv, "BATCH", 2)


@pytest.mark.usefixtures("tiny")
def test_names_of_groups_stand_for_benchmarks_and_all_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells, plots = tmp_path / "cells.csv", tmp_path / "new" / "plots"
    assert (
        main(
            [
                "bench",
                "mask",
                "decode",
                "--only",
                "linear",
                *BRIEF,
                "--csv",
                str(cells),
                "--plots",
                str(plots),
            ]
        )
        == 0
    )
    with cells.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["table"] for row in rows} == {"linear-1", "decode-1", "masks-python-1"}
    (ratio,) = [row["value"] for row in rows if row["table"] == "decode-1" and row["column"] == "x torch"][:1]
    assert float(ratio) > 0
    made = sorted(path.name for path in plots.iterdir())
    assert made == ["decode.svg", "index.html", "linear-published.svg", "linear.svg", "masks-python.svg"]
    page = (plots / "index.html").read_text()
    assert "sparse24 bench mask decode linear --threads 1 --quick" in page
    assert page.count("<svg ") == 4
    assert f"plots: {plots / 'index.html'}" in capsys.readouterr().out


def test_csv_holds_every_cell() -> None:
    table = Table("one-2", "caption", [["name", "a"], ["x, y", "1"], ["z", ""]])
    assert as_csv([table]).splitlines() == [
        "table,row,name,column,value",
        'one-2,1,"x, y",name,"x, y"',
        'one-2,1,"x, y",a,1',
        "one-2,2,z,name,z",
        "one-2,2,z,a,",
    ]


def test_without_matplotlib_it_is_said_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    monkeypatch.setattr(bench, "_benchmark", lambda *_: pytest.fail("measured"))
    with pytest.raises(FileError, match=r"plots need matplotlib: pip install 'sparse24\[demo\]'"):
        bench.run(["linear"], plots=tmp_path)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", ["talk", "roofline", "encoder"])
def test_the_new_benchmarks_have_their_tables_and_plots(name: str, tmp_path: Path) -> None:
    plots = tmp_path / "plots"
    assert main(["bench", name, *BRIEF, "--plots", str(plots)]) == 0
    assert (plots / f"{name}.svg").exists()


def test_the_talk_is_measured_here_and_its_figures_stand_apart() -> None:
    (made,) = talk.tables(Setting(1, 0.001, quick=True))
    head, gemm, convolution = made.rows
    assert head[-1] == "published: A100, FP16"
    assert (gemm[-1], convolution[-1]) == ("1.44", "1.85")
    assert "were not measured here" in made.caption
    assert all(float(gemm[head.index(f"x torch, {kind}")]) > 0 for kind in ("fp32", "bf16"))


def test_published_ratios_are_those_of_the_findings() -> None:
    assert published.CARDS["A100 bf16"][64] == (0.76, 1.34, 1.85)
    assert published.CARDS["GB10 bf16"][16384] == (0.47, 0.80, 1.53)
    for ratios in published.CARDS.values():
        assert tuple(ratios) == published.TOKENS
        assert all(each.least <= each.median <= each.most for each in ratios.values())


def test_a_roofline_bounds_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        {"table": "machine", "isa": "avx2"},
        {"table": "linear", "dtype": "bf16", "gflops": 900.0, "of_peak": 0.5},
        {"table": "linear", "dtype": "fp32", "gflops": 300.0, "of_peak": 0.75},
        {"table": "linear", "dtype": "fp32", "gflops": 100.0, "of_peak": 0.5},
    ]
    monkeypatch.setattr(roofline.kernels, "run", lambda root, threads, only: lines)
    monkeypatch.setattr(roofline.goals, "read_gigabytes", lambda seconds: 20.0)
    monkeypatch.setattr(roofline, "SHAPES", [(64, 64)])
    monkeypatch.setattr(roofline.single, "COLD_BYTES", 4e4)
    monkeypatch.chdir(CHECKOUT)
    assert roofline.limits(Setting(1, 0.001)) == (200.0, "multiply-adds in registers", 20.0)
    limits, made = roofline.tables(Setting(1, 0.001))
    assert limits.rows[1:] == [
        ["operations", "200 GF/s", "multiply-adds in registers"],
        ["reading", "20.0 GB/s", "a plain read of more than caches hold"],
    ]
    one = dict(zip(made.rows[0], made.rows[1], strict=True))
    assert one["operations a byte"] == "0.5"  # two operations a weight of four bytes, and a little
    assert one["operations a byte, 2:4"] == "0.9"

    def refused(*_: object) -> None:
        raise FileError("no CMake")

    monkeypatch.setattr(roofline.kernels, "run", refused)
    monkeypatch.setattr(roofline, "SIDE", 64)
    assert roofline.limits(Setting(1, 0.001)).how == "the fastest dense product"


def test_parts_of_an_encoder_layer_add_up() -> None:
    (made,) = encoder.tables(Setting(1, 0.001, quick=True))
    for dtype in encoder.DTYPES:
        rows = {row[1]: [float(cell) for cell in row[2:4]] for row in made.rows[1:] if row[0] == dtype}
        whole, law = rows.pop("whole layer"), rows.pop("by Amdahl's law")
        for side in (0, 1):
            assert sum(times[side] for times in rows.values()) == pytest.approx(whole[side], abs=0.05)
        saved = sum(rows[part][0] - rows[part][1] for part in encoder.PRODUCTS)
        assert law[1] == pytest.approx(whole[0] - saved, abs=0.05)
        assert all(time > 0 for times in rows.values() for time in times)


def test_plain_torch_computes_the_same_masks() -> None:
    weight = torch.randn(16, 32)
    assert torch.equal(masks._plain(weight, 2, 4), magnitude_mask(weight))
    assert torch.equal(masks._plain(weight, 1, 2), magnitude_mask(weight, "1:2"))
    assert len(masks._patterns()) == 90
    kept = [
        (weight.abs() * mask).sum() for mask in (masks._plain_transposable(weight), transposable_mask(weight))
    ]
    torch.testing.assert_close(kept[0], kept[1])
    pruned = torch.where(magnitude_mask(weight), weight, 0.0)
    for plain, own in zip(masks._plain_compress(pruned), compress(pruned), strict=True):
        assert torch.equal(plain, own)


@pytest.mark.parametrize(
    ("cell", "value"),
    [("22.1 (prepacked)", 22.1), ("36%", 36.0), ("1,024", 1024.0), ("-0.5", -0.5), ("", None), ("x", None)],
)
def test_cells_are_read_as_numbers(cell: str, value: float | None) -> None:
    assert number(cell) == value


def test_figures_that_cannot_be_drawn_are_in_the_table_and_it_is_said(tmp_path: Path) -> None:
    head = ["out, in", "tokens", "torch GF/s", "best dense GF/s", "2:4 GF/s", "x torch", "x best dense"]
    made = Table("linear-1", "Linear.", [head, ["16, 24", "1", "0", "0", "0", "", ""]])
    page = drawings.write(tmp_path, [made], "here", "sparse24 bench").read_text()
    assert "Not drawn: there is nothing to draw in" in page
    assert "<td>16, 24</td>" in page
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_every_kept_table_that_can_be_drawn_is_drawn(tmp_path: Path) -> None:
    """The papers of this checkout: all tables of the newest class, as they were printed."""
    where = MachineClass("AMD Zen 4, AVX-512 VNNI, 2 cores")
    kept = papers.kept((CHECKOUT / papers.RESULTS).read_text(), where)
    assert {"linear-2", "decode-2", "narrow-2", "conv-2", "networks-2"} <= {table.name for table in kept}
    page = drawings.write(tmp_path, kept, where.title, "sparse24 bench")
    for name in ("linear", "narrow", "decode", "conv", "amdahl", "network-bert-large"):
        assert (tmp_path / f"{name}.svg").stat().st_size < 60_000
    assert "1.3 to 1.5" in page.read_text()


def test_tables_that_only_another_class_has_are_drawn_too(tmp_path: Path) -> None:
    where = MachineClass("AMD Zen 3, AVX2, 2 cores")
    drawings.write(
        tmp_path, papers.kept((CHECKOUT / papers.RESULTS).read_text(), where), where.title, "bench"
    )
    assert {"memory.svg", "masks.svg", "linear.svg", "linear-linear-1.svg"} <= {
        p.name for p in tmp_path.iterdir()
    }


def test_a_roofline_without_rates_is_not_drawn(tmp_path: Path) -> None:
    limits = Table(
        "roofline-limits-1",
        "",
        [["limit", "figure", "how"], ["operations", "9 GF/s", "x"], ["reading", "9 GB/s", "x"]],
    )
    head = [
        "out, in",
        "tokens",
        "operations a byte",
        "torch GF/s",
        "operations a byte, 2:4",
        "2:4 GF/s",
        "of its roof",
    ]
    made = Table("roofline-1", "", [head, ["8, 8", "1", "0.5", "0", "0.9", "0", "0%"]])
    page = drawings.write(tmp_path, [limits, made], "here", "sparse24 bench").read_text()
    assert "Not drawn: no product has a rate." in page
