"""The page of a validation: one HTML file with everything in it, to be sent."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

#: Pixels for a ratio of one, and the most that is drawn.
_UNIT, _MOST = 180, 4.0

_STYLE = (
    "body{font:14px sans-serif;margin:2em;max-width:70em}table{border-collapse:collapse}"
    "td,th{padding:.2em .8em;border-bottom:1px solid #ccc;text-align:left}"
    ".failed{color:#b00}.passed{color:#070}pre{background:#eee;padding:.6em;overflow:auto}"
)


def page(report: dict[str, Any]) -> str:
    """A report as HTML: what passed, what did not and why, and bars of dense over sparse times."""
    emulated = any(part.get("emulated") for part in report["parts"].values())
    sections = [
        "<h1>sparse24 on this GPU</h1>",
        f"<p>{_text(report.get('started', ''))}, {_text(_device(report))}: "
        f"<b>{'all passed' if report.get('passed') else 'NOT all passed'}</b></p>",
        "<p><b>ON THE EMULATOR: this validates no GPU.</b></p>" if emulated else "",
        _table(report),
        *_failures(report),
        *_plots(report),
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>sparse24 validate-gpu</title>'
        f"<style>{_STYLE}</style>{''.join(sections)}</html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _device(report: dict[str, Any]) -> str:
    names = [part["device"] for part in report["parts"].values() if "device" in part]
    return names[0] if names else "no device"


def _table(report: dict[str, Any]) -> str:
    rows = ["<table><tr><th>part<th>status<th>checks<th>failed<th>seconds"]
    for name, part in report["parts"].items():
        checks = part.get("checks", [])
        failed = sum(not check["passed"] for check in checks)
        kind = "passed" if part["status"] == "passed" else "failed"
        rows.append(
            f'<tr><td>{_text(name)}<td class="{kind}">{_text(part["status"])}<td>{len(checks)}<td>{failed}'
            f"<td>{part['seconds']:.0f}"
        )
    return "".join([*rows, "</table>"])


def _failures(report: dict[str, Any]) -> Iterator[str]:
    """What failed, with all that was seen; and what a part printed that gave no answer."""
    for name, part in report["parts"].items():
        wrong = [check for check in part.get("checks", []) if not check["passed"]]
        if wrong or "log" in part:
            yield f'<h2 class="failed">{_text(name)}</h2>'
        for check in wrong:
            facts = {key: value for key, value in check.items() if key not in ("name", "passed")}
            yield f"<p>{_text(check['name'])}</p><pre>{_text(facts)}</pre>"
        if "log" in part:
            yield f"<pre>{_text(part['log'])}</pre>"


def _label(check: dict[str, Any]) -> str:
    """What stands before a bar: the check, and what was expected where there are figures of others."""
    expected = check.get("published")
    return str(check["name"]) + ("" if expected is None else f" (published {float(expected):.2f})")


def _plots(report: dict[str, Any]) -> Iterator[str]:
    """A bar a check that has a ratio: past the line sparse is faster."""
    for name, part in report["parts"].items():
        ratios = [
            (_label(check), float(check[key]))
            for check in part.get("checks", [])
            for key in ("x dense", "ratio")
            if isinstance(check.get(key), int | float)
        ]
        if not ratios:
            continue
        height = 20 * len(ratios)
        bars = "".join(
            f'<rect x="340" y="{20 * i + 4}" width="{_UNIT * min(ratio, _MOST):.0f}" height="12" '
            f'fill="{"#484" if ratio >= 1 else "#c66"}"/><text x="330" y="{20 * i + 14}" '
            f'text-anchor="end">{_text(label)}</text><text x="{344 + _UNIT * min(ratio, _MOST):.0f}" '
            f'y="{20 * i + 14}">{ratio:.2f}</text>'
            for i, (label, ratio) in enumerate(ratios)
        )
        yield (
            f"<h2>{_text(name)}: dense over sparse time</h2>"
            f'<svg width="{400 + _UNIT * _MOST:.0f}" height="{height}" font-size="11">{bars}'
            f'<line x1="{340 + _UNIT}" x2="{340 + _UNIT}" y1="0" y2="{height}" stroke="#000"/></svg>'
        )
