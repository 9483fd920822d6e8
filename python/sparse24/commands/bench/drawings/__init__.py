"""Tables as plots: files of SVG, and a page of them all. Every plot says whose figures it shows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ...page import Page, write_whole
from ..table import Table
from . import layers, limits, networks, sizes
from .drawing import Drawing

#: What draws a table, by its name, of all the tables that there are.
_DRAWN: dict[str, Callable[[dict[str, Table]], Iterator[Drawing]]] = {
    "linear": layers.linear,
    "narrow": layers.narrow,
    "decode": layers.decode,
    "conv": layers.conv,
    "talk": layers.talk,
    "roofline": limits.roofline,
    "encoder": networks.encoder,
    "networks": networks.networks,
    "batches": networks.batches,
    "memory": sizes.memory,
    "masks": sizes.masks,
    "masks-python": sizes.masks_python,
    "gpu-linear": layers.gpu_linear,
    "gpu-conv": layers.gpu_conv,
    "gpu-decode": layers.gpu_decode,
    "gpu-masks": sizes.gpu_masks,
    "gpu-memory": sizes.gpu_memory,
    "gpu-networks": networks.gpu_networks,
}


def plain(name: str) -> str:
    """A table's name without the number of threads that papers add: "linear-2" is "linear"."""
    return re.sub(r"-\d+$", "", name)


def write(folder: Path, tables: Sequence[Table], machine: str, command: str) -> Path:
    """Write each plot and a page, ``index.html``, of all plots and tables.

    Args:
        folder: made if need be.
        machine: what measured the tables.
        command: what was typed.

    Returns:
        The page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = Page("sparse24 bench")
    page.text(
        f"Measured here: {machine}. Rivals take turns in one process; figures are medians. What is "
        "published by others says so, with its source, and was not measured here."
    )
    page.command(command)
    written: set[str] = set()
    for table in tables:
        page.heading(plain(table.name).replace("-", " "))
        try:
            made = drawings_of(table, tables)
        except ValueError as error:  # figures that no plot can show: the table does
            made = []
            page.text(f"Not drawn: {error}.")
        for drawing in made:
            name = drawing.name if drawing.name not in written else f"{drawing.name}-{table.name}"
            written.add(name)
            write_whole(folder / f"{name}.svg", drawing.svg)
            page.figure(drawing.svg, drawing.caption)
        page.table(table.rows)
        page.text(table.caption)
    path = folder / "index.html"
    page.write(path)
    return path


def drawings_of(table: Table, tables: Sequence[Table]) -> list[Drawing]:
    """Those of one table; others, of as many threads, may lend it limits.

    Raises:
        ValueError: its figures cannot be drawn.
    """
    name = plain(table.name)
    threads = table.name.removeprefix(name)
    known = {plain(each.name): each for each in tables if each.name.endswith(threads) and len(each.rows) > 1}
    return list(_DRAWN[name](known)) if name in _DRAWN and name in known else []
