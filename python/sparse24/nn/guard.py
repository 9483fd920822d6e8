"""A tensor that keeps loaders which know nothing of compressed weights from taking a file for a dense one.

transformers skips a quantization that it does not know, after a warning, and then gives every weight that is
missing random numbers, after another. So beside the compressed weights of its models stands ``NAME.weight``,
empty, for one layer: a shape that is not the layer's is an error there. Who knows ``values`` leaves it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def guard_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The guard for a state_dict with compressed layers; empty where there is none."""
    for name in state:
        layer, _, attribute = name.rpartition(".")
        if attribute == "indices" and layer and f"{layer}.values" in state:
            return {f"{layer}.weight": torch.empty(0, dtype=torch.uint8)}
    return {}


def is_guard(name: str, state: Mapping[str, Any]) -> bool:
    """Whether what a state_dict calls ``name`` is a guard."""
    value = state[name]
    is_empty = isinstance(value, Tensor) and not value.numel()
    return is_empty and name.endswith("weight") and f"{name.removesuffix('weight')}values" in state
