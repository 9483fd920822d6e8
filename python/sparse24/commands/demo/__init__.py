"""``sparse24 demo``: the recipe on images, a pretrained transformer, and the talk's tables, measured here."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import sys
import time
from pathlib import Path

import torch

from ...report import format_table
from ...timing import Machine

_NEEDED = {
    "matplotlib": "matplotlib",
    "safetensors": "safetensors",
    "sklearn": "scikit-learn",
    "tokenizers": "tokenizers",
    "tqdm": "tqdm",
}
_PARTS = ("recipe", "transformer", "tables")


def missing_packages() -> list[str]:
    """What the demo needs and cannot find, by the names that pip knows."""
    return [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]


def main(quick: bool = False, out: Path = Path("sparse24-demo")) -> int:
    """Run all parts; print their tables; write demo.json, demo.png and the compressed models to ``out``.

    Args:
        quick: smaller problems, under one minute on two cores; otherwise under five.
        out: a folder, made if need be.

    Returns:
        0, or 1 if a package is missing, with the command that installs it on stderr.
    """
    missing = missing_packages()
    if missing:
        print(f"the demo needs {', '.join(missing)}: pip install 'sparse24[demo]'", file=sys.stderr)
        return 1
    start = time.perf_counter()
    progress_type = importlib.import_module(".outcome", __name__).Progress
    out.mkdir(parents=True, exist_ok=True)
    machine = Machine.here()
    print(machine, flush=True)
    progress = progress_type()
    outcomes = {}
    with torch.random.fork_rng(devices=[]):
        for name in _PARTS:
            torch.manual_seed(0)
            outcomes[name] = importlib.import_module(f".{name}", __name__).run(quick, out, progress)
    progress.finish()
    seconds = time.perf_counter() - start
    for outcome in outcomes.values():
        print(f"\n{outcome.title}")
        if outcome.table:
            print(format_table(outcome.table))
        print("\n".join(outcome.notes))
    record = {
        "machine": dataclasses.asdict(machine),
        "command": "sparse24 demo" + (" --quick" if quick else ""),
        "seconds": seconds,
        **{name: outcome.data for name, outcome in outcomes.items()},
    }
    (out / "demo.json").write_text(json.dumps(record, indent=2) + "\n")
    importlib.import_module(".figure", __name__).draw(outcomes, str(machine), out / "demo.png")
    print(f"\n{seconds:.0f} s; figures: {out / 'demo.png'}, numbers: {out / 'demo.json'}")
    return 0
