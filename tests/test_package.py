"""The installed package: light to import, typed, documented, and in step with its C++ side."""

from __future__ import annotations

import ast
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sparse24
from sparse24.commands import doctor

ROOT = Path(__file__).parent.parent


def read(*parts: str) -> str:
    return ROOT.joinpath(*parts).read_text(encoding="utf-8")


def test_the_doctor_knows_the_instruction_sets_of_the_dispatcher() -> None:
    listed = re.findall(r"&(\w+)::kernels", read("csrc", "cpu", "dispatch.cpp"))
    assert tuple(listed) == doctor.ISAS


def test_the_stub_has_every_binding_with_its_arguments() -> None:
    """stubtest sees the names alone: functions of pybind11 have no signature that Python can read."""
    source = read("csrc", "cusparselt", "bindings.cpp") + read("csrc", "bindings.cpp")
    bodies = re.split(r'm\.def\(\s*"', source)[1:]
    bound = {body.split('"')[0]: re.findall(r'py::arg\("(\w+)"\)', body) for body in bodies}
    stub = {
        node.name: [argument.arg for argument in node.args.args]
        for node in ast.parse(read("python", "sparse24", "_C.pyi")).body
        if isinstance(node, ast.FunctionDef)
    }
    assert stub == bound


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
