"""Where tables go besides the terminal: papers, JSON, CSV, plots; written anew after each benchmark."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...files import FileError
from ...report import format_table
from ...timing import Machine
from . import papers
from .machine import MachineClass
from .table import Table, as_csv


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Files of a run; ``None``: that one is not written.

    Raises:
        FileError: plots are asked for, and matplotlib is not installed.
    """

    root: Path | None  #: the checkout whose papers get the tables
    json: Path | None
    csv: Path | None
    plots: Path | None  #: a folder
    command: str  #: what was typed

    def __post_init__(self) -> None:
        if self.plots is not None and importlib.util.find_spec("matplotlib") is None:
            raise FileError("plots need matplotlib: pip install 'sparse24[demo]'")

    def write(
        self,
        found: Sequence[Table],
        machine: Machine,
        where: MachineClass,
        progress: Callable[[str], None],
    ) -> None:
        """All tables so far."""
        if self.json is not None:
            text = json.dumps(_report(found, machine, where), indent=1) + "\n"
            self.json.write_text(text, encoding="utf-8")
        if self.csv is not None:
            self.csv.write_text(as_csv(found), encoding="utf-8")
        if self.plots is not None:
            drawings = importlib.import_module(".drawings", __package__)
            page: Path = drawings.write(self.plots, found, f"{machine}; class: {where.title}", self.command)
            progress(f"plots: {page}")

    def publish(self, table: Table, machine: Machine, where: MachineClass, command: str) -> None:
        """Into the papers."""
        if self.root is not None:
            note = f"By `{command}` on {machine}; class: {where.title}."
            papers.write(self.root, table, where, note)


def shown(table: Table, machine: Machine) -> str:
    """A table as the terminal has it."""
    return f"\n{table.caption}\n{format_table(table.rows)}\n{machine}"


def _report(found: Sequence[Table], machine: Machine, where: MachineClass) -> dict[str, Any]:
    return {
        "format": 1,
        "class": where.title,
        "machine": dataclasses.asdict(machine),
        "tables": [dataclasses.asdict(table) for table in found],
    }
