"""Which cuSPARSELt is opened, in processes of their own: it is opened once in each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from emulated import Emulator


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
