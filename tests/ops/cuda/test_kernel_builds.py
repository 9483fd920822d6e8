"""Around the CUDA kernels: their stub, the check of the compiled code, launches without a driver."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import sparse24

ROOT = Path(__file__).parents[3]
CHECK = ROOT / "csrc" / "cuda" / "check_kernels.py"
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
CLEAN = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
KERNELS = {
    f"_ZN8sparse244cuda12_GLOBAL__N_1{len(name) + 7}{name}_kernelIjLNS0_6AccessE0EEEvjll": name
    for name in (
        "mask24",
        "transposable",
        "compress",
        "expand",
        "im2col",
        "quantize",
        "few_tokens",
        "epilogue",
    )
}


def test_the_stub_has_every_binding_with_its_arguments() -> None:
    source = (ROOT / "csrc" / "cuda" / "bindings.cpp").read_text()
    bodies = re.split(r'm\.def\(\s*"', source)[1:]
    bound = {body.split('"')[0]: re.findall(r'py::arg\("(\w+)"\)', body) for body in bodies}
    stub = {
        node.name: [argument.arg for argument in node.args.args]
        for node in ast.parse((ROOT / "python" / "sparse24" / "_CUDA.pyi").read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    assert bound
    assert stub == bound


def log(kernels: list[str], architectures: tuple[str, ...], frame: str = CLEAN) -> str:
    return "".join(
        f"ptxas info    : Compiling entry function '{kernel}' for '{architecture}'\n"
        f"ptxas info    : Function properties for {kernel}\n    {frame}\n"
        "ptxas info    : Used 24 registers, used 0 barriers, 512 bytes cmem[0]\n"
        for architecture in architectures
        for kernel in kernels
    )


def check(tmp_path: Path, text: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "build.log"
    path.write_text(text)
    return subprocess.run([sys.executable, CHECK, path], capture_output=True, text=True, check=False)


def test_a_clean_log_passes_with_a_table(tmp_path: Path) -> None:
    ran = check(tmp_path, log(list(KERNELS), ARCHITECTURES))
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"expand<unsigned int, vector>( +24){6}\n", ran.stdout)
    assert "8 kernels, 48 compilations, 0 faults" in ran.stdout


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "the log holds no mask24 kernel"),
        (log(list(KERNELS)[1:], ARCHITECTURES), "the log holds no mask24 kernel"),
        (log(list(KERNELS), ARCHITECTURES[1:]), "mask24<unsigned int, vector> is not compiled for sm_80"),
        (log(list(KERNELS), ARCHITECTURES, CLEAN.replace("0 bytes spill stores", "8 bytes spill stores")),
         "expand<unsigned int, vector> on sm_90: 0 bytes stack frame, 8 bytes spill stores"),
        (log(list(KERNELS), ARCHITECTURES, CLEAN.replace("0 bytes stack", "8 bytes stack")), "8 bytes stack"),
        (log(list(KERNELS), ARCHITECTURES, ""), "no word of its frame"),
        (log(list(KERNELS), ARCHITECTURES).replace("Used 24", "Used 256"), "more than 255 registers: sm_80"),
    ],
)  # fmt: skip
def test_a_log_with_a_fault_fails(tmp_path: Path, text: str, fault: str) -> None:
    ran = check(tmp_path, text)
    assert ran.returncode == 1
    assert fault in ran.stderr


def test_narrow_accesses_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CHECK.parent))
    module = import_module("check_kernels")
    mangled = next(name for name in KERNELS if "expand" in name)
    sass = "".join(
        f"arch = {architecture}\n\t\tFunction : {mangled}\n"
        f"  /*0050*/ LDG.E.128.CONSTANT R4, [R2.64] ;\n  /*0060*/ STG.E{width} [R6.64], R4 ;\n"
        for architecture, width in zip(ARCHITECTURES, [".128"] * 5 + [""], strict=True)
    )
    compiled = {"expand<unsigned int, vector>": dict.fromkeys(ARCHITECTURES, CLEAN)}
    assert module.sass_faults(sass, compiled) == ["expand<unsigned int, vector> on sm_120 has no STG.128"]


@pytest.mark.skipif(find_spec("sparse24._CUDA") is None, reason="the build found no nvcc: no CUDA kernels")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the launch would not fail")
def test_without_a_driver_a_launch_says_so() -> None:
    kernels = import_module("sparse24._CUDA")
    kernels.mask24(0, 0, 0, 4, 0, 0)  # nothing to do needs no driver
    with pytest.raises(sparse24.Error, match=r"mask24: the launch of .* failed: cudaError"):
        kernels.mask24(4096, 0, 4, 4, 8192, 0)
    with pytest.raises(ValueError, match="mask24 supports fp32, fp16 and bf16"):
        kernels.mask24(4096, 3, 4, 4, 8192, 0)
