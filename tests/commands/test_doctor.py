"""What the doctor finds, on this machine and on ones that it is told of."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sparse24
from reference import TOLERANCE
from sparse24 import ops
from sparse24.commands import doctor
from sparse24.ops import machine


@pytest.fixture(scope="module")
def here() -> doctor.Diagnosis:
    return doctor.diagnose(seconds=0)


def test_a_sound_machine_is_healthy(here: doctor.Diagnosis) -> None:
    assert here.healthy
    assert here.isa == ops.cpu_isa()
    assert {test.name for test in here.self_tests} == {"linear", "conv2d"}
    assert all(0 < test.error <= doctor.TOLERANCE for test in here.self_tests)
    assert str(here).endswith("all is well")


def test_versions_and_threads_are_those_of_this_process(here: doctor.Diagnosis) -> None:
    assert here.sparse24 == sparse24.__version__
    assert here.torch == torch.__version__
    assert here.python == platform.python_version()
    assert here.threads == torch.get_num_threads()
    assert here.cores == len(os.sched_getaffinity(0))


def test_the_isas_that_run_hold_the_portable_one_and_the_chosen_one(here: doctor.Diagnosis) -> None:
    assert here.isas_that_run[-1] == "scalar"
    assert here.isa in here.isas_that_run
    refused = [each.split(": ") for each in here.isas_that_do_not]
    assert all(name and problem for name, problem in refused)
    listed = [name for name, _ in machine.isas()]
    assert sorted(listed) == sorted([*here.isas_that_run, *(name for name, _ in refused)])
    assert [name for name in listed if name in here.isas_that_run] == list(here.isas_that_run)  # best first


def test_without_a_wish_the_best_isa_is_chosen(here: doctor.Diagnosis) -> None:
    wish = os.environ.get("SPARSE24_CPU_ISA") or here.isas_that_run[0]
    assert here.isa == wish


def test_the_text_names_the_wish(here: doctor.Diagnosis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE24_CPU_ISA", "scalar")
    found = doctor.diagnose(seconds=0)
    assert found.isa_wish == "scalar"
    assert "SPARSE24_CPU_ISA=scalar" in str(found)


def test_torch_and_the_extension_share_one_openmp() -> None:
    """In a process of its own: scikit-learn, say, brings another."""
    code = "from sparse24.commands import doctor; print(doctor.diagnose(seconds=0))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.search("openmp +one runtime, shared with torch: /", ran.stdout)


def test_openmp_runtimes_are_counted_once_each() -> None:
    maps = "\n".join(
        f"7f00-7f01 r-xp 00000000 08:01 42   {path}"
        for path in (
            "/a/libgomp.so.1",
            "/a/libgomp.so.1",
            "/b/libgomp-a34b3233.so.1.0.0",
            "/c with space/libiomp5.so",
            "/d/libomp.so.5",
            "/e/libcompute.so",
            "/e/libomptarget.so",
        )
    )
    anonymous = "7fff-8000 rw-p 00000000 00:00 0\n7fff-8000 rw-p 00000000 00:00 0   [heap]\n"
    assert doctor.openmp_runtimes(anonymous + maps) == (
        "/a/libgomp.so.1",
        "/b/libgomp-a34b3233.so.1.0.0",
        "/c with space/libiomp5.so",
        "/d/libomp.so.5",
    )


def test_two_openmp_runtimes_are_told(here: doctor.Diagnosis) -> None:
    two = doctor.dataclasses.replace(here, openmp=("/a/libgomp.so.1", "/b/libomp.so"))
    assert "2 runtimes, which compete for the cores: /a/libgomp.so.1, /b/libomp.so" in str(two)


@pytest.mark.parametrize("factor", [1 + 1e-5, float("nan"), float("inf")])
def test_wrong_products_are_found(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    right = doctor.F.linear

    def wrong(*args: Tensor) -> Tensor:
        return right(*args) * factor

    monkeypatch.setattr(doctor.F, "linear", wrong)
    found = doctor.diagnose(seconds=0)
    linear, conv2d = found.self_tests
    assert not linear.passed
    assert conv2d.passed
    assert not found.healthy
    assert "FAILED" in str(found)
    assert "NOT HEALTHY" in str(found)


def test_an_isa_that_cannot_run_is_told_and_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise ValueError("SPARSE24_CPU_ISA=sse9 is not one of avx2, scalar")

    monkeypatch.setattr(ops, "cpu_isa", refuse)
    found = doctor.diagnose(seconds=0)
    assert found.isa is None
    assert found.self_tests == ()
    assert not found.healthy
    assert "NONE: SPARSE24_CPU_ISA=sse9 is not one of" in str(found)


def test_nothing_is_changed() -> None:
    torch.manual_seed(5)
    state, threads, default = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()
    doctor.diagnose(seconds=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert (torch.get_num_threads(), torch.get_default_dtype()) == (threads, default)


def test_the_tolerance_is_the_one_of_the_tests() -> None:
    assert TOLERANCE[torch.float32] == doctor.TOLERANCE


@pytest.mark.parametrize(
    ("built_for", "driver", "why"),
    [
        (None, False, "is built without CUDA: install a CUDA build"),
        ("12.8", False, "no NVIDIA driver is loaded: install one for CUDA 12.8"),
        ("12.8", True, "finds no device it can use: .*CUDA_VISIBLE_DEVICES=7"),
    ],
)
def test_why_torch_sees_no_device(
    built_for: str | None, driver: bool, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(Path, "exists", lambda self: driver)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert re.search(f"^dense path through torch: .*{why}", doctor._about_cuda())
    with pytest.raises(sparse24.Error, match=f"{why}.*; its tensors take the dense path"):
        sparse24.backend("cuda:1")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch with two devices, of which the second is too old."""
    problems = ["", "device 1 is sm_75: sparse tensor cores begin\n with sm_80"]
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
    monkeypatch.setattr(doctor.cusparselt, "why_unavailable", lambda index: problems[index])
    opened = doctor.cusparselt.Library(801, "/x/libcusparseLt.so.0", "/x/libcudart.so.12", "")
    monkeypatch.setattr(doctor.cusparselt, "library", lambda: opened)


@pytest.mark.usefixtures("two_gpus")
def test_each_device_says_what_it_runs_and_why() -> None:
    assert doctor._about_cuda() == (
        "0: GPU 0: cusparselt 0.8.1; 1: GPU 1: dense path through torch: "
        "device 1 is sm_75: sparse tensor cores begin; with sm_80"
    )
    assert sparse24.backend("cuda") == sparse24.backend("cuda:0") == "cusparselt 0.8.1"
    with pytest.raises(sparse24.Error, match="sm_75"):
        sparse24.backend("cuda:1")
    with pytest.raises(sparse24.Error, match="there is no device 2: torch sees 2"):
        sparse24.backend("cuda:2")


def test_what_was_tried_for_the_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise sparse24.Error("cuSPARSELt was not found. Tried:\n  /a\n  /b")

    monkeypatch.setattr(doctor.cusparselt, "library", missing)
    assert doctor._about_cusparselt() == "cuSPARSELt was not found. Tried:; /a; /b"


def test_the_library_is_told_with_what_is_wrong_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = doctor.cusparselt.Library(701, "/x/libcusparseLt.so.0", "/x/libcudart.so.12", "0.8.1 is better")
    monkeypatch.setattr(doctor.cusparselt, "library", lambda: opened)
    monkeypatch.setattr(
        doctor.cusparselt, "driver", lambda: doctor.cusparselt.Driver(0, 12080, 0, "error 35")
    )
    assert doctor._about_cusparselt() == (
        "0.7.1 (/x/libcusparseLt.so.0); runtime /x/libcudart.so.12; 0.8.1 is better; error 35"
    )
