"""The benchmarks' forms for a GPU, on the emulator: their code runs, and says that it is no GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from emulated import Emulator
from sparse24.__main__ import main
from sparse24.commands import bench
from sparse24.commands.bench import devices
from sparse24.commands.bench.definitions import Definition
from sparse24.commands.bench.gpu import memory, networks
from sparse24.ops import Error

BRIEF = ("--seconds", "0.001", "--threads", "1", "--device", "cuda")


def tiny(depth: float) -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).eval()


TINY = Definition(
    "Tiny", "tiny", "a row", tiny, lambda n, m: (torch.randn(n, 64).to(next(m.parameters()).dtype),)
)


@pytest.fixture
def small(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    monkeypatch.setattr(networks, "DEFINITIONS", (TINY,))
    monkeypatch.setattr(networks, "BATCHES", (64, 128))
    monkeypatch.setattr(memory, "TOKENS", 64)
    monkeypatch.setattr(memory, "COUNT", 2)
    return emulator


@pytest.mark.parametrize(
    ("asked", "made", "rows"),
    [
        ("gemm", "gpu-linear-1", 3),
        ("decode", "gpu-decode-1", 15),
        ("conv", "gpu-conv-1", 4),
        ("model", "gpu-networks-1", 6),
        ("mask", "gpu-masks-1", 5),
        ("memory", "gpu-memory-1", 3),
    ],
)
def test_a_benchmark_runs_through_cusparselt(
    asked: str, made: str, rows: int, tmp_path: Path, small: Emulator
) -> None:
    out, plots = tmp_path / "bench.json", tmp_path / "plots"
    before = small.launches()
    assert main(["bench", asked, *BRIEF, "--out", str(out), "--plots", str(plots)]) == 0
    if asked not in ("mask", "decode"):  # few tokens are padded only where no kernel of ours is there
        assert small.launches() > before
    report = json.loads(out.read_text())
    (table,) = report["tables"]
    assert table["name"] == made
    assert report["class"] == "emulator, which is no GPU"
    assert "ON THE EMULATOR: no figure of a GPU." in table["caption"]
    head, *body = table["rows"]
    assert len(body) == rows
    assert all(len(row) == len(head) for row in body)
    assert (plots / f"{made.removesuffix('-1')}.svg").exists() or (plots / "gpu-network-tiny.svg").exists()
    assert "emulator, which is no GPU" in (plots / "index.html").read_text()


@pytest.mark.usefixtures("small")
def test_rows_of_networks_are_kept_and_what_is_left_out_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "networks", "--minutes", "1e-9", *BRIEF]) == 0
    assert "Left out: tiny fp16 64: the time was up; tiny fp16 128" in capsys.readouterr().out
    assert main(["bench", "networks", "--batch", "64", *BRIEF]) == 0
    first = capsys.readouterr().out
    assert main(["bench", "networks", "--batch", "64", "--minutes", "1e-9", "--resume", *BRIEF]) == 0
    second = capsys.readouterr().out
    assert [line for line in first.splitlines() if "Tiny" in line] == [
        line for line in second.splitlines() if "Tiny" in line
    ]
    assert "time was up" not in second


@pytest.mark.usefixtures("small")
def test_a_batch_that_does_not_fit_is_left_out_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = networks._figures

    def measured(ground: Any, models: Any, inputs: Any, seconds: float) -> list[str]:
        if len(inputs[0]) == 128:
            raise torch.OutOfMemoryError("128 is too much")
        return figures(ground, models, inputs, seconds)

    monkeypatch.setattr(networks, "_figures", measured)
    assert main(["bench", "networks", *BRIEF]) == 0
    said = capsys.readouterr().out
    assert "Left out: tiny fp16 128: out of memory; tiny bf16 128: out of memory" in said
    assert said.count("Tiny, a row  fp16") == 1


@pytest.mark.usefixtures("emulator")
def test_a_benchmark_without_a_form_for_a_gpu_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"'recipes' has no form for a GPU; those that have one are linear, decode"
    ):
        bench.run(["recipes"], device="cuda")


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.cusparselt, "why_unavailable", lambda index: "no CUDA device is there")
    assert devices.chosen(None) == "cpu"
    with pytest.raises(Error, match="no CUDA device is there"):
        devices.chosen("cuda")
    with pytest.raises(ValueError, match="device must be cpu or cuda, not 'tpu'"):
        devices.chosen("tpu")
