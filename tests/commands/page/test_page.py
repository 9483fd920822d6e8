"""Pages: what is given is escaped, nothing comes from elsewhere, and what is wrong is named."""

from __future__ import annotations

import os
import re
import stat
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sparse24.commands.page import Page, write_whole

EVIL = "<script>alert('layers.0')</script> & \"quotes\""
SQUARE = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9">{}</svg>'
VOID = {"meta", "link", "br", "img", "hr"}


class Reader(HTMLParser):
    """Tags in order, checked for being closed in the order that they were opened; and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def full_page() -> Page:
    page = Page(EVIL)
    page.heading(EVIL)
    page.text(f"{EVIL}\n\nanother paragraph")
    page.command(f"sparse24 report {EVIL}")
    page.table([[EVIL, "ms"], [EVIL, "3"]], EVIL)
    page.figure(SQUARE.format('<rect id="a"/><use href="#a"/>'), EVIL)
    return page


def test_whatever_is_given_is_text() -> None:
    page = full_page().html()
    reader = Reader(page)
    assert "script" not in reader.tags
    assert reader.words.count(EVIL) == 9  # two of the title, and the header's cell beside a row's
    assert ("aria-label", EVIL) in reader.attributes
    assert "<script" not in page


def test_nothing_is_loaded_from_elsewhere() -> None:
    page = full_page().html()
    assert not re.search(r"https?:|@import|url\(|src=|//[a-z]", page)
    assert "default-src 'none'" in page
    assert [value for name, value in Reader(page).attributes if name == "href"] == ["data:,", "#f1-a"]


def test_a_page_is_a_whole_document() -> None:
    page = full_page().html()
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">')
    tags = Reader(page).tags
    for tag in ("title", "h1", "body", "thead", "tbody", "caption", "figcaption"):
        assert tags.count(tag) == 1, tag
    assert tags.count("p") == 2
    assert "prefers-color-scheme: dark" in page


@pytest.mark.parametrize(
    ("cells", "is_number"),
    [
        (["1", "-2.5", "1,024"], True),
        (["3 ms", "12.5 GB/s", ""], True),
        (["1.44x", "-", "98.1 %"], True),
        (["0.81 ± 0.02", "+0.1"], True),
        (["1", "torch"], False),
        (["1 of 24 layers"], False),
        (["", "-"], False),
    ],
)
def test_columns_of_numbers_are_aligned_to_the_right(cells: list[str], is_number: bool) -> None:
    page = Page("t")
    page.table([["what"], *([cell] for cell in cells)])
    assert page.html().count('class="n"') == (len(cells) + 1 if is_number else 0)


@pytest.mark.parametrize("rows", [[], [[]]])
def test_a_table_needs_a_header(rows: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="a table needs a first row, its header"):
        Page("t").table(rows)


def test_ragged_rows_and_wrong_levels_are_named_and_change_nothing() -> None:
    page = Page("t")
    before = page.html()
    with pytest.raises(ValueError, match="row 1 has 1 cells, the header 2"):
        page.table([["a", "b"], ["c"]])
    with pytest.raises(ValueError, match="level must be 2, 3 or 4"):
        page.heading("x", 1)
    with pytest.raises(ValueError, match="this is no SVG"):
        page.figure("<svg", "x")
    assert page.html() == before


def test_ids_of_two_figures_do_not_meet() -> None:
    drawing = SQUARE.format('<clipPath id="c"/><rect id="lost" clip-path="url(#c)"/>')
    page = Page("t")
    page.figure(drawing, "one")
    page.figure(drawing, "two")
    html = page.html()
    assert [html.count(text) for text in ('id="f1-c"', 'id="f2-c"', "url(#f1-c)", "url(#f2-c)")] == [1] * 4
    assert "lost" not in html


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ("<script>1</script>", "element script"),
        ('<image href="x.png"/>', "element image"),
        ("<foreignObject/>", "element foreignObject"),
        ('<rect onclick="1"/>', "onclick"),
        ('<use href="other.svg#a"/>', "href"),
        ('<rect fill="url(http://x)"/>', "fill"),
        ("<style>@import 'x'</style>", "style may not load"),
    ],
)
def test_a_figure_that_loads_or_runs_something_is_refused(inside: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Page("t").figure(SQUARE.format(inside), "x")


@pytest.mark.parametrize(
    ("svg", "said"),
    [
        ("<p>text</p>", "expected an element svg"),
        ('<svg xmlns="http://www.w3.org/2000/svg"/>', "with a viewBox"),
        ('<!DOCTYPE svg [<!ENTITY a "b">]><svg viewBox="0 0 1 1">&a;</svg>', "entities of its own"),
    ],
)
def test_what_is_no_drawing_is_refused(svg: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Page("t").figure(svg, "x")


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "index.html"
    page = full_page()
    page.write(file)
    assert file.read_text(encoding="utf-8") == page.html()
    assert stat.S_IMODE(file.stat().st_mode) & 0o044 == 0o044 & ~_umask()

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_whole(file, "half")
    assert file.read_text(encoding="utf-8") == page.html()
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(FileNotFoundError):
        page.write(tmp_path / "nowhere" / "index.html")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
