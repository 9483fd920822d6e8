"""What the demo's page shows: a part's figures as plots, its tables and notes under them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ..page import Page, plots
from .outcome import Outcome


class Drawing(NamedTuple):
    """A plot, and what it shows."""

    svg: str
    caption: str


def page_of(outcomes: dict[str, Outcome], machine: str, command: str, seconds: float) -> Page:
    """The page of a whole demo."""
    page = Page("2:4 sparsity on this machine")
    page.text(
        "At most two of every four weights along the input channels are kept. The networks below are pruned "
        "so, stored compressed, and timed against stock torch on the machine that wrote this page."
    )
    page.command(command)
    page.text(f"{machine}. {seconds:.0f} s in all.")
    page.text("\n\n".join(outcome.short for outcome in outcomes.values()))
    for name, outcome in outcomes.items():
        page.heading(outcome.title)
        for drawing in _DRAWINGS[name](outcome.data):
            page.figure(*drawing)
        page.table(outcome.table)
        page.text("\n\n".join(outcome.notes))
    return page


def _speedups(seconds: dict[str, dict[str, float]], title: str) -> str:
    rows = [(name, each["dense"] / each["sparse"]) for name, each in seconds.items()]
    return plots.bars(rows, "times faster than dense torch (1: as fast)", title, reference=1.0)


def _recipe(data: dict[str, Any]) -> Iterator[Drawing]:
    labels = {
        "dense": "dense",
        "dense, trained as long": "dense, trained a second time",
        "pruned, not retrained": "pruned by magnitude, not retrained",
        "the same, compressed": "pruned, retrained, compressed",
    }
    rows = [(label, 100 * data["accuracy"][name]) for name, label in labels.items()]
    title = f"Accuracy on {data['images']}"
    yield Drawing(
        plots.bars(rows, "test accuracy, %", title),
        "Dense, pruned, and after retraining with the same schedule.",
    )
    yield Drawing(_speedups(data["seconds"], "Speed"), "Latency of the whole network, dense over sparse.")


def _oneshot(data: dict[str, Any]) -> Iterator[Drawing]:
    score, judged = data["scores"][0], data["quality"]
    labels = {"dense": "dense", "2:4": "2:4, SparseGPT and refit", "magnitude": "2:4, magnitude alone"}
    rows = [(label, judged[name][0]) for name, label in labels.items()]
    better = "higher" if score["higher_is_better"] else "lower"
    caption = f"{score['name']}; {better} is better. Pruning took no training."
    yield Drawing(plots.bars(rows, score["name"], "Quality"), caption)
    title = f"Speed in {data['dtype']}, this machine's best dtype"
    yield Drawing(_speedups(data["seconds"], title), f"{data['network']}: dense over sparse time.")
    sizes = [
        (name, {"dense": before / 1e6, "2:4": after / 1e6}) for name, (before, after) in data["bytes"].items()
    ]
    yield Drawing(plots.grouped(sizes, "MB", f"Size in {data['dtype']}"), "Bytes on disk and in memory.")


def _tables(data: dict[str, Any]) -> Iterator[Drawing]:
    here, there = "here, fp32 (measured)", "A100, FP16 (published)"
    rows = [
        (row["name"], {here: row["dense"] / row["sparse"], there: row["talk_speedup"]})
        for row in data["rows"]
    ]
    svg = plots.grouped(rows, "times faster than dense (1: as fast)", "The talk's shapes", reference=1.0)
    yield Drawing(
        svg,
        "Measured here, beside the figures of the talk Accelerating Sparsity in the NVIDIA Ampere "
        "Architecture (2020).",
    )


_DRAWINGS: dict[str, Callable[[dict[str, Any]], Iterator[Drawing]]] = {
    "recipe": _recipe,
    "oneshot": _oneshot,
    "tables": _tables,
}
