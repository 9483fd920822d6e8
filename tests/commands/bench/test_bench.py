"""``sparse24 bench`` on tiny problems: every benchmark gives its tables, and mistakes are one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

import sparse24
from sparse24.__main__ import main
from sparse24.commands import bench
from sparse24.commands.bench import (
    calls,
    conv,
    conv3d,
    decode,
    devices,
    kernels,
    linear,
    memory,
    permutation,
    table,
)

BRIEF = ("--seconds", "0.001", "--threads", "1")
CHECKOUT = Path(__file__).parents[3]
#: What bench/kernels_bench.cpp prints of the kernels behind calls.
CALLS = [
    {"table": "call", "name": "linear 8x8", "us": 0.25},
    {"table": "call", "name": "conv2d 8x8 1x1", "us": 0.5},
]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Problems that take no time."""
    for module in (linear, decode):
        monkeypatch.setattr(module, "SHAPES", [(16, 24)])
        monkeypatch.setattr(module, "TOKENS", (1, 3))
    monkeypatch.setattr(decode, "COLD_BYTES", 4e3)
    monkeypatch.setattr(conv, "SHAPES", [(8, 12, 5, 3), (8, 4, 5, 1)])
    monkeypatch.setattr(conv, "BATCH", 2)
    monkeypatch.setattr(conv3d, "SHAPES", [(8, 12, (3, 5, 5), (3, 3, 3))])
    monkeypatch.setattr(permutation, "GOALS", [permutation.Goal("Gaussian", 32, 32, False, 0.5, 9.0)])
    monkeypatch.setattr(calls, "kernel_times", lambda threads: {line["name"]: line["us"] for line in CALLS})


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("linear", ["16, 24", "16, 24"]),
        ("decode", ["16, 24", "16, 24"]),
        ("conv", ["8 -> 12, 5x5, 3x3", "8 -> 4, 5x5, 1x1"]),
        ("conv3d", ["8 -> 12, 3x5x5, 3x3x3"]),
        ("permutation", ["Gaussian"]),
        ("calls", ["nn.Linear(8, 8)", "SparseLinear(8, 8)", "nn.Conv2d(8, 8, 1)", "SparseConv2d(8, 8, 1)"]),
    ],
)
def test_a_benchmark_measures_and_prints_its_rows(
    name: str, first: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    assert main(["bench", "--only", name, *BRIEF, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    (made,) = report["tables"]
    assert made["name"] == f"{name}-1"
    head, *rows = made["rows"]
    assert [row[0] for row in rows] == first
    assert all(len(row) == len(head) for row in rows)
    assert report["machine"]["threads"] == 1
    said = capsys.readouterr().out
    assert made["caption"] in said
    assert all(row[0] in said for row in rows)


@pytest.mark.usefixtures("tiny")
def test_what_a_call_costs_beyond_its_kernel_is_the_difference() -> None:
    (made,) = calls.tables(table.Setting(1, 0.01))
    linear_dense, linear_sparse, conv_dense, conv_sparse = made.rows[1:]
    for dense, sparse, kernel in ((linear_dense, linear_sparse, 0.25), (conv_dense, conv_sparse, 0.5)):
        assert dense[2:] == ["", "", ""]
        whole, alone, beyond, ratio = (float(cell) for cell in sparse[1:])
        assert alone == kernel
        assert whole - alone == pytest.approx(beyond, abs=0.011)
        assert beyond / float(dense[1]) == pytest.approx(ratio, abs=0.02)


def test_the_kernels_alone_are_those_of_the_cpp_program(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    lines = [{"table": "masks", "name": "plain read", "ms": 7.0}, *CALLS]
    monkeypatch.setattr(kernels, "run", lambda *given: asked.append(given) or lines)
    monkeypatch.chdir(CHECKOUT / "tests")
    assert calls.kernel_times(3) == {"linear 8x8": 0.25, "conv2d 8x8 1x1": 0.5}
    assert asked == [(CHECKOUT, 3, "call")]


def test_the_cpp_program_times_the_kernels_that_calls_asks_for() -> None:
    program = (CHECKOUT / "bench" / "kernels_bench.cpp").read_text()
    assert '\\"table\\": \\"call\\"' in program
    assert all(line["name"] in program for line in CALLS)


def test_the_tables_of_the_cpp_program(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        {"table": "masks", "name": "plain read", "ms": 7.0, "gb_s": 9.25, "x_read": 1.0},
        {"table": "linear", "dtype": "fp32", "m": 16, "k": 8, "n": 4, "gflops": 99.6, "of_peak": 0.5},
        {
            "table": "conv2d",
            "dtype": "int8",
            "in": 8,
            "out": 4,
            "size": 7,
            "kernel": 3,
            "gflops": 9.6,
            "of_peak": 0.25,
        },
        {"table": "decode", "dtype": "bf16", "m": 16, "k": 8, "gb_s": 5.25, "of_read": 0.875},
    ]
    monkeypatch.setattr(kernels, "run", lambda root, threads: lines)
    monkeypatch.chdir(CHECKOUT)
    masks, peak, conv_peak, bandwidth = kernels.tables(table.Setting(1, 1.0))
    assert masks.rows[1:] == [["plain read", "7.00", "9.2", "1.00"]]
    assert peak.rows[1:] == [["fp32", "16, 8", "4", "100", "50%"]]
    assert conv_peak.rows[1:] == [["int8", "8 -> 4, 7x7, 3x3", "10", "25%"]]
    assert bandwidth.rows[1:] == [["bf16", "16, 8", "5.2", "88%"]]


def test_every_benchmark_is_a_module_and_every_module_is_listed() -> None:
    listed = [entry.name for entry in bench.BENCHMARKS]
    made = [path.stem for path in Path(bench.__file__).parent.glob("*.py")]
    others = {
        "__init__",
        "devices",
        "front_page",
        "keeping",
        "machine",
        "outputs",
        "papers",
        "rivals",
        "single",
        "table",
    }
    assert set(made) - others == set(listed)
    assert all(callable(bench._benchmark(name)) for name in listed)
    assert all(callable(bench._benchmark(name, "cuda")) for name in devices.ON_GPU)
    assert {name for names in bench.GROUPS.values() for name in names} <= set(listed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nothing"], "there is no benchmark 'nothing'; the benchmarks are linear, decode"),
        (
            ["nothing"],
            "permutation, talk, roofline, encoder, masks, calls, memory, kernels, gemm, model, mask",
        ),
        (["--batch", "0"], "a batch must be 1 or more, not 0"),
        (["--threads", "0"], "threads must be 1 or more, not 0"),
        (["--seconds", "0"], "seconds must be more than 0, not 0"),
        (["--minutes", "-1"], "minutes must be more than 0, not -1"),
        (["--network", "alexnet"], "there is no network 'alexnet'; the networks are bert-large, resnext-101"),
        (["--quick", "--write"], "a quick run measures other problems, which do not belong in papers"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["--only", "calls", "--write"], ["--only", "kernels"], ["--only", "calls"]]
)
def test_outside_a_checkout_it_is_said_in_one_line(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *arguments, *BRIEF]) == 2
    said = capsys.readouterr()
    outside = f"{tmp_path} is not inside a checkout of sparse24 (no bench/RESULTS.md here or above)"
    assert said.err == f"sparse24 bench: {outside}\n"
    assert said.out == ""


def test_of_all_benchmarks_the_one_that_needs_a_checkout_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "BENCHMARKS", [entry for entry in bench.BENCHMARKS if entry.name == "kernels"])
    said: list[str] = []
    assert bench.run(seconds=0.001, progress=said.append) == 0
    (line,) = said
    assert line.startswith("\nkernels: left out: ")
    assert "not inside a checkout" in line


# ---- memory -----------------------------------------------------------------------------------------

SMALL = memory.Network("small", 2, lambda: torch.nn.Linear(64, 64), (4, 64), 4 * 64 * 64)


def test_a_dense_network_holds_its_parameters() -> None:
    held = memory.measure(SMALL, 3, torch.float32, sparse=False)
    assert held.counted == 3 * 4 * (64 * 64 + 64)


def test_tensors_without_memory_are_not_counted() -> None:
    with FakeTensorMode():
        kept: list[object] = [torch.ones(1000)]
    kept += [torch.nn.LazyLinear(64), torch.ones(1000, device="meta"), torch.nn.Linear(9, 9, device="meta")]
    held = memory.measure(SMALL, 1, torch.float32, sparse=False)
    assert held.counted == 4 * (64 * 64 + 64)
    assert len(kept) == 4


def test_a_converted_network_holds_at_least_its_compressed_form() -> None:
    dense = memory.measure(SMALL, 3, torch.bfloat16, sparse=False)
    sparse = memory.measure(SMALL, 3, torch.bfloat16, sparse=True)
    values, indices, bias = 2 * 64 * 64 // 2, 64 * 64 // 8, 2 * 64
    assert sparse.counted >= 3 * (values + indices + bias)
    assert sparse.counted != dense.counted


def test_a_layer_that_stays_dense_is_no_figure() -> None:
    with pytest.raises(sparse24.Error, match=r"was left dense: .*float64"):
        memory.measure(SMALL, 1, torch.float64, sparse=True)


@pytest.mark.parametrize("how", ["dense", "sparse"])
def test_what_is_counted_is_what_the_system_gave(how: str) -> None:
    counted, resident = memory._measure_apart("linear", 4, "bf16", how, table.Setting(1, 1.0))
    assert resident == pytest.approx(counted, rel=0.05, abs=3e6)
    if how == "dense":
        assert counted == 4 * 2 * (2048 * 2048 + 2048)


def test_memory_has_a_row_for_every_network_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_layers_that_fit", lambda network: 2)
    monkeypatch.setattr(memory, "_measure_apart", lambda *_: memory.Held(3_000_000, 4_000_000))
    (made,) = memory.tables(table.Setting(1, 1.0))
    assert len(made.rows) == 1 + 2 * 3
    assert made.rows[1][0] == "2 x BERT-Large encoder (of 24: more do not fit here)"
    assert made.rows[1][1:] == ["fp32", "3", "3", "1.00", "4", "4", "1.00"]


def test_no_more_layers_than_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_kilobytes", lambda path, name: 2 * 5 * SMALL.bytes // 1024)
    assert memory._layers_that_fit(SMALL._replace(layers=24)) == 5
    assert memory._layers_that_fit(SMALL) == 2
    monkeypatch.setattr(memory, "_kilobytes", lambda path, name: 0)
    assert memory._layers_that_fit(SMALL) == 1


# ---- rows -------------------------------------------------------------------------------------------


def test_rows_are_told_as_they_come_and_survive_an_interruption() -> None:
    said: list[str] = []
    before = table.Table("one", "first", [["a"]])
    rows = table.Rows(table.Setting(1, 1.0, progress=said.append), "two", "second.", ["b", "c"], [before])
    rows.add(["1", "2"])
    with pytest.raises(table.Interrupted) as raised, rows:
        raise KeyboardInterrupt
    one, two = raised.value.tables
    assert one is before
    assert (two.name, two.caption) == ("two", "second. Interrupted: rows are missing.")
    assert two.rows == [["b", "c"], ["1", "2"]]
    assert said == ["  1 | 2"]
    with pytest.raises(ValueError, match="another"), rows:
        raise ValueError("another")
    assert rows.table().caption == "second."


@pytest.mark.usefixtures("tiny")
def test_an_interrupted_benchmark_leaves_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([(1.0, 1.0, 1.0)])

    def measured(*given: object) -> tuple[float, float, float]:
        try:
            return next(times)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(conv, "_times", measured)
    out = tmp_path / "bench.json"
    assert main(["bench", "--only", "conv", "decode", *BRIEF, "--out", str(out)]) == 130
    made = {table["name"]: table["rows"] for table in json.loads(out.read_text())["tables"]}
    assert list(made) == ["decode-1", "conv-1"]
    assert [row[0] for row in made["conv-1"][1:]] == ["8 -> 12, 5x5, 3x3"]
    assert "Interrupted: rows are missing." in capsys.readouterr().out
