"""torchrun with two and four processes: equal to one, and a rank that is killed costs nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

PROGRAM = Path(__file__).with_name("parallel_program.py")
STEPS = 9


def run(way: str, folder: Path, processes: int, kill: str = "-1:-1") -> subprocess.CompletedProcess[str]:
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={processes}", str(PROGRAM), way, str(folder), str(STEPS),
    ]  # fmt: skip
    environment = os.environ | {"KILL": kill, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def result(way: str, folder: Path, processes: int) -> dict[str, Tensor]:
    done = run(way, folder, processes)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [torch.load(folder / f"result{rank}") for rank in range(processes)]
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in found[0])
    return found[0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("alone")
    return {way: result(way, folder / way, 1) for way in ("ddp-adamw", "recipe-sgd")}


@pytest.mark.parametrize(
    ("way", "processes"),
    [
        ("ddp-adamw", 4),
        ("fsdp-adamw", 4),
        ("tensor-adamw", 2),
        ("tensor-adamw", 4),
        ("recipe-sgd", 2),
        ("pipeline", 2),
    ],
)
def test_several_processes_end_where_one_does(
    way: str, processes: int, alone: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    found = result(way, tmp_path, processes)
    for name, value in alone["recipe-sgd" if way == "recipe-sgd" else "ddp-adamw"].items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("way", ["ddp-adamw", "ddp-sgd", "fsdp-adamw", "recipe-sgd"])
def test_a_killed_rank_resumes_to_the_same_bits(way: str, tmp_path: Path) -> None:
    whole = result(way, tmp_path / "whole", 2)
    assert run(way, tmp_path / "killed", 2, kill="1:5").returncode != 0
    assert not (tmp_path / "killed" / "result0").exists()
    again = result(way, tmp_path / "killed", 2)
    for name, value in whole.items():
        assert torch.equal(again[name], value), name
