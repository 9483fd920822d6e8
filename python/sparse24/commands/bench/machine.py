"""Machine classes: what results are sorted by, for figures of one say little about another."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from ...timing import Machine

#: Instruction sets as papers write them.
ISA = {
    "avx2": "AVX2",
    "avx512": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "amx": "AMX",
    "neon": "NEON",
    "scalar": "plain C++",
}

#: (vendor, family): the models from each number on, as the kernels of Linux and LLVM tell them apart.
MICROARCHITECTURES = {
    ("AuthenticAMD", 23): ((0x00, "AMD Zen"), (0x30, "AMD Zen 2")),
    ("AuthenticAMD", 25): (
        (0x00, "AMD Zen 3"),
        (0x10, "AMD Zen 4"),
        (0x20, "AMD Zen 3"),
        (0x60, "AMD Zen 4"),
    ),
    ("AuthenticAMD", 26): ((0x00, "AMD Zen 5"),),
}
#: Intel gives every design a model of its own within family 6.
INTEL = {
    0x3F: "Intel Haswell",
    0x4F: "Intel Broadwell",
    0x55: "Intel Skylake or Cascade Lake",
    0x6A: "Intel Ice Lake",
    0x6C: "Intel Ice Lake",
    0x8F: "Intel Sapphire Rapids",
    0xCF: "Intel Emerald Rapids",
    0xAD: "Intel Granite Rapids",
}
#: Parts of Arm, implementer 0x41.
ARM = {0xD0C: "Arm Neoverse N1", 0xD40: "Arm Neoverse V1", 0xD49: "Arm Neoverse N2", 0xD4F: "Arm Neoverse V2"}


@dataclasses.dataclass(frozen=True)
class MachineClass:
    """Machines whose figures are comparable."""

    title: str  #: "AMD Zen 3, AVX2, 2 cores"

    @property
    def key(self) -> str:
        """The title as markers hold it: "amd-zen-3-avx2-2-cores"."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    @classmethod
    def of(cls, machine: Machine, cpuinfo: str) -> MachineClass:
        """The class of a machine whose /proc/cpuinfo is given."""
        cores = f"{machine.cores} core{'s' if machine.cores > 1 else ''}"
        return cls(f"{_family(cpuinfo) or machine.cpu}, {ISA.get(machine.kernels, machine.kernels)}, {cores}")

    @classmethod
    def here(cls) -> MachineClass:
        """The class of this machine."""
        info = Path("/proc/cpuinfo")
        return cls.of(Machine.here(), info.read_text(encoding="utf-8") if info.exists() else "")


def _family(cpuinfo: str) -> str | None:
    """The microarchitecture; None: one that the tables above do not have."""
    fields = dict(re.findall(r"^([^\t:]+?)\s*:[ \t]*(.*)$", cpuinfo, re.MULTILINE))
    if fields.get("CPU implementer") == "0x41":
        return ARM.get(int(fields["CPU part"], 16))
    if not {"vendor_id", "cpu family", "model"} <= fields.keys():
        return None
    vendor, family, model = fields["vendor_id"], int(fields["cpu family"]), int(fields["model"])
    if (vendor, family) == ("GenuineIntel", 6):
        return INTEL.get(model)
    ranges = MICROARCHITECTURES.get((vendor, family), ())
    return next((name for first, name in reversed(ranges) if model >= first), None)
