"""A unit in a process of its own: it takes a line of JSON on stdin, and writes one when it is done.

The process ends when its stdin does, so none outlives the study that started it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

from . import comparison, rows, ways
from .sources import Sources


def run(order: dict[str, Any]) -> dict[str, Any]:
    """What a unit is kept as; an error in it is one, too."""
    torch.set_num_threads(int(order["threads"]))
    torch.manual_seed(0)
    unit = ways.Unit(order["row"], order["seed"], order["way"])
    folder, quick = Path(order["folder"]), bool(order["quick"])
    data = Path(order["data"]) if order["data"] else None
    try:
        sources = Sources(data, folder / "data")
        if unit.row == comparison.KEY:
            return comparison.run(unit, sources, folder, quick, _step)
        row = rows.of_key(unit.row)
        if quick:
            row = row._replace(training=rows.Training(**{**vars(row.training), "steps": 8}))
        task = row.task(sources, quick)
        return ways.run(ways.Job(row, unit, task, folder, _step))
    except Exception as error:  # noqa: BLE001  # whatever it is, the other rows go on
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def _step(step: int) -> None:
    """Nothing more than a place to be interrupted at."""


def main() -> None:
    """Serve one order."""
    order = json.loads(sys.stdin.readline())

    def leave() -> None:
        sys.stdin.read()
        os._exit(3)

    threading.Thread(target=leave, daemon=True).start()
    warnings.simplefilter("ignore")
    answer, sys.stdout = sys.stdout, sys.stderr  # what libraries print is not the answer
    print(json.dumps(run(order)), file=answer, flush=True)
    os._exit(0)  # the thread may still wait for the end of stdin


if __name__ == "__main__":
    main()
