"""Classes of machines, from what Linux says about a CPU."""

from __future__ import annotations

import pytest

from sparse24.commands.bench.machine import MachineClass
from sparse24.timing import Machine


def x86(vendor: str, family: int, model: int) -> str:
    return (
        f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\n"
        "model name\t: Some CPU\nstepping\t: 1\n\nprocessor\t: 1\n"
    )


@pytest.mark.parametrize(
    ("cpuinfo", "kernels", "cores", "title"),
    [
        (x86("AuthenticAMD", 25, 1), "avx2", 2, "AMD Zen 3, AVX2, 2 cores"),
        (x86("AuthenticAMD", 25, 0x11), "avx512", 8, "AMD Zen 4, AVX-512, 8 cores"),
        (x86("AuthenticAMD", 25, 0x21), "avx2", 8, "AMD Zen 3, AVX2, 8 cores"),
        (x86("AuthenticAMD", 23, 0x31), "scalar", 1, "AMD Zen 2, plain C++, 1 core"),
        (x86("GenuineIntel", 6, 0x8F), "amx", 4, "Intel Sapphire Rapids, AMX, 4 cores"),
        (x86("GenuineIntel", 6, 0x01), "avx2", 4, "Some CPU, AVX2, 4 cores"),
        (x86("Else", 1, 1), "avx2", 4, "Some CPU, AVX2, 4 cores"),
        ("CPU implementer\t: 0x41\nCPU part\t: 0xd40\n", "neon", 8, "Arm Neoverse V1, NEON, 8 cores"),
        ("CPU implementer\t: 0x41\nCPU part\t: 0xfff\n", "neon", 8, "Some CPU, NEON, 8 cores"),
        ("", "avx2", 2, "Some CPU, AVX2, 2 cores"),
    ],
)
def test_the_class_of_a_cpu(cpuinfo: str, kernels: str, cores: int, title: str) -> None:
    machine = Machine("Some CPU", cores, cores, "2.0", kernels)
    assert MachineClass.of(machine, cpuinfo).title == title


def test_a_key_fits_into_a_marker() -> None:
    assert MachineClass("AMD Zen 3, AVX2, 2 cores").key == "amd-zen-3-avx2-2-cores"
    assert MachineClass("X (R) @ 2.0 GHz, plain C++, 1 core").key == "x-r-2-0-ghz-plain-c-1-core"


def test_this_machine_has_a_class() -> None:
    assert MachineClass.here().title.endswith(("core", "cores"))
