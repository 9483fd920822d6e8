#!/usr/bin/env python3
"""What ptxas and the assembler made of the CUDA kernels: fails on a spill, a stack frame, a narrow access.

    cmake --build build --target sparse24_cuda_kernels 2>&1 | tee build.log
    python csrc/cuda/check_kernels.py build.log [--sass build/csrc/cuda/libsparse24_cuda_kernels.a]

The log must be of a build that compiled the kernels (ptxas -v). Every architecture must be there, each
with the same kernels; each kernel must have '0 bytes stack frame, 0 bytes spill stores, 0 bytes spill
loads'. With --sass, cuobjdump (or --cuobjdump PATH) disassembles them, and the kernels made for aligned
memory must hold the 128-bit loads and stores that they are made for. Prints the registers of each kernel.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
KERNELS = ("mask24", "transposable", "compress", "expand", "im2col", "quantize", "few_tokens", "epilogue")
#: Most registers of a thread: a block of 256 has 65,536.
REGISTERS = {"few_tokens": 255}
CLEAN = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"

#: kernel -> architecture -> what was found.
Found = dict[str, dict[str, str]]


WORDS = {
    "(Access)0": "vector",
    "(Access)1": "elements",
    "(Prune)0": "mask",
    "(Prune)1": "prune",
    "(Zeros)0": "signed",
    "(Zeros)1": "plain",
}


def demangled(names: Iterable[str]) -> dict[str, str]:
    """Short readable names: 'mask24<unsigned short, vector, prune>'."""
    names = sorted(set(names))
    ran = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True)
    short = {}
    for name, full in zip(names, ran.stdout.splitlines(), strict=True):
        text = re.sub(r"sparse24::cuda::|\w*_GLOBAL__N_\w*::|\(anonymous namespace\)::", "", full)
        found = re.match(r"void (\w+)_kernel<(.*)>\(", text)
        if not found:
            raise SystemExit(f"a kernel of another kind: {full}")
        arguments = found[2]
        for code, word in WORDS.items():
            arguments = arguments.replace(code, word)
        short[name] = f"{found[1]}<{arguments}>"
    return short


def read_log(text: str) -> tuple[Found, Found]:
    """Registers, and the frame and spills, by kernel and architecture."""
    entry = r"Compiling entry function '(\S+)' for '(sm_\d+)'\n(.*?)(?=Compiling entry function|\Z)"
    entries = re.findall(entry, text, re.DOTALL)
    names = demangled(name for name, _, _ in entries) if entries else {}
    registers: Found = defaultdict(dict)
    frames: Found = defaultdict(dict)
    for name, architecture, report in entries:
        used = re.search(r"Used (\d+) registers", report)
        frame = re.search(r"\d+ bytes stack frame, \d+ bytes spill stores, \d+ bytes spill loads", report)
        registers[names[name]][architecture] = used[1] if used else "?"
        frames[names[name]][architecture] = frame[0] if frame else "no word of its frame"
    return registers, frames


def register_faults(registers: Found) -> list[str]:
    faults = []
    for name, found in registers.items():
        most = REGISTERS.get(name.split("<")[0])
        over = [f"{where}: {count}" for where, count in found.items() if most and int(count) > most]
        faults += [f"{name} takes more than {most} registers: {', '.join(over)}"] if over else []
    return faults


def log_faults(frames: Found) -> list[str]:
    faults = [
        f"the log holds no {kernel} kernel: was it a build from scratch?"
        for kernel in KERNELS
        if not any(name.startswith(f"{kernel}<") for name in frames)
    ]
    for name, found in frames.items():
        missing = [architecture for architecture in ARCHITECTURES if architecture not in found]
        faults += [f"{name} is not compiled for {', '.join(missing)}"] if missing else []
        faults += [f"{name} on {where}: {frame}" for where, frame in found.items() if frame != CLEAN]
    return faults


def wide_accesses(name: str) -> set[str]:
    """The instructions that a kernel is made for."""
    kernel, arguments = name.rstrip(">").split("<")
    vector = "vector" in arguments
    if kernel == "im2col":
        size = {"unsigned char": 1, "unsigned short": 2, "unsigned int": 4}[arguments.split(", ")[0]]
        bits = 8 * size * int(arguments.split(", ")[1])
        wide = {f"STG.{bits}"} | ({f"LDG.{bits}"} if vector else set())
        return {access.removesuffix(".32") for access in wide}
    if not vector:
        return set()
    stores = kernel in {"compress", "expand"} or "prune" in arguments
    return {"LDG.128"} | ({"STG.128"} if stores else set())


def read_sass(text: str) -> dict[str, dict[str, set[str]]]:
    """Loads and stores of global memory as 'LDG.128', by mangled kernel and architecture."""
    accesses: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    architecture = name = ""
    for line in text.splitlines():
        if found := re.match(r"\s*arch = (sm_\d+)", line):
            architecture = found[1]
        elif found := re.match(r"\s*Function : (\S+)", line):
            name = found[1]
        elif found := re.search(r"\b(LDG|STG)((?:\.\w+)+)", line):
            widths = [part for part in found[2].split(".") if part in {"64", "128"}]
            accesses[name][architecture].add(".".join([found[1], *widths]))
    return accesses


def sass_faults(text: str, compiled: Found) -> list[str]:
    accesses = read_sass(text)
    names = demangled(accesses) if accesses else {}
    by_name = {names[name]: found for name, found in accesses.items()}
    faults = []
    for name in compiled:
        for architecture in ARCHITECTURES:
            missing = wide_accesses(name) - by_name.get(name, {}).get(architecture, set())
            if missing:
                faults.append(f"{name} on {architecture} has no {', '.join(sorted(missing))}")
    return faults


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("log", type=Path, help="output of the build")
    parser.add_argument("--sass", type=Path, metavar="LIBRARY", help="disassemble this object or library")
    parser.add_argument("--cuobjdump", default="cuobjdump")
    options = parser.parse_args()

    registers, frames = read_log(options.log.read_text(encoding="utf-8", errors="replace"))
    faults = log_faults(frames) + register_faults(registers)
    if options.sass:
        cuobjdump = shutil.which(options.cuobjdump)
        if cuobjdump is None:
            raise SystemExit(
                f"--sass needs {options.cuobjdump}, of the CUDA toolkit or nvidia-cuda-cuobjdump"
            )
        ran = subprocess.run([cuobjdump, "-sass", options.sass], capture_output=True, text=True, check=True)
        faults += sass_faults(ran.stdout, frames)

    width = max(map(len, registers), default=6)
    print("registers".ljust(width), *(architecture.rjust(6) for architecture in ARCHITECTURES))
    for name, found in sorted(registers.items()):
        print(name.ljust(width), *(found.get(architecture, "-").rjust(6) for architecture in ARCHITECTURES))
    print(*faults, sep="\n", file=sys.stderr, end="\n" if faults else "")
    compilations = sum(map(len, frames.values()))
    what = "spills, frames and accesses" if options.sass else "spills and frames"
    print(f"{len(frames)} kernels, {compilations} compilations, {len(faults)} faults in {what}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
