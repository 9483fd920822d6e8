"""The installed package: light to import, typed, documented, and in step with its C++ side."""

from __future__ import annotations

import ast
import json
import pickle
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sparse24
from sparse24.ops import machine

ROOT = Path(__file__).parent.parent


def read(*parts: str) -> str:
    return ROOT.joinpath(*parts).read_text(encoding="utf-8")


def test_the_instruction_sets_of_this_build_are_those_of_the_dispatcher() -> None:
    listed = re.findall(r"&(\w+)::kernels", read("csrc", "cpu", "dispatch.cpp"))
    assert set(listed) == {"amx", "avx512_vnni", "avx512", "avx2", "neon", "scalar"}
    cpu = ROOT / "csrc" / "cpu"
    assert all(
        (cpu / "lanes" / f"{name}.cpp").exists() or (cpu / name / f"{name}.cpp").exists() for name in listed
    )
    foreign = (
        {"amx", "avx512_vnni", "avx512", "avx2"} if platform.machine() in {"aarch64", "arm64"} else {"neon"}
    )
    assert [name for name, _ in machine.isas()] == [name for name in listed if name not in foreign]


def bound_by_pybind11(source: str) -> dict[str, list[str]]:
    """Functions and the names of their arguments; one that takes any keyword has none."""
    bodies = re.split(r'm\.def\(\s*"', source)[1:]
    return {body.split('"')[0]: re.findall(r'py::arg\("(\w+)"\)', body) for body in bodies}


def bound_as_methods(source: str) -> dict[str, list[str]]:
    """Functions in a table of PyMethodDef: they count their arguments, and a comment above names them."""
    found = {}
    for name in re.findall(r'\{"(\w+)", reinterpret_cast<PyCFunction>', source):
        comment, code = re.split(rf"PyObject\* {name}\(", source, maxsplit=1)
        said = re.findall(rf"// {name}\((.*?)\)", comment, re.DOTALL)[-1]
        counted = re.search(r"count != (\d+)", code)
        assert counted is not None
        found[name] = re.findall(r"\w+", said)
        assert len(found[name]) == int(counted[1])
    return found


def test_the_stub_has_every_binding_with_its_arguments() -> None:
    """stubtest sees the names alone: functions of pybind11 have no signature that Python can read."""
    files = [
        path.read_text() for path in sorted(ROOT.glob("csrc/**/bindings*.cpp")) if "cuda" not in path.parts
    ]
    bound = [found for text in files for found in (bound_by_pybind11(text), bound_as_methods(text))]
    names = [name for found in bound for name in found]
    assert len(names) == len(set(names))
    assert {"linear", "call_linear", "machine", "cusparselt_matmul"} <= set(names)
    stub = {
        node.name: [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
        for node in ast.parse(read("python", "sparse24", "_C.pyi")).body
        if isinstance(node, ast.FunctionDef)
    }
    assert stub == {name: arguments for found in bound for name, arguments in found.items()}


def test_importing_does_no_heavy_work() -> None:
    code = (
        "import json, sys, torch; before = set(sys.modules); import sparse24; "
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    added = {name.split(".")[0] for name in json.loads(ran.stdout)}
    assert "sparse24" in added
    heavy = {"matplotlib", "sklearn", "scipy", "tqdm", "transformers", "tokenizers", "safetensors"}
    assert added.isdisjoint(heavy)


@pytest.mark.parametrize("name", sparse24.__all__)
def test_public_names_exist_and_are_documented(name: str) -> None:
    assert getattr(sparse24, name).__doc__


def test_public_names_are_sorted_and_complete() -> None:
    given = {
        alias.asname or alias.name
        for node in ast.parse(read("python", "sparse24", "__init__.py")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname is None or not alias.asname.startswith("_")
    }
    assert sparse24.__all__ == sorted(given)


def test_the_package_is_typed() -> None:
    assert (Path(sparse24.__file__).parent / "py.typed").exists()


def test_the_console_script_is_the_command_line() -> None:
    assert 'sparse24 = "sparse24.__main__:main"' in read("pyproject.toml")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("asp", "ASP"),
        ("attention", "SparseMultiheadAttention"),
        ("nn", "SparseConv2d"),
        ("nn", "SparseLinear"),
        ("report", "Report"),
        ("sparsifier", "Sparsifier"),
    ],
)
def test_pickles_of_version_0_1_find_their_classes(module: str, name: str) -> None:
    found = pickle.loads(f"csparse24.{module}\n{name}\n.".encode())
    assert isinstance(found, type)
    assert found.__name__ == name
    assert pickle.loads(pickle.dumps(found)) is found
