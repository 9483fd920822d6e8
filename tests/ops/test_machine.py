"""The machine, its constants, the file with measured ones, and why AMX cannot be used."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from reference import assert_matches, linear_reference
from sparse24 import _C, masks
from sparse24.commands import measure
from sparse24.ops import figures, machine


@pytest.fixture(autouse=True)
def _own_constants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SPARSE24_CACHE", str(tmp_path / "cache"))
    machine.load.cache_clear()
    machine.set_tuning()
    yield
    machine.load.cache_clear()
    machine.set_tuning()


def test_it_knows_this_cpu() -> None:
    found = machine.machine()
    flags = Path("/proc/cpuinfo").read_text()
    assert found["features"]["avx2"] == (" avx2 " in flags and " fma " in flags and " f16c " in flags)
    assert found["features"]["avx512"] == all(f" avx512{part} " in flags for part in ("f", "bw", "vl", "dq"))
    assert found["features"]["amx_tile"] == (" amx_tile " in flags)
    if "AuthenticAMD" in flags:
        assert found["vendor"] == "AMD"
    if "GenuineIntel" in flags:
        assert found["vendor"] == "Intel"
    line = next((line for line in flags.splitlines() if line.startswith("cpu family")), None)
    assert line is None or int(line.split(":")[1]) == found["family"]
    assert found["l2_bytes"] >= 0


def test_every_instruction_set_runs_or_says_why() -> None:
    known = machine.isas()
    assert [name for name, _ in known][-1] == "scalar"
    assert dict(known)["scalar"] == ""
    if not os.environ.get("SPARSE24_CPU_ISA"):
        assert next(name for name, problem in known if not problem) == _C.cpu_isa()
    for name, problem in known:
        code = "from sparse24.ops import registry; print(registry.cpu_isa())"
        ran = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "SPARSE24_CPU_ISA": name},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if problem:
            assert f"SPARSE24_CPU_ISA={name}: this machine does not run it: {problem}" in ran.stderr
        else:
            assert ran.stdout.strip() == name


@pytest.mark.parametrize(
    ("cpu", "saved", "error", "text"),
    [
        (False, False, 0, "the CPU has no AMX"),
        (True, False, 0, "the operating system does not save AMX tiles"),
        (True, True, errno.ENOSPC, "ENOSPC.*signal stack.*too small"),
        (True, True, errno.EINVAL, "refused permission for AMX tiles: Invalid argument"),
    ],
)
def test_why_amx_cannot_be_used(cpu: bool, saved: bool, error: int, text: str) -> None:
    assert re.search(text, _C.describe_amx(cpu, saved, error))


def test_amx_that_is_granted_has_no_problem() -> None:
    assert _C.describe_amx(True, True, 0) == ""
    if not machine.machine()["features"]["amx_tile"]:
        assert machine.amx_problem() == "the CPU has no AMX"


FIELDS = {
    "few_tokens": 2, "streams": 2, "prefetch_wide": 0, "prefetch_narrow": 2048, "vectors": 5, "tile_cols": 32,
    "tile_prefetch": 4, "packed_bytes": 1 << 16, "stream_bytes": 4096,
    "few_halves": 3, "pair_vectors": 2, "pair_cols": 64,
}  # fmt: skip


def test_constants_change_speed_and_nothing_else() -> None:
    x, weight = torch.randn(70, 200), torch.randn(90, 200)
    masks.prune_(weight)
    operands = torch.ops.sparse24.compress(weight)
    before = torch.ops.sparse24.linear(x, *operands)
    machine.set_tuning(**FIELDS)
    assert machine.tuning() == {**FIELDS, "row": "measured here", "sums_bytes": 300 << 10}
    output = torch.ops.sparse24.linear(x, *operands)
    assert torch.equal(output, before)
    assert_matches(output, linear_reference(x, weight))


@pytest.mark.parametrize(
    ("field", "value"),
    [("streams", 3), ("few_tokens", 9), ("vectors", 0), ("tile_cols", 48), ("prefetch_wide", -1)],
)
def test_constants_out_of_range_are_refused_by_name(field: str, value: int) -> None:
    before = machine.tuning()
    with pytest.raises(ValueError, match=f"{field} must be .*, not {value}"):
        machine.set_tuning(**{field: value})
    assert machine.tuning() == before
    with pytest.raises(ValueError, match="no field called speed"):
        machine.set_tuning(speed=1)


def test_measured_constants_are_taken_by_the_next_process() -> None:
    file = Path(machine.keep(FIELDS))
    assert machine.tuning()["row"] == "measured here"
    code = (
        "from sparse24.ops import machine; t = machine.tuning(); print(t['row'], t['streams'], t['vectors'])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "measured here 2 5"
    other = json.loads(file.read_text())
    other["cpus"] = {f"another {key}": value for key, value in other["cpus"].items()}
    file.write_text(json.dumps(other))
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not ran.stdout.startswith("measured here")


@pytest.mark.parametrize("content", ["{", '{"format": 2, "cpus": {}}', '{"format": 1}', "[]"])
def test_a_file_that_cannot_be_read_is_said_so_and_not_used(content: str) -> None:
    file = figures.path("cpu.json")
    file.parent.mkdir(parents=True)
    file.write_text(content)
    with pytest.warns(UserWarning, match=r"cpu\.json cannot be read .*doctor --measure"):
        machine.load()
    assert machine.tuning()["row"] != "measured here"


def test_a_file_with_illegal_constants_is_not_used() -> None:
    machine.keep(FIELDS)
    file = figures.path("cpu.json")
    file.write_text(file.read_text().replace('"streams": 2', '"streams": 7'))
    machine.set_tuning()
    machine.load.cache_clear()
    with pytest.warns(UserWarning, match="streams must be 1, 2 or 4, not 7"):
        machine.load()
    assert machine.tuning()["row"] != "measured here"


def test_a_cache_folder_that_cannot_be_written_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARSE24_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match="file"):
        machine.keep(FIELDS)


def test_measuring_chooses_legal_constants_and_leaves_those_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_COLD_BYTES", 1 << 16)
    before, threads, said = machine.tuning(), torch.get_num_threads(), []
    found: dict[str, Any] = measure.measure(said.append, rows=32, columns=64, seconds=0.01)
    assert machine.tuning() == before
    assert torch.get_num_threads() == threads
    assert set(found) == set(FIELDS) - {"packed_bytes", "stream_bytes"}
    machine.set_tuning(**found)
    assert len(said) == (7 if _C.cpu_isa() == "avx512_vnni" else 5)
