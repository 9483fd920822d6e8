"""``sparse24 validate-gpu`` in its reduced form, on the emulator, as a user runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from emulated import build
from sparse24 import __main__
from sparse24.commands import doctor, validate
from sparse24.commands.validate import ground, networks

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    library = str(build())
    return {
        **os.environ,
        "SPARSE24_CUSPARSELT": library,
        "SPARSE24_CUDART": library,
        "SPARSE24_EMULATOR_DEFERRED": "0",
        "SPARSE24_CACHE": str(tmp_path_factory.mktemp("cache")),
    }


@pytest.fixture(scope="module")
def ran(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp("report") / "new" / "report.json"
    command = [sys.executable, "-m", "sparse24", "validate-gpu", "--out", str(out)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return found.stdout, json.loads(out.read_text())


def test_every_part_passes_and_says_that_it_was_an_emulator(ran: tuple[str, dict[str, Any]]) -> None:
    printed, report = ran
    assert report["passed"]
    assert list(report["parts"]) == [part.name for part in validate.PARTS]
    for name, found in report["parts"].items():
        assert found["status"] == "passed", (name, found)
        assert found["checks"]
        assert name == "doctor" or found["emulated"]
    assert "ON THE EMULATOR: this validates no GPU" in printed


def test_products_ran_sparse(ran: tuple[str, dict[str, Any]]) -> None:
    checks = ran[1]["parts"]["products"]["checks"]
    linear = [check for check in checks if check["name"].startswith("linear") and "path" in check]
    assert len(linear) == 3 * 2 * 4 * 2  # dtypes, shapes, activations, bias or not
    assert all(check["path"] == "sparse" for check in linear)
    eight_bit = [check for check in checks if "int8" in check["name"]]
    assert len(eight_bit) == 4 * 4 * 2
    assert all(check["path"] == "sparse" for check in eight_bit)


def test_layers_are_repeated_and_stored_in_8_bits(ran: tuple[str, dict[str, Any]]) -> None:
    checks = {check["name"]: check for check in ran[1]["parts"]["layers"]["checks"]}
    assert checks["a call enters few Python functions"]["frames"] <= 12
    assert list(checks)[1:] == [
        "tokens of every count, and one blob",
        *(f"linear, {way}" for way in ("int8, dynamic", "int8, static", "int8 weights", "float8")),
        *(f"convolution, {way}" for way in ("int8, dynamic", "float8")),
    ]


def test_networks_ran_sparse(ran: tuple[str, dict[str, Any]]) -> None:
    bert, resnext = ran[1]["parts"]["networks"]["checks"]
    assert (bert["converted"], resnext["converted"]) == (4, 7)
    assert max(bert["error"], resnext["error"]) <= networks.DEEP_TOLERANCE


def test_all_parts_together_stay_below_ten_minutes() -> None:
    assert sum(part.seconds for part in validate.PARTS) <= 600


def test_without_a_gpu_each_part_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPARSE24_CUSPARSELT", raising=False)
    monkeypatch.delenv("SPARSE24_CUDART", raising=False)
    out = tmp_path / "report.json"
    assert __main__.main(["validate-gpu", "--out", str(out), "--part", "contract", "--part", "doctor"]) == 1
    report = json.loads(out.read_text())
    assert not report["passed"]
    assert report["parts"]["contract"]["status"] == "error"
    assert "sparse24" in report["parts"]["contract"]["log"]
    assert report["parts"]["doctor"]["status"] == "passed"  # one part takes no other with it
    assert "contract  error" in capsys.readouterr().out


def test_an_unknown_part_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["validate-gpu", "--out", str(tmp_path / "r"), "--part", "speeed"]) == 2
    assert "the parts are doctor, kernels" in capsys.readouterr().err


def test_a_part_that_hangs_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate.sys, "executable", "sleep")
    found = validate._finish(["sleep", "60"], 0)
    assert found == ("stopped after 0 s", "")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("import os; os.kill(os.getpid(), 11)", "killed by signal 11"),
        ("import sys; print('why'); sys.exit(3)", "ended with 3"),
    ],
)
def test_a_part_that_crashes_is_told(code: str, status: str) -> None:
    found = validate._finish([sys.executable, "-c", code], 60)
    assert found[0] == status
    assert ("why" in found[1]) == ("why" in code)


def test_a_failed_check_fails_its_part_and_the_next_ones_go_on() -> None:
    here = ground.Ground.__new__(ground.Ground)
    here._checks, here.emulated, here.gpu, here._out = [], True, ground.GPU(86, 28, 801), None
    with here.attempt("first"):
        raise RuntimeError("out of order")
    here.check("second", True)
    answer = here.answer()
    assert answer["status"] == "failed"
    assert [check["passed"] for check in answer["checks"]] == [False, True]
    assert answer["checks"][0]["error"] == "RuntimeError: out of order"


def test_errors_that_are_no_number_are_infinite() -> None:
    assert doctor.relative_error(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")
    assert doctor.relative_error(torch.tensor([1.5]), torch.ones(1)) == 0.5


def test_the_networks_are_those_of_the_talk() -> None:
    with torch.device("meta"):
        large, deep = networks.bert(), networks.resnext()
    assert sum(p.numel() for p in large.parameters()) == 302_309_376  # BERT-Large without its embeddings
    assert sum(p.numel() for p in deep.parameters()) == 194_026_792  # as torchvision counts 32x16d


def test_the_page_holds_what_failed_and_a_bar_for_each_ratio() -> None:
    checks = [
        {"name": "m=1 <b>", "passed": True, "x dense": 1.5},
        {"name": "m=2", "passed": False, "x dense": 0.5, "error": "a < b", "published": 1.25},
        {"name": "m=3", "passed": True, "ratio": 100.0},
    ]
    parts = {
        "speed": {"status": "failed", "checks": checks, "seconds": 3.2, "device": "A card"},
        "contract": {"status": "killed by signal 11", "checks": [], "log": "why <it> died", "seconds": 1.0},
    }
    made = validate.page({"started": "today", "passed": False, "parts": parts})
    assert "A card: <b>NOT all passed</b>" in made
    assert "ON THE EMULATOR" not in made
    assert [int(width) for width in re.findall(r'<rect[^>]* width="(\d+)"', made)] == [270, 90, 720]
    assert re.findall(r'fill="(#\w+)"', made) == ["#484", "#c66", "#484"]
    for text in (
        "m=1 &lt;b&gt;",
        "m=2 (published 1.25)",
        "a &lt; b",
        "why &lt;it&gt; died",
        "killed by signal 11",
    ):
        assert text in made
    assert "http" not in made  # nothing is fetched: it can be sent
    parts["speed"]["emulated"] = True
    assert "ON THE EMULATOR" in validate.page({"parts": parts})


def test_quick_takes_two_minutes_at_most() -> None:
    assert sum(max(int(validate.QUICK * part.seconds), 1) for part in validate.PARTS) <= 120


def test_a_quick_part_leaves_its_page(environment: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    command = [
        sys.executable,
        "-m",
        "sparse24",
        "validate-gpu",
        "--quick",
        "--part",
        "kernels",
        "--out",
        str(out),
    ]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "at most 10 s" in ran.stdout
    assert str(tmp_path / "report.html") in ran.stdout
    assert "all passed" in (tmp_path / "report.html").read_text()


def test_a_part_that_is_killed_leaves_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import json, os, sys, pathlib; "
        "pathlib.Path(sys.argv[-1]).write_text(json.dumps({'status': 'unfinished', 'checks': [1]})); "
        "os.kill(os.getpid(), 9)"
    )
    finish = validate._finish
    monkeypatch.setattr(
        validate,
        "_finish",
        lambda command, seconds: finish([sys.executable, "-c", code, command[-1]], seconds),
    )
    found = validate._run_apart(validate.PARTS[0], False)
    assert found["status"] == "killed by signal 9"
    assert found["checks"] == [1]
