"""What papers say about the tree: each rule takes the root of a tree and lists violations."""

from __future__ import annotations

import re
from pathlib import Path

PAPERS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
TABLED = ("bench/RESULTS.md",)
README_LINES = 200
COMMANDS = (
    "pip install -c constraints.txt '.[demo]' && sparse24 demo",
    "pip install -c constraints.txt '.[test]' && pytest",
)


def _read(root: Path, name: str) -> str:
    path = root / name
    return path.read_text(encoding="utf-8") if path.exists() else ""


def the_version_is_one_everywhere(root: Path) -> list[str]:
    """In pyproject.toml, in the package, and in the changelog."""
    found = {
        "pyproject.toml": re.search(r'^version = "(.+)"$', _read(root, "pyproject.toml"), re.MULTILINE),
        "__init__.py": re.search(
            r'^__version__ = "(.+)"$', _read(root, "python/sparse24/__init__.py"), re.MULTILINE
        ),
        "CHANGELOG.md": re.search(r"^## \[(\d.*?)\]", _read(root, "CHANGELOG.md"), re.MULTILINE),
    }
    versions = {name: match[1] if match else "none" for name, match in found.items()}
    same = len(set(versions.values())) == 1 and "none" not in versions.values()
    return [] if same else [f"versions differ: {versions}"]


def files_named_in_papers_exist(root: Path) -> list[str]:
    """Links, paths in backquotes, and bare names of files."""
    present = {path.name for folder in ("python", "csrc", "tests") for path in (root / folder).rglob("*.*")}
    found = []
    for paper in PAPERS:
        text = _read(root, paper)
        named = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
        named += re.findall(r"`((?:csrc|python|tests|bench|examples|cmake|\.ci)/[\w./-]+)`", text)
        found += [f"{paper}: {name}" for name in named if not (root / name).exists()]
        bare = set(re.findall(r"`(\w+\.(?:py|cpp|h))`", text))
        found += [f"{paper}: {name}" for name in sorted(bare - present)]
    return found


def the_readme_is_short_and_names_its_commands(root: Path) -> list[str]:
    """Fewer than 200 lines, with the two commands that CI runs."""
    text = _read(root, "README.md")
    lines = len(text.splitlines())
    long = [f"README.md has {lines} lines"] if lines >= README_LINES else []
    return long + [f"README.md lacks {command}" for command in COMMANDS if command not in text]


def tables_are_closed(root: Path) -> list[str]:
    """Each table and section of a class ends before the next one of its kind begins."""
    found = []
    for paper in TABLED:
        text = _read(root, paper)
        if "<!-- table:" not in text:
            found.append(f"{paper} has no table")
        for kind in ("table", "class"):
            marks = re.findall(rf"<!-- (/?){kind}:([\w@-]+) -->", text)
            opened, closed = marks[::2], marks[1::2]
            if opened != [("", name) for _, name in closed] or any(mark != "/" for mark, _ in closed):
                found.append(f"{paper}: markers of a {kind} do not match")
    return found


RULES = (
    the_version_is_one_everywhere,
    files_named_in_papers_exist,
    the_readme_is_short_and_names_its_commands,
    tables_are_closed,
)
