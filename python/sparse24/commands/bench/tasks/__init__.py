"""Small tasks on public data that react to pruning: a trained network, calibration data, a score.

What a network is calibrated on, what it was trained on and what it is judged by are apart.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

from torch import nn


class Task(Protocol):
    """A task; ``FileError`` where its data are not on this machine."""

    #: What is measured, with its unit.
    score_name: str
    higher_is_better: bool

    def dense(self) -> nn.Module:
        """The trained network, in eval mode; what is trained here is kept in the cache folder."""

    def calibration(self, seed: int) -> Sequence[Any]:
        """Unlabelled batches."""

    def score(self, model: nn.Module) -> float:
        """On data that nothing was trained, calibrated or chosen by."""


TASKS = {
    "fashion": "CNN on Fashion-MNIST",
    "bytes": "byte-level GPT on the Python documentation",
    "minilm": "MiniLM-L6, gloss to lemma, 2,000 WordNet pairs",
}


def wanted(keys: Sequence[str]) -> dict[str, str]:
    """The tasks of ``keys``; without any of them, all."""
    return {key: what for key, what in TASKS.items() if key in keys} or TASKS


def load(key: str, *, quick: bool) -> Task:
    """The task of a key; ``quick``: much smaller, to see that it works."""
    made: Task = importlib.import_module(f".{key}", __package__).Here(quick)
    return made
