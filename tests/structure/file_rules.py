"""What files look like: each rule takes the root of a tree and lists violations."""

from __future__ import annotations

import ast
import re
from pathlib import Path

LIMIT = 300
FOLDERS = ("python", "csrc", "tests", "bench", "examples")
SUFFIXES = {".py", ".pyi", ".h", ".cpp", ".cuh", ".cu", ".inc"}
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc"}


def files(root: Path) -> list[Path]:
    """Python, C++ sources and headers, at any depth, as paths inside the tree."""
    found = (path for folder in FOLDERS for path in (root / folder).rglob("*"))
    return sorted(path.relative_to(root) for path in found if path.suffix in SUFFIXES and path.is_file())


def long_files_say_why(root: Path) -> list[str]:
    """A file of more than 300 lines has "300 lines" in its docstring or leading comment."""
    found = []
    for path in files(root):
        text = (root / path).read_text(encoding="utf-8")
        lines = len(text.splitlines())
        if lines > LIMIT and "300 lines" not in _on_top(path, text):
            found.append(f"{path} has {lines} lines and does not say why")
    return found


def _on_top(path: Path, text: str) -> str:
    """The leading comment and, in Python, the docstring of a file, on one line."""
    comment = re.match(r"(?:\s*(?:#(?!\s*(?:include|pragma|define|if))|//)[^\n]*\n)*", text)
    top = comment[0] if comment else ""
    if path.suffix.startswith(".py"):
        top += ast.get_docstring(ast.parse(text)) or ""
    return re.sub(r"[\s/#]+", " ", top)


def no_vague_names(root: Path) -> list[str]:
    """No file or folder is called utils, helpers or common."""
    names = {path: {part.partition(".")[0].strip("_") for part in path.parts} for path in files(root)}
    return [f"{path}" for path, parts in names.items() if VAGUE & parts]


RULES = (long_files_say_why, no_vague_names)
