"""What the Python side promises: each rule takes the root of a tree and lists violations.

A room is a folder or a module directly in the package; ``__init__`` is what the package itself exports.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path("python", "sparse24")
EXTENSIONS = {"_C", "_CUDA"}

_LOW = "ops masks report timing log"
_MIDDLE = f"nn pruning choose quant calibrated {_LOW}"
#: What each room may know. A new room gets a row here before it gets a file.
DIRECTIONS = {
    "ops": "",
    "report": "",
    "log": "",
    "masks": "ops",
    "timing": "ops",
    "nn": "ops masks report",
    "pruning": "ops masks report log timing",
    "choose": f"nn {_LOW}",
    "calibrated": f"files choose nn pruning {_LOW}",
    "quant": f"calibrated files choose nn pruning {_LOW}",
    "files": f"nn pruning {_LOW}",
    "integrations": f"files {_MIDDLE}",
    "__init__": f"files integrations {_MIDDLE}",  # which waits for other libraries to be imported
    "commands": f"__init__ files integrations {_MIDDLE}",
    "__main__": f"__init__ files integrations commands {_MIDDLE}",
    # The names of version 0.1, which scripts and pickles know, and nothing in the package.
    "asp": "pruning",
    "sparsifier": "pruning",
    "attention": "nn",
}
#: Steps against the directions that are known: file, room.
KNOWN_DETOURS = {
    ("nn/convert.py", "pruning"),
    ("nn/convertible.py", "pruning"),
    ("nn/shells.py", "pruning"),
    ("nn/by_tensors.py", "pruning"),
    ("nn/dense_loads.py", "pruning"),
    ("nn/forms.py", "pruning"),
    ("nn/plan.py", "pruning"),
}


def modules(root: Path) -> list[Path]:
    """Every file of the package, as a path inside it."""
    return sorted(path.relative_to(root / PACKAGE) for path in (root / PACKAGE).rglob("*.py"))


def imports(root: Path, module: Path) -> Iterator[tuple[str, ...]]:
    """The absolute name, in parts, of all that a module, or a function in it, imports from the package."""
    own = ("sparse24", *module.parent.parts)
    for node in ast.walk(ast.parse((root / PACKAGE / module).read_text())):
        if isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = own[: len(own) - node.level + 1] if node.level else ()
            base += tuple((node.module or "").split(".")) if node.module else ()
            names = [(*base, alias.name) for alias in node.names]
        else:
            continue
        yield from (name for name in names if name[0] == "sparse24")


def room(root: Path, name: tuple[str, ...]) -> str:
    """The room that an imported name is in."""
    if len(name) == 1:
        return "__init__"
    package = root / PACKAGE
    is_room = (package / name[1]).is_dir() or (package / f"{name[1]}.py").exists()
    return name[1] if is_room else "__init__"


def known_rooms(root: Path) -> dict[tuple[Path, str], set[str]]:
    """For every module and its room: the other rooms that it imports."""
    found = {}
    for module in modules(root):
        own = module.parts[0].removesuffix(".py")
        named = {room(root, name) for name in imports(root, module) if not EXTENSIONS & set(name)}
        found[module, own] = named - {own}
    return found


def only_ops_imports_the_extensions(root: Path) -> list[str]:
    """Arguments are checked in ops/, at any depth, and nowhere else."""
    return [
        f"{module} imports {'.'.join(name)}"
        for module in modules(root)
        for name in imports(root, module)
        if EXTENSIONS & set(name) and module.parts[0] != "ops"
    ]


def rooms_know_what_they_may(root: Path) -> list[str]:
    """The directions between rooms."""
    found = []
    for (module, own), others in known_rooms(root).items():
        if own not in DIRECTIONS:
            found.append(f"{module}: the room {own} has no row in DIRECTIONS")
            continue
        allowed = set(DIRECTIONS[own].split())
        detours = {other for file, other in KNOWN_DETOURS if file == module.as_posix()}
        found += [f"{module} knows {other}" for other in sorted(others - allowed - detours)]
    return found


def no_rooms_know_each_other(root: Path) -> list[str]:
    """No cycle between rooms, detours included."""
    graph: dict[str, set[str]] = {}
    for (_, own), others in known_rooms(root).items():
        graph.setdefault(own, set()).update(others)
    while True:  # take away what knows nothing that is left, until only cycles are
        ends = {own for own, others in graph.items() if not others & graph.keys()}
        if not ends:
            return [f"{own} is in or above a cycle" for own in sorted(graph)]
        graph = {own: others for own, others in graph.items() if own not in ends}


def public_names_are_documented(root: Path) -> list[str]:
    """What the package exports, wherever it is defined."""
    top = ast.parse((root / PACKAGE / "__init__.py").read_text())
    public = [
        alias.asname or alias.name
        for node in top.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    return [f"{name} has no docstring" for name in public if not _documented(root, Path(), name)]


def _documented(root: Path, folder: Path, name: str) -> bool:
    """Whether what a module or package (a path without its suffix) calls ``name`` has a docstring."""
    package = root / PACKAGE / folder
    file = package / "__init__.py" if package.is_dir() else package.with_suffix(".py")
    if not file.exists():  # an extension: its stub has no docstrings, and classes of it say what they are
        return True
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return bool(ast.get_docstring(node))
        if isinstance(node, ast.ImportFrom) and node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    here = folder if package.is_dir() else folder.parent
                    for _ in range(node.level - 1):
                        here = here.parent
                    return _documented(root, here.joinpath(*(node.module or "").split(".")), alias.name)
    return True  # a constant


RULES = (
    only_ops_imports_the_extensions,
    rooms_know_what_they_may,
    no_rooms_know_each_other,
    public_names_are_documented,
)
