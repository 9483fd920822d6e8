"""What the pages of docs/ and README.md show is run: all Python of a page in order, in one namespace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def snippets(page: Path) -> str:
    """The Python of a page, each line where it stands in the page, so that errors name it."""
    lines: list[str] = []
    inside = False
    for line in page.read_text(encoding="utf-8").splitlines():
        fence = line.strip().startswith("```")
        lines.append("" if fence or not inside else line)
        if fence:
            inside = line.strip() == "```python"
    return "\n".join(lines)


def test_there_are_pages_and_most_have_code() -> None:
    with_code = [page for page in PAGES if snippets(page).strip()]
    assert len(PAGES) >= 12
    assert len(with_code) >= 10


@pytest.mark.parametrize(
    "page", [page for page in PAGES if snippets(page).strip()], ids=lambda page: page.stem
)
def test_the_code_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSE24_CACHE", str(tmp_path))
    monkeypatch.setattr("logging.root.handlers", [])  # a page sets them
    space: dict[str, Any] = {"__name__": page.stem}
    with torch.random.fork_rng():
        exec(compile(snippets(page), str(page), "exec"), space)


def test_every_page_is_in_the_table_of_contents() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = {
        name for block in re.findall(r"```\{toctree\}(.*?)```", index, re.DOTALL) for name in block.split()
    }
    notebooks = {f"notebooks/{page.stem}" for page in (ROOT / "docs" / "notebooks").glob("*.md")}
    assert {page.stem for page in PAGES} - {"index"} | notebooks <= listed
