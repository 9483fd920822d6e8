"""Which cuSPARSELt is opened, in processes of their own: it is opened once in each."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import sparse24
from emulated import HALF, EmulatedStream, Emulator, compressed, randn, sparse_weight
from reference import assert_matches, linear_reference
from sparse24.commands import doctor
from sparse24.ops.cuda import cusparselt, device_kernels, launch
from sparse24.ops.cuda import products as cuda

ROOT = Path(__file__).parents[3]


def opening(prelude: str = "", **environment: str) -> str:
    code = f"""
from sparse24.ops.cuda import cusparselt
{prelude}
print(cusparselt.library(), cusparselt.why_unavailable(0))"""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.stdout + ran.stderr


def test_which_libraries_are_opened_and_which_refused(library: Emulator, tmp_path: Path) -> None:
    here = str(library.library)
    emulated = {"SPARSE24_CUSPARSELT": here, "SPARSE24_CUDART": here}
    assert f"Library(version=801, path={here!r}, cudart_path={here!r}, caveat='')" in opening(**emulated)
    old = opening(**emulated, SPARSE24_EMULATOR_VERSION="701")
    assert "version=701" in old
    assert "0.8.1 or newer is recommended: 0.7.1 leaks algorithm selections" in old
    assert "0.4.0" in opening(**emulated, SPARSE24_EMULATOR_VERSION="400")
    assert "is too old: sparse24 needs 0.6.3" in opening(**emulated, SPARSE24_EMULATOR_VERSION="400")
    assert "no NVIDIA driver is loaded" in opening(**emulated, SPARSE24_EMULATOR_DRIVER="0")
    assert "is sm_75: sparse tensor cores begin" in opening(**emulated, SPARSE24_EMULATOR_SM="75")
    missing = opening(SPARSE24_CUSPARSELT=str(tmp_path / "none.so"), SPARSE24_CUDART=here)
    assert f"cuSPARSELt cannot be opened: SPARSE24_CUSPARSELT={tmp_path}/none.so" in missing
    foreign = str(next(path for path in _loaded_libraries() if "libstdc++" in path))
    assert "has no function cusparseLtInit" in opening(SPARSE24_CUSPARSELT=foreign, SPARSE24_CUDART=here)
    assert "has no function cudaGetErrorString" in opening(SPARSE24_CUSPARSELT=here, SPARSE24_CUDART=foreign)


def _loaded_libraries() -> list[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6]


def test_wheels_are_found_without_a_variable(library: Emulator, tmp_path: Path) -> None:
    """In the folders where NVIDIA's wheels put them; what fails is listed with its reason."""
    folder = tmp_path / "nvidia" / "cu13" / "lib"
    folder.mkdir(parents=True)
    (folder / "libcudart.so.13").symlink_to(library.library)
    none = {"SPARSE24_CUSPARSELT": "", "SPARSE24_CUDART": ""}
    alone = f"import site, sys; site.getsitepackages = list; sys.path[:] = [{str(tmp_path)!r}]"
    lost = opening(alone, **none)
    assert "cuSPARSELt was not found; install a wheel" in lost
    assert "libcusparseLt.so.0: cannot open shared object file" in lost
    (folder / "libcusparseLt.so.0").symlink_to(library.library)
    assert f"path={str(folder / 'libcusparseLt.so.0')!r}" in opening(alone, **none)


#: Every function of the two libraries, answering nothing.
FAKE = """
#include "cusparselt/abi.h"
using namespace sparse24::abi;
#define EMPTY extern "C" __attribute__((weak))
#define LT(name, result, parameters) EMPTY result cusparseLt##name parameters { return {}; }
#define RUNTIME(name, result, parameters) EMPTY result cuda##name parameters { return {}; }
SPARSE24_CUSPARSELT_REQUIRED(LT)
SPARSE24_CUDA_RUNTIME(RUNTIME)
"""
#: Those of them that tell a version.
VERSIONS = """
extern "C" int cusparseLtGetProperty(int which, int* value) {
  const int parts[] = {0, MINOR, PATCH};
  *value = parts[which];
  return 0;
}
extern "C" int cudaDriverGetVersion(int* version) { *version = 12040; return 0; }
extern "C" int cudaRuntimeGetVersion(int* version) { *version = RUNTIME_VERSION; return 0; }
"""


def fake(folder: Path, name: str, *, version: tuple[int, int] = (8, 1), runtime: int = 12080) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "fake.cpp").write_text(FAKE)
    (folder / "versions.cpp").write_text(VERSIONS)
    sources = [str(folder / "fake.cpp"), str(folder / "versions.cpp")]
    macros = [f"-DMINOR={version[0]}", f"-DPATCH={version[1]}", f"-DRUNTIME_VERSION={runtime}"]
    command = ["c++", "-std=c++20", "-shared", "-fPIC", "-w", f"-I{ROOT / 'csrc'}", *macros, *sources]
    subprocess.run([*command, "-o", str(folder / name)], check=True)
    return str(folder / name)


def opened(libraries: list[str], runtimes: list[str]) -> str:
    """What is opened of these, the first of each being loaded already, as torch's are."""
    code = f"""
import ctypes
from sparse24 import _C
for path in {[libraries[0], runtimes[0]]!r}:
    ctypes.CDLL(path)
_C.cusparselt_set_search_paths({libraries!r}, {runtimes!r})
print(_C.cusparselt_library())"""
    none = {"SPARSE24_CUSPARSELT": "", "SPARSE24_CUDART": ""}
    ran = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **none}, capture_output=True, text=True, check=False
    )
    return ran.stdout + ran.stderr


def test_a_library_that_is_too_old_is_passed_over(tmp_path: Path) -> None:
    """torch 2.6 has loaded its 0.6.2 before: the wheel's is taken, and doctor's caveat says so."""
    old = fake(tmp_path / "torch", "libcusparseLt.so.0", version=(6, 2))
    new = fake(tmp_path / "wheel", "libcusparseLt.so.0")
    runtime = fake(tmp_path / "runtime", "libcudart.so.12")
    told = opened([old, new], [runtime])
    assert told.startswith(
        f"(801, '{new}', '{runtime}', \"passed over: {old}: 0.6.2 is too old: sparse24 needs 0.6.3"
    )
    alone = opened([old], [runtime])
    assert "cuSPARSELt was not found" in alone
    assert f"{old}: 0.6.2 is too old" in alone


def test_a_runtime_that_the_driver_cannot_run_is_passed_over(tmp_path: Path) -> None:
    library = fake(tmp_path / "wheel", "libcusparseLt.so.0")
    new = fake(tmp_path / "13", "libcudart.so.13", runtime=13000)
    fits = fake(tmp_path / "12", "libcudart.so.12", runtime=12080)
    told = opened([library], [new, fits])
    assert told.startswith(f"(801, '{library}', '{fits}'")
    assert f"passed over: {new}: its CUDA 13.0 is newer than the driver's 12.4" in told


# ---- what is remembered of a device -------------------------------------------------------------------


def test_a_failure_that_may_pass_is_told_once_and_asked_again(
    emulator: Emulator, stream: EmulatedStream
) -> None:
    weight, x = sparse_weight(64, 64, HALF), randn(16, 64)
    operands = compressed(weight)
    told = 0
    for call in range(1, 40):
        launch.forget()
        emulator.fail_at(call, 2)  # out of memory, at each call in turn
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                for _ in range(2):
                    output = cuda.linear(x, *operands, None, "none", stream)
        except sparse24.Error:
            break  # the device is open, and what failed belongs to the product
        finally:
            emulator.fail_at(0, 0)
        assert_matches(output, linear_reference(x, weight))
        texts = [str(warning.message) for warning in caught]
        assert len(texts) <= 1
        assert all("products on device 0 run dense until it can be opened" in text for text in texts)
        told += len(texts)
        before = emulator.launches()
        assert_matches(cuda.linear(x, *operands, None, "none", stream), linear_reference(x, weight))
        assert emulator.launches() == before + 1
    assert told >= 5


def test_a_failure_that_stays_is_remembered(emulator: Emulator) -> None:
    emulator.set_sm(75)
    assert "sm_75" in cusparselt.why_unavailable(0)
    before = emulator.calls()
    assert "sm_75" in cusparselt.why_unavailable(0)
    assert emulator.calls() == before
    emulator.reset()
    emulator.set_deferred(0)


def test_another_device_is_asked_about_from_the_first(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``explain`` of a layer on cuda:1, while device 0 is current."""
    emulator.set_device_count(2)
    assert cusparselt.why_unavailable(1) == ""
    assert cusparselt.gpu(1).sm == 86
    assert cusparselt.why_unavailable(0) == ""
    assert "there is no device 7" in cusparselt.why_unavailable(7)


def test_doctor_tells_of_kernels_that_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_kernels, "BUILT", True)
    monkeypatch.setattr(device_kernels, "why_unusable", lambda index: "built for\nCUDA 13" if index else "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert doctor._about_cuda_kernels() == "built; torch does their work on device 1: built for; CUDA 13"
    monkeypatch.setattr(device_kernels, "BUILT", False)
    assert "not built" in doctor._about_cuda_kernels()
