"""What the C++ side promises and no compiler checks: a rule takes the root of a tree and lists violations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

SUFFIXES = {".h", ".cpp", ".cuh", ".cu", ".inc"}
BACKENDS = ("cpu", "cusparselt", "cuda")
ISA_FLAG = re.compile(r"-m(arch|cpu|tune|avx|amx|fma|f16c|sse|bmi|popcnt|vnni|fpu)")
#: What the linker cannot take from the wrong file: types, and functions that compilers have built in.
HARMLESS_STD = re.compile(
    r"u?int\d+_t|uintptr_t|size_t|align_val_t|byte|memcpy|memset|integer_sequence|make_integer_sequence|index_sequence"
)


def sources(root: Path, *folder: str) -> list[Path]:
    """Sources and headers under a folder of csrc, at any depth."""
    return sorted(p for p in root.joinpath("csrc", *folder).rglob("*") if p.suffix in SUFFIXES)


def _includes(root: Path, *folder: str) -> Iterator[tuple[Path, str]]:
    for path in sources(root, *folder):
        for name in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)', path.read_text(), re.MULTILINE):
            yield path.relative_to(root), name


def only_bindings_include_python(root: Path) -> list[str]:
    """pybind11 and Python.h are for files named bindings*.cpp."""
    return [
        f"{path} includes {name}"
        for path, name in _includes(root)
        if re.match(r"pybind11/|Python\.h$", name) and not re.fullmatch(r"bindings\w*\.cpp", path.name)
    ]


def backends_do_not_know_each_other(root: Path) -> list[str]:
    """cpu/, cusparselt/ and cuda/ never include each other."""
    found = []
    for folder in BACKENDS:
        others = "|".join(other for other in BACKENDS if other != folder)
        foreign = re.compile(rf"(^|/)({others})/")
        found += [f"{path} includes {name}" for path, name in _includes(root, folder) if foreign.search(name)]
    return found


def nothing_includes_torch(root: Path) -> list[str]:
    """No header of torch or numpy, and no search for torch in CMake."""
    foreign = re.compile(r"^(torch|ATen|c10|numpy)(/|\.)")
    found = [f"{path} includes {name}" for path, name in _includes(root) if foreign.match(name)]
    return found + [f"{path} looks for Torch" for path, text in _cmake(root) if "find_package(Torch" in text]


def _cmake(root: Path) -> Iterator[tuple[Path, str]]:
    """CMake files of the build, without comments."""
    folders = [root / "csrc", root / "cmake", root / "tests"]
    files = [root / "CMakeLists.txt", *(p for folder in folders for p in folder.rglob("CMakeLists.txt"))]
    for path in [*files, *root.glob("cmake/*.cmake")]:
        if path.exists():
            yield path.relative_to(root), re.sub(r"#.*", "", path.read_text())


def flagged_commands(root: Path) -> list[tuple[Path, str, str]]:
    """Commands of CMake that hold a flag for an instruction set: file, command, arguments."""
    commands = r"(\w+)\s*\(((?:[^()]|\([^()]*\))*)\)"
    return [
        (path, name, body)
        for path, text in _cmake(root)
        for name, body in re.findall(commands, text)
        if ISA_FLAG.search(body)
    ]


def isa_flags_belong_to_one_file_each(root: Path) -> list[str]:
    """A flag on a target would reach code that runs before a machine is asked what it has."""
    return [
        f"{path}: {name}({' '.join(body.split())})"
        for path, name, body in flagged_commands(root)
        if name != "set_source_files_properties" or len(re.findall(r"csrc/cpu/[\w/-]+\.cpp", body)) != 1
    ]


def no_source_turns_an_isa_on(root: Path) -> list[str]:
    """No ``#pragma GCC target`` and no ``__attribute__((target``."""
    switch = re.compile(r"#\s*pragma\s+(GCC|clang)\s+(target|attribute)|__attribute__\s*\(\(\s*target")
    return [f"{path.relative_to(root)}" for path in sources(root) if switch.search(path.read_text())]


def shared_kernels_call_no_std_templates(root: Path) -> list[str]:
    """The linker keeps one copy of a template, perhaps the one with instructions that a machine lacks."""
    found = []
    for path in sources(root, "cpu"):
        if path.name.endswith("-inl.h"):
            code = re.sub(r"//.*", "", path.read_text())
            called = [name for name in re.findall(r"std::(\w+)", code) if not HARMLESS_STD.fullmatch(name)]
            found += [f"{path.relative_to(root)}: std::{name}" for name in called]
    return found


RULES = (
    only_bindings_include_python,
    backends_do_not_know_each_other,
    nothing_includes_torch,
    isa_flags_belong_to_one_file_each,
    no_source_turns_an_isa_on,
    shared_kernels_call_no_std_templates,
)
