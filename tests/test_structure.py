"""The rules of the house that a compiler does not check: directions, ISA flags, names, papers."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sparse24
from sparse24.commands import doctor

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "python" / "sparse24"
CSRC = ROOT / "csrc"

CPP = sorted(p for p in CSRC.rglob("*") if p.suffix in {".h", ".cpp", ".cuh", ".cu"})
BACKENDS = ("cpu", "cusparselt", "cuda")
ISA_FLAG = re.compile(r"-m(arch|cpu|tune|avx|fma|f16c|sse|bmi|popcnt|vnni|fpu)")


def read(*parts: str) -> str:
    return ROOT.joinpath(*parts).read_text(encoding="utf-8")


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)', path.read_text(), re.MULTILINE)


def imported(path: Path) -> set[str]:
    """Every module and name that a file imports, relative ones without their dots."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module or ''}.{alias.name}".strip(".") for alias in node.names}
    return names


def project_version() -> str:
    found = re.search(r'^version = "(.+)"$', read("pyproject.toml"), re.MULTILINE)
    assert found is not None
    return found[1]


# ---- directions -------------------------------------------------------------------------------------


def test_only_ops_imports_the_extensions() -> None:
    importers = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        if any(
            {"_C", "_CUDA"} & set(name.split(".")) and not name.startswith("torch") for name in imported(path)
        )
    }
    assert importers == {"ops"}


def test_only_bindings_include_pybind11() -> None:
    bound = [p.relative_to(CSRC) for p in CPP if any(i.startswith("pybind11/") for i in includes(p))]
    assert {path.name for path in bound} == {"bindings.cpp"}


def test_backends_do_not_know_each_other() -> None:
    for folder in BACKENDS:
        others = "|".join(other for other in BACKENDS if other != folder)
        foreign = re.compile(rf"(^|/)({others})/")
        files = [p for p in (CSRC / folder).iterdir() if p.is_file()]
        assert [p for p in files for i in includes(p) if foreign.search(i)] == []


def test_no_cpp_includes_torch_or_python() -> None:
    foreign = re.compile(r"^(torch|ATen|c10|Python\.h|numpy)")
    assert [p for p in CPP for i in includes(p) if foreign.match(i)] == []
    assert "find_package(Torch" not in read("CMakeLists.txt")


def test_isa_flags_belong_to_one_file_each() -> None:
    cmake = re.sub(r"#.*", "", read("CMakeLists.txt"))
    commands = re.findall(r"(\w+)\s*\(((?:[^()]|\([^()]*\))*)\)", cmake)
    flagged = [(name, body) for name, body in commands if ISA_FLAG.search(body)]
    assert len(flagged) >= 3
    for name, body in flagged:
        assert name == "set_source_files_properties"
        assert len(re.findall(r"csrc/cpu/\w+\.cpp", body)) == 1


def test_no_source_turns_an_isa_on_by_itself() -> None:
    switch = re.compile(r"#\s*pragma\s+GCC\s+target|__attribute__\(\(target")
    assert [path for path in CPP if switch.search(path.read_text())] == []


@pytest.mark.parametrize("path", sorted((CSRC / "cpu").glob("*-inl.h")), ids=lambda path: path.name)
def test_shared_kernels_call_no_std_templates(path: Path) -> None:
    """The linker keeps one copy of a template, perhaps the one with instructions that a machine lacks."""
    allowed = re.compile(
        r"u?int\d+_t|size_t|byte|memcpy|memset|integer_sequence|make_integer_sequence|index_sequence"
    )
    code = re.sub(r"//.*", "", path.read_text())
    assert [name for name in re.findall(r"std::(\w+)", code) if not allowed.fullmatch(name)] == []


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


# ---- the package ------------------------------------------------------------------------------------


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


# ---- papers -----------------------------------------------------------------------------------------


def test_the_version_is_one_everywhere() -> None:
    assert sparse24.__version__ == project_version()
    assert f"## [{project_version()}]" in read("CHANGELOG.md")


def test_the_console_script_is_the_command_line() -> None:
    assert 'sparse24 = "sparse24.__main__:main"' in read("pyproject.toml")


@pytest.mark.parametrize("paper", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_files_named_in_papers_exist(paper: str) -> None:
    text = read(paper)
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    paths = re.findall(r"`((?:csrc|python|tests|bench|examples|cmake|\.ci)/[\w./-]+)`", text)
    assert [name for name in [*links, *paths] if not (ROOT / name).exists()] == []
    bare = {name for name in re.findall(r"`(\w+\.(?:py|cpp|h))`", text) if name not in ABSENT}
    present = {path.name for folder in (PACKAGE, CSRC, ROOT / "tests") for path in folder.rglob("*.*")}
    assert bare <= present


#: Files that CONTRIBUTING says this version does not have.
ABSENT = {"recipes.py", "oneshot.py", "permute.py", "quant.py"}


def test_files_said_to_be_absent_are_absent() -> None:
    assert [name for name in ABSENT if (PACKAGE / name).exists()] == []


def test_the_readme_is_short_and_names_the_two_commands() -> None:
    text = read("README.md")
    assert len(text.splitlines()) < 200
    assert "pip install -c constraints.txt '.[demo]' && sparse24 demo" in text
    assert "pip install -c constraints.txt '.[test]' && pytest" in text


def test_tables_in_papers_are_closed() -> None:
    for text in (read("README.md"), read("bench", "RESULTS.md")):
        opened = re.findall(r"<!-- table:([\w@-]+) -->", text)
        assert opened
        assert re.findall(r"<!-- /table:([\w@-]+) -->", text) == opened
