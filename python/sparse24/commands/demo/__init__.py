"""``sparse24 demo``: the recipe on images, a pretrained network, and the talk's tables, on a page."""

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
_PARTS = ("recipe", "oneshot", "tables")


def missing_packages() -> list[str]:
    """What the demo needs and cannot find, by the names that pip knows."""
    return [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]


def main(quick: bool = False, out: Path = Path("sparse24-demo")) -> int:
    """Run all parts; print their tables; write a page, demo.json and the models to ``out``.

    Args:
        quick: smaller problems, about one minute on two cores; otherwise three.
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
    command = "sparse24 demo" + (" --quick" if quick else "")
    record = {
        "machine": dataclasses.asdict(machine),
        "command": command,
        "seconds": seconds,
        **{name: outcome.data for name, outcome in outcomes.items()},
    }
    (out / "demo.json").write_text(json.dumps(record, indent=2) + "\n")
    page_of = importlib.import_module(".figures", __name__).page_of
    page_of(outcomes, str(machine), command, seconds).write(out / "index.html")
    print(f"\n{seconds:.0f} s; page: {out / 'index.html'}, numbers: {out / 'demo.json'}")
    return 0
