"""A report as one HTML file: headings, text, commands, tables and figures, and nothing from elsewhere.

What is given is escaped, so a layer or a file may be called anything. The page forbids itself to load or run
anything (its Content-Security-Policy), follows the reader's light or dark theme, and scrolls wide tables.
"""

from __future__ import annotations

import html
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import figures

#: A number as tables have it, with a sign, a spread or a unit: "-1.5", "0.81 ± 0.02", "1.44x", "3 ms".
_DIGITS = r"[+\-\u2212±~<>]?\s?\d[\d.,]*(?:e[+-]?\d+)?"
_NUMBER = re.compile(rf"{_DIGITS}(?:\s?±\s?{_DIGITS})?(?:\s?[a-zA-Zµ%\u00d7/]{{1,6}})?")
_NOTHING = ("", "-", "\u2013")

_STYLE = """
:root { color-scheme: light dark;
  --ink: #1c2024; --quiet: #5b6470; --paper: #fff; --line: #d5dae0; --shade: #f3f5f7 }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e4e7eb; --quiet: #a3acb8; --paper: #16191d; --line: #363c44; --shade: #1f242a } }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; overflow-wrap: break-word;
  color: var(--ink); background: var(--paper); font: 1rem/1.55 system-ui, sans-serif }
h1 { font-size: 1.7rem; line-height: 1.25 }
h2 { margin-top: 2.2em; font-size: 1.3rem }
h3, h4 { margin-top: 1.8em; font-size: 1.08rem }
p { max-width: 46rem }
pre { padding: .7rem .9rem; overflow-x: auto; background: var(--shade);
  border: 1px solid var(--line); border-radius: 6px }
code { font: .9em/1.5 ui-monospace, monospace }
figure { margin: 1.4rem 0 }
figcaption, caption { padding: .4rem 0; color: var(--quiet); font-size: .92rem; text-align: left }
.wide { overflow-x: auto }
.wide svg { display: block; width: 100%; min-width: 34rem; height: auto; color: var(--ink) }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem 1rem .3rem 0; border-bottom: 1px solid var(--line);
  text-align: left; vertical-align: top; overflow-wrap: normal }
th { border-bottom-width: 2px }
td:first-child:not(.n) { min-width: 8rem }
.n { text-align: right; white-space: nowrap }
"""
#: Nothing is loaded and nothing is run; styles are the page's own.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Page:
    """A page, from top to bottom: each call adds to its end. All text is plain, and is escaped."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts: list[str] = []
        self._figures = 0

    def heading(self, text: str, level: int = 2) -> None:
        """A heading; the title is the one of level 1.

        Raises:
            ValueError: a level other than 2, 3 or 4.
        """
        if level not in (2, 3, 4):
            raise ValueError(f"level must be 2, 3 or 4 (the title is the heading of level 1), not {level}")
        self._parts.append(f"<h{level}>{html.escape(text)}</h{level}>")

    def text(self, text: str) -> None:
        """Paragraphs, which empty lines part."""
        paragraphs = (html.escape(each.strip()) for each in re.split(r"\n\s*\n", text))
        self._parts += [f"<p>{each}</p>" for each in paragraphs if each]

    def command(self, text: str) -> None:
        """A command of a shell, as it is typed."""
        self._parts.append(f"<pre><code>{html.escape(text)}</code></pre>")

    def table(self, rows: Sequence[Sequence[str]], caption: str = "") -> None:
        """A table, whose first row is the header; columns of numbers are aligned to the right.

        Raises:
            ValueError: no header, or a row with more or fewer cells than it has.
        """
        if not rows or not rows[0]:
            raise ValueError("a table needs a first row, its header")
        for index, row in enumerate(rows):
            if len(row) != len(rows[0]):
                raise ValueError(f"row {index} has {len(row)} cells, the header {len(rows[0])}: {list(row)}")
        kinds = [' class="n"' if _is_of_numbers(column[1:]) else "" for column in zip(*rows, strict=True)]
        head, *body = ("".join(_cells(row, kinds, "th" if row is rows[0] else "td")) for row in rows)
        lines = [
            f"<thead><tr>{head}</tr></thead>",
            "<tbody>",
            *(f"<tr>{row}</tr>" for row in body),
            "</tbody>",
        ]
        title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
        # A box that scrolls has to be reachable with a keyboard, and so needs a name.
        name = html.escape(caption or "table")
        self._parts.append(f'<div class="wide" role="region" tabindex="0" aria-label="{name}">')
        self._parts += [f"<table>{title}", *lines, "</table></div>"]

    def figure(self, svg: str, caption: str) -> None:
        """A drawing in SVG, which goes into the page, and what it shows.

        Raises:
            ValueError: it is no SVG, or it loads or runs something.
        """
        drawing = figures.inlined(svg, f"f{self._figures + 1}-", caption)
        self._figures += 1
        self._parts += [
            f'<figure><div class="wide" tabindex="0">{drawing}</div>',
            f"<figcaption>{html.escape(caption)}</figcaption></figure>",
        ]

    def html(self) -> str:
        """The whole page, HTML5."""
        title = html.escape(self._title)
        return "\n".join(
            [
                "<!DOCTYPE html>",
                '<html lang="en">',
                "<head>",
                '<meta charset="utf-8">',
                f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f"<title>{title}</title>",
                '<link rel="icon" href="data:,">',  # or browsers ask the server for one
                f"<style>{_STYLE}</style>",
                "</head>",
                "<body>",
                f"<h1>{title}</h1>",
                *self._parts,
                "</body>",
                "</html>",
                "",
            ]
        )

    def write(self, path: Path | str) -> None:
        """Write the page: a reader finds the old one or the new one, never a part.

        Raises:
            OSError: the folder does not exist, or cannot be written to.
        """
        write_whole(Path(path), self.html())


def write_whole(path: Path, text: str) -> None:
    """Write a file of text in UTF-8 through a draft beside it, which takes its place when it is complete."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=path.name, delete=False
    ) as draft:
        try:
            draft.write(text)
            draft.close()
            mask = os.umask(0)  # drafts are for their owner alone; there is no other way to read it
            os.umask(mask)
            os.chmod(draft.name, 0o666 & ~mask)
            os.replace(draft.name, path)
        except BaseException:
            os.unlink(draft.name)
            raise


def _cells(row: Sequence[str], kinds: Sequence[str], tag: str) -> list[str]:
    return [f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for cell, kind in zip(row, kinds, strict=True)]


def _is_of_numbers(cells: Sequence[str]) -> bool:
    told = [cell.strip() for cell in cells if cell.strip() not in _NOTHING]
    return bool(told) and all(_NUMBER.fullmatch(cell) for cell in told)
