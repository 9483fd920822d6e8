"""README's three plots, from results that are kept: nothing is measured here."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...files import FileError
from . import papers
from .machine import MachineClass

IMAGES = Path("docs", "images")


def write(study: Path, where: MachineClass, progress: Callable[[str], None] = print) -> list[Path]:
    """Write speed.svg, size.svg and accuracy.svg to docs/images of the checkout around the current directory.

    Args:
        study: results of ``sparse24 study``, a line of JSON a unit. Where it is not there, or no row has two
            seeds yet, the plot of accuracy stays as it is, and that is told.
        where: the class whose tables in bench/RESULTS.md are drawn.

    Returns:
        What was written.

    Raises:
        FileError: outside a checkout, matplotlib is missing, or the class has no tables to draw.
    """
    root = papers.checkout()
    if importlib.util.find_spec("matplotlib") is None:
        raise FileError("plots need matplotlib: pip install 'sparse24[demo]'")
    figures = importlib.import_module(".drawings.front_page", __package__)
    tables = papers.kept((root / papers.RESULTS).read_text(encoding="utf-8"), where)
    try:
        drawn = {"speed": figures.speed(tables, where.title), "size": figures.size(tables, where.title)}
    except ValueError as error:
        told = f"{papers.RESULTS} has too few tables of this machine's class, {where.title}"
        raise FileError(f"{told}: {error}; measure them with --write") from None
    rows, against = accuracies(study, equal=True), "2:4 less dense, both trained as long"
    if not rows:
        rows, against = accuracies(study), "2:4 less dense"
    if rows:
        drawn["accuracy"] = figures.accuracy(rows, against)
    else:
        progress(f"accuracy.svg stays as it is: {study} has no row with two seeds")
    written = []
    write_whole = importlib.import_module("..page", __package__).write_whole
    (root / IMAGES).mkdir(parents=True, exist_ok=True)
    for name, svg in drawn.items():
        written.append(root / IMAGES / f"{name}.svg")
        write_whole(written[-1], svg)
        progress(f"{written[-1]}: {len(svg) / 1e3:.0f} kB")
    return written


def accuracies(study: Path, *, equal: bool = False) -> list[tuple[str, float, float, bool]]:
    """Rows of the study that are judged: name, mean difference and bound in spreads, whether it passes.

    Args:
        equal: against the dense network that is trained as long, where that was run.
    """
    if not study.exists():
        return []
    paper = importlib.import_module("..study.paper", __package__)
    unit = importlib.import_module("..study.ways", __package__).Unit
    kept: list[tuple[Any, dict[str, Any]]] = []
    for line in study.read_text(encoding="utf-8").splitlines():
        try:
            result = json.loads(line)
        except ValueError:  # cut short by a crash; it is written again
            continue
        if "score" in result and not result.get("quick", False):
            kept.append((unit(result["row"], result["seed"], result["way"]), result))
    found = [(f, f.equal if equal else f.verdict) for f in paper.findings(kept)]
    return [
        (
            f"{finding.row.network}, {finding.data}",
            verdict.difference / verdict.spread,
            2 / math.sqrt(verdict.pairs),
            bool(verdict.passed),
        )
        for finding, verdict in found
        if verdict is not None and verdict.passed is not None and verdict.spread > 0
    ]
