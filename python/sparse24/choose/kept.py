"""Times of layers, dense and sparse, kept in ``layers.json`` of the user's cache folder (``ops.figures``).

They are valid for one CPU, number of threads, version of torch and build of the kernels: another has its own.
A file is written in one step and looked at before it is used; where it cannot be written, the next process
measures again.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import torch

from ..ops import figures, machine
from ..timing import Pair

_FILE, _FORMAT = "layers.json", 1
_REMEDY = "delete it; it is written again"


def identity() -> str:
    """What figures are valid for."""
    return (
        f"{machine.identity(machine.cpu_name())}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {machine.kernels()}"
    )


def load() -> dict[str, Pair]:
    """The figures of this machine, by the key of a layer's call; seconds."""
    return _pairs(_read().get(identity(), {}))


def keep(found: Mapping[str, Pair]) -> str:
    """Add figures to the file; why that cannot be done, or ""."""
    try:
        known = _read()
        own = {**_pairs(known.get(identity(), {})), **found}
        numbers = {key: [pair.dense, pair.sparse] for key, pair in own.items()}
        figures.write(_FILE, _FORMAT, "machines", {**known, identity(): numbers})
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        return f"not kept: {error}"
    return ""


def _read() -> dict[str, Any]:
    with contextlib.suppress(RuntimeError, PermissionError):  # no home, or one that cannot be looked into
        return figures.read(_FILE, _FORMAT, "machines", _REMEDY)
    return {}


def _pairs(entries: Any) -> dict[str, Pair]:
    """The entries that are two positive times; with a warning, without those that are not."""
    if not isinstance(entries, dict):
        entries = {"all of them": None}
    found = {key: _pair(entry) for key, entry in entries.items()}
    damaged = [key for key, pair in found.items() if pair is None]
    if damaged:
        figures.refuse(_FILE, f"no two times in seconds under {damaged[0]!r}", _REMEDY)
    return {key: pair for key, pair in found.items() if pair is not None}


def _pair(entry: Any) -> Pair | None:
    if not isinstance(entry, list) or len(entry) != 2:
        return None
    if not all(type(each) in (int, float) and math.isfinite(each) and each > 0 for each in entry):
        return None
    return Pair(*map(float, entry))
