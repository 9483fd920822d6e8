"""The program ``sparse24``, run in this process and, where the process matters, in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sparse24
from sparse24.__main__ import main
from sparse24.commands import demo, doctor

from ..files.state_files import saved

pytestmark = pytest.mark.usefixtures("seeded")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sparse24", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_python_m_runs_it_and_the_version_is_that_of_the_package() -> None:
    ran = run("--version")
    assert (ran.returncode, ran.stdout) == (0, f"sparse24 {sparse24.__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["prone"], ["report"], ["prune", "one"], ["demo", "--fast"]])
def test_a_mistaken_command_line_is_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "usage: sparse24" in capsys.readouterr().err


def test_a_user_error_has_no_traceback(tmp_path: Path) -> None:
    ran = run("report", str(tmp_path / "none.pt"))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == f"sparse24 report: {tmp_path / 'none.pt'}: no such file\n"


def test_a_reader_who_leaves_early_is_no_error(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", {f"layer{i}.weight": torch.ones(8, 8) for i in range(2000)})
    command = [sys.executable, "-m", "sparse24", "report", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 0


def test_demo_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[bool, Path]] = []

    def recorded(quick: bool, out: Path) -> int:
        calls.append((quick, out))
        return 1

    monkeypatch.setattr(demo, "main", recorded)
    assert main(["demo", "--quick", "--out", str(tmp_path)]) == 1
    assert main(["demo"]) == 1
    assert calls == [(True, tmp_path), (False, Path("sparse24-demo"))]


def test_doctor_prints_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "all is well" in capsys.readouterr().out


def test_doctor_json_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["healthy"] is True
    assert found["isa"] == sparse24.backend("cpu")
    assert [test["name"] for test in found["self_tests"]] == ["linear", "conv2d"]


def test_doctor_is_status_1_where_products_are_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "TOLERANCE", 0.0)
    assert main(["doctor"]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_doctor_survives_an_isa_that_nobody_has() -> None:
    ran = run("doctor", SPARSE24_CPU_ISA="sse9")
    assert ran.returncode == 1
    assert "NONE: SPARSE24_CPU_ISA=sse9" in ran.stdout
    assert ran.stderr == ""
