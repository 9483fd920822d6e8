"""What a part of the demo returns, and how it shows that it is alive."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]

from ...timing import Pair, in_units


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of one part."""

    title: str
    short: str  #: all of it in a sentence
    table: list[tuple[str, ...]]  #: the first row is the header; empty for a part that could not run
    notes: list[str]  #: sentences under the table
    data: dict[str, Any]  #: the same figures for demo.json, times in seconds


class Progress:
    """One progress bar a part, with what is under way beside it."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._steps = 0

    def start(self, title: str, steps: int) -> None:
        """Open the bar of a part that will announce ``steps`` steps; the part before is finished."""
        self.finish()
        self._bar = tqdm(total=steps, desc=title, unit="step")
        self._steps = 0

    def now(self, what: str) -> None:
        """Announce the next step; the one before is done."""
        if self._bar is not None:
            self._bar.update(self._steps > 0)
            self._bar.set_postfix_str(what)
            self._steps += 1

    def finish(self) -> None:
        """Complete and close the bar of the current part."""
        if self._bar is not None:
            self._bar.set_postfix_str("")
            self._bar.update(self._bar.total - self._bar.n)
            self._bar.close()
            self._bar = None


def megabytes(size: float) -> str:
    """Bytes as megabytes of 10^6."""
    return f"{size / 1e6:.2f} MB"


def save_both(dense: nn.Module, sparse: nn.Module, out: Path, name: str) -> tuple[int, int]:
    """Write both state_dicts as safetensors, and return the sizes of the files in bytes."""
    paths = out / f"{name}-dense.safetensors", out / f"{name}-sparse.safetensors"
    for model, path in zip((dense, sparse), paths, strict=True):
        save_file(model.state_dict(), path)
    return paths[0].stat().st_size, paths[1].stat().st_size


def speed_row(name: str, pair: Pair) -> tuple[str, ...]:
    """A table row: what, dense, sparse, ratio."""
    return name, in_units(pair.dense), in_units(pair.sparse), in_words(pair)


def in_words(pair: Pair) -> str:
    """How the sparse call compares: "1.50x faster"."""
    faster = pair.speedup >= 1
    return f"{pair.speedup:.2f}x faster" if faster else f"{1 / pair.speedup:.2f}x slower"


def size_row(name: str, sizes: tuple[int, int]) -> tuple[str, ...]:
    """A table row: what, dense, sparse, ratio."""
    smaller = sizes[0] >= sizes[1]
    ratio = f"{sizes[0] / sizes[1]:.2f}x smaller" if smaller else f"{sizes[1] / sizes[0]:.2f}x larger"
    return name, megabytes(sizes[0]), megabytes(sizes[1]), ratio
