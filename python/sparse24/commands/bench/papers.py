"""Tables in papers: each stands between two markers, which name it and the class of its machine.

bench/RESULTS.md has a section for every class, README.md some tables of one. Only what stands between the
markers of a table is ever replaced, so the figures of other classes stay as they are.
"""

from __future__ import annotations

import re
from pathlib import Path

from ...files import FileError
from .machine import MachineClass
from .table import Table

RESULTS = Path("bench", "RESULTS.md")


def checkout() -> Path:
    """The checkout of sparse24 that the current directory is in.

    Raises:
        FileError: it is in none.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        project = folder / "pyproject.toml"
        if (folder / RESULTS).exists() and project.exists() and 'name = "sparse24"' in project.read_text():
            return folder
    raise FileError(f"{here} is not inside a checkout of sparse24 (no {RESULTS} here or above)")


def write(root: Path, table: Table, where: MachineClass, note: str) -> None:
    """Put a table into the papers of a checkout; ``note`` says how it was made."""
    results, readme = root / RESULTS, root / "README.md"
    text = f"{table.markdown()}\n\n{note}"
    results.write_text(placed(results.read_text(encoding="utf-8"), table.name, where, text), encoding="utf-8")
    before = readme.read_text(encoding="utf-8")
    readme.write_text(replaced(before, table.name, where, text) or before, encoding="utf-8")


def placed(paper: str, name: str, where: MachineClass, text: str) -> str:
    """A paper with a table replaced, or added to the section of its class, a new one where it has none."""
    done = replaced(paper, name, where, text)
    if done is not None:
        return done
    begin, end = _markers("class", where.key)
    if begin not in paper:
        paper = f"{paper.rstrip()}\n\n{begin}\n## {where.title}\n\n{end}\n"
    opened, closed = _markers("table", f"{name}@{where.key}")
    before, _, after = paper.partition(end)
    return f"{before.rstrip()}\n\n{opened}\n{text}\n{closed}\n\n{end}{after}"


def replaced(paper: str, name: str, where: MachineClass, text: str) -> str | None:
    """A paper with a table replaced; None where it does not have the table."""
    begin, end = _markers("table", f"{name}@{where.key}")
    table = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    done, found = table.subn(lambda _: f"{begin}\n{text}\n{end}", paper)
    return done if found else None


def kept(paper: str, where: MachineClass) -> list[Table]:
    """The tables of a class that a paper has, as they were written."""
    found = []
    pattern = r"<!-- table:(\S+)@" + re.escape(where.key) + r" -->\n(.*?)\n<!-- /table:"
    for name, text in re.findall(pattern, paper, re.DOTALL):
        caption, _, rest = text.partition("\n\n")
        lines = [line for line in rest.splitlines() if line.startswith("| ")]
        rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
        found.append(Table(name, caption, [rows[0], *rows[2:]]))
    return found


def _markers(kind: str, name: str) -> tuple[str, str]:
    return f"<!-- {kind}:{name} -->", f"<!-- /{kind}:{name} -->"
