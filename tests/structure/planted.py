"""Trees that break each rule, and one that breaks none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from . import cpp_rules, file_rules, paper_rules, python_rules

Rule = Callable[[Path], list[str]]


class Planted(NamedTuple):
    """A rule, a tree that breaks it, and what the rule then says of which file."""

    rule: Rule
    tree: dict[str, str]
    found: str


INIT = "python/sparse24/__init__.py"
LONG = "x = 1\n" * 301
CMAKE = "set_source_files_properties({} PROPERTIES COMPILE_OPTIONS -mavx2)\n"
README = "\n".join(paper_rules.COMMANDS)
TABLE = "<!-- table:a@b -->\n<!-- /table:a@b -->\n"

PLANTED = [
    Planted(cpp_rules.only_bindings_include_python, {"csrc/cpu/amx/x.cpp": "#include <Python.h>\n"}, "x.cpp"),
    Planted(
        cpp_rules.only_bindings_include_python, {"csrc/bind.h": "# include <pybind11/stl.h>\n"}, "csrc/bind.h"
    ),
    Planted(
        cpp_rules.backends_do_not_know_each_other,
        {"csrc/cpu/lanes/x.h": '#include "../../cuda/mask.cuh"\n'},
        "csrc/cpu/lanes/x.h",
    ),
    Planted(
        cpp_rules.backends_do_not_know_each_other,
        {"csrc/cuda/deep/er/x.cuh": '#include "cusparselt/api.h"\n'},
        "csrc/cuda/deep/er/x.cuh",
    ),
    *(
        Planted(cpp_rules.nothing_includes_torch, {"csrc/cpu/masks/x.cpp": f"#include <{header}>\n"}, header)
        for header in ("torch/all.h", "ATen/ATen.h", "c10/util/Half.h", "numpy/arrayobject.h")
    ),
    Planted(
        cpp_rules.nothing_includes_torch,
        {"CMakeLists.txt": "find_package(Torch REQUIRED)\n"},
        "CMakeLists.txt",
    ),
    Planted(
        cpp_rules.isa_flags_belong_to_one_file_each,
        {"CMakeLists.txt": "target_compile_options(sparse24 PRIVATE -march=native)\n"},
        "target_compile_options",
    ),
    Planted(
        cpp_rules.isa_flags_belong_to_one_file_each,
        {"csrc/cpu/CMakeLists.txt": CMAKE.format("csrc/cpu/a.cpp csrc/cpu/lanes/b.cpp")},
        "csrc/cpu/lanes/b.cpp",
    ),
    Planted(
        cpp_rules.no_source_turns_an_isa_on,
        {"csrc/cpu/lanes/x-inl.h": '#pragma GCC target("avx2")\n'},
        "csrc/cpu/lanes/x-inl.h",
    ),
    Planted(
        cpp_rules.no_source_turns_an_isa_on,
        {"csrc/format.cpp": '__attribute__((target("avx2"))) void f();\n'},
        "csrc/format.cpp",
    ),
    Planted(
        cpp_rules.shared_kernels_call_no_std_templates,
        {"csrc/cpu/masks/deep/x-inl.h": "int a = std::max(1, 2);  // std::min\n"},
        "std::max",
    ),
    Planted(
        python_rules.only_ops_imports_the_extensions,
        {"python/sparse24/nn/x.py": "def f():\n    from .. import _C\n"},
        "nn/x.py imports sparse24._C",
    ),
    Planted(
        python_rules.only_ops_imports_the_extensions,
        {"python/sparse24/commands/deep/x.py": "from sparse24._CUDA import mask24\n"},
        "commands/deep/x.py",
    ),
    Planted(
        python_rules.rooms_know_what_they_may,
        {"python/sparse24/nn/x.py": "from ..choose import tune\n", "python/sparse24/choose/__init__.py": ""},
        "nn/x.py knows choose",
    ),
    Planted(
        python_rules.rooms_know_what_they_may,
        {"python/sparse24/ops/cuda/x.py": "from ...masks import f\n", "python/sparse24/masks.py": ""},
        "ops/cuda/x.py knows masks",
    ),
    Planted(
        python_rules.rooms_know_what_they_may,
        {
            "python/sparse24/files/x.py": "import sparse24.commands.demo\n",
            "python/sparse24/commands/demo.py": "",
        },
        "files/x.py knows commands",
    ),
    Planted(
        python_rules.rooms_know_what_they_may,
        {"python/sparse24/pruning/x.py": "def f():\n    from .. import Sparsifier\n", INIT: ""},
        "pruning/x.py knows __init__",
    ),
    Planted(
        python_rules.rooms_know_what_they_may, {"python/sparse24/attic/x.py": ""}, "the room attic has no row"
    ),
    Planted(
        python_rules.no_rooms_know_each_other,
        {
            "python/sparse24/nn/x.py": "from ..pruning import a\n",
            "python/sparse24/pruning/x.py": "from ..nn import b\n",
        },
        "nn is in or above a cycle",
    ),
    Planted(
        python_rules.public_names_are_documented,
        {
            INIT: "from .nn import Layer\n",
            "python/sparse24/nn/__init__.py": "from .layer import Layer\n",
            "python/sparse24/nn/layer.py": "class Layer:\n    pass\n",
        },
        "Layer has no docstring",
    ),
    Planted(
        python_rules.public_names_are_documented,
        {
            INIT: "from .nn.deep.layer import f as g\n",
            "python/sparse24/nn/deep/layer.py": "from ...masks import f\n",
            "python/sparse24/masks.py": "def f():\n    pass\n",
        },
        "g has no docstring",
    ),
    Planted(file_rules.long_files_say_why, {"tests/ops/x.py": '"""Short."""\n' + LONG}, "tests/ops/x.py"),
    Planted(
        file_rules.long_files_say_why,
        {"csrc/cpu/x.h": "// A header.\n#pragma once\n// 300 lines\n" + LONG},
        "csrc/cpu/x.h has 304 lines",
    ),
    Planted(file_rules.no_vague_names, {"python/sparse24/nn/_utils.py": ""}, "nn/_utils.py"),
    Planted(file_rules.no_vague_names, {"csrc/common/x.h": ""}, "csrc/common/x.h"),
    Planted(file_rules.no_vague_names, {"tests/helpers.py": ""}, "tests/helpers.py"),
    Planted(
        paper_rules.the_version_is_one_everywhere,
        {
            "pyproject.toml": 'version = "0.2.0"\n',
            INIT: '__version__ = "0.1.0"\n',
            "CHANGELOG.md": "## [0.2.0] - unreleased\n",
        },
        "'__init__.py': '0.1.0'",
    ),
    Planted(
        paper_rules.the_version_is_one_everywhere,
        {"pyproject.toml": 'version = "0.2.0"\n', INIT: '__version__ = "0.2.0"\n'},
        "'CHANGELOG.md': 'none'",
    ),
    Planted(paper_rules.files_named_in_papers_exist, {"README.md": "[it](docs/gone.md)"}, "docs/gone.md"),
    Planted(paper_rules.files_named_in_papers_exist, {"CHANGELOG.md": "`csrc/gone/`"}, "csrc/gone/"),
    Planted(paper_rules.files_named_in_papers_exist, {"CONTRIBUTING.md": "`gone.py`"}, "gone.py"),
    Planted(
        paper_rules.the_readme_is_short_and_names_its_commands,
        {"README.md": README + "\n" * 199},
        "README.md has 200 lines",
    ),
    *(
        Planted(
            paper_rules.the_readme_is_short_and_names_its_commands,
            {"README.md": README.replace(command, "")},
            f"lacks {command}",
        )
        for command in paper_rules.COMMANDS
    ),
    Planted(
        paper_rules.tables_are_closed,
        {"README.md": TABLE, "bench/RESULTS.md": "text"},
        "RESULTS.md has no table",
    ),
    Planted(
        paper_rules.tables_are_closed,
        {"README.md": TABLE, "bench/RESULTS.md": TABLE + "<!-- table:c@b -->\n"},
        "RESULTS.md: markers of a table",
    ),
    Planted(
        paper_rules.tables_are_closed,
        {"README.md": TABLE, "bench/RESULTS.md": "<!-- class:a -->\n<!-- class:b -->\n" + TABLE},
        "RESULTS.md: markers of a class",
    ),
]

#: A small tree that keeps every rule, with what comes close to breaking one.
SOUND = {
    "CMakeLists.txt": CMAKE.format("csrc/cpu/lanes/avx2.cpp") + "# find_package(Torch -mavx2\n",
    "csrc/bindings_calls.cpp": "#include <Python.h>\n#include <pybind11/pybind11.h>\n",
    "csrc/cpu/lanes/x-inl.h": '#include "cpu/kernels.h"\nstd::size_t n;  // std::max\n',
    "csrc/cusparselt/x.cpp": '#include "cusparselt/api.h"\n// #include "cuda/x.h"\n',
    "csrc/cuda/x.cuh": "// Over 300\n// lines: the reason.\n" + LONG,
    INIT: '__version__ = "1.0"\nfrom .nn import Layer\nfrom .ops import Error\n',
    "python/sparse24/__main__.py": "from .commands import demo\nfrom . import __version__\n",
    "python/sparse24/asp.py": "from .pruning.asp import ASP\n",
    "python/sparse24/commands/demo/__init__.py": "from ... import Layer\nfrom ...nn import Layer\n",
    "python/sparse24/masks.py": "from . import ops\n",
    "python/sparse24/nn/__init__.py": "from .layer import Layer\n",
    "python/sparse24/nn/layer.py": '"""Over 300 lines: why."""\nclass Layer:\n    """A layer."""\n' + LONG,
    "python/sparse24/ops/__init__.py": "from .. import _C\nError = _C.Error\n",
    "python/sparse24/ops/cuda/__init__.py": "from ... import _CUDA\nfrom .. import Error\n",
    "python/sparse24/pruning/asp.py": "from ..masks import ops\n",
    "pyproject.toml": 'version = "1.0"\n',
    "CHANGELOG.md": "## [1.0] - today\n",
    "CONTRIBUTING.md": "`layer.py`, `csrc/cpu/`, [readme](README.md)\n",
    "README.md": README + "\n" + TABLE,
    "bench/RESULTS.md": "<!-- class:b -->\n" + TABLE + "<!-- /class:b -->\n",
}
