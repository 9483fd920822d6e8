"""What it costs in time to keep the layers dense that suffer most: the report of ``sparse24.sensitivity``."""

from __future__ import annotations

import dataclasses
import importlib
import math
from pathlib import Path
from typing import NamedTuple

from ..report import Report, format_table
from ..timing import Pair


class Choice(NamedTuple):
    """A point of the trade-off: some layers are kept dense."""

    dense: tuple[str, ...]  #: layers, by name
    error: float  #: mean over all layers of the relative error of their outputs; 0 for dense ones
    speed: float  #: predicted, of the network against the dense one; NaN where times are not known


@dataclasses.dataclass(frozen=True)
class Sensitivity(Report):
    """A row a layer (``done``: it would be pruned), with errors and times beside them.

    ``errors`` are squared errors of a layer's outputs over their squared size, on dense inputs: what 2:4 by
    magnitude does to the layer alone. ``times`` are seconds, dense and compressed, of all its calls in one
    batch; empty where they were not measured. ``whole``: seconds of one batch in the dense network.
    """

    errors: dict[str, float] = dataclasses.field(default_factory=dict)
    times: dict[str, Pair] = dataclasses.field(default_factory=dict)
    whole: float = math.nan
    costs: dict[str, float] = dataclasses.field(default_factory=dict)  #: what a layer's being sparse saves

    def skip(self, budget: float) -> list[str]:
        """The layers to keep dense, those first that cost most accuracy for least time.

        Args:
            budget: from 0 to 1, the share of what all layers save together that may be given up. Layers that
                save nothing stay dense at any budget.

        Raises:
            ValueError: it is not from 0 to 1.
        """
        if not 0 <= budget <= 1:
            raise ValueError(f"a budget is the share of the saved time to give up, from 0 to 1, not {budget}")
        most = budget * sum(max(cost, 0.0) for cost in self.costs.values()) * (1 + 1e-9)
        dense, given = [], 0.0
        for name in self._order():
            cost = max(self.costs[name], 0.0)
            if given + cost <= most:
                given += cost
                dense.append(name)
        return dense

    def trade_off(self) -> list[Choice]:
        """From all layers pruned to none, one more dense at a time, in the order of :meth:`skip`."""
        order = self._order()
        found = []
        for count in range(len(order) + 1):
            sparse = order[count:]
            error = sum(self.errors[name] for name in sparse) / max(len(order), 1)
            saved = sum(
                self.times[name].dense - self.times[name].sparse for name in sparse if name in self.times
            )
            known = self.times and self.whole > saved
            speed = self.whole / (self.whole - saved) if known else math.nan
            found.append(Choice(tuple(order[:count]), error, speed))
        return found

    def _order(self) -> list[str]:
        def gained(name: str) -> float:
            cost = self.costs[name]
            return self.errors[name] / cost if cost > 0 else math.inf

        return sorted(self.errors, key=gained, reverse=True)

    def __str__(self) -> str:
        table = [("kept dense", "mean output error", "predicted speed", "the last of them")]
        choices = self.trade_off()
        step = max(len(choices) // 12, 1)
        for choice in [*choices[:-1:step], choices[-1]]:
            speed = "-" if math.isnan(choice.speed) else f"{choice.speed:.2f}x"
            last = choice.dense[-1] if choice.dense else "-"
            table.append((f"{len(choice.dense)} of {len(self.errors)}", f"{choice.error:.3f}", speed, last))
        return f"{super().__str__()}\n\n{format_table(table)}"

    def plot(self, path: str | Path) -> None:
        """Draw the trade-off into an image file: mean output error against predicted speed.

        Raises:
            ImportError: matplotlib is not installed (it comes with ``sparse24[demo]``).
        """
        figure = importlib.import_module("matplotlib.figure").Figure(figsize=(6, 4), layout="constrained")
        choices = self.trade_off()
        timed = not math.isnan(choices[0].speed)
        x = [c.speed if timed else 1 - len(c.dense) / max(len(self.errors), 1) for c in choices]
        axes = figure.subplots()
        axes.plot(x, [c.error for c in choices], marker=".")
        axes.set_xlabel("predicted speed, times the dense network" if timed else "share of sparse layers")
        axes.set_ylabel("mean relative output error of layers")
        axes.set_title("Layers kept dense, one more a point")
        figure.savefig(path, dpi=130)
