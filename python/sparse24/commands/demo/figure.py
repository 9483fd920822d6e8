"""demo.png: one panel a part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .outcome import Outcome

_DENSE, _LOST, _SPARSE, _TALK = "#9aa0a6", "#c9b458", "#2f7d32", "#76b900"

#: The accuracies of part a, by the label of their bar.
_BARS = {
    "dense": ("dense", _DENSE),
    "dense,\ntrained\ntwice": ("dense, trained as long", _DENSE),
    "pruned": ("pruned, not retrained", _LOST),
    "retrained,\ncompressed": ("the same, compressed", _SPARSE),
}


def draw(outcomes: dict[str, Outcome], machine: str, path: Path) -> None:
    """Write the figure; a part that could not run says so in its panel."""
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(15, 5.2), layout="constrained")
        for axes, (name, panel) in zip(figure.subplots(1, 3), _PANELS.items(), strict=True):
            outcome = outcomes[name]
            axes.set_title(outcome.title)
            if outcome.table:
                panel(axes, outcome.data)
            else:
                axes.text(0.5, 0.5, "\n".join(outcome.notes), ha="center", va="center", wrap=True)
                axes.set_axis_off()
        figure.suptitle(f"2:4 sparsity on {machine}", fontsize=10)
        figure.savefig(path, dpi=130)


def _recipe(axes: Axes, data: dict[str, Any]) -> None:
    scores = data["accuracy"]
    bars = axes.bar(list(_BARS), [100 * scores[name] for name, _ in _BARS.values()])
    for bar, (_, colour) in zip(bars, _BARS.values(), strict=True):
        bar.set_color(colour)
    axes.bar_label(bars, fmt="%.1f %%")
    axes.set_ylim(max(0, 100 * min(scores.values()) - 10), 102)
    axes.set_ylabel(f"test accuracy, {data['images']}, %")
    seconds, (before, after) = data["seconds"]["latency, batch 64"], data["bytes"]
    axes.set_xlabel(
        f"file {before / 1e6:.1f} MB -> {after / 1e6:.1f} MB; "
        f"batch of 64: {seconds['dense'] / seconds['sparse']:.2f}x faster"
    )


def _speedups(axes: Axes, names: list[str], here: list[float], there: list[float] | None) -> None:
    positions = range(len(names))
    height = 0.8 if there is None else 0.4
    bars = axes.barh(
        [p - (height / 2 if there else 0) for p in positions], here, height, color=_SPARSE, label="here"
    )
    axes.bar_label(bars, fmt="%.2fx", padding=2)
    if there is not None:
        bars = axes.barh([p + height / 2 for p in positions], there, height, color=_TALK, label="talk, A100")
        axes.bar_label(bars, fmt="%.2fx", padding=2)
        axes.legend(loc="lower right")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(list(positions), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.2 * max([*here, *(there or [])]))
    axes.set_xlabel("times faster than dense torch")


def _transformer(axes: Axes, data: dict[str, Any]) -> None:
    seconds = data["seconds"]
    _speedups(axes, list(seconds), [s["dense"] / s["sparse"] for s in seconds.values()], None)
    quality = data["quality"]
    axes.set_xlabel(f"times faster than dense torch; cosine to dense embeddings {quality['mean']:.3f}")


def _tables(axes: Axes, data: dict[str, Any]) -> None:
    rows = data["rows"]
    here = [row["dense"] / row["sparse"] for row in rows]
    _speedups(axes, [row["name"] for row in rows], here, [row["talk_speedup"] for row in rows])


_PANELS = {"recipe": _recipe, "transformer": _transformer, "tables": _tables}
